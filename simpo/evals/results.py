"""What a benchmark says of a model, as a file: `results.json`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from simpo.errors import DataError
from simpo.redact import redact
from simpo.store import write_whole

RESULTS_FILE = "results.json"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Metric:
    """One number.

    Args:
        value: the number.
        unit: `%`, `points`, `tokens`, `characters`, `nats/token` or empty.
        low, high: ends of the 95% interval; None where there is none.
        stderr: standard error, in the same unit; None where there is none.
    """

    value: float
    unit: str = ""
    low: float | None = None
    high: float | None = None
    stderr: float | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """One model on one benchmark.

    Args:
        benchmark: alpaca_eval, arena_hard, mt_bench, downstream or pairs.
        model: the name that stands in tables.
        metrics: name -> number.
        judge: who judged; None where nobody did.
        counts: how many answers, verdicts and failures of each kind there are.
        settings: what the numbers depend on.
        warnings: what a reader must know.
    """

    benchmark: str
    model: str
    metrics: dict[str, Metric]
    judge: str | None = None
    counts: dict[str, int] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def write_result(folder: str | Path, result: Result) -> Path:
    """Write `results.json` into a folder, which is made if missing; returns its path."""
    path = Path(folder) / RESULTS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, {"format": FORMAT, **redact(asdict(result))})
    return path


def read_result(path: str | Path) -> Result:
    """Read a result: a file, or the folder that holds its `results.json`.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    file = Path(path) / RESULTS_FILE if Path(path).is_dir() else Path(path)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found.pop("format") != FORMAT:
            raise DataError(f"{file}: is of another version of simpo; run the benchmark's last step again")
        return Result(**{**found, "metrics": {name: Metric(**value) for name, value in found["metrics"].items()}})
    except FileNotFoundError:
        raise DataError(f"{file}: there is no such file; name a folder of `simpo eval`, or its results.json") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: cannot be read as a result of `simpo eval`: {error}") from error


def model_name(model_name_or_path: str) -> str:
    """The name of a model in tables: the last part of its path or hub name.

    >>> model_name("outputs/my-run/"), model_name("google/gemma-2-9b-it")
    ('my-run', 'gemma-2-9b-it')
    """
    return PurePosixPath(model_name_or_path).name or model_name_or_path.replace("/", "_")


def default_folder(name: str, benchmark: str) -> str:
    """Where a benchmark of a model goes unless its settings say."""
    return str(PurePosixPath("outputs", "eval", name, benchmark))
