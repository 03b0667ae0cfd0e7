"""One run at a time writes into a folder."""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

from simpo.errors import ConfigError
from simpo.main_process import on_main
from simpo.run.folder import MANIFEST

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]

WAIT = 60.0
"""Seconds in which an earlier run that was told to stop may save and end."""


class Owner:
    """Holds an output folder while a run writes into it. The system lets go of it when the process ends, however.

    A launcher that is killed can leave processes that still train; two runs in one folder would spoil each other's
    checkpoints. File systems that cannot lock a folder (NFS) are not guarded.

    Args:
        folder: of the run; it need not be there.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._held: int | None = None
        self._made: list[Path] = []  # for it, innermost first
        self._begun = False  # whether there was a run in it before

    def take(self, wait: float = WAIT) -> None:
        """Make the folder and hold it, before anything in it is looked at; every process must call it.

        Raises:
            ConfigError: another process holds it for longer than `wait` seconds.
        """
        on_main(lambda: self._take(wait))

    def check_alone(self) -> None:
        """Look whether another run began in the folder, where nothing can hold it; every process must call it.

        Raises:
            ConfigError: another run wrote into it since `take`.
        """

        def look() -> None:
            if not self._begun and (self.folder / MANIFEST).exists():
                raise ConfigError(f"output_dir: {self.folder} now holds {MANIFEST}: another run began in it meanwhile")

        on_main(look)

    def _take(self, wait: float) -> None:
        self._made = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        limit = time.monotonic() + wait
        held: int | None = None
        while held is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # who held it has just removed it
                held = self._lock(limit, wait)
        self._held = held
        self._begun = (self.folder / MANIFEST).exists()
        _HOLDING.add(self)

    def _lock(self, limit: float, wait: float) -> int | None:
        """An open handle of the folder that holds it; None where the folder is another one by then."""
        handle, said = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC), False
        while fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = _holder(handle)
                if time.monotonic() > limit:
                    os.close(handle)
                    raise ConfigError(
                        f"output_dir: {self.folder} is in use by another run{holder}: wait for its end, stop it, or "
                        "choose another output_dir"
                    ) from None
                if not said:
                    print(f"{self.folder} is in use by another run{holder}; waiting {wait:.0f} s for it", flush=True)
                said = True
                time.sleep(0.1)
            except OSError:  # a file system without locks of folders
                break
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(self.folder)):
                return handle
        os.close(handle)
        return None

    def let_go(self) -> None:
        """Let go of the folder, and leave it as it is."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def release(self) -> None:
        """Let go of the folder, which is removed where it was made for this run and nothing is in it."""
        if self._held is not None:  # else it is another run's by now
            with contextlib.suppress(OSError):  # something is in it
                for path in self._made:
                    path.rmdir()
        self.let_go()


_HOLDING: weakref.WeakSet[Owner] = weakref.WeakSet()


def _let_go_in_fork() -> None:
    """A worker that outlives a run that was killed must not hold its folder."""
    for owner in list(_HOLDING):
        owner.let_go()


if hasattr(os, "register_at_fork"):  # a Unix
    os.register_at_fork(after_in_child=_let_go_in_fork)


def _holder(handle: int) -> str:
    """Which process holds a folder, as far as Linux says so."""
    number = os.fstat(handle).st_ino
    with contextlib.suppress(OSError, IndexError):
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(number):
                return f" (process {words[4]})"
    return ""


@contextlib.contextmanager
def owner_of(folder: str | Path) -> Iterator[Owner]:
    """An owner that lets go at the end, whatever happens."""
    owner = Owner(folder)
    try:
        yield owner
    finally:
        owner.release()
