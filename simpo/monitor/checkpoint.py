"""A checkpoint that is written when a run ends before its time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import broadcast_object_list

if TYPE_CHECKING:
    from simpo.trainer import PreferenceTrainer


def keep_checkpoint(trainer: PreferenceTrainer, *, keep_others: bool) -> Path:
    """Write the weights as they are, whatever `save_strategy` says; every process must call it.

    Args:
        trainer: between two optimizer steps, or inside one before its update.
        keep_others: older checkpoints stay, whatever `save_total_limit` says.

    Returns:
        The checkpoint of this step; the one that is there already where this run wrote one.
    """
    args, state = trainer.args, trainer.state
    path = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
    (there,) = broadcast_object_list([_is_of_run(path, state.log_history)])  # before any process writes
    if there:
        return path
    limit = args.save_total_limit
    args.save_total_limit = None if keep_others else limit
    try:
        trainer._save_checkpoint(trainer.model_wrapped, None)
        trainer.control = trainer.callback_handler.call_event(
            "on_save", args, state, trainer.control, keep_others=keep_others
        )
    finally:
        args.save_total_limit = limit
    trainer.accelerator.wait_for_everyone()
    return path


def _is_of_run(path: Path, history: Sequence[dict[str, Any]]) -> bool:
    """Whether a checkpoint was written in the run that has logged this: a folder may hold those of an earlier run."""
    try:
        logged = json.loads((path / "trainer_state.json").read_text())["log_history"]
    except (OSError, ValueError, KeyError):
        return False
    return bool(logged == json.loads(json.dumps(history[: len(logged)])))
