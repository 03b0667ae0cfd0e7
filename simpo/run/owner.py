"""One run at a time writes into a folder."""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

from simpo.errors import ConfigError
from simpo.run.checkpoints.seal import on_main
from simpo.run.folder import MANIFEST

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

    def take_existing(self, wait: float = WAIT) -> None:
        """Hold the folder if it is there, before anything in it is looked at; every process must call it.

        Raises:
            ConfigError: another process holds it for longer than `wait` seconds.
        """
        _for_all(lambda: self._take(wait) if self.folder.is_dir() else "")

    def take(self, wait: float = WAIT) -> None:
        """Make the folder and hold it, before anything is written into it; every process must call it.

        Raises:
            ConfigError: another process holds it, or wrote into it since `take_existing`.
        """

        def take() -> str:
            if self._held is not None:
                return ""
            self.folder.mkdir(parents=True, exist_ok=True)
            if busy := self._take(wait):
                return busy
            if (self.folder / MANIFEST).exists():
                return f"output_dir: {self.folder} was not there and now holds {MANIFEST}: another run began in it"
            return ""

        _for_all(take)

    def _take(self, wait: float) -> str:
        try:
            import fcntl
        except ImportError:  # not a Unix
            return ""
        handle = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
        limit, said = time.monotonic() + wait, False
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = _holder(handle)
                if time.monotonic() > limit:
                    os.close(handle)
                    return (
                        f"output_dir: {self.folder} is in use by another run{holder}: wait for its end, stop it, or "
                        "choose another output_dir"
                    )
                if not said:
                    print(f"{self.folder} is in use by another run{holder}; waiting {wait:.0f} s for it", flush=True)
                said = True
                time.sleep(0.1)
            except OSError:  # a file system without locks of folders
                break
        self._held = handle
        _HOLDING.add(self)
        return ""

    def release(self) -> None:
        """Let go of the folder."""
        if self._held is not None:
            os.close(self._held)
            self._held = None


_HOLDING: weakref.WeakSet[Owner] = weakref.WeakSet()


def _let_go_in_fork() -> None:
    """A worker that outlives a run that was killed must not hold its folder."""
    for owner in list(_HOLDING):
        owner.release()


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


def _for_all(take: Callable[[], str]) -> None:
    """Do something on the main process; what is wrong there is an error everywhere."""
    if wrong := on_main(take):
        raise ConfigError(wrong)


@contextlib.contextmanager
def owner_of(folder: str | Path) -> Iterator[Owner]:
    """An owner that lets go at the end, whatever happens."""
    owner = Owner(folder)
    try:
        yield owner
    finally:
        owner.release()
