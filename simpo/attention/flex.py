"""FlexAttention on CUDA: any mask and soft-capped scores, without gathering keys and values.

The mask is evaluated inside the kernel from four numbers per query; blocks of 128 x 128 that no query sees are never
visited. The block map is made on the host from the segments, so no [T, T] mask exists at any time.

Shape letters: T packed tokens, H query heads, K key/value heads, E head size, M blocks of 128 tokens.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from simpo.attention.layout import PackLayout
from simpo.attention.varlen import kernel_dtype

BLOCK = 128


def flex_segment_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackLayout,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention of one packed row with FlexAttention (no dropout; on a CPU without gradients only).

    Args and result are those of `segment_attention`.
    """
    tokens = query.shape[2]
    rest = -tokens % BLOCK  # lengths in steps of 128, so that few shapes are compiled
    dtype = kernel_dtype(value)
    q, k, v = (states.to(dtype) for states in (query, key, value))
    if rest:
        q, k, v = (F.pad(states, (0, 0, 0, rest)) for states in (q, k, v))
    mask = layout.cache.get(window)
    if mask is None:
        mask = layout.cache[window] = block_mask(layout, window, query.device)
    attended = _kernel(query.device.type)(
        q,
        k,
        v,
        score_mod=_soft_cap(softcap, query.device),
        block_mask=mask,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return attended[:, :, :tokens].transpose(1, 2).contiguous()


@functools.cache
def _kernel(device_type: str) -> Callable[..., Any]:
    return cast(Any, torch.compile(flex_attention, dynamic=True) if device_type == "cuda" else flex_attention)


@functools.cache  # one function for each cap, or every call would compile anew
def _soft_cap(softcap: float | None, device: torch.device) -> Callable[..., Tensor] | None:
    if softcap is None:
        return None
    limit = torch.full((), softcap, device=device)  # a tensor: numbers in a closure are compiled in, or fail to be

    def cap(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return limit * torch.tanh(score / limit)

    return cap


def block_mask(layout: PackLayout, window: int | None, device: torch.device) -> BlockMask:
    """Which 128 x 128 blocks are computed for a layout, and the exact mask inside them; padded to whole blocks."""
    table = np.array(layout.segments)
    tokens = int(table[-1, 1])
    padded = math.ceil(tokens / BLOCK) * BLOCK
    counts, indices = (torch.from_numpy(part).to(device, non_blocking=True) for part in _blocks(table, padded, window))
    return BlockMask.from_kv_blocks(
        counts[None, None],
        indices[None, None],
        BLOCK_SIZE=BLOCK,
        mask_mod=_mask(layout, padded, window, device),
        seq_lengths=(padded, padded),
    )


def _blocks(table: np.ndarray, padded: int, window: int | None) -> tuple[np.ndarray, np.ndarray]:
    """[M] visited key blocks of each query block, and [M, M] their numbers, visited ones first.

    A block is visited where a key of it may be seen by a query of the query block, by bounds on both.
    """
    starts, ends, prompt_starts, prompt_ends = table.T
    blocks = padded // BLOCK
    seen = np.zeros((blocks, blocks), dtype=bool)
    for start, end, prompt_start, prompt_end in zip(starts, ends, prompt_starts, prompt_ends, strict=True):
        for block in range(start // BLOCK, (end - 1) // BLOCK + 1):
            first, last = max(start, block * BLOCK), min(end, (block + 1) * BLOCK) - 1
            own = start if window is None else max(start, first - window + 1)
            seen[block, own // BLOCK : last // BLOCK + 1] = True
            # the window reaches `window - 1` positions back; what of it lies before the segment lies in the prompt
            reach = prompt_start if window is None else max(prompt_start, prompt_end - (window - 1 - (first - start)))
            if reach < prompt_end:
                seen[block, reach // BLOCK : (prompt_end - 1) // BLOCK + 1] = True
    order = np.argsort(~seen, axis=1, kind="stable")
    return seen.sum(axis=1).astype(np.int32), order.astype(np.int32)


def _mask(layout: PackLayout, padded: int, window: int | None, device: torch.device) -> Callable[..., Tensor]:
    """The mask of `layout.visible`, asked for one query and one key at a time."""
    table = layout.table.to(device, non_blocking=True)
    tokens = int(layout.segments[-1].query_end)
    own = torch.repeat_interleave(
        torch.arange(len(table), device=device), (table[:, 1] - table[:, 0]).long(), output_size=tokens
    )
    start, _, prompt_start, prompt_end = (F.pad(column, (0, padded - tokens)) for column in table[own].unbind(1))
    rows = torch.arange(padded, device=device, dtype=torch.int32)
    start = torch.where(rows < tokens, start, rows)  # padding sees itself
    prompt = prompt_end - prompt_start
    reach = torch.full((), padded if window is None else window, device=device, dtype=torch.int32)

    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        inside = (key >= start[query]) & (key <= query)
        before = (key >= prompt_start[query]) & (key < prompt_end[query])
        # own keys stand after the prompt, prompt keys at their distance from its start
        key_position = key - torch.where(inside, start[query] - prompt[query], prompt_start[query])
        return (inside | before) & (query - start[query] + prompt[query] - key_position < reach)

    return mask
