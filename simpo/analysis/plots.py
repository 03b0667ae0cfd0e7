"""Pictures of statistics: one function per figure, from the results of one or several models to a matplotlib figure.

Names of models are the keys of each mapping, in the order in which they are drawn. Bars and bands are 95% intervals.
Figures and tables are those of the SimPO paper (arXiv 2405.14734). Save one with `figure.savefig(path)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from simpo.analysis import titles
from simpo.analysis.generations import GenerationStatistics
from simpo.analysis.statistics import (
    Accuracy,
    Contingency,
    Distribution,
    Divergence,
    LengthCorrelation,
    MarginsByLength,
)
from simpo.analysis.style import (
    COLOURS,
    GRID,
    INK,
    MUTED,
    canvas,
    intervals,
    labels,
    legend,
    line_style,
    look,
    row_names,
    styled,
    zero_line,
)
from simpo.errors import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_T = TypeVar("_T")
_POINTS = 6000  # of all scatters of a figure; more hide each other and make large files
_TREND = 12  # bins of its line


@styled
def margins_by_length(results: Mapping[str, MarginsByLength], unit: str = "nats per token") -> Figure:
    """Mean margin against how much longer the chosen response is: figure 2a.

    Args:
        unit: of the margins: nats per token where beta is 1; else what scales them, as `beta 2.5`.
    """
    models = _named(results)
    figure, (axes,) = canvas(titles.of_margins_by_length(models), 3.1)
    zero_line(axes)
    axes.axvline(0, color=MUTED, linewidth=1, linestyle=":", zorder=1)
    for at, (name, found) in enumerate(models.items()):
        style = look(at) | {"linestyle": line_style(at), "label": name}
        intervals(axes, found.centres, found.bins, upright=True, **style)
    axes.set_xlabel("chosen length − rejected length (tokens)")
    axes.set_ylabel(f"mean margin ({unit})")
    legend(figure, axes)
    return figure


@styled
def logps_against_length(results: Mapping[str, LengthCorrelation], side: str = "chosen") -> Figure:
    """Log-prob per token of each response against its length, with Spearman's rho: figures 2b, 2c and 4a, table 6.

    One panel per model on common axes, which leave out the outermost 0.5% of log-probs; the line joins medians of bins
    of equal counts. `side` is the one that `length_correlation` was asked for.
    """
    models = _named(results)
    figure, grid = _panels(titles.of_logps_against_length(models), len(models), sharex=True, sharey=True)
    for at, (axes, (name, found)) in enumerate(zip(grid, models.items(), strict=False)):
        _scatter(axes, found, COLOURS[at % len(COLOURS)], _POINTS // max(3, len(models)))
        value, ends = found.rho.value, f" [{found.rho.low:.2f}, {found.rho.high:.2f}]"
        rho = "" if np.isnan(value) else f"\nρ = {value:.2f}" + ("" if np.isnan(found.rho.low) else ends)
        axes.set_title(name + rho, loc="left")
    lengths, averages = (
        np.concatenate([getattr(one, key) for one in models.values()]) for key in ("length", "average")
    )
    if lengths.max() > 5 * np.median(lengths):
        _log_ticks(grid[0].xaxis)
    low, high = np.percentile(averages, [0.25, 99.75])  # a few short responses would press all others together
    margin = 0.1 * (high - low) + 0.01
    grid[0].set_ylim(low - margin, high + margin)
    figure.supxlabel(f"length of the {side} response (tokens)", fontsize=10)
    figure.supylabel("log-prob (nats per token)", fontsize=10)
    return figure


@styled
def margin_distributions(results: Mapping[str, Distribution], unit: str = "nats per token") -> Figure:
    """Density of the margins of several models, as of several gammas: figure 3b."""
    return _densities(results, "margin", unit)


@styled
def reward_distributions(results: Mapping[str, Distribution], unit: str = "nats per token") -> Figure:
    """Density of the rewards of chosen responses, as of several gammas: figure 3c."""
    return _densities(results, "chosen reward", unit)


@styled
def accuracies(results: Mapping[str, Mapping[str, Accuracy]]) -> Figure:
    """Share of pairs in the right order: figures 3a and 4c.

    Args:
        results: by model, and in it by score, e.g. `reward`, `likelihood` and `sum likelihood`.
    """
    models = _named(results)
    scores = list(dict.fromkeys(score for found in models.values() for score in found))
    if not scores:
        raise DataError("a picture of accuracies needs a score at least; give {model: {score: accuracy(pairs)}}")
    figure, (axes,) = canvas(titles.of_accuracies(models, scores[0]), 1.1 + 0.5 * len(models))
    for at, score in enumerate(scores):
        present = [name for name, found in models.items() if score in found]
        places = [list(models).index(name) + (at - (len(scores) - 1) / 2) * 0.22 for name in present]
        intervals(axes, places, [models[name][score].share for name in present], scale=100, label=score, **look(at))
    axes.axvline(50, color=MUTED, linewidth=1, linestyle=":", zorder=1)
    row_names(axes, list(models))
    axes.set_xlabel("pairs with chosen first (%), dotted: chance")
    legend(figure, axes)
    return figure


@styled
def reward_against_likelihood(results: Mapping[str, Contingency]) -> Figure:
    """Order by DPO's reward against order by likelihood, a table of shares per model: figure 4b.

    Raises:
        DataError: likelihood is the log-prob per token of some and the sum of others.
    """
    models = _named(results)
    likelihoods = {found.likelihood for found in models.values()}
    if len(likelihoods) > 1:
        raise DataError("one picture shows the order by one likelihood; call contingency with the same for all models")
    figure, grid = _panels(titles.of_contingencies(models), len(models), each=2.0)
    for axes, (name, found) in zip(grid, models.items(), strict=False):
        counts = np.array([[found.both, found.reward_only], [found.likelihood_only, found.neither]])
        parts = counts / max(1, counts.sum())
        axes.imshow(parts, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (row, column), part in np.ndenumerate(parts) if counts.any() else ():
            axes.text(column, row, f"{part:.0%}\n({counts[row, column]:,})", ha="center", va="center",
                      color="white" if part > 0.55 else INK)  # fmt: skip
        if not counts.any():
            axes.text(0.5, 0.5, "all pairs are tied", ha="center", va="center")
        axes.set_xticks([0, 1], ["right", "wrong"])
        axes.set_yticks([0, 1], ["right", "wrong"], rotation=90, va="center")
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.set_title(name, loc="left")
    words = {"average": "log-prob per token", "sum": "summed log-prob"}
    figure.supxlabel(f"order by {words[likelihoods.pop()]}", fontsize=10)
    figure.supylabel("order by DPO reward", fontsize=10)
    return figure


@styled
def divergences(results: Mapping[str, Divergence], side: str = "chosen") -> Figure:
    """Mean log-ratio to the initial policy by sequence and by token: figure 5a.

    `simpo.analysis.statistics.divergence` says what it estimates.
    """
    models = _named(results)
    title = titles.of_divergences(models, side)
    figure, grid = canvas(title, 1.3 + 0.4 * len(models), 1, 2, sharey=True)
    for axes, unit in zip(grid, ("sequence", "token"), strict=True):
        for at, found in enumerate(models.values()):
            intervals(axes, [at], [getattr(found, unit)], **look(at))
        zero_line(axes, vertical=True)
        row_names(axes, list(models))
        axes.set_xlabel(f"nats per {unit}")
        axes.locator_params(axis="x", nbins=4)
        if np.ptp(axes.get_xlim()) < 1e-6:  # the initial policy alone, against itself
            axes.set_xlim(-0.06, 0.06)
    figure.supxlabel("mean log π(y) − log π of the initial policy", fontsize=10)
    return figure


@styled
def generations(results: Mapping[str, GenerationStatistics]) -> Figure:
    """Lengths, ending and repetition of sampled responses; a looping one repeats more than half of itself.

    Raises:
        DataError: models have no n of distinct n-grams in common.
    """
    models = _named(results)
    last = max(set.intersection(*(set(found.distinct) for found in models.values())), default=0)
    if not last:
        raise DataError(
            "the models have no n of distinct n-grams in common; call generation_statistics with the same orders for "
            "all, one at least"
        )
    figure, grid = canvas(titles.of_generations(models), 2.6 + 1.2 * len(models), 3, 2, sharey=True)
    grid.pop().set_visible(False)
    for at, (found, style) in enumerate((found, look(at)) for at, found in enumerate(models.values())):
        percentiles = found.lengths.percentiles
        grid[0].plot([percentiles[5], percentiles[95]], [at, at], color=style["color"], linewidth=1.5)
        grid[0].plot([percentiles[25], percentiles[75]], [at, at], color=style["color"], linewidth=5, alpha=0.5)
        grid[0].plot([percentiles[50]], [at], **style)
        shares = (found.stopped, found.repeated, found.looping, found.distinct[last])
        for axes, one in zip(grid[1:], shares, strict=True):
            intervals(axes, [at], [one], scale=100, **style)
    words = (
        "tokens: median, 50%, 90%",
        "ended by itself (%)",
        "longest repeat (% of tokens)",
        "looping (%)",
        f"distinct {last}-grams (%)",
    )
    for axes, label in zip(grid, words, strict=True):
        row_names(axes, list(models))
        axes.set_xlabel(label)
        axes.set_xlim(left=0) if axes is grid[0] else axes.set_xlim(-4, 104)
    return figure


def _named(results: Mapping[str, _T]) -> dict[str, _T]:
    """By names that fit."""
    if not results:
        raise DataError("a picture needs the results of one model at least; give {name: result}")
    return dict(zip(labels(results), results.values(), strict=True))


def _panels(title: str, count: int, each: float = 2.3, **shared: Any) -> tuple[Any, list[Any]]:
    """A panel per model, two in a row."""
    columns = min(2, count)
    rows = -(-count // columns)
    figure, grid = canvas(title, 0.6 + each * rows, rows, columns, **shared)
    for axes in grid[count:]:
        axes.set_visible(False)
    for axes in grid[max(0, count - columns) : count]:  # with shared axes only the last row would have them
        axes.tick_params(labelbottom=True)
    return figure, grid


def _scatter(axes: Any, found: LengthCorrelation, colour: str, points: int) -> None:
    count = len(found.length)
    drawn = np.random.default_rng(0).choice(count, min(count, points), replace=False)
    axes.scatter(found.length[drawn], found.average[drawn], s=6, color=colour, alpha=0.25, linewidths=0)
    order = np.argsort(found.length, kind="stable")
    groups = np.array_split(order, min(_TREND, max(1, count // 10)))
    middles = [np.median(found.length[group]) for group in groups]
    axes.plot(middles, [np.median(found.average[group]) for group in groups], color=INK, linewidth=2)


def _log_ticks(axis: Any) -> None:
    """A log axis with ticks at 1 and 3, written out."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axis.axes.set_xscale("log")
    axis.set_major_locator(LogLocator(subs=(1, 3)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _densities(results: Mapping[str, Distribution], what: str, unit: str) -> Figure:
    models = _named(results)
    figure, (axes,) = canvas(titles.of_distributions(models, what), 3.0)
    for at, (name, found) in enumerate(models.items()):
        style = look(at)
        axes.plot(found.grid, found.density, linestyle=line_style(at), color=style["color"],
                  label=f"{name}, sd {found.deviation.value:.2g}")  # fmt: skip
        middle = found.percentiles[50]
        axes.plot([middle], [np.interp(middle, found.grid, found.density)], **style)
    low, high = (pick(found.percentiles[p] for found in models.values()) for pick, p in ((min, 1), (max, 99)))
    axes.set_xlim(low - 0.08 * (high - low) - 1e-3, high + 0.08 * (high - low) + 1e-3)
    if axes.get_xlim()[0] < 0 < axes.get_xlim()[1]:
        axes.axvline(0, color=GRID, linewidth=1.5, zorder=1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"{what} ({unit}); mark: median")
    axes.set_ylabel("density")
    legend(figure, axes)
    return figure
