"""The product with one idea after the other taken away: how each of `benchmarks.presets.VARIANTS` is made."""

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.presets import Variant
from benchmarks.sampling import UnbalancedSampler
from simpo import SimPOTrainer
from simpo.batching import StepSampler


class InOrder(SimPOTrainer):
    """The product, with the pairs in the data set's order, so that all variants see the same steps."""

    def _train_sampler(self) -> StepSampler:
        sampler = super()._train_sampler()
        sampler.seed = None
        return sampler


class Unbalanced(InOrder):
    """Micro-batches of equal numbers of pairs, whatever their lengths."""

    def _train_sampler(self) -> StepSampler:
        planned = super()._train_sampler()
        return UnbalancedSampler(
            planned.tokens,
            pairs_per_step=planned.pairs_per_step,
            budget=planned.budget,
            world_size=planned.world_size,
            rank=planned.rank,
        )


def score_every_row(model: nn.Module) -> None:
    """Make the head score every packed position, as an implementation does that builds logits and masks later."""

    packed: Callable[..., Any] = model.forward

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if "source_positions" not in kwargs or not self.training:
            return packed(*args, **kwargs)
        ids, sources = kwargs["input_ids"][0], kwargs["source_positions"]
        unscored = torch.ones(ids.shape[0], dtype=torch.bool, device=ids.device)
        unscored[sources] = False
        rest = unscored.nonzero().squeeze(1)
        kwargs["source_positions"] = torch.cat((sources, rest))
        kwargs["target_ids"] = torch.cat((kwargs["target_ids"], ids[rest]))
        return packed(*args, **kwargs)[: sources.shape[0]]

    model.forward = MethodType(forward, model)  # type: ignore[method-assign]


def run_padded(model: nn.Module) -> None:
    """Make training run two padded rows for each pair and whole logits: what packs replace. Needs unshared packs."""
    from trl.trainer.utils import selective_log_softmax

    packed: Callable[..., Any] = model.forward

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if "source_positions" not in kwargs or not self.training:
            return packed(*args, **kwargs)
        flat, column = kwargs["input_ids"][0], kwargs["position_ids"][0]
        row = (column == 0).cumsum(0) - 1
        ids, mask = _padded(flat, row, column)
        logits = packed(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        logps: Tensor = selective_log_softmax(logits, ids[:, 1:])
        sources = kwargs["source_positions"]
        return logps[row[sources], column[sources]].float()

    model.forward = MethodType(forward, model)  # type: ignore[method-assign]


def _padded(flat: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    ids = flat.new_zeros(int(row[-1]) + 1, int(column.max()) + 1)
    mask = torch.zeros_like(ids)
    ids[row, column], mask[row, column] = flat, 1
    return ids, mask


def trainer_class(variant: Variant) -> type[SimPOTrainer]:
    """The trainer with this variant's plan."""
    return InOrder if variant.balanced else Unbalanced


def change_model(variant: Variant, model: nn.Module) -> None:
    """Take away from a trainer's model what this variant does without."""
    if variant.padded:
        run_padded(model)
    elif not variant.scored_rows_only:
        score_every_row(model)
