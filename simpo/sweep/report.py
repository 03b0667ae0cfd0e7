"""What a sweep shows: lines while it goes on; a table, a CSV file, a picture and the best settings at its end."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from simpo.checks import is_number
from simpo.sweep.axes import Axis, Choices, show_value
from simpo.sweep.record import Params, Record, best_of
from simpo.sweep.space import SweepSettings

_INK, _MUTED, _ACCENT, _BAD = "#1f2933", "#9aa5b1", "#c2410c", "#b91c1c"
_POINT = "#2563eb"


def show_time(seconds: float) -> str:
    """45 s, 12 min, 3 h 20 min."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def show_params(params: Params) -> str:
    """learning_rate 5e-07, beta 2.5"""
    return ", ".join(f"{key} {show_value(value)}" for key, value in params.items())


def value_name(sweep: SweepSettings) -> str:
    """What the deciding number is called."""
    return "command" if sweep.command is not None else sweep.metric


def finished_line(record: Record, records: Sequence[Record], sweep: SweepSettings, total: int) -> str:
    """One line on a trial that just ended, with the best so far and an estimate of the rest."""
    ended = [one for one in records if one.state != "running"]
    result = f"{value_name(sweep)} {record.value:.6g}" if record.state == "complete" else record.state
    parts = [f"{record.name} ({len(ended)} of {total})", show_params(record.params), result]
    if record.seconds is not None:
        parts.append(show_time(record.seconds))
    best = best_of(records, sweep.direction)
    if best is not None:
        parts.append("best so far" if best.number == record.number else f"best {best.value:.6g} ({best.name})")
    times = [one.seconds for one in ended if one.seconds is not None and one.state != "failed"]
    left = total - len(ended)
    if left > 0 and times:
        rounds = -(-left // len(sweep.slots))
        parts.append(f"about {show_time(rounds * sum(times) / len(times))} left")
    return "  ".join(parts)


def print_table(records: Sequence[Record], sweep: SweepSettings) -> None:
    """All trials in the terminal, the best first."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    best = best_of(records, sweep.direction)
    title = f"{len(records)} trials by {value_name(sweep)} ({sweep.direction})"
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )  # narrow: three settings fit into 80 columns
    for name in ("trial", *sweep.space, value_name(sweep).rpartition("/")[2], "time"):
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("", overflow="fold")
    for record in ranked(records, sweep):
        value = "" if record.value is None else f"{record.value:.4g}"
        note = "best" if best and record.number == best.number else "" if record.state == "complete" else record.state
        shown = (show_value(record.params.get(key)) for key in sweep.space)
        time = "" if record.seconds is None else show_time(record.seconds)
        style = "bold" if note == "best" else "" if record.state == "complete" else "dim"
        table.add_row(str(record.number), *shown, value, time, note, style=style)
    Console().print(table)


def ranked(records: Sequence[Record], sweep: SweepSettings) -> list[Record]:
    """Complete trials from the best on, then pruned, failed and running ones."""
    order = ("complete", "pruned", "failed", "running")
    sign = 1 if sweep.direction == "minimize" else -1

    def rank(record: Record) -> tuple[int, float, int]:
        return order.index(record.state), sign * (record.value or 0.0), record.number

    return sorted(records, key=rank)


def write_csv(records: Sequence[Record], sweep: SweepSettings, path: Path) -> None:
    """One row per trial, in the order of starting; written in one piece."""
    head = ["trial", "state", "stage", *sweep.space, value_name(sweep), "seconds", "folder", "error"]
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for record in records:
            values = [record.params.get(key) for key in sweep.space]
            error = record.error.splitlines()[-1] if record.error else ""
            seconds = "" if record.seconds is None else round(record.seconds, 1)
            cells = [record.number, record.state, record.stage, *values, record.value, seconds, record.name, error]
            writer.writerow(["" if cell is None else cell for cell in cells])
    partial.replace(path)


def write_best(best: Record, configs: Sequence[str], sweep: SweepSettings, path: Path) -> None:
    """The best trial's settings as a file that goes behind the configuration: `simpo train CONFIG best.yaml`."""
    head = f"# {value_name(sweep)} {best.value:.6g} in {best.name}; use it as: simpo train {' '.join(configs)} {path}\n"
    path.write_text(head + yaml.safe_dump(best.params, sort_keys=False))


def plot(records: Sequence[Record], sweep: SweepSettings, path: Path) -> None:
    """Progress over the trials, and the metric against each searched setting."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = 1 + len(sweep.space)
    columns = 2 if panels == 4 else min(panels, 3)
    rows = -(-panels // columns)
    figure = Figure(figsize=(4.6 * columns, 3.5 * rows + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    best = best_of(records, sweep.direction)
    chosen = f"\nbest {best.value:.4g} with {show_params(best.params)} ({best.name})" if best else ""
    figure.suptitle(f"{value_name(sweep)}, {sweep.direction}{chosen}", fontsize=11, color=_INK)
    _plot_progress(grid[0], records, sweep)
    for axes, (key, axis) in zip(grid[1:], sweep.space.items(), strict=False):  # the last panels may stay empty
        _plot_setting(axes, key, axis, records, sweep)
    for at, axes in enumerate(grid):
        axes.set_visible(at < panels)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
        axes.set_axisbelow(True)
        if at % columns == 0:
            axes.set_ylabel(value_name(sweep))
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels) or 1, frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


def _plot_progress(axes: Any, records: Sequence[Record], sweep: SweepSettings) -> None:
    done = [record for record in records if record.state == "complete"]
    axes.scatter([r.number for r in done], [r.value for r in done], s=36, color=_POINT, label="trial", zorder=3)
    so_far = [best_of(done[: at + 1], sweep.direction) for at in range(len(done))]
    values = [record.value for record in so_far if record]
    axes.step([r.number for r in done], values, where="post", color=_ACCENT, linewidth=1.5, label="best so far")
    pruned = [record for record in records if record.state == "pruned" and record.value is not None]
    if pruned:
        _pruned(axes, [r.number for r in pruned], pruned)
    failed = [record.number for record in records if record.state == "failed"]
    if failed:  # they have no value: a mark on the lower edge
        axes.scatter(failed, [0.02] * len(failed), marker="x", s=40, color=_BAD, label="failed", zorder=3,
                     transform=axes.get_xaxis_transform())  # fmt: skip
    best = best_of(records, sweep.direction)
    if best is not None:
        _ring(axes, best.number, best)
    axes.set_xlabel("trial")
    axes.xaxis.get_major_locator().set_params(integer=True)


def _plot_setting(axes: Any, key: str, axis: Axis, records: Sequence[Record], sweep: SweepSettings) -> None:
    done = [record for record in records if record.state == "complete"]
    place = _places(axes, key, axis, records)
    axes.scatter([place[r.params[key]] for r in done], [r.value for r in done], s=36, color=_POINT, zorder=3)
    pruned = [record for record in records if record.state == "pruned" and record.value is not None]
    _pruned(axes, [place[r.params[key]] for r in pruned], pruned)
    if isinstance(axis, Choices):  # the best of each value, joined
        tops = [
            (place[value], best_of([r for r in done if r.params[key] == value], sweep.direction)) for value in place
        ]
        line = sorted((at, top.value) for at, top in tops if top)
        axes.plot([at for at, _ in line], [top for _, top in line], color=_POINT, linewidth=1, alpha=0.5)
    best = best_of(records, sweep.direction)
    if best is not None:
        _ring(axes, place[best.params[key]], best)
    axes.set_xlabel(key)


def _places(axes: Any, key: str, axis: Axis, records: Sequence[Record]) -> Mapping[Any, float]:
    """Where each value stands on the horizontal axis: lists evenly and named, spans by their number."""
    seen = list(dict.fromkeys(record.params[key] for record in records if key in record.params))
    if isinstance(axis, Choices):
        values = list(dict.fromkeys([*axis.listed, *seen]))  # stages begin at a value that need not be listed
        if all(is_number(value) for value in values):
            values.sort()
        axes.set_xticks(range(len(values)), [show_value(value) for value in values])
        axes.set_xlim(-0.5, len(values) - 0.5)
        if len(values) > 6:
            axes.tick_params(axis="x", labelrotation=45)
        return {value: float(at) for at, value in enumerate(values)}
    margin = 0.03 * (math.log(axis.high / axis.low) if axis.log else axis.high - axis.low)
    if axis.log:
        axes.set_xscale("log")
        axes.set_xlim(axis.low * math.exp(-margin), axis.high * math.exp(margin))
    else:
        axes.set_xlim(axis.low - margin, axis.high + margin)
    return {value: float(value) for value in seen}


def _pruned(axes: Any, places: Sequence[float], records: Sequence[Record]) -> None:
    axes.scatter(places, [r.value for r in records], s=30, facecolors="none", edgecolors=_MUTED, zorder=2,
                 label="pruned, last value")  # fmt: skip


def _ring(axes: Any, place: float, best: Record) -> None:
    axes.scatter([place], [best.value], s=130, facecolors="none", edgecolors=_ACCENT, linewidths=1.8, zorder=4,
                 label="best")  # fmt: skip
