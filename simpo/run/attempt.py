"""What every kind of run does around its training: a folder of its own, signals, signs of life, an end in order."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import Trainer, TrainingArguments

from simpo.run.checkpoints.faults import check_writable, saving_into
from simpo.run.checkpoints.resume import choose_checkpoint
from simpo.run.checkpoints.training import train_safely
from simpo.run.export import export_model, push_folder
from simpo.run.folder import remove_earlier_run
from simpo.run.interrupt import Interruption
from simpo.run.manifest import write_manifest
from simpo.run.messages import say
from simpo.run.owner import Owner, owner_of
from simpo.run.watch.heartbeat import Heartbeat, heartbeat


@dataclass(frozen=True)
class RunRecord:
    """What a run writes down about itself.

    Args:
        identity: what must agree between a checkpoint and the run that goes on from it.
        manifest: of a run that is about to start.
        card: (manifest, metrics) -> the model card.
        counts: numbers that stand with the metrics of "train" and of "eval".
        settings: kept beside the manifest as one YAML file.
        message: of the commit on the hub.
    """

    identity: dict[str, Any]
    manifest: dict[str, Any]
    card: Callable[[Mapping[str, Any], Mapping[str, float]], str]
    counts: Mapping[str, dict[str, int]] = field(default_factory=dict)
    settings: Mapping[str, Any] | None = None
    message: str = "Model trained with SimPO"


@dataclass(frozen=True)
class Attempt:
    """One start of a run, from `attempt`.

    Args:
        interruption: of the signals that end it.
        checkpoint: what it goes on from; None for a fresh start.
        notes: lines on that for the plan.
        overwrite: what an earlier run left is removed before a fresh start.
        owner: of the output folder.
        pulse: of this process; None where nothing is watched.
    """

    interruption: Interruption
    checkpoint: Path | None
    notes: list[str]
    overwrite: bool
    owner: Owner
    pulse: Heartbeat | None

    def train(self, trainer: Trainer, record: RunRecord) -> None:
        """Train, export, evaluate, and leave what is needed to repeat it; every process must call it.

        Raises:
            Interrupted: a signal ended it; the same command goes on.
            SimPOError: what is wrong, where, and what to write instead.
        """
        folder = str(trainer.args.output_dir)
        self._begin(trainer, folder)
        result = train_safely(
            trainer,
            identity=record.identity,
            checkpoint=self.checkpoint,
            manifest=record.manifest,
            interruption=self.interruption,
            settings=record.settings,
        )
        metrics = _noted(trainer, "train", result.metrics, record)
        trainer.save_state()
        with saving_into(folder, keep=self.checkpoint):
            export_model(trainer, folder)  # before the evaluation: whatever happens there, the model is safe
        if trainer.eval_dataset is not None:
            metrics |= _noted(trainer, "eval", trainer.evaluate(), record)
        if trainer.is_world_process_zero():
            finished = {"status": "finished", "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "metrics": metrics}
            manifest = record.manifest | finished
            Path(folder, "README.md").write_text(record.card(manifest, metrics))
            write_manifest(folder, manifest)  # last: it says that everything else is there
        trainer.accelerator.wait_for_everyone()  # no process closes its connections while another still writes
        trainer.accelerator.end_training()
        if trainer.args.push_to_hub and trainer.is_world_process_zero():
            push_folder(trainer, folder, record.message)  # when nobody waits: no collective waits for hours
        say(f"Done: {folder}")

    def _begin(self, trainer: Trainer, folder: str) -> None:
        PartialState().wait_for_everyone()  # every process has looked at the folder before one writes into it
        self.owner.check_alone()
        if self.overwrite and self.checkpoint is None and PartialState().is_main_process:
            remove_earlier_run(folder)
        trainer.add_callback(self.interruption)  # before those that ask at the end of a step whether it is saved
        if self.pulse is not None:
            self.pulse.follow(trainer)


def _noted(trainer: Trainer, name: str, found: Mapping[str, float], record: RunRecord) -> dict[str, float]:
    metrics = {**found, **record.counts.get(name, {})}
    trainer.log_metrics(name, metrics)
    trainer.save_metrics(name, metrics)
    return metrics


@contextlib.contextmanager
def attempt(
    args: TrainingArguments, interruption: Interruption, *, overwrite: bool, resume: str | bool | None
) -> Iterator[Attempt]:
    """Have the output folder for oneself in this block, give signs of life there, and choose what to go on from.

    Every process must call it.

    Args:
        args: of the run.
        interruption: from `interruptible`.
        overwrite: start afresh in an output folder that holds something.
        resume: as in `simpo.run.folder.find_checkpoint`.

    Raises:
        ConfigError: the folder cannot be written, is in use, or holds something that a run must not overwrite.
        ModelError: no checkpoint is left undamaged.
    """
    folder = str(args.output_dir)
    check_writable(folder)
    with owner_of(folder) as owner:
        owner.take()
        with heartbeat(args) as pulse, interruption.noted_in(folder):
            checkpoint, notes = choose_checkpoint(args, resume, overwrite, dry_run=False)
            yield Attempt(interruption, checkpoint, notes, overwrite, owner, pulse)
