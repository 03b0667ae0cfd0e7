"""Measures of models as text: in the terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

from simpo.analysis.comparison import PERCENT, Measure
from simpo.analysis.style import labels
from simpo.estimates import Estimate

if TYPE_CHECKING:
    from rich.console import Console

_LABEL, _NARROW = 26, 20  # widest column of names of measures, and that in a terminal of less than 80 columns
_HEAD = 16  # of a line of a model's name above its column
_GAP, _EDGES = 2, 2
_CSV = ("table", "measure", "model", "value", "low", "high", "count", "unit")


def show(estimate: Estimate | None, unit: str, signed: bool = False) -> tuple[str, str]:
    """The number, and its interval; empty where there is none. Shares are shown in percent.

    >>> show(Estimate(0.5, 0.25, 0.75, 8), "%")
    ('50.0', '[25.0, 75.0]')
    """
    if estimate is None or math.isnan(estimate.value):
        return "", ""
    scale, decimals = (100, 1) if unit == PERCENT else (1, {"tokens": 1, "nats": 2}.get(unit, 3))
    sign = "+" if signed else ""
    value, low, high = (
        f"{scale * number:{sign},.{decimals}f}" for number in (estimate.value, estimate.low, estimate.high)
    )
    return value, "" if math.isnan(estimate.low) else f"[{low}, {high}]"


def label(measure: Measure, signed: bool = False) -> str:
    """Its name with its unit; differences of shares are percentage points."""
    unit = "points" if signed and measure.unit == PERCENT else measure.unit
    return f"{measure.name} ({unit})" if unit else measure.name


def names_of(table: Sequence[Measure]) -> list[str]:
    """The models that have a number, in their order."""
    return list(dict.fromkeys(name for measure in table for name in measure.of))


def print_table(table: Sequence[Measure], title: str, console: Console, *, signed: bool = False) -> None:
    """Print measures as rows and models as columns, as many at a time as the terminal has room for."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    names = names_of(table)
    heads = dict(zip(names, (wrap(name, _HEAD) for name in labels(names)), strict=True))
    width = _LABEL if console.width >= 80 else _NARROW
    for part in _parts(table, heads, console.width - width - _GAP - _EDGES, signed):
        grid = Table(title=Text(title, style="bold"), title_justify="left", box=SIMPLE_HEAD, pad_edge=False,
                     padding=(0, _GAP, 0, 0))  # fmt: skip
        grid.add_column("", max_width=width)
        for name in part:
            grid.add_column(Text("\n".join(heads[name])), justify="right", no_wrap=True)
        for measure in table:
            cells = [show(measure.of.get(name), measure.unit, signed) for name in part]
            grid.add_row(Text(label(measure, signed)), *(
                Text(value) + Text(f"\n{ends}" if ends else "", style="dim") for value, ends in cells
            ))  # fmt: skip
        console.print(grid)


def _parts(table: Sequence[Measure], heads: Mapping[str, list[str]], room: int, signed: bool) -> Iterator[list[str]]:
    """Models whose columns fit into so much room, one at least."""
    part: list[str] = []
    free = room
    for name, head in heads.items():
        cells = [text for measure in table for text in show(measure.of.get(name), measure.unit, signed)]
        needed = max(map(len, [*head, *cells])) + _GAP
        if part and needed > free:
            yield part
            part, free = [], room
        part.append(name)
        free -= needed
    if part:
        yield part


def grid_of(table: Sequence[Measure], *, signed: bool = False) -> tuple[list[str], list[list[str]]]:
    """Head and rows as texts: a number with its interval in each cell."""
    names = names_of(table)
    rows = [
        [label(measure, signed), *(" ".join(filter(None, show(measure.of.get(name), measure.unit, signed)))
                                   for name in names)]
        for measure in table
    ]  # fmt: skip
    return ["", *names], rows


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: bool = True) -> str:
    """A table in Markdown, all columns but the first at the `right`, as numbers stand, or at the left."""
    ruler = ["---", *["---:" if right else "---"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(map(_escaped, cells))} |\n" for cells in (head, ruler, *rows))


def _escaped(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").split())


def csv_of(tables: Mapping[str, Sequence[Measure]]) -> str:
    """One line for each number, unrounded; shares are in percent, as in the tables.

    Args:
        tables: by what they are, e.g. `models` and `differences`.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV)
    for kind, table in tables.items():
        for measure in table:
            scale = 100 if measure.unit == PERCENT else 1
            for name, one in measure.of.items():
                numbers = ["" if math.isnan(part) else scale * part for part in (one.value, one.low, one.high)]
                writer.writerow([kind, measure.name, name, *numbers, one.count, measure.unit])
    return text.getvalue()
