"""Variable-length kernels on CUDA: torch's own `varlen_attn`, and flash-attn 2, 3 or 4 where installed.

Both take queries and keys of unequal lengths, back to back, and align the causal mask at the bottom right, as a
segment's does. Keys and values of shared prompts are gathered by one index; rows without sharing are read in place.

Shape letters: T packed tokens, G gathered keys, H query heads, K key/value heads, E head size.
"""

import functools
from collections.abc import Callable
from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor

from simpo.attention.layout import PackLayout


def varlen_attention(
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
    """Attention of one packed row with `torch.nn.attention.varlen.varlen_attn` (16 bit, no soft cap, no dropout).

    Args and result are those of `segment_attention`.
    """
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = kernel_inputs(query, key, value, layout)
    attended = varlen_attn(
        q,
        k,
        v,
        layout.query_starts,
        layout.query_starts if layout.key_index is None else layout.key_starts,
        layout.longest_query,
        layout.longest_key,
        scale=scale,
        window_size=_window(window, layout),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return cast(Tensor, attended)[None]


def flash_attention(
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
    """Attention of one packed row with the newest flash-attn installed (16 bit, no dropout).

    Args and result are those of `segment_attention`.
    """
    _, kernel = find_flash()
    q, k, v = kernel_inputs(query, key, value, layout)
    attended = kernel(
        q,
        k,
        v,
        cu_seqlens_q=layout.query_starts,
        cu_seqlens_k=layout.query_starts if layout.key_index is None else layout.key_starts,
        max_seqlen_q=layout.longest_query,
        max_seqlen_k=layout.longest_key,
        softmax_scale=scale,
        causal=True,
        window_size=_window(window, layout),
        **({} if softcap is None else {"softcap": softcap}),
    )
    # versions 3 and 4 may return (output, log-sum-exp)
    return (attended[0] if isinstance(attended, tuple) else attended)[None]


# Where each version keeps its function; version 4 lives inside version 2's package.
_FLASH_MODULES = {4: "flash_attn.cute", 3: "flash_attn_interface", 2: "flash_attn"}


@functools.cache
def find_flash() -> tuple[int, Callable[..., Any]]:
    """Version and function of the newest flash-attn that this device can run.

    Raises:
        ImportError: none is installed.
    """
    for version, module in _FLASH_MODULES.items():
        if version > 2 and torch.cuda.is_available() and torch.cuda.get_device_capability()[0] < 9:
            continue  # 3 needs Hopper; 4 needs Hopper or later
        try:
            return version, import_module(module).flash_attn_varlen_func
        except (ImportError, AttributeError, OSError):  # OSError: a build against another torch
            continue
    raise ImportError("no flash-attn found; install it with: pip install 'simpo[flash-attn]'")


def kernel_inputs(query: Tensor, key: Tensor, value: Tensor, layout: PackLayout) -> tuple[Tensor, Tensor, Tensor]:
    """[T, H, E] queries and [G, K, E] keys and values in one dtype, as variable-length kernels take them.

    Under autocast, rotary embeddings leave queries and keys in float32; these kernels are not on autocast's list.
    """
    dtype = kernel_dtype(value)
    q, k, v = (states[0].transpose(0, 1).to(dtype) for states in (query, key, value))
    if layout.key_index is not None:
        k, v = k.index_select(0, layout.key_index), v.index_select(0, layout.key_index)
    return q, k, v


def kernel_dtype(value: Tensor) -> torch.dtype:
    """The dtype that attention computes in: autocast's where it is on, else that of the values."""
    device = value.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype


def _window(window: int | None, layout: PackLayout) -> tuple[int, int]:
    """(left, right) bounds as the kernels count them: the query itself is not counted."""
    if window is None or window >= layout.longest_key:
        return (-1, 0)
    return (window - 1, 0)
