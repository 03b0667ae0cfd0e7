"""One look for every picture: sizes, colours and words that stay readable when it is shown 400 pixels wide."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from textwrap import wrap
from typing import Any, ParamSpec, TypeVar

import numpy as np

from simpo.analysis.estimates import Estimate
from simpo.errors import ConfigError

_P = ParamSpec("_P")
_R = TypeVar("_R")

DPI = 160
"""Of a saved picture: WIDTH is 800 pixels, so half its size is what a narrow page shows."""
WIDTH = 5.0
"""Inches. Text of 10 points is 11 pixels high at 400 pixels."""
INK, MUTED, GRID = "#1f2933", "#616e7c", "#e4e7eb"
# Okabe and Ito's colours, told apart with any colour vision; yellow is left out, it is too light on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")
_NAME, _TITLE, _ROW = 31, 54, 16  # characters of a name, and of a line of a title or of a name beside a row
_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # travels with matplotlib, so pictures look the same everywhere
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "savefig.dpi": "figure",
}


def styled(draw: Callable[_P, _R]) -> Callable[_P, _R]:
    """Make a function that draws use this style, whatever matplotlib's own settings are.

    Raises:
        ConfigError: matplotlib is missing.
    """

    @wraps(draw)
    def drawn(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            from matplotlib import rc_context
        except ImportError as error:
            raise ConfigError(
                f"pictures need matplotlib ({error}); install it with: pip install 'simpo[plots]'"
            ) from error
        with rc_context(_RC):
            return draw(*args, **kwargs)

    return drawn


def canvas(title: str, height: float, rows: int = 1, columns: int = 1, **panels: Any) -> tuple[Any, list[Any]]:
    """A figure on matplotlib's Agg canvas, outside pyplot, and its axes, row by row.

    Args:
        title: broken into lines where it is too wide.
        height: inches, of which a line of the title takes 0.2.
        panels: for `Figure.subplots`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = wrap(title, _TITLE)
    figure = Figure(figsize=(WIDTH, height + 0.2 * len(lines)), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle("\n".join(lines), fontsize=11, fontweight="bold", x=0.02, ha="left")
    return figure, figure.subplots(rows, columns, squeeze=False, **panels).ravel().tolist()


def look(at: int) -> dict[str, Any]:
    """Colour and marker of the model at this place; after the seventh, colours come back with other markers."""
    turn = at // len(COLOURS)
    return {"color": COLOURS[at % len(COLOURS)], "marker": MARKERS[(at + 3 * turn) % len(MARKERS)]}


def line_style(at: int) -> str:
    """Dashes of the model at this place."""
    return LINES[at % len(LINES)]


def short(name: str) -> str:
    """A name that fits: of a long one, its two ends.

    >>> short("outputs/llama-3-8b-base-simpo-lr-6e-7-beta-10-gamma-0.3")
    'outputs/llama-…beta-10-gamma-0.3'
    """
    return name if len(name) <= _NAME else f"{name[: _NAME // 2]}…{name[-(_NAME // 2) :]}"


def legend(figure: Any, axes: Any) -> None:
    """Names below the panels; none for a single one."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        columns = 1 if max(map(len, labels)) > 24 else 2 if max(map(len, labels)) > 12 else 3
        figure.legend(
            handles, labels, loc="outside lower center", ncols=min(columns, len(labels)), handlelength=2.6,
            columnspacing=1.4,
        )  # fmt: skip


def intervals(
    axes: Any,
    places: Iterable[float],
    estimates: Iterable[Estimate],
    *,
    upright: bool = False,
    scale: float = 1,
    **style: Any,
) -> None:
    """Dots with their 95% intervals, of which a missing one is not drawn.

    Args:
        places: on the other axis: of the rows, or, where the intervals stand `upright`, of the columns.
        scale: 100 for percent.
    """  # fmt: skip
    found = list(estimates)
    values = scale * np.array([one.value for one in found])
    ends = scale * np.nan_to_num([[one.value - one.low for one in found], [one.high - one.value for one in found]])
    style = {"linestyle": "none", "capsize": 3} | style
    if upright:
        axes.errorbar(list(places), values, yerr=ends, **style)
    else:
        axes.errorbar(values, list(places), xerr=ends, **style)


def row_names(axes: Any, names: Sequence[str]) -> None:
    """A row per name, from above."""
    axes.set_yticks(range(len(names)), ["\n".join(wrap(name, _ROW)) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


def zero_line(axes: Any, *, vertical: bool = False) -> None:
    """Where the sign changes."""
    draw = axes.axvline if vertical else axes.axhline
    draw(0, color=MUTED, linewidth=1, zorder=1)
