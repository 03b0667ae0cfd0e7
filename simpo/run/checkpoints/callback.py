"""Keeps the checkpoints of a run: seals each one, then drops old ones."""

import shutil
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from simpo.run.checkpoints.seal import seal, unseal
from simpo.run.folder import begun_checkpoints, checkpoints, step_of

_GOING = ".going"  # end of the name of a folder that is being removed


class CheckpointCallback(TrainerCallback):
    """Seals every checkpoint with the settings that fix the run's trajectory; then drops old ones.

    transformers deletes old checkpoints before anyone can say that the new one is whole, so its own limit is not used.

    Args:
        identity: from `run_identity`.
        limit: whole checkpoints to keep besides the best one; None keeps all.
    """

    def __init__(self, identity: dict[str, Any], limit: int | None = None) -> None:
        self.identity = identity
        self.limit = limit

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove what an earlier attempt began to write behind the step at which this one begins, or to remove."""
        if state.is_world_process_zero:
            for path in Path(str(args.output_dir)).glob(f"checkpoint-*{_GOING}"):
                shutil.rmtree(path)
            whole = checkpoints(str(args.output_dir))
            for path in begun_checkpoints(str(args.output_dir)):
                if step_of(path) > state.global_step and path not in whole:
                    shutil.rmtree(path)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A checkpoint that is about to be written again goes: parts of processes that are no more would stay in it."""
        if not control.should_save:
            return
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            remove_checkpoint(folder)
        PartialState().wait_for_everyone()  # the others write into it as soon as they may

    on_epoch_end = on_step_end  # where there is one for each epoch

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Called by transformers after a checkpoint was written."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        seal(folder, self.identity)
        kept = kwargs.get("keep_others")  # a monitor stops the run: earlier checkpoints may be better than this one
        if state.is_world_process_zero and self.limit is not None and not kept:
            best = Path(state.best_model_checkpoint).name if state.best_model_checkpoint else ""
            # a run that went back to an earlier checkpoint finds later ones, which are older than what it writes
            found = sorted(
                checkpoints(folder.parent), key=lambda path: (step_of(path) <= state.global_step, step_of(path))
            )
            for old in found[: -max(1, self.limit)]:
                if old.name != best:
                    remove_checkpoint(old)
        PartialState().wait_for_everyone()  # here, where waiting is no sign of a hang, and not in the next step


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint so that a crash in between does not leave a part of it that looks whole, or that stays."""
    unseal(folder)
    shutil.rmtree(folder.rename(folder.with_name(folder.name + _GOING)))
