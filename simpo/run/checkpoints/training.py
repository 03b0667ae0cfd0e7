"""A training that survives: checkpoints that are whole, signals, full disks, another number of processes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import Trainer

from simpo.run.checkpoints.callback import CheckpointCallback
from simpo.run.checkpoints.engines import check_engine_of
from simpo.run.checkpoints.faults import saving_into
from simpo.run.checkpoints.pickles import check_pickles
from simpo.run.checkpoints.resume import check_identity
from simpo.run.checkpoints.universal import load_on_any_number
from simpo.run.interrupt import Interruption
from simpo.run.manifest import write_manifest, write_settings
from simpo.run.messages import say


def train_safely(
    trainer: Trainer,
    *,
    identity: dict[str, Any],
    checkpoint: Path | None,
    manifest: dict[str, Any],
    interruption: Interruption,
    settings: Mapping[str, Any] | None = None,
) -> Any:
    """Train from a checkpoint, or from the start, to the end; every process must call it.

    Args:
        trainer: ready to train.
        identity: what must agree between a checkpoint and the run that goes on from it.
        checkpoint: from `choose_checkpoint`.
        manifest: of the run; it is written before.
        interruption: from `interruptible`; one of the trainer's callbacks.
        settings: kept beside the manifest as one YAML file.

    Returns:
        transformers' `TrainOutput`.

    Raises:
        ModelError: the checkpoint is that of another run or of another engine, or holds code.
        StoreError: a checkpoint could not be written.
        Interrupted: a signal ended the training, with a checkpoint.
    """
    args = trainer.args
    folder = str(args.output_dir)
    if checkpoint is not None:
        check_identity(checkpoint, identity)
        check_pickles(checkpoint)
        check_engine_of(checkpoint, trainer)
        note = load_on_any_number(trainer, checkpoint)
        say(f"Going on from {checkpoint}" + (f"; {note}" if note else ""))
    limit, args.save_total_limit = args.save_total_limit, None  # ours knows which ones are whole
    trainer.add_callback(CheckpointCallback(identity, limit))
    _stop_at_the_last_step(trainer)
    if trainer.is_world_process_zero():
        write_manifest(folder, manifest)  # first: it says that what is beside it is a run's
        if settings is not None:
            write_settings(folder, settings)
    with saving_into(folder, keep=checkpoint):
        result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    interruption.raise_if_stopped(folder, trainer.state.global_step)
    return result


def _stop_at_the_last_step(trainer: Trainer) -> None:
    """Let a run that goes on from its last step, within an epoch, end there: transformers looks after a step only."""
    run_epoch = trainer._run_epoch

    def unless_done(*args: Any, **named: Any) -> None:
        if trainer.state.global_step < trainer.state.max_steps:
            run_epoch(*args, **named)
        else:
            trainer.control.should_training_stop = True

    trainer._run_epoch = unless_done  # type: ignore[method-assign]
