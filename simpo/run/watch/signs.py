"""Signs of life: a small file of each process, and what the others read from them."""

import dataclasses
import json
import os
import socket
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

_SIZE = 1024  # bytes of a sign's file: written over in one piece, so that no reader finds half of it
_WORDS = 400  # characters of a failure that are kept
RUNS, LEFT, FAILED = "runs", "left", "failed"


@dataclasses.dataclass(frozen=True)
class Sign:
    """What a process says of itself.

    Args:
        rank, host, pid: who it is.
        machine: what its pid counts on; equal for processes that can see one another.
        beats: signs given so far.
        moves: forward passes and steps so far; what a process that hangs no longer raises.
        step: optimizer step it is at.
        state: `runs`, `failed` by a fault of its own, or `left` because of another process.
        place: where its main thread stands, or why it failed.
        waits: whether its main thread stands in a call that waits for other processes.
    """

    rank: int
    host: str
    machine: str
    pid: int
    beats: int = 0
    moves: int = 0
    step: int = 0
    state: str = RUNS
    place: str = ""
    waits: bool = False

    @property
    def name(self) -> str:
        """For people."""
        return f"process {self.rank} on {self.host} (pid {self.pid})"


def own_sign(rank: int) -> Sign:
    """The first sign of this process."""
    return Sign(rank, socket.gethostname(), _machine(), os.getpid())


def _machine() -> str:
    """The boot and the space of process numbers, so that containers of one name are told apart."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return socket.gethostname()


def sign_file(folder: Path, run: str, rank: int) -> Path:
    """Where a process of a run leaves its sign. The name holds the run: nothing of an earlier start is ever read."""
    return folder / f"{run}-{rank}.json"


def give(file: Path, sign: Sign) -> None:
    """Write a sign over the one before. The file is opened each time, since network disks hand it on when it closes."""
    place = sign.place[:_WORDS]
    while (
        len(text := json.dumps(dataclasses.asdict(dataclasses.replace(sign, place=place))).encode()) > _SIZE and place
    ):
        place = place[: len(place) // 2]  # letters that JSON writes as six bytes each
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.pwrite(descriptor, text.ljust(_SIZE), 0)
    finally:
        os.close(descriptor)


def take(file: Path) -> Sign | None:
    """Read a sign; None where there is none."""
    try:
        return Sign(**json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


class Observer:
    """Sees which processes still give signs, by this process's own clock alone: those of machines may differ."""

    def __init__(self, files: Iterable[Path]) -> None:
        self.files = list(files)
        self.seen: dict[Path, tuple[Sign, float]] = {}

    def forget(self) -> None:
        """Begin anew."""
        self.seen.clear()

    def look(self) -> list[tuple[Sign, float]]:
        """Last signs, each with the seconds since it was first seen. One whose file is gone has ended in order."""
        now = time.monotonic()
        found = {file: sign for file in self.files if (sign := take(file)) is not None}
        self.seen = {
            file: self.seen[file] if file in self.seen and self.seen[file][0].beats == sign.beats else (sign, now)
            for file, sign in found.items()
        }
        return [(sign, now - since) for sign, since in self.seen.values()]


def lost(signs: Iterable[tuple[Sign, float]], own: Sign, patience: float) -> list[str]:
    """Processes that ended or give no signs any more, a line each.

    Args:
        signs: from `Observer.look`.
        own: of this process.
        patience: seconds without a new sign.
    """
    lines = []
    for sign, silent in signs:
        if sign.rank == own.rank or sign.state == LEFT:
            continue
        if sign.state == FAILED:
            lines.append(f"{sign.name} failed at step {sign.step}: {sign.place}")
        elif sign.machine == own.machine and not _runs(sign.pid):
            lines.append(f"{sign.name} was killed at step {sign.step}")
        elif silent >= patience:
            lines.append(
                f"{sign.name} was lost at step {sign.step}: no sign of life for {silent:.0f} s, so it was stopped or "
                "killed, or its machine or its network is gone"
            )
    return lines


def behind(signs: Iterable[tuple[Sign, float]]) -> list[str]:
    """Processes that the others wait for, a line each: those that did least, and of these the ones that do not wait."""
    known = [sign for sign, _ in signs if sign.state == RUNS]
    least = min((sign.moves for sign in known), default=0)
    late = [sign for sign in known if sign.moves == least]
    blamed = [sign for sign in late if not sign.waits] or late
    if len(blamed) < len(known):
        return [f"{sign.name} hangs at step {sign.step}, in {sign.place}" for sign in blamed]
    return ["no process gets on, and none is behind the others", *(f"{sign.name} is in {sign.place}" for sign in known)]


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
