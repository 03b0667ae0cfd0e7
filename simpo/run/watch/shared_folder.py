"""The output folder, which every process of a run must see."""

import contextlib
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from simpo.errors import ConfigError
from simpo.run.folder import SIGNS

_PATIENCE = 60.0  # seconds; clients of network disks remember for so long that a file was not there


class SharedFolder:
    """A folder inside the output folder, for files that the processes of one start leave for one another.

    Args:
        path: of the folder.
        run: names this start.
    """

    def __init__(self, path: Path, run: str) -> None:
        self.path, self.run = path, run
        self._kept = False

    def keep(self) -> None:
        """Leave this process's files, for the others to read; the next start removes them."""
        self._kept = True

    def remove(self) -> None:
        """Remove this process's files; whoever comes last removes the folder."""
        if self._kept:
            return
        rank = PartialState().process_index
        for name in (f"{self.run}-{rank}.json", *([self.run] if rank == 0 else [])):
            (self.path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # others are still there
            self.path.rmdir()


@contextlib.contextmanager
def shared_folder(output_dir: str, timeout: float = 0) -> Iterator[SharedFolder]:
    """The folder for signs, while a run lasts; every process must call it.

    Args:
        output_dir: of the run.
        timeout: seconds after which a hang is named; half of it, and at most a minute, is waited for a file to be seen.

    Raises:
        ConfigError: not all processes see the files of the first one.
    """
    path, state = Path(output_dir).absolute() / SIGNS, PartialState()
    run = ""
    if state.is_main_process:
        run = secrets.token_hex(4)
        shutil.rmtree(path, ignore_errors=True)  # of an earlier start
        path.mkdir(parents=True, exist_ok=True)
        (path / run).write_text("")
    (run,) = broadcast_object_list([run])
    folder = SharedFolder(path, run)
    try:
        _check_seen(path / run, output_dir, min(_PATIENCE, timeout / 2 or _PATIENCE))
        yield folder
    finally:
        folder.remove()


def _check_seen(file: Path, output_dir: str, patience: float) -> None:
    state = PartialState()
    end = time.monotonic() + patience
    while not (seen := _listed(file)) and time.monotonic() < end:
        time.sleep(0.2)
    hosts = [(state.process_index, socket.gethostname(), seen)]
    blind = [f"process {rank} on {host}" for rank, host, sees in gather_object(hosts) if not sees]
    if blind:
        raise ConfigError(
            f"output_dir: {output_dir} is not the same folder on all machines: what process 0 writes there is not seen "
            f"by {', '.join(blind)}; name a folder on a disk that all of them share"
        )


def _listed(file: Path) -> bool:
    """Whether a file is there, asking the disk anew."""
    try:
        return file.name in {path.name for path in file.parent.iterdir()}
    except OSError:
        return False
