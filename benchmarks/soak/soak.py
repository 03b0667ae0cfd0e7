"""Continuous small runs with restarts, which must leave nothing behind, and memory that must stay flat.

    python -m benchmarks.soak.soak --minutes 60

Until the time is over, three things go on side by side:
- rounds: a run of two processes is stopped by SIGUSR1, goes on, is killed by SIGKILL, goes on, ends and is evaluated;
  its weights are those of the first round, bit for bit, and no process, open file, port, shared memory or temporary
  file of it is left.
- one process that trains in a loop, a new model each time. Its memory is taken between the trainings.
- one long training of a single process. Its memory is taken at each checkpoint.

Memory is what the process itself holds after garbage collection and malloc_trim.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.report import RESULTS, environment, print_table, write_json
from benchmarks.soak import leaks, runs
from benchmarks.soak.kills import differences, in_fork

WARM_UP = 0.25
"""Share of the time after which memory counts."""

LIMIT = 1.0
"""Percent an hour that memory may grow, where there was time to measure it: from half an hour on."""

_LONG_ENOUGH = 30.0  # minutes
_EVERY = 5.0  # seconds between two looks at the two that go on all the time
_MEMORY = "memory.txt"  # lines of the clock and of MiB
_TIMEOUT = 300.0
_COLUMNS = ("samples", "mean_mib", "first_mib", "last_mib", "percent_an_hour", "standard_error")


class Soak:
    """The three, and what was seen of them.

    Args:
        folder: for all that they write.
        seed: of the moments of signals.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng = folder, random.Random(seed)
        self.began = time.monotonic()
        self.rounds: list[dict[str, Any]] = []
        self.left: list[str] = []
        self.memory: dict[str, list[tuple[float, float]]] = {"rounds": [], "loop": [], "long": []}
        self.children: dict[str, int] = {}
        self._looked = 0.0

    def minutes(self) -> float:
        """Since the beginning."""
        return (time.monotonic() - self.began) / 60

    def begin(self) -> None:
        """Start the loop and the long training."""
        config = runs.make_config(
            self.folder / "long", "out", max_steps=10_000_000, eval_strategy="no", save_steps=200, logging_steps=1000,
            log_kl=False, lr_scheduler_type="constant", warmup_steps=0,
        )  # fmt: skip
        self.children["long"] = _fork(lambda: _long(config), self.folder / "long.txt")
        self.children["loop"] = _fork(lambda: _loop(self.folder / "loop"), self.folder / "loop.txt")

    def look(self) -> None:
        """Read what the long training and the loop note of their memory, now and then, and see that both live."""
        if time.monotonic() - self._looked < _EVERY:
            return
        self._looked = time.monotonic()
        for name, pid in self.children.items():
            assert os.waitpid(pid, os.WNOHANG)[0] == 0, f"{name} ended:\n{_end_of(self.folder / f'{name}.txt')}"
        for name in self.children:
            table = self.folder / name / _MEMORY
            rows = [line.split() for line in table.read_text().splitlines()] if table.exists() else []
            self.memory[name] = [((float(at) - self.began) / 60, float(held)) for at, held in rows]

    def end(self) -> None:
        """Stop both; the long training saves, and says that it can go on."""
        loop, long = self.children.pop("loop"), self.children.pop("long")
        os.kill(loop, signal.SIGKILL)
        os.waitpid(loop, 0)
        os.kill(long, signal.SIGTERM)
        code = runs.Processes(long, self.folder / "long.txt", 0).wait(_TIMEOUT)
        assert code == 75, f"the long training ended with {code}:\n{_end_of(self.folder / 'long.txt')}"

    def round(self, number: int) -> None:
        """One run with its two restarts, and what it leaves behind."""
        engine = tuple(runs.ENGINES)[number % len(runs.ENGINES)]
        folder = self.folder / engine
        name = "whole" if not (folder / "whole").exists() else "next"
        before = leaks.family(), leaks.open_files(), leaks.shared_memory(), self._files()
        began, ports = time.monotonic(), []
        config = runs.make_config(folder, name)
        for part, sent in enumerate((signal.SIGUSR1, signal.SIGKILL, None)):
            process = runs.start(config, engine, folder / f"{name}-{part}.txt")
            ports.append(process.port)
            self._until(process, self.rng.uniform(1, 4) + 4 * part if sent else None, folder / name / "log.jsonl")
            if process.poll() is None and sent == signal.SIGUSR1:
                process.signal(sent)
            elif process.poll() is None and sent == signal.SIGKILL:
                process.kill("all")
            code = process.wait(_TIMEOUT)
            if sent and code == 0:  # on a busy machine a run can come to its end first
                break
            right = {signal.SIGUSR1: 75, signal.SIGKILL: -9, None: 0}[sent]
            assert code == right, f"round {number}: {code} in place of {right}:\n{process.last_lines(40)}"
        found = in_fork(lambda: differences(folder / "whole", folder / "next", False)) if name == "next" else []
        assert not found, f"round {number}: {'; '.join(found)}"
        shutil.rmtree(folder / "next", ignore_errors=True)
        for printed in folder.glob("*.txt"):
            printed.unlink()
        left = self._left(before, ports)
        row = {"minute": round(self.minutes(), 2), "engine": engine, "seconds": round(time.monotonic() - began, 1)}
        self.rounds.append(row | left)
        self.memory["rounds"].append((self.minutes(), leaks.settled_rss()))
        # the first round of each engine fills the caches
        self.left += [f"round {number}: {value} {key}" for key, value in left.items() if value and number >= 2]

    def _until(self, process: runs.Processes, step: float | None, log: Path) -> None:
        """Wait for a step, or for the end."""
        limit = time.monotonic() + _TIMEOUT
        while process.poll() is None:
            self.look()
            lines = log.read_text().splitlines() if step is not None and log.exists() else []
            if step is not None and any(json.loads(line)["step"] >= step for line in lines if line.endswith("}")):
                return
            assert time.monotonic() < limit, f"hangs:\n{process.last_lines(40)}"
            time.sleep(0.02)

    def _files(self) -> int:
        """Files in the caches and in the temporary folder, which the rounds share."""
        return leaks.count_files(self.folder / "hf") + leaks.count_files(self.folder / "tmp")

    def _left(self, before: tuple[set[int], int, set[str], int], ports: list[int]) -> dict[str, int]:
        processes, descriptors, shared, files = before
        ours = leaks.shared_memory() - shared
        return {
            "processes": len(leaks.left_alive(processes)),
            "descriptors": leaks.open_files() - descriptors,
            "ports": sum(leaks.is_open(port) for port in ports),
            "shared": len(ours),
            "files": self._files() - files,
        }


def _fork(work: Callable[[], int], printed: Path) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        runs.redirect(printed)
        runs.end_with(work)
    return pid


def _note_memory(folder: Path) -> None:
    with (folder / _MEMORY).open("a") as file:
        file.write(f"{time.monotonic()} {leaks.settled_rss()}\n")


def _long(config: Path) -> int:
    """Train until a signal comes; a line of memory after each checkpoint."""
    from simpo import cli
    from simpo.run.checkpoints.callback import CheckpointCallback

    on_save = CheckpointCallback.on_save

    def noted(*args: Any, **kwargs: Any) -> None:
        on_save(*args, **kwargs)
        _note_memory(config.parent)

    with mock.patch.object(CheckpointCallback, "on_save", noted):
        return cli.main(["train", str(config)])


def _loop(folder: Path) -> int:
    """Train again and again; a line of memory after each time."""
    from simpo.run import run_training
    from simpo.settings import read_settings

    config = runs.make_config(folder, "out", max_steps=3)
    while True:
        run_training(read_settings(config))
        shutil.rmtree(folder / "out")
        _note_memory(folder)


def _end_of(printed: Path) -> str:
    return "\n".join(printed.read_text(errors="replace").splitlines()[-40:])


def growth(samples: list[tuple[float, float]]) -> dict[str, float]:
    """Of (minute, MiB): the mean after the warm-up, and the slope of a straight line through it, in percent an hour.

    `standard_error` is that of the slope, in the same unit; -1 for too few samples.
    """
    import numpy as np

    minutes, held = np.array(samples).T
    kept = minutes >= WARM_UP * minutes.max()
    mean = float(held[kept].mean())
    slope, error = 0.0, -mean / 6000
    if kept.sum() > 4:
        (slope, _), covariance = np.polyfit(minutes[kept], held[kept], 1, cov=True)
        error = float(np.sqrt(covariance[0, 0]))
    return {
        "samples": int(kept.sum()),
        "mean_mib": round(mean, 1),
        "percent_an_hour": round(float(slope) * 60 / mean * 100, 3),
        "standard_error": round(error * 60 / mean * 100, 3),
        "first_mib": round(float(held[kept][0]), 1),
        "last_mib": round(float(held[kept][-1]), 1),
    }


def draw(soak: Soak, path: Path) -> None:
    """Memory over time, against its mean after the warm-up."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from benchmarks.report import COLOURS, GREY

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    labels = {"loop": "trainings in a loop, one process", "long": "one long training", "rounds": "parent of all runs"}
    for (name, label), colour in zip(labels.items(), COLOURS, strict=False):
        if not (samples := soak.memory[name]):
            continue
        found = growth(samples)
        error = f" (± {found['standard_error']:.2f})" if found["standard_error"] >= 0 else ""
        slope = f"{found['mean_mib']:.0f} MiB, {found['percent_an_hour']:+.2f}{error} % an hour"
        axes.plot(*zip(*samples, strict=True), color=colour, label=f"{label}: {slope}", linewidth=1.5)
    axes.axvspan(0, WARM_UP * soak.minutes(), color=GREY, alpha=0.15, linewidth=0)
    axes.text(0.5 * WARM_UP * soak.minutes(), 0.02, "warm-up", transform=axes.get_xaxis_transform(), ha="center")
    highest = max(held for samples in soak.memory.values() for _, held in samples)
    axes.set(xlabel="minutes", ylabel="resident memory, MiB", ylim=(0, 1.1 * highest), xlim=(0, soak.minutes()))
    axes.set_title(f"{len(soak.rounds)} runs of two processes, each stopped, killed and resumed; nothing left behind")
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    print(f"wrote {path}")


def report(soak: Soak, words: list[str]) -> dict[str, Any]:
    """Print what was seen, and give it as JSON."""
    keys = ("processes", "descriptors", "ports", "shared", "files")
    shown = soak.rounds[:: max(1, len(soak.rounds) // 12)]
    print_table(
        f"{len(soak.rounds)} rounds; left behind by each",
        ["minute", "engine", "seconds", *keys],
        [[str(row["minute"]), row["engine"], row["seconds"], *(row[key] for key in keys)] for row in shown],
    )
    memory = {name: growth(samples) for name, samples in soak.memory.items() if samples}
    print_table(
        "resident memory after the warm-up",
        ["what", "samples", "mean MiB", "first", "last", "% an hour", "standard error"],
        [[name, *(found[key] for key in _COLUMNS)] for name, found in memory.items()],
    )
    seen = {name: [[round(at, 3), round(held, 2)] for at, held in samples] for name, samples in soak.memory.items()}
    return environment("benchmarks.soak.soak", words) | {
        "minutes": round(soak.minutes(), 1), "rounds": soak.rounds, "memory": memory, "samples": seen,
    }  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Soak for a time, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, help="stop after so many rounds, if the time is not over before")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON and the picture")
    words = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(words)
    with runs.cleared(Path(tempfile.mkdtemp(prefix="simpo-soak-")), keep=False) as folder:
        runs.warm(folder)
        soak = Soak(folder, args.seed)
        soak.begin()
        try:
            number = 0
            while soak.minutes() < args.minutes and number != args.rounds:
                soak.round(number)
                number += 1
                print(f"round {number}: {soak.rounds[-1]}", flush=True)
            soak.end()
        finally:
            for pid in soak.children.values():
                os.kill(pid, signal.SIGKILL)
    draw(soak, args.output / "soak.png")
    found = report(soak, words)
    write_json(found, args.output, "soak")
    assert not soak.left, f"left behind: {soak.left}"
    if found["minutes"] >= _LONG_ENOUGH:
        grown = {name: row["percent_an_hour"] for name, row in found["memory"].items()}
        assert max(grown.values()) < LIMIT, f"memory grew, in percent an hour: {grown}"


if __name__ == "__main__":
    main()
