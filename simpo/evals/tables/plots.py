"""A comparison as a picture: a dot and an interval for each model, panels for each benchmark's main numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from simpo.errors import ConfigError
from simpo.evals.tables.compare import Column, Comparison, Row
from simpo.evals.tables.terminal import benchmark_title, column_name, shorten, show_number

_INK, _GRID = "#1f2933", "#e4e7eb"
# Of the Okabe-Ito palette, told apart with any colour vision; the shapes differ too.
_OWN, _PUBLISHED = "#0072b2", "#d55e00"
_SHOWN = {
    "alpaca_eval": ("lc_win_rate", "win_rate"),
    "arena_hard": ("win_rate",),
    "mt_bench": ("score",),
    "pairs": ("reward_accuracy", "sum_likelihood_accuracy", "length_correlation"),
}
_ACROSS = 3  # panels side by side
_LONGEST = 38  # characters of a name


def plot_columns(comparison: Comparison) -> list[Column]:
    """The columns that get a panel: a benchmark's main numbers; all of one that is not listed, but no lengths."""
    return [
        column
        for column in comparison.columns
        if column.metric in _SHOWN.get(column.benchmark, (column.metric,)) and column.metric != "length"
    ]


def draw_comparison(comparison: Comparison, path: Path) -> bool:
    """Draw it as a PNG; False where no column has a panel.

    Raises:
        ConfigError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ImportError:
        raise ConfigError("the picture needs matplotlib; pip install 'simpo[plots]', or leave --out out") from None
    lines = _lines(comparison)
    if not lines:
        return False
    heights = [0.28 * len(line.rows) + 0.9 for line in lines]
    across = max(len(line.columns) for line in lines)
    figure = Figure(figsize=(3.1 + 3.1 * across, sum(heights) + 0.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(lines), across, height_ratios=heights)
    for at, line in enumerate(lines):
        for place, column in enumerate(line.columns):
            _panel(figure.add_subplot(grid[at, place]), column, line.rows, named=place == 0)
    kinds = {row.published for line in lines for row in line.rows}
    own = Line2D([], [], marker="o", color=_OWN, label="own, with 95% interval")
    published = Line2D(
        [], [], marker="D", ls="", markerfacecolor="white", markeredgecolor=_PUBLISHED, label="published"
    )
    handles = [handle for kind, handle in ((False, own), (True, published)) if kind in kinds]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.savefig(path)
    return True


class _Line(NamedTuple):
    """Panels side by side, and the models that have a number in one of them."""

    columns: list[Column]
    rows: list[Row]


def _lines(comparison: Comparison) -> list[_Line]:
    """A benchmark's panels in lines; benchmarks with one panel each share a line where the same models have them."""
    lines: list[_Line] = []
    for column in plot_columns(comparison):
        rows = [row for row in comparison.rows if any(column.benchmark == key[0] for key in row.cells)]
        last = lines[-1] if lines else None
        if last and last.rows == rows and len(last.columns) < _ACROSS:
            last.columns.append(column)
        else:
            lines.append(_Line([column], rows))
    return lines


def _panel(axes: Any, column: Column, rows: Sequence[Row], *, named: bool) -> None:
    for place, row in enumerate(rows):
        cell = row.cells.get((column.benchmark, column.metric))
        if cell is None:
            continue
        metric = cell.metric
        colour = _PUBLISHED if row.published else _OWN
        end = metric.value
        if metric.low is not None and metric.high is not None:
            axes.plot([metric.low, metric.high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
            end = metric.high
        filled = "white" if row.published else colour
        axes.plot([metric.value], [place], "D" if row.published else "o", color=colour, markerfacecolor=filled,
                  markersize=5 if row.published else 6, zorder=3)  # fmt: skip
        axes.annotate(show_number(metric.value, metric.unit), (end, place), xytext=(6, 0), va="center", fontsize=8,
                      textcoords="offset points", color=_INK)  # fmt: skip
    axes.set_yticks(range(len(rows)), [shorten(row.label, _LONGEST) for row in rows] if named else [""] * len(rows))
    for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
        tick.set_fontweight("normal" if row.published else "bold")
    axes.set_ylim(len(rows) - 0.4, -0.6)  # the first row on top
    axes.margins(x=0.18)  # room for the numbers
    axes.set_title(f"{benchmark_title(column.benchmark)}\n{column_name(column)}", fontsize=10, color=_INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
