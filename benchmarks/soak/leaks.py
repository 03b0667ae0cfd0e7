"""What finished processes may leave behind: processes, open files, ports, shared memory, temporary files, memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import socket
import sys
import time
from collections.abc import Iterable
from pathlib import Path

_SHARED = Path("/dev/shm")


def family(pids: Iterable[int] = ()) -> set[int]:
    """Living processes that stem from this one: its descendants, those with its command line, and those named."""
    import psutil

    own = psutil.Process()
    command = own.cmdline()
    found = {child.pid for child in own.children(recursive=True) if _lives(child)}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != own.pid and process.cmdline() == command and _lives(process):
                found.add(process.pid)
    return found | {pid for pid in pids if psutil.pid_exists(pid) and _lives(psutil.Process(pid))}


def _lives(process: object) -> bool:
    import psutil

    assert isinstance(process, psutil.Process)
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def left_alive(before: set[int], seconds: float = 20.0) -> set[int]:
    """Processes that stem from this one, did not before, and do not end."""
    limit = time.monotonic() + seconds
    while (left := family() - before) and time.monotonic() < limit:
        time.sleep(0.1)
    return left


def open_files() -> int:
    """Descriptors that this process holds."""
    return len(os.listdir("/proc/self/fd"))


def is_open(port: int) -> bool:
    """Whether somebody listens at a port of this machine."""
    with socket.socket() as asked:
        asked.settimeout(1)
        return asked.connect_ex(("127.0.0.1", port)) == 0


def shared_memory() -> set[str]:
    """Names of shared memory that no living process holds: what was left behind, by whomever."""
    if not _SHARED.is_dir():
        return set()
    names = {path.name for path in _SHARED.iterdir()}
    held = set()
    for process in Path("/proc").iterdir():
        if names and process.name.isdigit():
            with contextlib.suppress(OSError):
                text = (process / "maps").read_text()
                held |= {name for name in names if f"{_SHARED}/{name}" in text}
    return names - held


def count_files(folder: Path) -> int:
    """Files below a folder."""
    return sum(len(files) for _, _, files in os.walk(folder))


def settled_rss() -> float:
    """MiB that this process holds once garbage is collected and glibc has handed back what it kept."""
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
    return rss(os.getpid()) or 0.0


def rss(pid: int) -> float | None:
    """MiB that a process holds; None where it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return None
