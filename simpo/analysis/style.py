"""One look for every picture: sizes, colours and words that stay readable when it is shown 400 pixels wide."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from itertools import takewhile
from textwrap import wrap
from typing import Any, ParamSpec, TypeVar

import numpy as np

from simpo.errors import ConfigError
from simpo.estimates import Estimate

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
_NAME, _TITLE, _ROW = 24, 50, 14  # characters of a name, and of a line of a title or of a name beside a row
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
            figure = draw(*args, **kwargs)
        _spell_out_dollars(figure)
        return figure

    return drawn


def _spell_out_dollars(figure: Any) -> None:
    """Names of runs and models may hold dollars, between which matplotlib expects a formula."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if "$" in text.get_text() and "\\mathdefault" not in text.get_text():  # as labels of a log axis have it
            text.set_parse_math(False)


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


def labels(names: Iterable[str]) -> list[str]:
    """Names that fit and stay apart: of long ones what they share is left out, then their middle.

    >>> labels(["outputs/llama-3-8b-base-simpo-gamma-0.3-beta-10", "outputs/llama-3-8b-base-simpo-gamma-0.5-beta-10"])
    ['…base-simpo-gamma-0.3-…', '…base-simpo-gamma-0.5-…']
    """
    words = [re.split(r"(?<=[-_/])", name) for name in names]
    if len(words) > 1 and max(len("".join(one)) for one in words) > _NAME:
        start = _shared(words)
        end = _shared([one[start:][::-1] for one in words])
        while start and _longest(words, start - 1, end) <= _NAME:
            start -= 1
        while end and _longest(words, start, end - 1) <= _NAME:
            end -= 1
        words = [["…" * (start > 0), *one[start : len(one) - end], "…" * (end > 0)] for one in words]
    half = _NAME // 2 - 1
    found = ["".join(one) for one in words]
    found = [name if len(name) <= _NAME else f"{name[:half]}…{name[-half:]}" for name in found]
    if len(set(found)) < len(found):
        found = [f"{at}: {name[: _NAME - 4]}" for at, name in enumerate(found, start=1)]
    return found


def _shared(words: Sequence[Sequence[str]]) -> int:
    """How many words all begin with."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*words, strict=False)))


def _longest(words: Sequence[Sequence[str]], start: int, end: int) -> int:
    """Characters of the longest name without so many words at its ends, which a dot each stands for."""
    return max(len("".join(one[start : len(one) - end])) for one in words) + (start > 0) + (end > 0)


def legend(figure: Any, axes: Any) -> None:
    """Names below the panels, for which the figure grows; none for a single one."""
    handles, names = axes.get_legend_handles_labels()
    if len(names) > 1:
        widest = max(map(len, names))
        columns = min(len(names), 1 if widest > 20 else 2 if widest > 10 else 3)
        figure.set_figheight(figure.get_figheight() + 0.22 * -(-len(names) // columns))
        place = {"loc": "outside lower center", "ncols": columns}
        figure.legend(handles, names, handlelength=2.6, columnspacing=1.4, **place)


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
    """
    found = list(estimates)
    values = scale * np.array([one.value for one in found])
    ends = scale * np.nan_to_num([[one.value - one.low for one in found], [one.high - one.value for one in found]])
    style = {"linestyle": "none", "capsize": 2.5, "elinewidth": 1.2} | style
    if upright:
        axes.errorbar(list(places), values, yerr=ends, **style)
    else:
        axes.errorbar(values, list(places), xerr=ends, **style)


def row_names(axes: Any, names: Sequence[str]) -> None:
    """A row per name, from above."""
    axes.set_yticks(range(len(names)), ["\n".join(_two_lines(name)) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


def _two_lines(name: str) -> list[str]:
    """A name in at most two lines, as narrow as they can be."""
    return next(lines for width in range(_ROW, _NAME + 1) if len(lines := wrap(name, width) or [name]) <= 2)


def zero_line(axes: Any, *, vertical: bool = False) -> None:
    """Where the sign changes."""
    draw = axes.axvline if vertical else axes.axhline
    draw(0, color=MUTED, linewidth=1, zorder=1)
