"""A disk that is full or cannot be written, while a run saves: named, and nothing good is lost."""

import contextlib
import errno
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from accelerate import PartialState

from simpo.errors import ConfigError, StoreError
from simpo.main_process import on_main
from simpo.run.checkpoints.seal import IDENTITY
from simpo.run.folder import begun_checkpoints, checkpoints

_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EROFS: "it cannot be written"}
_NO_ROOM = 32 << 20  # bytes; a failed write on a disk with less was out of room, whatever its message says


def check_writable(folder: str | Path) -> None:
    """Write a small file where a run will write, so that it does not find out at its first checkpoint; nothing is left.

    Every process must call it; the main one writes.

    Raises:
        ConfigError: the folder, or where it is to be made, cannot be written.
    """

    def write() -> None:
        path = Path(folder).absolute()
        try:
            existing = next(parent for parent in (path, *path.parents) if parent.exists())
            with tempfile.TemporaryFile(dir=existing) as file:
                file.write(b"x")
        except OSError as error:
            raise ConfigError(f"output_dir: {folder} cannot be written: {error.strerror or error}") from error

    on_main(write)


@contextlib.contextmanager
def saving_into(folder: str | Path, keep: Path | None = None) -> Iterator[None]:
    """Turn a write that failed for want of room into an error that says so, and take away what was half written.

    Args:
        folder: of the run.
        keep: the checkpoint that it goes on from, which stays even where no mark says that it is whole.

    Raises:
        StoreError: a checkpoint or the model could not be written.
    """
    try:
        yield
    except Exception as error:
        why = why_unwritten(error, Path(folder))
        if why is None:
            raise
        half = _remove_half_written(Path(folder), keep)
        whole = next(reversed(checkpoints(folder)), None)
        kept = f"{whole} is whole, and the same command goes on from it" if whole else "there is no checkpoint yet"
        free = shutil.disk_usage(folder).free
        raise StoreError(
            f"{folder}: {why} ({size_text(free)} free now{half}). {kept}: make room, or lower save_total_limit"
        ) from error


def why_unwritten(error: BaseException | None, folder: Path) -> str | None:
    """Why a write failed, where that is a matter of the disk."""
    failed = False
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return _FULL[error.errno]
        if "No space left on device" in str(error):  # as safetensors says it
            return _FULL[errno.ENOSPC]
        failed = failed or "PytorchStreamWriter" in str(error) or "unexpected pos" in str(error)  # as torch.save does
        error = error.__cause__ or error.__context__
    return _FULL[errno.ENOSPC] if failed and shutil.disk_usage(folder).free < _NO_ROOM else None


def _remove_half_written(folder: Path, keep: Path | None) -> str:
    if not PartialState().is_main_process:
        return ""
    newest = next(reversed(begun_checkpoints(folder)), None)
    if newest is None or (newest / IDENTITY).is_file() or (keep is not None and newest.resolve() == keep.resolve()):
        return ""
    bytes_written = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    shutil.rmtree(newest, ignore_errors=True)
    return f", after {newest.name} with {size_text(bytes_written)} was removed"


def size_text(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"
