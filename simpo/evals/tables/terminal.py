"""A comparison as text: in the terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from simpo.evals.results import Metric
from simpo.evals.tables.compare import Cell, Column, Comparison, Row

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_EDGES = 2  # columns of the terminal beside the table
_GAP = 2  # columns of the terminal between two columns of the table
_LABEL = (16, 34)  # narrowest and widest column of names
_NAMES = {"lc_win_rate": "LC win rate", "mmlu": "MMLU", "arc_challenge": "ARC", "hellaswag": "HellaSwag",
          "truthfulqa_mc2": "TruthfulQA", "winogrande": "Winogrande", "gsm8k": "GSM8K"}  # fmt: skip
_TITLES = {
    "alpaca_eval": "AlpacaEval 2",
    "arena_hard": "Arena-Hard",
    "mt_bench": "MT-Bench",
    "downstream": "downstream",
    "pairs": "pairs",
}
_CSV = (
    "row", "published", "benchmark", "metric", "value", "low", "high", "stderr", "unit", "judge", "source", "notes",
)  # fmt: skip


def benchmark_title(benchmark: str) -> str:
    """What people call a benchmark."""
    return _TITLES.get(benchmark, benchmark)


def metric_name(metric: str) -> str:
    """What people call a metric."""
    return _NAMES.get(metric, metric.replace("_", " "))


def shorten(label: str, longest: int) -> str:
    """A long name keeps its end, which says how a model was trained."""
    return label if len(label) <= longest else "…" + label[1 - longest :]


def show_number(value: float, unit: str) -> str:
    """As many decimals as its unit is worth: lengths none, percentages one, points two, anything else three."""
    decimals = {"%": 1, "points": 2, "tokens": 0, "characters": 0}.get(unit, 3)
    return f"{value:,.{decimals}f}"


def show_interval(metric: Metric) -> str:
    """[low, high], or nothing."""
    if metric.low is None or metric.high is None:
        return ""
    return f"[{show_number(metric.low, metric.unit)}, {show_number(metric.high, metric.unit)}]"


def show_marks(cell: Cell) -> str:
    """The numbers of its notes."""
    return f" ({','.join(map(str, cell.marks))})" if cell.marks else ""


def column_name(column: Column) -> str:
    """The metric with its unit: `win rate, %`."""
    name = metric_name(column.metric)
    return f"{name}, {column.unit}" if column.unit else name


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print the table; in as many parts as the terminal's width asks for, then its notes."""
    from rich.text import Text

    for columns in column_groups(comparison, console.width):
        _print_part(comparison, columns, console)
    for number, note in enumerate(comparison.notes, start=1):
        console.print(Text(f"({number}) {note}"))
    for remark in comparison.remarks:
        console.print(Text(remark), style="dim")


def column_groups(comparison: Comparison, width: int) -> Iterator[list[Column]]:
    """Columns that fit beside the names into a width: all, else benchmark by benchmark, else some at a time."""
    label = _label_width(comparison, width)

    def fits(columns: Sequence[Column], *, titled: bool = True) -> bool:
        room = width - label - _EDGES
        return sum(_GAP + _column_width(column, comparison.rows, titled) for column in columns) <= room

    if fits(comparison.columns, titled=not _one_benchmark(comparison.columns)):
        yield list(comparison.columns)
        return
    for benchmark in dict.fromkeys(column.benchmark for column in comparison.columns):
        columns = [column for column in comparison.columns if column.benchmark == benchmark]
        for count in range(1, len(columns) + 1):  # of parts, as even as can be
            size = -(-len(columns) // count)
            parts = [columns[start : start + size] for start in range(0, len(columns), size)]
            if size == 1 or all(fits(part, titled=False) for part in parts):
                yield from parts
                break


def _one_benchmark(columns: Sequence[Column]) -> bool:
    """Then its name stands above the table, not above each column."""
    return len({column.benchmark for column in columns}) == 1


def _label_width(comparison: Comparison, width: int) -> int:
    longest = max((len(row.label) for row in comparison.rows), default=0)
    return min(longest, max(_LABEL[0], min(_LABEL[1], width * 2 // 5)))


def _column_width(column: Column, rows: Sequence[Row], titled: bool) -> int:
    lines = [line for row in rows for line in _cell_lines(row.cells.get((column.benchmark, column.metric)))]
    return max(map(len, [*lines, *_heading(column, titled)]))


def _heading(column: Column, titled: bool) -> list[str]:
    """The lines above a column, with the benchmark's name where that is not above the table."""
    title = [benchmark_title(column.benchmark)] if titled else []
    return [*title, metric_name(column.metric), *([column.unit] if column.unit else [])]


def _cell_lines(cell: Cell | None) -> list[str]:
    if cell is None:
        return [""]
    interval = show_interval(cell.metric)
    return [show_number(cell.metric.value, cell.metric.unit) + show_marks(cell), *([interval] if interval else [])]


def _print_part(comparison: Comparison, columns: Sequence[Column], console: Console) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    width = _label_width(comparison, console.width)
    titled = not _one_benchmark(columns)
    title = None if titled else Text(benchmark_title(columns[0].benchmark), style="bold")
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, _GAP, 0, 0))
    table.add_column("", width=width, no_wrap=True)
    for column in columns:
        table.add_column(Text("\n".join(_heading(column, titled))), justify="right", no_wrap=True, vertical="top")
    seen_published = False
    for row in comparison.rows:
        cells = [row.cells.get((column.benchmark, column.metric)) for column in columns]
        if not any(cells):
            continue
        if row.published and not seen_published:
            seen_published = True
            table.add_section()
            table.add_row(Text("published", style="italic"))
        values = [Text("\n").join(_styled(cell)) for cell in cells]
        table.add_row(Text(shorten(row.label, width), style="" if row.published else "bold"), *values)
    console.print(table)


def _styled(cell: Cell | None) -> list[Text]:
    from rich.text import Text

    value, *interval = _cell_lines(cell)
    return [Text(value), *(Text(line, style="dim") for line in interval)]


def markdown(comparison: Comparison) -> str:
    """The whole table and its notes as Markdown."""
    head = ["model", *(f"{benchmark_title(column.benchmark)}: {column_name(column)}" for column in comparison.columns)]
    lines = ["# Comparison", "", _line(head), _line(["---", *["---:"] * len(comparison.columns)])]
    for row in comparison.rows:
        cells = (row.cells.get((column.benchmark, column.metric)) for column in comparison.columns)
        label = f"*{_escaped(row.label)} (published)*" if row.published else f"**{_escaped(row.label)}**"
        lines.append(_line([label, *(" ".join(_cell_lines(cell)) for cell in cells)]))
    notes = [f"- ({number}) {_escaped(note)}" for number, note in enumerate(comparison.notes, start=1)]
    remarks = [f"- {_escaped(remark)}" for remark in comparison.remarks]
    return "\n".join([*lines, "", *notes, *remarks]).rstrip() + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").split())


def comparison_csv(comparison: Comparison) -> str:
    """One line for each number, unrounded, with its interval, judge, file and notes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV)
    for row in comparison.rows:
        for (benchmark, name), cell in row.cells.items():
            metric = cell.metric
            notes = "; ".join(comparison.notes[mark - 1] for mark in cell.marks)
            numbers = [metric.value, metric.low, metric.high, metric.stderr]
            place = [row.label, str(row.published).lower(), benchmark, name]
            about = [metric.unit, row.judges.get(benchmark), row.source.get(benchmark), notes]
            writer.writerow(["" if value is None else value for value in [*place, *numbers, *about]])
    return text.getvalue()
