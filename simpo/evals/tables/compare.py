"""Results of several models beside published numbers: which stands in which row, and what must be said of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from simpo.errors import DataError
from simpo.evals.results import RESULTS_FILE, Metric, Result, read_result
from simpo.evals.tables.published import JUDGES, Published, published_notes

# Benchmarks and their metrics in the order of columns; other metrics of these are left to the CSV file, and of other
# benchmarks all are shown.
METRICS: dict[str, tuple[str, ...]] = {
    "alpaca_eval": ("lc_win_rate", "win_rate", "length"),
    "arena_hard": ("win_rate", "length"),
    "mt_bench": ("score", "turn_1", "turn_2"),
    "downstream": ("mmlu", "arc_challenge", "hellaswag", "truthfulqa_mc2", "winogrande", "gsm8k", "average"),
    "pairs": (
        "reward_accuracy", "sum_likelihood_accuracy", "reward_margin", "chosen_logps", "rejected_logps",
        "length_correlation",
    ),
}  # fmt: skip

_BY_NATURE = ("model", "name", "output", "dtype", "engine", "device", "batch_size", "server", "stop_", "context",
              "chat_template_hash", "tokenizer_hash", "packages", "weights")  # fmt: skip
"""Beginnings of the names of settings that differ between models or machines by nature."""

_SHORT = 60  # characters of a setting's value in a note


class Column(NamedTuple):
    """A metric of a benchmark."""

    benchmark: str
    metric: str
    unit: str


@dataclass(frozen=True, slots=True)
class Cell:
    """A number of a row, and the notes on it (from 1)."""

    metric: Metric
    marks: tuple[int, ...] = ()


@dataclass(slots=True)
class Row:
    """A model in the table.

    Args:
        label: its name; for published rows the objective and setting.
        published: whether it is a published one.
        cells: of the columns that it has.
        source: where the numbers come from: benchmark -> file; for published rows the name on the hub.
        judges: benchmark -> who judged.
    """

    label: str
    published: bool = False
    cells: dict[tuple[str, str], Cell] = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)
    judges: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A whole table: columns, rows, numbered notes (a cell's marks name them), and remarks on all of it."""

    columns: list[Column]
    rows: list[Row]
    notes: list[str]
    remarks: list[str]


class Found(NamedTuple):
    """A result and its file."""

    path: Path
    result: Result


def find_results(paths: Sequence[str | Path]) -> list[Found]:
    """Read results: files, and every `results.json` below a folder; each file once.

    Raises:
        DataError: a path is missing, a folder holds none, or a file is no result.
    """
    files: dict[Path, Path] = {}
    for path in map(Path, paths):
        inside = sorted(path.rglob(RESULTS_FILE)) if path.is_dir() else [path]
        if not inside:
            raise DataError(
                f"{path}: holds no {RESULTS_FILE}, nor do folders in it; name an output folder of `simpo eval`"
            )
        files |= {file.resolve(): file for file in inside if file.resolve() not in files}
    return [Found(file, read_result(file)) for file in files.values()]


def compare(found: Sequence[Found], published: Sequence[Published] = ()) -> Comparison:
    """Put results into one table, and of published rows the benchmarks that results have.

    A model is a row; a second result of the same benchmark and model gets a row of its own. What is not alike between
    results of one benchmark, its judge or a setting, is a note at each of these numbers.
    """
    rows = _own_rows(found)
    wanted = {result.benchmark for _, result in found}
    published = [entry for entry in published if wanted & set(entry.metrics)]
    for entry in published:
        row = Row(f"{entry.objective}, {entry.setting}", published=True)
        for benchmark in (benchmark for benchmark in entry.metrics if benchmark in wanted):
            metrics = entry.metrics[benchmark]
            row.cells |= {(benchmark, name): Cell(metric) for name, metric in metrics.items()}
            row.source[benchmark], row.judges[benchmark] = entry.model, JUDGES.get(benchmark)
        rows.append(row)
    notes: list[str] = []
    for benchmark in dict.fromkeys(name for row in rows for name in row.judges):
        _note_differences(benchmark, rows, found, notes)
    for path, result in found:
        _note_warnings(result, [row for row in rows if row.source.get(result.benchmark) == str(path)], notes)
    return Comparison(_columns(rows), rows, notes, _remarks(rows, published))


def _own_rows(found: Sequence[Found]) -> list[Row]:
    rows: dict[str, list[Row]] = {}
    for path, result in found:
        of_model = rows.setdefault(result.model, [])
        row = next((row for row in of_model if result.benchmark not in row.judges), None)
        if row is None:
            row = Row(result.model if not of_model else f"{result.model} ({len(of_model) + 1})")
            of_model.append(row)
        row.cells |= {(result.benchmark, name): Cell(metric) for name, metric in result.metrics.items()}
        row.source[result.benchmark], row.judges[result.benchmark] = str(path), result.judge
    return [row for of_model in rows.values() for row in of_model]


def _columns(rows: Iterable[Row]) -> list[Column]:
    units: dict[tuple[str, str], str] = {}
    for row in rows:
        for key, cell in row.cells.items():
            if key[1] in METRICS.get(key[0], (key[1],)):
                units[key] = units.get(key) or cell.metric.unit
    known = [(benchmark, name) for benchmark, names in METRICS.items() for name in names]
    benchmarks = [*METRICS, *(benchmark for benchmark, _ in units)]
    order = sorted(units, key=lambda key: (benchmarks.index(key[0]), known.index(key) if key in known else len(known)))
    return [Column(*key, units[key]) for key in order]


def _note_differences(benchmark: str, rows: Sequence[Row], found: Sequence[Found], notes: list[str]) -> None:
    """A note for each way in which the numbers of a benchmark were made, where there are several."""
    results = {str(path): result for path, result in found if result.benchmark == benchmark}
    differing = _differing_settings(list(results.values()))
    judges = {result.judge for result in results.values()}
    ways: dict[str, list[Row]] = {}
    for row in (row for row in rows if benchmark in row.judges):
        judge = row.judges[benchmark]
        if not row.published:
            ways.setdefault(_way(judge, results[row.source[benchmark]], differing), []).append(row)
        elif judges - {judge}:  # what else the published numbers depend on is not in their table
            ways.setdefault(f"published, {_way(judge)}", []).append(row)
    if len(ways) > 1:
        for way, alike in ways.items():
            _mark(alike, benchmark, f"{benchmark}: {way}", notes)


def _way(judge: str | None, result: Result | None = None, differing: Sequence[str] = ()) -> str:
    parts = [f"judge {judge}"] if judge else []
    if result is not None:
        settings = _flat(result.settings)
        parts += [f"{key} {_show(settings.get(key))}" for key in differing]
    return ", ".join(parts) or "no judge"


def _differing_settings(results: Sequence[Result]) -> list[str]:
    told = [_flat(result.settings) for result in results]
    keys = dict.fromkeys(key for settings in told for key in settings)
    return [key for key in keys if len({_plain(settings.get(key)) for settings in told}) > 1]


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings and those within them by their names, less what differs by nature."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if key.startswith(_BY_NATURE):
            continue
        flat |= {f"{key}.{inner}": found for inner, found in _flat(value).items()} if _is_tree(value) else {key: value}
    return flat


def _is_tree(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _show(value: Any) -> str:
    if value is None:
        return "not said"
    text = " ".join((value if isinstance(value, str) else _plain(value)).split())
    return text if len(text) <= _SHORT else text[: _SHORT - 1] + "…"


def _note_warnings(result: Result, rows: Sequence[Row], notes: list[str]) -> None:
    for warning in result.warnings:
        _mark(rows, result.benchmark, f"{result.benchmark}: {warning}", notes)


def _mark(rows: Sequence[Row], benchmark: str, note: str, notes: list[str]) -> None:
    if note not in notes:
        notes.append(note)
    number = notes.index(note) + 1
    for row in rows:
        for key, cell in row.cells.items():
            if key[0] == benchmark and number not in cell.marks:
                row.cells[key] = Cell(cell.metric, (*cell.marks, number))


def _remarks(rows: Sequence[Row], published: Sequence[Published]) -> list[str]:
    own = [cell.metric for row in rows if not row.published for cell in row.cells.values()]
    remarks = ["in brackets: 95% interval"] if any(metric.low is not None for metric in own) else []
    if published and any(metric.low is not None for metric in own):
        remarks = ["in brackets: 95% interval; the published rows have none"]
    return remarks + published_notes(published)
