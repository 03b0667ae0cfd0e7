"""What was logged over the steps of one run or several, as curves: what was logged once only makes none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simpo.analysis.report.blocks import Picture
from simpo.analysis.report.drawing import picture
from simpo.analysis.report.run_files import Line, number, series
from simpo.analysis.style import MUTED, canvas, labels, legend, look, styled, zero_line

_FEW = 24  # points of a line that are marked one by one
_RAW = 60  # points from which on a line is drawn smoothed, over a pale one of what was logged
_WINDOWS = 30  # widths of the smoothing window along a line
_TO = "\u00a0to\u00a0"  # no line of a title begins with its second half
_STEEP = 20.0  # times the median that a value reaches for a log scale
_LOGS = Mapping[str, Sequence[Line]]
_Points = Mapping[int, float]  # by step


@dataclass(frozen=True)
class _Line:
    """One quantity: key of the log, and what tells it from others in the picture; evaluations are dashed and marked."""

    key: str
    label: str
    evaluation: bool = False


_Drawn = Mapping[tuple[str, _Line], _Points]  # by run and line


@dataclass(frozen=True)
class Curve:
    """A picture over the steps.

    Args:
        name: of its file.
        title: what is drawn.
        unit: on the axis.
        lines: by key of the log; each drawn where it was logged.
        log: a log scale where values reach far above their median.
        percent: shares are drawn in percent, with chance at 50.
        zero: the sign matters, and 0 gets a line where it is near.
        noisy: differs from step to step by chance, so that long lines are smoothed.
    """

    name: str
    title: str
    unit: str
    lines: Sequence[_Line]
    log: bool = False
    percent: bool = False
    zero: bool = False
    noisy: bool = True


def _both(key: str, label: str = "") -> tuple[_Line, _Line]:
    """A quantity of training and of evaluation."""
    first = f"{label}, " if label else ""
    return _Line(key, f"{first}training"), _Line(f"eval_{key}", f"{first}evaluation", evaluation=True)


def _sides(key: str) -> tuple[_Line, ...]:
    return (*_both(f"{key}/chosen", "chosen"), *_both(f"{key}/rejected", "rejected"))


CURVES = (
    Curve("loss", "Loss", "loss", _both("loss"), log=True),
    Curve("rewards", "Rewards", "reward", _sides("rewards")),
    Curve("margins", "Reward margin", "chosen − rejected reward", _both("rewards/margins"), zero=True),
    Curve("accuracy", "Reward accuracy", "chosen first (%)", _both("rewards/accuracies"), percent=True),
    Curve("logps", "Log-prob", "nats per token", _sides("logps")),
    Curve("gradient-norm", "Gradient norm", "norm before clipping", (_Line("grad_norm", ""),), log=True),
    Curve("learning-rate", "Learning rate", "learning rate", (_Line("learning_rate", ""),), noisy=False),
    Curve("speed", "Tokens per second", "tokens per second", (_Line("tokens_per_second", ""),)),
    Curve("memory", "Memory", "GiB, the most so far", (_Line("memory_gib", ""),), noisy=False),
)  # fmt: skip

_WATCHED = {
    "logps/chosen": ("Log-prob of chosen", "nats per token"),
    "logps/rejected": ("Log-prob of rejected", "nats per token"),
    "chosen_drop": ("Fall of chosen log-probs", "nats per token since step 0"),
    "margin_gain": ("Margin gained", "nats per token since step 0"),
    "drop_per_margin": ("Fall by margin gained", "fall / gain"),
    "chosen_fell": ("Pairs whose chosen log-prob fell", "share of pairs"),
    "accuracy": ("Accuracy on the fixed pairs", "share of pairs"),
    "end_probability": ("Probability of the end token", "probability at the true end"),
    "stopped": ("Answers that end by themselves", "share of answers"),
    "repeated": ("Longest repeat in answers", "share of tokens"),
    "entropy": ("Entropy of answers", "nats per token"),
}  # what monitors log, without its prefix


def curve_pictures(logs: _LOGS) -> list[Picture]:
    """Training: a picture for each curve that has two points at least in one run; none for the others."""
    return _pictures(CURVES, {name: with_speed(log) for name, log in logs.items()})


def watched_pictures(logs: _LOGS) -> list[Picture]:
    """The same of what monitors logged."""
    keys = dict.fromkeys(key for log in logs.values() for line in log for key in line if key.startswith("monitor/"))
    found = []
    for key in keys:
        name = key.removeprefix("monitor/")
        title, unit = _WATCHED.get(name, (name.replace("_", " ").capitalize(), name.replace("_", " ")))
        found.append(Curve(key.replace("/", "-"), title, unit, (_Line(key, ""),), zero=True))
    return _pictures(found, logs)


def _pictures(curves: Sequence[Curve], logs: _LOGS) -> list[Picture]:
    if len(logs) > 1:
        curves = [part for curve in curves for part in _one_by_one(curve)]
    drawn = [(curve, points) for curve in curves if (points := _points(curve, logs))]
    return [
        picture(_draw(curve, points, list(logs)), f"{curve.name}.png", _caption(curve, points))
        for curve, points in drawn
    ]


def with_speed(log: Sequence[Line]) -> list[Line]:
    """The log with `tokens_per_second` in every line of training but the first: tokens since the line before it, by
    the seconds of training since then. Evaluations say how long they took; what else is logged at a step that was
    logged already, as by monitors, took the time since."""
    found: list[Line] = []
    before: tuple[float, float] | None = None
    other, last = 0.0, (-1, 0.0)
    for line in log:
        tokens, elapsed = number(line.get("num_tokens")), number(line.get("elapsed"))
        if tokens is not None and elapsed is not None and "loss" in line:
            if before is not None and tokens > before[0] and elapsed - before[1] > other:
                line = {**line, "tokens_per_second": (tokens - before[0]) / (elapsed - before[1] - other)}
            before, other = (tokens, elapsed), 0.0
        elif (runtime := number(line.get("eval_runtime"))) is not None:
            other += runtime
        elif elapsed is not None and line["step"] == last[0]:
            other += elapsed - last[1]
        last = (line["step"], last[1] if elapsed is None else elapsed)
        found.append(line)
    return found


def smoothed(values: Sequence[float] | np.ndarray, *, log: bool = False) -> np.ndarray:
    """Means over a thirtieth of the values around each, so that the curve does not lag; what lies beyond the ends is
    left out of them. With `log`, medians where single values reach far above the others, as gradient norms do."""
    found = np.asarray(values, dtype=np.float64)
    half = max(1, len(found) // _WINDOWS // 2)
    pick = np.median if log and _is_steep(found) else np.mean
    return np.array([pick(found[max(0, at - half) : at + half + 1]) for at in range(len(found))])


def _is_steep(values: np.ndarray) -> bool:
    return bool(values.min() > 0 and values.max() > _STEEP * np.median(values))


def _one_by_one(curve: Curve) -> list[Curve]:
    """Chosen and rejected apart, so that colours are left to tell runs from one another."""
    if len(curve.lines) < 3:
        return [curve]
    parts = (("chosen", curve.lines[:2]), ("rejected", curve.lines[2:]))
    return [Curve(f"{curve.name}-{side}", f"{curve.title}: {side}", curve.unit, lines) for side, lines in parts]


def _points(curve: Curve, logs: _LOGS) -> _Drawn:
    """By run and line; nothing where no line has two points."""
    found = {(name, line): series(log, line.key) for name, log in logs.items() for line in curve.lines}
    found = {key: points for key, points in found.items() if points}
    return found if any(len(points) > 1 for points in found.values()) else {}


def _caption(curve: Curve, points: _Drawn) -> str:
    words = []
    if any(line.evaluation for _, line in points):
        words.append("Dashed with marks: evaluation.")
    if any(_is_smoothed(curve, line, one) for (_, line), one in points.items()):
        words.append("Pale: as logged; strong: smoothed.")
    return " ".join([*words, *(["Dotted: chance."] if curve.percent else [])])


def _is_smoothed(curve: Curve, line: _Line, points: _Points) -> bool:
    return curve.noisy and not line.evaluation and len(points) > _RAW


@styled
def _draw(curve: Curve, points: _Drawn, runs: Sequence[str]) -> Any:
    several = len(runs) > 1
    shown = dict(zip(runs, labels(runs), strict=True))
    figure, (axes,) = canvas(_title(curve, points, several), 2.7)
    scale = 100 if curve.percent else 1
    named: set[str] = set()
    for (run, line), found in sorted(points.items(), key=lambda item: item[0][1].evaluation):
        at = runs.index(run) if several else curve.lines.index(line) // 2
        label = shown[run] if several else line.label
        steps = np.array(sorted(found))
        values = scale * np.array([found[int(step)] for step in steps])
        smooth = smoothed(values, log=curve.log) if _is_smoothed(curve, line, found) else None
        _line(axes, line, steps, values, smooth, look(at) | {"label": None if label in named else label})
        named.add(label)
    _scales(axes, curve, [scale * value for found in points.values() for value in found.values()])
    axes.set_xlabel("step")
    axes.set_ylabel(curve.unit)
    legend(figure, axes)
    return figure


def _line(
    axes: Any, line: _Line, steps: np.ndarray, values: np.ndarray, smooth: np.ndarray | None, style: dict[str, Any]
) -> None:
    few = len(steps) <= _FEW
    if line.evaluation:
        axes.plot(steps, values, **style, markevery=max(1, len(steps) // _FEW), linestyle="--", linewidth=1.4, zorder=3)
    elif smooth is not None:
        axes.plot(steps, values, color=style["color"], alpha=0.25, linewidth=0.8)
        axes.plot(steps, smooth, **style | {"marker": None})
    else:
        axes.plot(steps, values, **style | {"marker": style["marker"] if few else None}, markersize=3)


def _scales(axes: Any, curve: Curve, values: Sequence[float]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if curve.percent:
        axes.axhline(50, color=MUTED, linewidth=1, linestyle=":", zorder=1)
    low, high = min(values), max(values)
    if curve.zero and low - 0.2 * (high - low) < 0 < high + 0.2 * (high - low):
        zero_line(axes)
    if curve.log and _is_steep(np.array(values)):
        axes.set_yscale("log")
    elif high - low <= 1e-9 * abs(high):  # equal values: an axis that magnifies nothing
        margin = 0.1 * abs(high) or 0.1
        axes.set_ylim(low - margin, high + margin)


def _title(curve: Curve, points: _Drawn, several: bool) -> str:
    """For one run where two of its lines begin and end: training and evaluation, or chosen and rejected."""
    if several:
        return curve.title
    lines = [line for _, line in points if len(curve.lines) < 3 or not line.evaluation]
    seen = []
    for line in lines[:2]:
        (found,) = [one for (_, other), one in points.items() if other == line]
        values = [found[step] for step in sorted(found)]
        ends = smoothed(values, log=curve.log) if _is_smoothed(curve, line, found) else values
        name = "" if line.label == "training" else line.label.removesuffix(", training") + " "
        shown = dict.fromkeys(_show(value, curve.percent) for value in (ends[0], ends[-1]))
        seen.append(name.lstrip() + _TO.join(shown))
    return f"{curve.title}: {'; '.join(seen)}" if seen else curve.title


def _show(value: float, percent: bool) -> str:
    if percent:
        return f"{value:.0%}"
    return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}").replace("-", "−", 1 if value < 0 else 0)
