"""Kill training runs at random moments and start them again, until they have finished; then compare.

    python -m benchmarks.soak.kills --engine ddp --kills 50 --seed 0

A run of two processes is killed with SIGKILL again and again: all of its processes at once, the launcher alone, or one
rank. Each time the same command is given again. The weights and every logged number of a run that was killed must be
those of one that nobody killed, bit for bit: float32 sums in the same order on the same number of processes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS, environment, print_table, write_json
from benchmarks.soak import runs

WHO = ("all", "all", "all", "all", "launcher", "one rank")
"""Whom a kill strikes; a name that stands here more often is drawn more often."""

TIMEOUT = 300.0
"""Seconds that one start may take to its end."""


@dataclass
class Kill:
    """One kill.

    Args:
        phase: where rank 0 was.
        who: whom it struck.
        checkpoint: the last whole one at this moment.
        seconds: since the start.
    """

    phase: str
    who: str
    checkpoint: str | None
    seconds: float


def kill_runs(folder: Path, engine: str, kills: int, seed: int, say: Callable[[str], None]) -> list[Kill]:
    """Kill runs in `folder` until there were `kills`, let the last one finish, and compare each with an unkilled one.

    `runs.warm` comes first.

    Raises:
        AssertionError: a run did not go on, or did not end as the unkilled one.
    """
    rng, number = random.Random(seed), 0
    done: list[Kill] = []
    began = time.monotonic()
    whole = runs.start(runs.make_config(folder, "whole"), engine, folder / "whole.txt")
    spans = _spans(whole)
    assert whole.wait(TIMEOUT) == 0, whole.last_lines()
    life = time.monotonic() - began
    say(f"{engine}: {life:.1f} s without a kill")
    while len(done) < kills:
        name = f"run-{number}"
        config = runs.make_config(folder, name)
        before = len(done)
        _one_run(folder, name, config, engine, kills, rng, spans, life, done, say)
        # ranks whose launcher is killed stop in order, which leaves out an evaluation that is due
        evaluations = all(kill.who != "launcher" for kill in done[before:])
        wrong = in_fork(
            lambda name=name, all_of=evaluations: differences(folder / "whole", folder / name, all_of)  # type: ignore[misc]
        )
        assert not wrong, f"{name}: " + "; ".join(wrong)
        say(f"{name} is the same as without a kill, after {len(done)} of {kills}")
        number += 1
    return done


def _one_run(
    folder: Path,
    name: str,
    config: Path,
    engine: str,
    kills: int,
    rng: random.Random,
    spans: dict[str, list[float]],
    life: float,
    done: list[Kill],
    say: Callable[[str], None],
) -> None:
    """Start, kill and start again, until the run has finished."""
    from simpo.run.folder import is_finished

    orphans: list[int] = []
    most = min(kills, len(done) + rng.randint(3, 7))  # then it may finish, and another one begins
    for attempt in range(10 * kills + 10):
        last = newest(folder / name)
        target = rng.choice([*spans, *("training", "saving") * 3, "any moment"])
        _empty_caches(folder, target, last)
        process = runs.start(config, engine, folder / f"{name}-{attempt}.txt")
        began, who = time.monotonic(), rng.choice(WHO)
        had_orphans = _outlive(process, orphans)
        if len(done) < most:
            _wait_for(process, target, rng, spans, life)
        else:
            process.wait(TIMEOUT)
        if process.poll() is not None:
            if had_orphans and "holds a finished run" in process.last_lines():
                return  # its orphans had come to the end before they could stop
            assert process.code == 0, f"{name}, attempt {attempt}, ended with {process.code}:\n{process.last_lines(60)}"
            _check_start(process, last, had_orphans)
            return
        kill = Kill(runs.phase(), who, newest(folder / name), round(time.monotonic() - began, 2))
        orphans = process.kill(who) if who == "launcher" else (process.kill(who), [])[1]
        process.wait(TIMEOUT)
        _check_start(process, last, had_orphans)
        if is_finished(folder / name) and not orphans:
            return  # it had just ended, so that was no kill
        done.append(kill)
        say(f"kill {len(done)}: {who} in {kill.phase} after {kill.seconds} s, last checkpoint {kill.checkpoint}")
    raise AssertionError(f"{name} has not finished")


def _outlive(process: runs.Processes, orphans: list[int]) -> bool:
    """Wait for the ranks of a launcher that was killed, which still hold the folder; whether there were any."""
    import psutil

    limit = time.monotonic() + TIMEOUT
    while process.poll() is None and any(psutil.pid_exists(pid) for pid in orphans):
        assert time.monotonic() < limit, f"ranks of a killed launcher live on:\n{process.last_lines()}"
        time.sleep(0.01)
    return bool(orphans)


def _spans(process: runs.Processes) -> dict[str, list[float]]:
    """How long each visit to each phase lasts, in seconds."""
    spans: dict[str, list[float]] = {}
    now, since = runs.phase(), time.monotonic()
    while process.poll() is None:
        if runs.phase() != now:
            spans.setdefault(now, []).append(time.monotonic() - since)
            now, since = runs.phase(), time.monotonic()
        time.sleep(0.001)
    return spans


def _wait_for(
    process: runs.Processes, target: str, rng: random.Random, spans: dict[str, list[float]], life: float
) -> None:
    """Wait for a random moment of one of the visits to a phase, or of the whole life; or for the end."""
    if target == "any moment":
        _sleep(process, rng.uniform(0, life))
        return
    visit = rng.randrange(len(spans[target]))
    was, visits, limit = "", -1, time.monotonic() + TIMEOUT
    while visits < visit and process.poll() is None:
        now = runs.phase()
        visits += now == target != was
        was = now
        assert time.monotonic() < limit, f"hangs in {now}:\n{process.last_lines(60)}"
        time.sleep(0.0005)
    _sleep(process, rng.uniform(0, spans[target][visit]))


def _sleep(process: runs.Processes, seconds: float) -> None:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit and process.poll() is None:
        time.sleep(0.0005)


def _empty_caches(folder: Path, target: str, last: str | None) -> None:
    """Let there be something to do in a phase that would only read a cache."""
    if target in ("loading data", "tokenising"):
        shutil.rmtree(folder / "hf" / "datasets", ignore_errors=True)
    if target == "reference" and last is None:  # later they cannot be computed again
        shutil.rmtree(folder / "references", ignore_errors=True)


def newest(folder: Path) -> str | None:
    """The last whole checkpoint."""
    from simpo.run.folder import checkpoints

    return next((path.name for path in reversed(checkpoints(folder))), None)


def _check_start(process: runs.Processes, last: str | None, orphans: bool) -> None:
    """A start that came to train must have gone on from the last checkpoint, or from a later one of its orphans."""
    lines = process.printed.read_text(errors="replace").splitlines()
    went_on = [line for line in lines if line.startswith("Going on from ")]
    assert not any("is damaged" in line for line in lines), process.last_lines()
    if went_on:
        step = int(went_on[0].rpartition("checkpoint-")[2].split(";")[0])
        expected = int(last.removeprefix("checkpoint-")) if last else 0
        assert step == expected or (orphans and step > expected), f"{went_on[0]}, but the last one was {last}"
    elif process.code == 0:
        assert last is None, f"started afresh, but there was {last}"


def in_fork(look: Callable[[], list[str]]) -> list[str]:
    """What a function says in a fork of this process, which stays as it is."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            found = look()
        except BaseException as error:
            found = [repr(error)]
        with os.fdopen(writer, "w") as pipe:
            json.dump(found, pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return list(json.loads(answer))


def differences(whole: Path, other: Path, evaluations: bool = True) -> list[str]:
    """Where a finished run is not as another one; its logged evaluations are left out where signals skip some."""
    import torch
    from safetensors.torch import load_file

    from simpo.run.checkpoints.seal import damages
    from simpo.run.folder import REPORT, SIGNS, checkpoints, is_finished

    found = [] if is_finished(other) else ["not finished"]
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (other, whole))
    found += [f"weight {name}" for name in theirs if name not in ours or not torch.equal(ours[name], theirs[name])]
    logs = ("log.jsonl", "trainer_state.json")
    found += [f"{name} differs" for name in logs if _log(other, name, evaluations) != _log(whole, name, evaluations)]
    settings = [(folder / "settings.yaml").read_text().replace(str(folder), "") for folder in (other, whole)]
    found += [] if settings[0] == settings[1] else ["settings.yaml differs"]
    # which checkpoints are left depends on where signals added one; after a kill behind the end the page is not made,
    # and signs of life stay
    names = [
        {path.name.rstrip("0123456789") for path in folder.iterdir()} - {REPORT, SIGNS} for folder in (other, whole)
    ]
    found += [] if names[0] == names[1] else [f"files {sorted(names[0] ^ names[1])}"]
    return found + [f"{path.name}: {harm}" for path in checkpoints(other) for harm in damages(path)]


def _log(folder: Path, name: str, evaluations: bool) -> list[Any]:
    """Every logged number, in order, but times, and transformers' train_loss, which counts from the last start."""
    text = (folder / name).read_text()
    lines = [json.loads(line) for line in text.splitlines()] if name.endswith("l") else json.loads(text)["log_history"]
    lines = [line for line in lines if evaluations or "loss" in line]
    clocks = ("_runtime", "_per_second", "elapsed", "memory", "total_flos", "train_loss")
    return [{key: value for key, value in line.items() if not any(word in key for word in clocks)} for line in lines]


def main(argv: list[str] | None = None) -> None:
    """Kill, compare, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=tuple(runs.ENGINES), default="ddp")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the runs go, and stay; default: a temporary folder")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON")
    words = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(words)
    began = time.monotonic()
    folder = (args.folder or Path(tempfile.mkdtemp(prefix="simpo-kills-"))).absolute()
    with runs.cleared(folder, keep=args.folder is not None):
        runs.warm(folder)
        kills = kill_runs(folder, args.engine, args.kills, args.seed, lambda text: print(text, flush=True))
    phases = Counter((kill.phase, kill.who) for kill in kills)
    whom = list(dict.fromkeys(WHO))
    rows = [[phase, *(phases[phase, who] for who in whom)] for phase in runs.PHASES]
    print_table(f"{len(kills)} kills of {args.engine}", ["phase", *whom], rows)
    report = environment("benchmarks.soak.kills", words) | {
        "engine": args.engine, "seed": args.seed, "minutes": round((time.monotonic() - began) / 60, 1),
        "kills": [asdict(kill) for kill in kills], "weights": "equal bit for bit",
    }  # fmt: skip
    write_json(report, args.output, f"kills-{args.engine}")


if __name__ == "__main__":
    main()
