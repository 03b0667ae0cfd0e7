"""Start runs that something happens to."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

from simpo.processes import stop_tree
from tests.launching import environment, zero_file

TRAIN = ["-m", "simpo.cli", "train"]


def launcher(engine: str, folder: Path) -> list[str]:
    """Words that start 2 processes under DDP or ZeRO-3."""
    if engine == "ddp":
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    config = ["--config_file", str(zero_file(folder, 3)), "--main_process_port", "0"]
    return [sys.executable, "-m", "accelerate.commands.launch", *config]


class Started:
    """A command that runs, and all that it started.

    Args:
        command: words.
        printed: file for its output.
        extra: variables beside the usual ones.
    """

    def __init__(self, command: Sequence[str], printed: Path, **extra: str) -> None:
        self.file = printed
        self.root = psutil.Process()
        self.seen: dict[int, psutil.Process] = {}
        with printed.open("w") as file:
            self.process = subprocess.Popen(command, env=environment() | extra, stdout=file, stderr=subprocess.STDOUT)
        self.root = psutil.Process(self.process.pid)

    @property
    def printed(self) -> str:
        """What it said so far."""
        return self.file.read_text()

    def until_step(self, log: Path, step: int) -> None:
        """Wait until the log of a run holds so many lines."""
        while not log.exists() or len(log.read_text().splitlines()) < step:
            assert self.process.poll() is None, self.printed
            time.sleep(0.02)
        self.note()

    def note(self) -> None:
        """Remember what runs, so that `left` finds it later."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self.seen |= {one.pid: one for one in self.root.children(recursive=True)}

    def worker(self, rank: int) -> psutil.Process:
        """The process of a rank."""
        for one in self.root.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if one.environ().get("RANK") == str(rank) and "simpo" in " ".join(one.cmdline()):
                    return one
        raise AssertionError(f"no process of rank {rank}")

    def wait(self, seconds: float) -> int:
        """How it ended; one that does not end is a failure."""
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s:\n{self.printed}") from None

    def left(self) -> list[psutil.Process]:
        """Processes that outlived it."""
        deadline = time.monotonic() + 10
        while alive := [one for one in self.seen.values() if _runs(one)]:
            if time.monotonic() > deadline:
                return alive
            time.sleep(0.1)
        return []


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def started(command: Sequence[str], printed: Path, **extra: str) -> Iterator[Started]:
    """A command that is stopped at the end of the block, with all that it started."""
    run = Started(command, printed, **extra)
    try:
        yield run
    finally:
        run.note()
        for one in run.seen.values():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                os.kill(one.pid, signal.SIGCONT)
        if run.process.poll() is None:
            stop_tree(run.process.pid)
        for one in run.left():
            with contextlib.suppress(psutil.Error):
                one.kill()


def close_weights(one: Path, other: Path, tolerance: float = 0) -> None:
    """Fail unless two runs left the same weights."""
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=tolerance, rtol=0)
