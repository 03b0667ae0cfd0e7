"""Losses and gradients that are no finite numbers: found before the update that they would poison.

Shape letters: B pairs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from accelerate.utils import DistributedType, gather_object
from torch import Tensor
from torch.distributed.tensor import DTensor

from simpo.errors import Lost
from simpo.losses import PairLogps
from simpo.monitor.checkpoint import keep_checkpoint
from simpo.packing import PackedBatch

if TYPE_CHECKING:
    from simpo.trainer import PreferenceTrainer

_NAMED = 5  # pairs in a message
_WORDS = 12  # of a prompt in a message


def read(number: Any) -> float:
    """A number from the device: the one wait for it in a step."""
    return float(number.item() if isinstance(number, Tensor) else number)


class _Bad(NamedTuple):
    """A pair whose loss is not finite: its place in the training set, and the numbers that go into the loss."""

    place: int
    loss: float
    chosen: float
    rejected: float


class FiniteCheck:
    """Looks at every loss of an optimizer step; one number a step is read from the device.

    It is the gradients' norm before the update, or NaN where a process has seen a bad loss. Where there is no such norm
    (DeepSpeed, fp16, no clipping), it is the number of processes that have seen one.

    Args:
        trainer: whose steps they are.
    """

    def __init__(self, trainer: PreferenceTrainer) -> None:
        self._trainer = trainer
        self._seen: list[tuple[Tensor, tuple[Tensor, ...]]] = []  # [B] is bad, and [B] for each field of `_Bad`

    def add(self, pack: PackedBatch, logps: PairLogps, losses: Tensor) -> None:
        """Look at the [B] losses of a micro-batch, without waiting for the device.

        Where no norm is checked, all processes learn whether any loss was bad once the last micro-batch of the step was
        added, before its backward pass (in which DeepSpeed updates).

        Raises:
            Lost: with the pairs, on all processes, after a checkpoint was written.
        """
        bad = ~(losses.isfinite() & logps.chosen.isfinite()) & (pack["pair_weights"] > 0)
        numbers = (pack["pair_index"], losses.detach(), logps.chosen.detach(), logps.rejected.detach())
        self._seen.append((bad, numbers))
        if self._trainer.accelerator.sync_gradients and not self._norm_tells():
            self._check_losses()

    def _norm_tells(self) -> bool:
        accelerator = self._trainer.accelerator
        of_the_engine = accelerator.distributed_type == DistributedType.DEEPSPEED or accelerator.scaler is not None
        return not of_the_engine and self._trainer.args.max_grad_norm > 0

    def _check_losses(self) -> None:
        if read(self._bad_processes()):
            self._stop()
        self._seen = []

    def _bad_processes(self) -> Tensor:
        flag = torch.stack([bad.any() for bad, _ in self._seen]).any().float()
        return cast(Tensor, self._trainer.accelerator.reduce(flag, reduction="sum"))

    def check_gradients(self, norm: Any) -> None:
        """The gradients' norm before the update; every process sees the same.

        DeepSpeed has updated by then, and a gradient scaler (fp16) leaves such an update out by itself.

        Raises:
            Lost: it is not finite; after a checkpoint was written.
        """
        if norm is None or not self._norm_tells():
            return
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        bad = self._bad_processes()
        if math.isfinite(read(torch.where(bad > 0, torch.nan, norm))):
            self._seen = []
            return
        self._check_losses()
        step = self._trainer.state.global_step
        path = keep_checkpoint(self._trainer, keep_others=False)
        raise Lost(
            f"the gradients of step {step + 1} are not finite (norm {float(norm)}), though its losses are; "
            f"nothing was updated. The weights before this step are in {path}.\n"
            "Usually a number overflows on the way back: write bf16: true in place of fp16, or a lower "
            f"learning_rate or max_length. {_go_on(path)}"
        )

    def check_logged(self, loss: float) -> None:
        """The last net: the mean loss of a log line.

        Raises:
            Lost: it is not finite.
        """
        if not math.isfinite(loss):
            raise Lost(
                f"the loss is {loss} at step {self._trainer.state.global_step}, so these weights are lost; go on "
                "from an earlier checkpoint with a lower learning_rate, or look at the pairs of this step"
            )

    def _stop(self) -> None:
        trainer, seen = self._trainer, self._seen
        step = trainer.state.global_step
        own = [
            _Bad(*values)
            for bad, numbers in seen
            for values in zip(*(column[bad].tolist() for column in numbers), strict=True)
        ]
        pairs = sorted({pair.place: pair for pair in gather_object(own)}.values())
        if not self._weights_are_finite():
            raise Lost(
                f"the weights hold numbers that are not finite at step {step}: an earlier update has broken them, "
                f"and so the losses of {len(pairs)} pairs of the next step. Go on from an earlier checkpoint with a "
                "lower learning_rate, or in bf16 in place of fp16"
            )
        path = keep_checkpoint(trainer, keep_others=False)
        shown = "\n".join(f"  {self._name(pair)}" for pair in pairs[:_NAMED])
        more = f"\n  and {len(pairs) - _NAMED} more" if len(pairs) > _NAMED else ""
        raise Lost(
            f"the loss of {len(pairs)} of the {trainer.args.total_train_batch_size} pairs of step {step + 1} is not "
            f"finite:\n{shown}{more}\nIt was found before the update, so the weights are good; they are in {path}.\n"
            "Look at these pairs (simpo inspect), and at ref_chosen and ref_rejected where the data bring them; take "
            f"out or mend what is wrong. {_go_on(path)}"
        )

    def _name(self, pair: _Bad) -> str:
        """Where a pair comes from, how it begins, and its numbers."""
        trainer = self._trainer
        row = cast(Any, trainer.train_dataset)[pair.place]
        number = int(row["row"]) if "row" in row else pair.place
        tokenizer = cast(Any, trainer.processing_class)
        text = " ".join(str(tokenizer.decode(row["prompt_ids"], skip_special_tokens=True)).split()[:_WORDS])
        return (
            f'{trainer.name_row(number)}: "{text} ..." (loss {pair.loss:g}; summed log-probs: chosen {pair.chosen:g}, '
            f"rejected {pair.rejected:g})"
        )

    def _weights_are_finite(self) -> bool:
        """Whether all weights of all processes are finite; every process must call it."""
        broken = torch.zeros((), device=self._trainer.args.device)
        for parameter in cast(Any, self._trainer.model).parameters():
            held = getattr(parameter, "ds_tensor", parameter)  # ZeRO-3 leaves each process a part
            held = held.to_local() if isinstance(held, DTensor) else held
            if held.is_floating_point():
                broken += (~held.detach().isfinite()).any()
        return not cast(Tensor, self._trainer.accelerator.reduce(broken, reduction="sum")).item()


def _go_on(path: Any) -> str:
    return (
        "Started again with the same settings, the run goes on from there; with other data or settings, write "
        f"model_name_or_path: {path} and another output_dir"
    )
