"""Which checkpoint a run goes on from: the last one that is whole, undamaged and its own."""

import json
import logging
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainingArguments

from simpo.errors import ConfigError, ModelError
from simpo.main_process import on_main
from simpo.run.checkpoints.seal import IDENTITY, damages
from simpo.run.folder import checkpoints, find_checkpoint

logger = logging.getLogger(__name__)


def choose_checkpoint(
    args: TrainingArguments, resume: str | bool | None, overwrite: bool, dry_run: bool
) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from; every process must call it. A dry run only notes what would stop the run here.

    A damaged checkpoint is passed over for the one before it, and set aside under another name.

    Args:
        args: its `output_dir` is looked into.
        resume: as in `simpo.run.folder.find_checkpoint`.
        overwrite: start afresh.
        dry_run: change nothing.

    Returns:
        The checkpoint, or None for a fresh start, and lines for the plan.

    Raises:
        ConfigError: the folder holds something that a run must not overwrite, or no such checkpoint.
        ModelError: the checkpoint that is named is damaged, or all are.
    """
    try:
        # one process looks: a network disk may show the others what was there some time ago
        checkpoint = on_main(lambda: find_checkpoint(args.output_dir or "", resume, overwrite=overwrite))
        damaged: dict[Path, str] = {}
        while checkpoint is not None and (found := damages(checkpoint)):
            damaged[checkpoint] = _first(found)
            last = checkpoint
            checkpoint = None if isinstance(resume, str) else on_main(lambda last=last: _before(last))  # type: ignore[misc]
        if damaged and checkpoint is None:
            raise ModelError(_nothing_left(damaged))
    except (ConfigError, ModelError) as error:
        if not dry_run:
            raise
        return None, [f"! {error}"]
    notes = [f"! {path} is damaged ({what}) and is passed over" for path, what in damaged.items()]
    if not dry_run:
        _set_aside(list(damaged))
    return checkpoint, [*notes, f"goes on from {checkpoint}"] if checkpoint else []


def _before(checkpoint: Path) -> Path | None:
    found = checkpoints(checkpoint.parent)
    at = found.index(checkpoint) if checkpoint in found else 0
    return found[at - 1] if at else None


def _first(found: list[str]) -> str:
    return found[0] + (f", and {len(found) - 1} more" if len(found) > 1 else "")


def _nothing_left(damaged: dict[Path, str]) -> str:
    found = "; ".join(f"{path}: {what}" for path, what in damaged.items())
    return (
        f"no undamaged checkpoint to go on from: {found}. Put back an intact copy, name another checkpoint with "
        "--resume_from_checkpoint, or start afresh with --overwrite"
    )


def _set_aside(damaged: list[Path]) -> None:
    """Rename damaged checkpoints, so that the run can write its own in their place."""
    state = PartialState()
    state.wait_for_everyone()
    if state.is_main_process:
        for path in damaged:
            aside = path.with_name(f"{path.name}.damaged")
            number = 1
            while aside.exists():  # of an earlier time
                number += 1
                aside = path.with_name(f"{path.name}.damaged-{number}")
            path.rename(aside)
    state.wait_for_everyone()


def check_identity(checkpoint: Path, identity: dict[str, Any]) -> None:
    """Refuse to go on from the checkpoint of another run.

    Raises:
        ModelError: with every setting that differs.
    """
    file = checkpoint / IDENTITY
    if not file.is_file():
        logger.warning("%s does not say which run wrote it; its settings cannot be compared", checkpoint)
        return
    saved = json.loads(file.read_text())
    now = json.loads(json.dumps(identity))  # the same types as in the file
    differences = [
        f"{key}: {saved.get(key)!r} there, {now.get(key)!r} here"
        for key in sorted(saved.keys() | now.keys())
        if saved.get(key) != now.get(key)
    ]
    if differences:
        raise ModelError(
            f"{checkpoint} belongs to another run:\n  "
            + "\n  ".join(differences)
            + "\nUse the settings it was written with, or start afresh in another output_dir"
        )
