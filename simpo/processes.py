"""Processes that a command starts and must not lose: none outlives it, none of a killed one stands in the way."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from simpo.errors import ConfigError

RUN_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""Those that end a run in order; schedulers send them."""

GRACE = 60.0
"""Seconds between SIGTERM and SIGKILL."""
# What a launcher sets for its workers. A child is no worker of whatever started its parent.
_LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def child_environment() -> dict[str, str]:
    """The environment of a child that is to start anew."""
    return {key: value for key, value in os.environ.items() if key not in _LAUNCHER_VARIABLES}


def run_child(command: Sequence[str], note: Path) -> int:
    """Run a command to its end with this process's own output, and return its exit status.

    It has a session of its own: Ctrl-C reaches this process alone, which then stops the whole tree in order. What an
    earlier call left behind, because it was killed itself, is stopped first.

    Args:
        command: the words.
        note: file that says which process runs.
    """
    stop_left_over(note)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=child_environment(), start_new_session=True)
    try:
        write_note(note, process.pid)
        code = process.wait()
    except BaseException:
        stop_tree(process.pid)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE)
        raise
    note.unlink(missing_ok=True)
    return code


def write_note(file: Path, pid: int) -> None:
    """Write down that a process runs, so that `stop_left_over` can find it."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        started = psutil.Process(pid).create_time()
        file.write_text(json.dumps({"pid": pid, "started": started}))


def stop_left_over(file: Path) -> None:
    """Stop the process that a killed command left behind; another one that has its number now is left alone."""
    import psutil

    try:
        left = json.loads(file.read_text())
        same = abs(psutil.Process(left["pid"]).create_time() - left["started"]) < 1
    except (OSError, ValueError, KeyError, psutil.NoSuchProcess):
        return
    if same:
        stop_tree(left["pid"])


def stop_tree(pid: int) -> None:
    """Stop a process, its group and all its descendants, also those in sessions of their own, as torchrun's workers."""
    import psutil

    try:
        root = psutil.Process(pid)
        tree = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGTERM)
    for process in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    for process in _wait(tree):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    _wait(tree)


def _wait(processes: Sequence[Any]) -> list[Any]:
    """Those that live after the time of grace. psutil's own wait would wait for dead ones that no one collects."""
    import psutil

    def lives(process: Any) -> bool:
        try:
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    limit = time.monotonic() + GRACE
    while True:
        alive = [process for process in processes if lives(process)]
        if not alive or time.monotonic() > limit:
            return alive
        time.sleep(0.05)


def describe_exit(code: int) -> str:
    """An exit status in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


@contextlib.contextmanager
def handled(numbers: Iterable[int], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle signals in this block; the handlers of before come back afterwards. For the main thread only."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextlib.contextmanager
def sole_owner(lock: Path, busy: str) -> Iterator[None]:
    """Hold a lock file; meanwhile SIGTERM and a closed terminal end this process like Ctrl-C.

    Raises:
        ConfigError: `busy`, where another process holds it.
    """
    from filelock import FileLock, Timeout

    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise ConfigError(busy) from None

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    # `nohup` ignores SIGHUP, and so do we under it
    ends = [signal.SIGTERM, *([signal.SIGHUP] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else [])]
    try:
        with handled(ends, end):
            yield
    finally:
        held.release()
