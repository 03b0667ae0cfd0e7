"""A launcher as a child: signals reach the processes of the run, the exit code says whether to start it again."""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from simpo.errors import Interrupted
from simpo.processes import RUN_SIGNALS, handled

_TO_ALL = (signal.SIGINT, signal.SIGHUP)
_LOOK = 2.0  # seconds between two looks at which processes there are
_GRACE = 30.0  # seconds that they have to end after the launcher
_PATIENCE = 10.0  # seconds until what the first machine wrote is seen on the others
_PR_SET_PDEATHSIG = 1


def supervise(command: Sequence[str], environment: dict[str, str], output_dir: str) -> None:
    """Run a launcher to its end; nothing that it started outlives it.

    SIGTERM and SIGUSR1 go to the processes of the run, which then save and leave; Ctrl-C and a closed terminal to all.

    Args:
        command: of the launcher.
        environment: of the launcher.
        output_dir: of the run; its manifest says whether it was interrupted in order.

    Raises:
        Interrupted: it was, or a signal came before it had begun to train.
        KeyboardInterrupt: Ctrl-C.
        SystemExit: it failed; with the launcher's code.
    """
    manifest = Path(output_dir) / "run_manifest.json"  # simpo.run.folder.MANIFEST; importing it here would load torch
    before = _stamp(manifest)
    launcher = _Launcher(command, environment)
    with launcher.handling_signals():
        code = launcher.wait()
    if code == 0:
        return
    if signal.SIGINT in launcher.received:
        raise KeyboardInterrupt
    signalled = any(number in launcher.received for number in RUN_SIGNALS)
    if _interrupted(manifest, before, signalled):
        again = "the same command" + (" without --overwrite" if "--overwrite" in command else "")
        raise Interrupted(f"{output_dir}: stopped in order; {again} goes on with it")
    raise SystemExit(code if code > 0 else 128 - code)


class _Launcher:
    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        sys.stdout.flush()
        self.received: list[int] = []
        self.workers: list[Any] = []
        parent = os.getpid()
        self.process = subprocess.Popen(
            command, env=environment, start_new_session=True, preexec_fn=lambda: _end_with(parent)
        )

    def handling_signals(self) -> contextlib.AbstractContextManager[None]:
        return handled((*RUN_SIGNALS, *_TO_ALL), self._pass_on)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        again = any(each in self.received for each in RUN_SIGNALS)
        self.received.append(number)
        self._look()
        if number in _TO_ALL:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
        elif not again:  # a run that saves already is left to it
            for worker in self.workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, number)
            if not self.workers:
                self.process.terminate()

    def _look(self) -> None:
        import psutil

        with contextlib.suppress(psutil.NoSuchProcess):
            self.workers = psutil.Process(self.process.pid).children()

    def wait(self) -> int:
        """The launcher's code, once all that it started has ended."""
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self.process.wait(timeout=_LOOK)
                break
            self._look()
        self._end_workers()
        return code

    def _end_workers(self) -> None:
        """Those of a launcher that was killed."""
        import psutil

        for ask in ("terminate", "kill"):
            for worker in self.workers:
                with contextlib.suppress(psutil.NoSuchProcess):
                    getattr(worker, ask)()
            if not (alive := psutil.wait_procs(self.workers, timeout=_GRACE)[1]):
                return
            self.workers = alive


def _end_with(parent: int) -> None:
    """Let the kernel end this process when its parent is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it was killed before that
            os._exit(1)


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _interrupted(manifest: Path, before: tuple[int, int] | None, signalled: bool) -> bool:
    """Whether the run says so, or was stopped before it had begun to train."""
    end = time.monotonic() + _PATIENCE
    while True:
        begun = _stamp(manifest) != before
        with contextlib.suppress(OSError, ValueError):
            if begun and json.loads(manifest.read_text()).get("status") == "interrupted":
                return True
        if not begun:
            return signalled
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
