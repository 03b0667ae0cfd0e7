"""Stand-ins for CUDA kernels: they allocate and keep what the kernels do, and compute nothing.

They run on tensors without data, so that a machine without a GPU can count a step on one.

Shape letters: T packed tokens, G gathered keys, H query heads, K key/value heads, E head size, S scored tokens,
D hidden size, V vocabulary.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from simpo.attention.layout import PackLayout
from simpo.attention.varlen import kernel_inputs
from simpo.logps import vocabulary_chunk

_ATTENTION = "simpo_planned"
_TILE_ROWS = 4096


def install_cuda_standins(model: PreTrainedModel, *, flash: bool = True) -> None:
    """Put the stand-ins in place of a model's head and, with `flash`, of its attention.

    The model's packed forward is installed already.
    """
    if flash:
        AttentionInterface.register(_ATTENTION, _attention)
        AttentionMaskInterface.register(_ATTENTION, sdpa_mask)
        model.set_attn_implementation(_ATTENTION)
    head: Any = model.get_output_embeddings()
    head.forward = MethodType(_head, head)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    layout: PackLayout | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    assert layout is not None
    attended: Tensor = _FlashAttention.apply(*kernel_inputs(query, key, value, layout))  # type: ignore[no-untyped-call]
    return attended[None], None


class _FlashAttention(torch.autograd.Function):
    """Keeps inputs, output [T, H, E] and log-sum-exp [H, T]; backward sums queries in float32, keys by head."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        tokens, heads, _ = query.shape
        output = query.new_empty(tokens, heads, value.shape[2])
        ctx.save_for_backward(query, key, value, output, query.new_empty(heads, tokens, dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        query, key, value, _, log_sum_exp = ctx.saved_tensors
        sums = torch.empty_like(query, dtype=torch.float32), torch.empty_like(log_sum_exp)
        results = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        if key.shape[1] != query.shape[1]:
            repeats = query.shape[1] // key.shape[1]
            by_head = [states.new_empty(states.shape[0], repeats * states.shape[1], states.shape[2])
                       for states in (key, value)]  # fmt: skip
            del by_head
        del sums
        return results


def _head(self: nn.Linear, hidden: Tensor, target_ids: Tensor | None = None) -> Tensor:
    logps: Tensor = _TiledHead.apply(hidden, self.weight)  # type: ignore[no-untyped-call]
    return logps


class _TiledHead(torch.autograd.Function):
    """Keeps [S, D] hidden states, the weight and [S] normalisers; tiles of [rows, vocabulary chunk] in 16 bits, sums of
    both gradients in float32 (`trl.kernels.ChunkedLogProbFunction`)."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        device = hidden.device.type
        ctx.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        ctx.chunk = vocabulary_chunk(hidden.shape[0], weight.shape[0], "cuda")
        _tile(hidden, weight, ctx)
        per_row = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
        ctx.save_for_backward(hidden, weight, per_row)
        return torch.empty_like(per_row)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        hidden, weight, _ = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad
        by_row = torch.zeros_like(hidden, dtype=torch.float32) if needs_hidden else None
        by_word = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        _tile(hidden, weight, ctx)
        return (
            by_row.to(hidden.dtype) if by_row is not None else None,
            by_word.to(weight.dtype) if by_word is not None else None,
        )


def _tile(hidden: Tensor, weight: Tensor, ctx: Any) -> None:
    """A tile of logits beside the rows and words that make it, where those are not in the dtype of the product."""
    rows = min(hidden.shape[0], _TILE_ROWS)
    held = [hidden.new_empty(rows, ctx.chunk, dtype=ctx.dtype)]
    held += [part.to(ctx.dtype) for part in (hidden[:rows], weight[: ctx.chunk])]
