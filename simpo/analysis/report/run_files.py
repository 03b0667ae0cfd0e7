"""What lies in a run's folder, read so that a run that goes on, or was killed, has a report too."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simpo.errors import ConfigError
from simpo.run.folder import MANIFEST, SETTINGS
from simpo.run.logfile import LOG_FILE

Line = Mapping[str, Any]

MONITOR = "monitor"
_STATE = "trainer_state.json"
_FILES = {
    MANIFEST: "settings, versions, hashes, what became of the data",
    SETTINGS: "all settings as one file, which repeats the run",
    LOG_FILE: "every number that was logged, a line of JSON each",
    "all_results.json": "results at the end",
    f"{MONITOR}/warnings.jsonl": "warnings raised during training",
    f"{MONITOR}/generations.jsonl": "what the model wrote during training",
    "README.md": "the model card",
}


@dataclass(frozen=True, eq=False)
class RunFiles:
    """The folder of a run.

    Args:
        folder: where it is.
        manifest: `run_manifest.json`; empty where there is none.
        log: the lines of `log.jsonl` that are whole, in their order.
        results: of all `*_results.json`, by name.
        warnings, generations: the lines of these files of monitors.
        probes: step -> file of log-probs on held-out pairs.
        present: files beside these that one may want to open, with what they are.
        problems: what could not be read, and why.
    """

    folder: Path
    manifest: Mapping[str, Any]
    log: Sequence[Line]
    results: Mapping[str, float]
    warnings: Sequence[Line]
    generations: Sequence[Line]
    probes: Mapping[int, Path]
    present: Sequence[tuple[Path, str]]
    problems: Sequence[str]

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.manifest.get("status") == "finished"

    @property
    def settings(self) -> Mapping[str, Any]:
        """Every setting that was given; tokens of accounts are left out."""
        found = self.manifest.get("settings")
        given = found if isinstance(found, dict) else {}
        return {key: value for key, value in given.items() if not key.endswith("_token")}

    @property
    def last_step(self) -> int:
        """The step of the last log line; 0 without one."""
        return max((line["step"] for line in self.log), default=0)


def read_run(folder: str | Path) -> RunFiles:
    """Read what is there.

    Raises:
        ConfigError: it is no folder of a run.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; give the output_dir of a run")
    if not any((folder / name).is_file() for name in (MANIFEST, LOG_FILE, _STATE)):
        raise ConfigError(
            f"{folder} is no run's folder: it has neither {MANIFEST} nor {LOG_FILE}; give the output_dir of a run"
        )
    problems: list[str] = []
    log = _log(folder, problems)
    probes = {
        int(found.group(1)): path
        for path in sorted((folder / MONITOR).glob("probe-*.parquet"))
        if (found := re.fullmatch(r"probe-(\d+)", path.stem))
    }
    return RunFiles(
        folder=folder,
        manifest=_object(folder / MANIFEST, problems),
        log=log,
        results=_results(folder, problems),
        warnings=_lines(folder / MONITOR / "warnings.jsonl", problems),
        generations=_lines(folder / MONITOR / "generations.jsonl", problems),
        probes=probes,
        present=[(folder / name, what) for name, what in _FILES.items() if (folder / name).is_file()],
        problems=problems,
    )


def names_of(runs: Sequence[RunFiles]) -> list[str]:
    """What the runs are called: their folders' names, with as many parents as tell them apart."""
    parts = [run.folder.resolve().parts for run in runs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-depth:]) for one in parts]
        if len(set(names)) == len(set(parts)):
            break
    return [f"{name} ({names[:at].count(name) + 1})" if name in names[:at] else name for at, name in enumerate(names)]


def number(value: Any) -> float | None:
    """A finite number as float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def series(lines: Iterable[Line], key: str) -> dict[int, float]:
    """step -> finite value of the key; where a step was logged twice, the later one."""
    found = ((line["step"], number(line.get(key))) for line in lines)
    return {step: value for step, value in found if value is not None}


def last_written(run: RunFiles) -> str:
    """When the run last logged something, in local time."""
    path = run.folder / LOG_FILE
    file = path if path.is_file() else run.folder / MANIFEST
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(file.stat().st_mtime)) if file.is_file() else "unknown"


def _log(folder: Path, problems: list[str]) -> list[Line]:
    """The log; that of transformers where there is no other, as of the supervised stage."""
    lines: Iterable[Any] = _lines(folder / LOG_FILE, problems)
    if not (folder / LOG_FILE).is_file():
        history = _object(folder / _STATE, problems).get("log_history")
        lines = history if isinstance(history, list) else []
    whole = [line for line in lines if _mapping(line) and number(line.get("step")) is not None]
    return [{**line, "step": int(line["step"])} for line in whole]


def _results(folder: Path, problems: list[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for path in sorted(folder.glob("*_results.json")):
        found |= {key: one for key, value in _object(path, problems).items() if (one := number(value)) is not None}
    return found


def _object(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return {}
    if not _mapping(found):
        problems.append(f"{path.name} holds no JSON object")
        return {}
    return found


def _lines(path: Path, problems: list[str]) -> list[Line]:
    """Objects of a file of JSON lines. A last line without an end is still being written, or was when the run died."""
    if not path.is_file():
        return []
    try:
        texts = path.read_bytes().split(b"\n")
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return []
    found, wrong = [], 0
    for text in texts[:-1]:
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if _mapping(line):
            found.append(line)
        elif text.strip():
            wrong += 1
    if wrong:
        problems.append(f"{path.name}: {wrong} of {len(texts) - 1:,} lines are no JSON objects and were left out")
    return found


def _mapping(value: Any) -> bool:
    return isinstance(value, dict)
