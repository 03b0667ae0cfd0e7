"""Some pairs and prompts that are looked at again and again: their log-probs, and what the model answers.

Shape letters: B pairs of a pack, N followed pairs, R prompts, S scored tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn

from simpo.data.tokenize import is_tokenized
from simpo.losses import Objective, PairLogps
from simpo.metrics import PairResults
from simpo.monitor import signals
from simpo.packing import PackedBatch, PackedDataset, token_counts
from simpo.scoring import summed

if TYPE_CHECKING:
    from simpo.trainer import PreferenceTrainer

Columns = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Sample:
    """The pairs that are followed.

    Args:
        pairs: tokenised rows, each with two responses.
        row: [N] their numbers in the set.
        held_out: they come from an evaluation set.
    """

    pairs: Any
    row: np.ndarray
    held_out: bool


def choose_sample(train: Any, evaluation: Any, count: int) -> Sample | None:
    """Pairs spread evenly over the (first) evaluation set, or over the training set where there is none.

    Args:
        train, evaluation: tokenised sets; the latter maybe a dict of them, or None.
        count: how many at most.

    Returns:
        The same pairs whenever the sets are the same; None where no row has two responses.
    """
    named = isinstance(evaluation, Mapping)
    held_out = next(iter(evaluation.values()), None) if named else evaluation
    if isinstance(held_out, Dataset) and not is_tokenized(held_out):  # given to the trainer later than the others
        held_out = None
    pairs = train if held_out is None else held_out
    whole = np.flatnonzero((token_counts(pairs)[1:] > 0).all(axis=0))
    if not len(whole):
        return None
    places = np.unique(np.linspace(0, len(whole) - 1, min(count, len(whole))).round().astype(np.int64))
    at = whole[places].tolist()
    chosen = pairs.select(at) if hasattr(pairs, "select") else [pairs[place] for place in at]
    numbers = [int(pair.get("row", place)) for pair, place in zip(chosen, at, strict=True)]
    row = np.asarray(numbers if len(set(numbers)) == len(numbers) else at)
    return Sample(chosen, row, held_out is not None)


class PairProbe:
    """Measures the log-probs of a sample, on all processes together.

    Args:
        trainer: whose policy it is.
        sample: the pairs.
        end_ids: tokens that end a response.
    """

    def __init__(self, trainer: PreferenceTrainer, sample: Sample, end_ids: Sequence[int]) -> None:
        self._trainer, self._sample = trainer, sample
        self._end_ids = torch.tensor(list(end_ids), device=trainer.args.device)
        packed = PackedDataset(sample.pairs, prefix_sharing=trainer.args.prefix_sharing)
        self._packs = trainer.loaders.ordered_packs(packed, trainer.accelerator)

    def measure(self) -> dict[str, np.ndarray]:
        """[N] each: row, chosen, rejected (nats), chosen_lengths, rejected_lengths, end (log-prob of the chosen
        response's last token in nats; NaN where that does not end it). Leaves no trace in the run."""
        trainer, results = self._trainer, PairResults()
        model = cast(nn.Module, trainer.model)
        training = model.training
        model.eval()
        try:
            with torch.no_grad(), trainer.compute_loss_context_manager():
                for pack in self._packs:
                    moved = cast(PackedBatch, trainer._prepare_inputs(pack))
                    results.add(self._look(model, moved), moved["pair_weights"], moved["pair_index"])
        finally:
            model.train(training)
        found = results.gather(trainer.accelerator)
        lengths = token_counts(self._sample.pairs)
        return {"row": self._sample.row, **found, "chosen_lengths": lengths[1], "rejected_lengths": lengths[2]}

    def _look(self, model: nn.Module, pack: PackedBatch) -> dict[str, Tensor]:
        token_logps = self._trainer.scorer.token_logps(model, pack)  # [S]
        chosen, rejected = summed(token_logps, pack)
        last = (pack["chosen_lengths"] + pack["rejected_lengths"]).cumsum(0) - pack["rejected_lengths"] - 1
        ends = torch.isin(pack["target_ids"][last], self._end_ids)
        end = token_logps[last].float().masked_fill(~ends, math.nan)
        return {"chosen": chosen, "rejected": rejected, "end": end}


def with_reference(found: Columns, start: Columns) -> dict[str, np.ndarray]:
    """The columns of a probe's file: the log-probs beside those at the start."""
    names = ("row", "chosen", "rejected", "chosen_lengths", "rejected_lengths")
    return {name: found[name] for name in names} | {
        "ref_chosen": start["chosen"],
        "ref_rejected": start["rejected"],
    }


def pair_numbers(found: Columns, start: Columns, objective: Objective) -> dict[str, float]:
    """What is logged of a probe; nats per token, shares in [0, 1]. A number that does not exist is left out.

    Args:
        found: from `PairProbe.measure`.
        start: the same at the start of the run.
        objective: of the run; its rewards make the accuracy.
    """
    chosen, rejected = (found[side] / found[f"{side}_lengths"] for side in ("chosen", "rejected"))
    chosen_then, rejected_then = (start[side] / start[f"{side}_lengths"] for side in ("chosen", "rejected"))
    drop = float((chosen_then - chosen).mean())
    gain = float(((chosen - rejected) - (chosen_then - rejected_then)).mean())
    ends = found["end"][~np.isnan(found["end"])]
    numbers = {
        signals.CHOSEN: float(chosen.mean()),
        signals.REJECTED: float(rejected.mean()),
        signals.DROP: drop,
        signals.GAIN: gain,
        signals.DROP_PER_GAIN: drop / gain if abs(gain) > 1e-3 else math.nan,
        signals.FELL: float((chosen < chosen_then).mean()),
        signals.ACCURACY: _accuracy(found, start, objective),
        signals.END: float(np.exp(ends).mean()) if len(ends) else math.nan,
    }
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _accuracy(found: Columns, start: Columns, objective: Objective) -> float:
    """Share of pairs with the larger reward on the chosen side; the start stands for the initial policy."""
    names = ("chosen", "rejected", "chosen_lengths", "rejected_lengths")
    seen = {name: torch.from_numpy(np.array(found[name], np.float64)) for name in names}
    then = {f"ref_{side}": torch.from_numpy(np.array(start[side], np.float64)) for side in names[:2]}
    with torch.no_grad():
        results = objective(PairLogps(**seen, **then, kl=torch.zeros((), dtype=torch.float64)))
    return float((results.chosen_rewards > results.rejected_rewards).double().mean())
