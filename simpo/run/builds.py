"""What a killed build of an extension leaves: a lock for which torch waits without an end and without a word."""

import contextlib
import os
import time
from pathlib import Path

from accelerate import PartialState
from torch.utils.cpp_extension import get_default_build_root

PATIENCE = 300.0
"""Seconds that a lock without a holder is believed: another machine or container may be building."""


def remove_stale_locks(patience: float = PATIENCE) -> None:
    """Before DeepSpeed builds or loads its extensions, remove locks of builds that were killed.

    torch keeps the file of a lock open while it builds. One that no process of this machine has open is waited for
    until it is `patience` seconds old, then removed; every process must call it, the first of each machine acts.
    """
    state = PartialState()
    if state.is_local_main_process:
        for lock in _build_root().glob("**/lock"):
            _see_to(lock, patience)
    state.wait_for_everyone()


def _build_root() -> Path:
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())


def _see_to(lock: Path, patience: float) -> None:
    said = False
    while lock.exists() and not _held(lock):
        try:
            left = lock.stat().st_mtime + patience - time.time()
        except FileNotFoundError:  # its build ended just now
            return
        if left <= 0:
            lock.unlink(missing_ok=True)
            print(f"{lock}: removed; the build that it belonged to was killed", flush=True)
            return
        if not said:
            print(f"{lock}: no process here holds it; it is removed in {left:.0f} s if it is still there", flush=True)
        said = True
        time.sleep(min(1.0, left))


def _held(lock: Path) -> bool:
    """Whether a process of this machine has the file open, as far as Linux says so."""
    with contextlib.suppress(OSError):
        wanted = lock.stat()
        for handles in Path("/proc").glob("[0-9]*/fd"):
            with contextlib.suppress(OSError):
                for handle in handles.iterdir():
                    with contextlib.suppress(OSError):
                        if os.path.samestat(handle.stat(), wanted):
                            return True
    return not Path("/proc/self/fd").is_dir()  # nothing is known: leave it
