"""The table over rounds: for the terminal, as Markdown, CSV and JSON, and as a picture."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from simpo.onpolicy.rounds import Interval, RoundRow
from simpo.store import write_whole

_HEAD = ("round", "pairs", "prompts", "mean score", "win rate vs round 0", "tokens", "cut", "held-out accuracy")
_INK, _MUTED, _LINE = "#1f2937", "#9aa5b1", "#2563eb"


def table_lines(rows: Sequence[RoundRow]) -> list[str]:
    """The table in Markdown, columns aligned for the terminal; intervals in brackets are 95% ones."""
    cells = [list(_HEAD), *(_cells(row) for row in rows)]
    widths = [max(len(line[at]) for line in cells) for at in range(len(_HEAD))]
    lines = ["| " + " | ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) + " |"
             for line in cells]  # fmt: skip
    return [lines[0], "| " + " | ".join("-" * (width - 1) + ":" for width in widths) + " |", *lines[1:]]


def _cells(row: RoundRow) -> list[str]:
    return [
        str(row.round),
        "" if row.pairs is None else f"{row.pairs:,}",
        f"{row.prompts:,}",
        _show(row.score, ".3f"),
        _show(row.win_rate, ".1%"),
        _show(row.tokens, ".1f"),
        f"{row.cut:.1%}",
        "" if row.accuracy is None else f"{row.accuracy:.1%}",
    ]


def _show(found: Interval | None, form: str) -> str:
    return "" if found is None else f"{found.value:{form}} [{found.low:{form}}, {found.high:{form}}]"


def write_rounds(rows: Sequence[RoundRow], folder: Path, annotator: str) -> list[str]:
    """Write rounds.md, rounds.csv, rounds.json and, with matplotlib, rounds.png; returns the lines of the table."""
    lines = table_lines(rows)
    note = (
        f"Scores by {annotator}. Brackets: 95% intervals over prompts (of the mean: normal; of the win rate: Wilson, "
        "ties half).\n"
    )
    (folder / "rounds.md").write_text("\n".join([*lines, "", note]), encoding="utf-8")
    flat = [_flat(row) for row in rows]
    with (folder / "rounds.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(flat[0]))
        writer.writeheader()
        writer.writerows(flat)
    write_whole(folder / "rounds.json", {"annotator": annotator, "rounds": [_named(row) for row in rows]})
    _draw(rows, annotator, folder / "rounds.png")
    return lines


def _named(row: RoundRow) -> dict[str, Any]:
    return {key: found._asdict() if isinstance(found := getattr(row, key), Interval) else value
            for key, value in asdict(row).items()}  # fmt: skip


def _flat(row: RoundRow) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in asdict(row):
        value = getattr(row, key)
        if key in ("score", "win_rate", "tokens"):
            ends = value if value is not None else ("", "", "")
            found |= {key: ends[0], f"{key}_low": ends[1], f"{key}_high": ends[2]}
        else:
            found[key] = "" if value is None else value
    return found


def _draw(rows: Sequence[RoundRow], annotator: str, path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no rounds.png: matplotlib is missing; pip install 'simpo[plots]'")
        return
    figure = Figure(figsize=(13, 3.6), dpi=120, layout="constrained")
    score, wins, tokens, parts = figure.subplots(1, 4)
    _points(score, [(row.round, row.score) for row in rows])
    score.set(title=f"Mean score of {annotator}")
    _points(wins, [(row.round, row.win_rate) for row in rows if row.win_rate is not None])
    wins.axhline(0.5, color=_MUTED, linewidth=1, linestyle="--")
    wins.set(title="Win rate against round 0", ylim=(-0.02, 1.02))
    _points(tokens, [(row.round, row.tokens) for row in rows if row.tokens is not None])
    tokens.set(title="Tokens of a response")
    tokens.set_ylim(bottom=0)
    parts.plot([row.round for row in rows], [row.cut for row in rows], "o-", color=_MUTED, label="cut responses")
    held_out = [(row.round, row.accuracy) for row in rows if row.accuracy is not None]
    parts.plot(*zip(*held_out, strict=True) if held_out else ((), ()), "s-", color=_LINE, label="held-out accuracy")
    parts.set(title="Training and length limit", ylim=(-0.02, 1.3), yticks=(0, 0.25, 0.5, 0.75, 1))
    parts.legend(frameon=False, loc="upper left", fontsize=8, ncols=2)  # above the lines
    for axes in (score, wins, tokens, parts):
        axes.set_xlabel("round")
        axes.set_xticks([row.round for row in rows] if len(rows) <= 12 else range(0, rows[-1].round + 1, 5))
        axes.set_xlim(-0.4, rows[-1].round + 0.4)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.title.set_color(_INK)
        axes.title.set_fontsize(10)
    figure.savefig(path)


def _points(axes: Any, found: Sequence[tuple[int, Interval]]) -> None:
    at = [number for number, _ in found]
    values = [one.value for _, one in found]
    below = [one.value - one.low for _, one in found]
    above = [one.high - one.value for _, one in found]
    axes.errorbar(at, values, yerr=[below, above], fmt="o-", color=_LINE, ecolor=_LINE, elinewidth=1.2, capsize=3)
