"""Variable-length kernels on CUDA: torch's own `varlen_attn`, and flash-attn 2, 3 or 4 where installed.

Both take queries and keys of unequal lengths, back to back, and align the causal mask at the bottom right, as a
segment's does. Keys and values of shared prompts are gathered by one index; rows without sharing are read in place.

Shape letters: T packed tokens, G gathered keys, H query heads, K key/value heads, E head size.
"""

import functools
import inspect
from collections.abc import Callable
from importlib import import_module, metadata
from typing import Any, NamedTuple, cast

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
    from torch.nn.attention import varlen

    q, k, v = kernel_inputs(query, key, value, layout)
    grouped: dict[str, Any] = {}
    if q.shape[1] != k.shape[1]:
        if "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters:
            grouped["enable_gqa"] = True
        else:  # torch before 2.12
            k, v = (states.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for states in (k, v))
    attended = varlen.varlen_attn(
        q,
        k,
        v,
        layout.query_starts,
        layout.query_starts if layout.key_index is None else layout.key_starts,
        layout.longest_query,
        layout.longest_key,
        scale=scale,
        window_size=_window(window, layout),
        **grouped,
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
    _, kernel = find_flash(softcap is not None, query.shape[-1])
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


class _Flash(NamedTuple):
    """A version of flash-attn: its package, its module, and what its forward and backward serve."""

    version: int
    package: str
    module: str
    capabilities: range  # first number of the GPU's compute capability
    softcap: bool
    largest_head: int


# Version 4's files also lie in version 2's package, where they do not run; 4 has no backward for Hopper, or for caps.
_FLASH = (
    _Flash(4, "flash-attn-4", "flash_attn.cute", range(10, 11), softcap=False, largest_head=128),
    _Flash(3, "flash-attn-3", "flash_attn_interface", range(9, 10), softcap=True, largest_head=256),
    _Flash(2, "flash-attn", "flash_attn", range(8, 100), softcap=True, largest_head=256),
)


@functools.cache
def find_flash(softcap: bool, head_size: int) -> tuple[int, Callable[..., Any]]:
    """Version and function of the newest flash-attn installed that serves this GPU, soft cap and head size.

    Raises:
        ImportError: none does.
    """
    capability = torch.cuda.get_device_capability()[0] if torch.cuda.is_available() else 0
    for flash in _FLASH:
        if capability not in flash.capabilities or head_size > flash.largest_head or (softcap and not flash.softcap):
            continue
        try:
            if flash.version == 4:
                metadata.version(flash.package)
            return flash.version, import_module(flash.module).flash_attn_varlen_func
        except (ImportError, AttributeError, OSError):  # OSError: a build against another torch
            continue
    raise ImportError("no flash-attn that serves this was found; install it with: pip install 'simpo[flash-attn]'")


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
