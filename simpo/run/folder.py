"""The output folder: what may be written where, and which checkpoints are there."""

import json
import shutil
from pathlib import Path

from simpo.errors import ConfigError
from simpo.monitor.files import MONITOR_FOLDER
from simpo.run.checkpoints.seal import IDENTITY
from simpo.run.logfile import LOG_FILE

MANIFEST = "run_manifest.json"
SETTINGS = "settings.yaml"
REPORT = "report.html"
SIGNS = ".heartbeat"
"""Folder of the signs of life of a run's processes, while it lasts."""
_LOG_FOLDERS = ("runs", "logs", "wandb")


def checkpoints(output_dir: str | Path) -> list[Path]:
    """Complete checkpoints of a folder, oldest first."""
    begun = begun_checkpoints(output_dir)
    return [path for path in begun if (path / IDENTITY).is_file() and (path / "trainer_state.json").is_file()]


def begun_checkpoints(output_dir: str | Path) -> list[Path]:
    """Whole and half-written checkpoints of a folder, oldest first; those that were set aside are left out."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimizer step of a checkpoint."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def is_finished(output_dir: str | Path) -> bool:
    """Whether a run in this folder came to its end."""
    try:
        manifest = json.loads((Path(output_dir) / MANIFEST).read_text())
    except (OSError, ValueError):  # none, or cut short by a loss of power: then it was not the last thing written
        return False
    return isinstance(manifest, dict) and manifest.get("status") == "finished"


def _is_fresh(folder: Path) -> bool:
    """Empty, or left by a run that was stopped before its first checkpoint was whole."""
    if not folder.exists():
        return True
    names = {path.name for path in folder.iterdir()} - {*_LOG_FOLDERS, MONITOR_FOLDER, SIGNS}
    first = {MANIFEST, str(Path(MANIFEST).with_suffix(".part"))}  # what a run writes before anything else
    known = first | {SETTINGS, REPORT, LOG_FILE, str(Path(LOG_FILE).with_suffix(".part"))}
    others = {name for name in names if name not in known and not name.startswith("checkpoint-")}
    return not names or bool(names & first and not others and not is_finished(folder) and not checkpoints(folder))


def find_checkpoint(output_dir: str | Path, resume: str | bool | None, *, overwrite: bool) -> Path | None:
    """The checkpoint to go on from, or None for a fresh start.

    Args:
        output_dir: folder of the run.
        resume: a checkpoint's path; True for the last one; False for a fresh start; None for whatever is there.
        overwrite: start afresh in a folder that holds something; `remove_earlier_run` removes what it left.

    Raises:
        ConfigError: the folder holds something that a run must not overwrite, or no such checkpoint.
    """
    folder = Path(output_dir)
    if isinstance(resume, str):
        path = Path(resume)
        if not (path / "trainer_state.json").is_file():
            raise ConfigError(
                f"resume_from_checkpoint: {resume} holds no trainer_state.json; name a checkpoint-N folder"
            )
        if path.resolve().parent != folder.resolve() and not overwrite and not _is_fresh(folder):
            raise ConfigError(
                f"output_dir: {folder} is not empty, and {resume} is a checkpoint from elsewhere; "
                "choose another output_dir, or give --overwrite"
            )
        return path
    last = next(reversed(checkpoints(folder)), None)
    if resume is True and last is None:
        raise ConfigError(
            f"resume_from_checkpoint: {folder} holds no complete checkpoint; leave it out to start afresh"
        )
    if resume is True:
        return last
    if overwrite or _is_fresh(folder):
        return None
    if is_finished(folder):
        raise ConfigError(f"output_dir: {folder} holds a finished run; choose another folder, or give --overwrite")
    if last is None or resume is False:
        raise ConfigError(
            f"output_dir: {folder} is not empty" + ("" if last else " and holds no complete checkpoint to go on from")
            + "; choose another folder, or give --overwrite to start afresh in it"
        )  # fmt: skip
    return last


_WRITTEN = (
    "model*.safetensors", "model.safetensors.index.json", "adapter_*", "*_results.json", "trainer_state.json", MANIFEST,
    SETTINGS, LOG_FILE, REPORT,
)  # fmt: skip


def remove_earlier_run(output_dir: str | Path) -> None:
    """Remove what an earlier run left, so that nothing of it can be mistaken for a part of the new run."""
    for path in Path(output_dir).glob("checkpoint-*"):
        shutil.rmtree(path)
    shutil.rmtree(Path(output_dir, MONITOR_FOLDER), ignore_errors=True)
    for pattern in _WRITTEN:
        for path in Path(output_dir).glob(pattern):
            path.unlink()


def check_kept(output_dir: str | Path, model_name_or_path: str) -> None:
    """Refuse to overwrite a folder that holds what the run starts from: its only copy would go.

    Raises:
        ConfigError: the model lies in the output folder.
    """
    folder, model = Path(output_dir).resolve(), Path(model_name_or_path)
    if not model.exists() or not model.resolve().is_relative_to(folder):
        return
    inside = model.resolve().relative_to(folder).parts
    if not inside or inside[0].startswith("checkpoint-"):  # as `remove_earlier_run` removes
        raise ConfigError(
            f"output_dir: {output_dir} holds model_name_or_path: {model_name_or_path}, which --overwrite would remove; "
            "choose another output_dir"
        )


def discard_weights(output_dir: str | Path) -> None:
    """Remove weights and checkpoints of a run; its logs, metrics and settings stay, and say that it is finished."""
    for path in Path(output_dir).glob("checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)
    for pattern in ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*"):
        for path in Path(output_dir).glob(pattern):
            path.unlink(missing_ok=True)
