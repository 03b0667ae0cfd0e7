"""Which kernel computes the attention of a pack: chosen by device, dtype, head size, window and soft cap.

flash    flash-attn 2, 3 or 4 where installed (CUDA, 16 bit)
varlen   torch's varlen_attn (CUDA, 16 bit, no soft cap)
flex     FlexAttention (CUDA; soft caps, float32, any head size)
sdpa     torch's SDPA segment by segment (any device)
"""

import functools
import logging
from collections.abc import Callable
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from simpo.attention.layout import PackLayout
from simpo.attention.sdpa import segment_attention
from simpo.attention.varlen import find_flash, flash_attention, kernel_dtype, varlen_attention
from simpo.errors import ModelError

logger = logging.getLogger(__name__)

BACKENDS = ("flash", "varlen", "flex", "sdpa")
_LARGEST_HEAD = 256  # of the flash kernels
_SMALLEST_FLEX_HEAD = 16


class Demand(NamedTuple):
    """What a layer asks of its attention.

    Fields:
        device: `cuda`, `cpu`, ...
        dtype: what it computes in.
        head_size, value_size: numbers per query/key head and per value head.
        softcap: scores are soft-capped.
        dropout: some weights are dropped.
    """

    device: str
    dtype: torch.dtype
    head_size: int
    value_size: int
    softcap: bool = False
    dropout: bool = False

    def __str__(self) -> str:
        """For people."""
        extras = [name for name in ("softcap", "dropout") if getattr(self, name)]
        kind = str(self.dtype).removeprefix("torch.")
        return ", ".join([f"{self.device}, {kind}, head size {self.head_size}", *extras])


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackLayout,
    *,
    backend: str = "auto",
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention of one packed row with the backend asked for, or the fastest that can serve it.

    Args and result are those of `segment_attention`, and `backend`: auto or one of `BACKENDS`.

    Raises:
        ModelError: the backend cannot serve this, with the reason.
    """
    demand = Demand(
        query.device.type, kernel_dtype(value), query.shape[-1], value.shape[-1], softcap is not None, dropout > 0
    )
    return _kernel_of(choose(backend, demand))(
        query, key, value, layout, scale=scale, window=window, softcap=softcap, dropout=dropout
    )


@functools.cache
def choose(requested: str, demand: Demand) -> str:
    """Name of the backend that serves `demand`.

    Args:
        requested: auto, or one of `BACKENDS`.
        demand: what the layers need.

    Raises:
        ModelError: the requested backend is unknown or cannot serve it, with the reason.
    """
    if requested == "auto":
        name = next(name for name in _order(demand) if objection(name, demand) is None)
        logger.info("attention: %s (%s)", describe(name, demand), demand)
        return name
    if requested not in BACKENDS:
        raise ModelError(f"attn_backend: {requested!r} is unknown; write auto, {', '.join(BACKENDS)}")
    why = objection(requested, demand)
    if why is not None:
        raise ModelError(
            f"attn_backend: {requested} {why} (asked for: {demand}); leave attn_backend out, and "
            f"{choose('auto', demand)} is taken"
        )
    return requested


def objection(name: str, demand: Demand) -> str | None:
    """Why a backend cannot serve a demand, or None where it can."""
    if name == "sdpa":
        return None
    if demand.device != "cuda":
        return "runs on CUDA only"
    if demand.dropout:
        return "knows no attention dropout"
    if name == "flex":
        if min(demand.head_size, demand.value_size) < _SMALLEST_FLEX_HEAD:
            return f"serves head sizes from {_SMALLEST_FLEX_HEAD} on"
        return None if find_spec("triton") else "needs triton, which is not installed"
    if demand.dtype not in (torch.bfloat16, torch.float16):
        return "computes in bfloat16 and float16 only"
    if demand.head_size != demand.value_size:
        return f"needs heads of one size, not {demand.head_size} for keys and {demand.value_size} for values"
    if demand.head_size > _LARGEST_HEAD or demand.head_size % 8:
        return f"serves head sizes up to {_LARGEST_HEAD} that are multiples of 8"
    if torch.cuda.is_available() and torch.cuda.get_device_capability()[0] < 8:
        return "needs a GPU of compute capability 8.0 (A100, RTX 30) or later"
    if name == "varlen":
        return "knows no soft cap on the scores" if demand.softcap else None
    try:
        find_flash(demand.softcap, demand.head_size)
    except ImportError as error:
        return f"cannot run: {error}"
    return None


def _order(demand: Demand) -> tuple[str, ...]:
    """Fastest first: flash-attn 3 and 4 beat the version-2 kernels that torch ships, version 2 does not.

    In float32, which is for exactness and not for speed, SDPA is taken.
    """
    if demand.device != "cuda" or demand.dtype == torch.float32:
        return ("sdpa",)
    try:
        newest = find_flash(demand.softcap, demand.head_size)[0] > 2
    except ImportError:
        newest = False
    return BACKENDS if newest else ("varlen", "flash", "flex", "sdpa")


def describe(name: str, demand: Demand) -> str:
    """A backend for people, with what it runs on."""
    if name == "flash":
        return f"flash-attn {find_flash(demand.softcap, demand.head_size)[0]}"
    long = {"varlen": "torch varlen_attn", "flex": "FlexAttention", "sdpa": "SDPA, segment by segment"}
    return long[name]


def _kernel_of(name: str) -> Callable[..., Tensor]:
    if name == "flex":
        from simpo.attention.flex import flex_segment_attention  # its import costs half a second

        return flex_segment_attention
    return {"flash": flash_attention, "varlen": varlen_attention, "sdpa": segment_attention}[name]
