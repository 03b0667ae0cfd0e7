"""An inspection in the terminal: pairs as coloured tokens, numbers, findings.

Colours only where the terminal has them and NO_COLOR is not set; without them a bar stands between tokens.
"""

from __future__ import annotations

from typing import TextIO

from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from simpo.audit.checks import SetAudit
from simpo.audit.findings import Finding, show_share
from simpo.audit.result import Inspection, set_counts
from simpo.audit.statistics import Histogram
from simpo.audit.tokens import Piece, ShownPair, visible

_STYLES = {"prompt": "dim", "chosen": "green", "rejected": "red"}
_LEVEL_STYLES = {"error": "bold white on red", "warning": "bold black on yellow", "note": "bold"}
_BLOCKS = " ▁▂▃▄▅▆▇█"
_NARROW = 72  # columns below which the table of lengths leaves some out
# tokens of a part that are shown from its beginning and its end
_SHOWN = {"prompt": (60, 60), "chosen": (150, 40), "rejected": (150, 40)}


def open_console(stream: TextIO | None = None) -> Console:
    """A console on stdout, or on a stream."""
    return Console(file=stream, highlight=False, markup=False, emoji=False)


def show(inspection: Inspection, console: Console) -> None:
    """Print everything."""
    plain = console.color_system is None or console.no_color
    for name, samples in inspection.samples.items():
        if samples:
            console.print(Rule(f"{name}: pairs as they are trained on", style="" if plain else "dim"))
            console.print(_legend(plain))
        for pair in samples:
            console.print(pair_text(pair, plain=plain))
    for audit in inspection.sets:
        console.print(Rule(f"{audit.name}: numbers", style="" if plain else "dim"))
        _show_set(audit, console)
    console.print(Rule("what was looked at", style="" if plain else "dim"))
    for key, value in inspection.about.items():
        console.print(_hanging(Text(f"{key:<13}"), Text(value)))
    console.print(Rule("findings", style="" if plain else "dim"))
    for finding in inspection.findings:
        console.print(finding_text(finding, plain=plain))
    console.print(summary(inspection))


def _legend(plain: bool) -> Text:
    if plain:
        return Text(
            "chosen and rejected are scored, the prompt is only read; │ stands between tokens, ↵ is a line end\n"
        )
    return Text.assemble(
        "prompt read only", " · ", ("chosen", "green"), " and ", ("rejected", "red"), " scored · ",
        (" special ", "reverse"), " · every other token is ", ("underlined", "underline"), "\n",
    )  # fmt: skip


def pair_text(pair: ShownPair, *, plain: bool) -> Text:
    """A pair for people: what is read, what is scored, where tokens begin."""
    text = Text()
    sizes = ", ".join(f"{name} {sum(len(piece.ids) for piece in part):,}" for name, part in pair.parts())
    text.append(f"row {pair.row:,}: {sizes} tokens\n", style="" if plain else "bold")
    for name, part in pair.parts():
        text.append(f"{name}\n", style="" if plain else f"bold {'' if name == 'prompt' else _STYLES[name]}")
        text.append_text(_part(part, name, plain))
        text.append("\n")
    return text


def _part(part: list[Piece], name: str, plain: bool) -> Text:
    head, tail = _SHOWN[name]
    left_out = len(part) - head - tail
    text = Text()
    for at, piece in enumerate(part):
        if left_out > 0 and at == head:
            text.append(f" … {left_out:,} tokens … ", style="" if plain else "italic dim")
        if left_out > 0 and head <= at < head + left_out:
            continue
        if plain and at:
            text.append("│")
        style = "" if plain else _STYLES[name] + " reverse" * piece.special + " underline" * (at % 2)
        text.append(visible(piece.text), style=style)
    return text if text.plain.endswith("\n") else text.append("\n")


def _show_set(audit: SetAudit, console: Console) -> None:
    numbers = audit.statistics
    narrow = console.width < _NARROW
    wanted = ("50", "95") if narrow else ("5", "50", "95", "99")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="none")
    for head in ("tokens", "mean", *(f"{p} %" for p in wanted), "longest"):
        table.add_column(head, justify="left" if head == "tokens" else "right", no_wrap=True)
    for side in ("prompt", "chosen", "rejected"):
        lengths = getattr(numbers, side)
        values = [f"{lengths.percentiles[p]:,.0f}" for p in wanted]
        table.add_row(side, f"{lengths.mean:,.0f}", *values, f"{lengths.longest:,}")
    console.print(table)
    for side in ("prompt", "chosen", "rejected"):
        console.print(_bars(side, getattr(numbers, side).histogram, narrow))
    console.print(_bars("difference", numbers.bias.histogram, narrow))
    for key, value in number_lines(audit):
        console.print(_hanging(Text(f"{key:<13}"), Text(value)))


def number_lines(audit: SetAudit) -> list[tuple[str, str]]:
    """What is no table: name and text."""
    counts, bias, epoch = set_counts(audit), audit.statistics.bias, audit.statistics.epoch
    in_all = 1 - epoch.shared / epoch.padded
    longer = f"{show_share(bias.chosen_longer)} of pairs; the rejected one in {show_share(bias.rejected_longer)}"
    difference = f"{bias.mean_difference:+.1f} tokens on average; correlation with preference {bias.correlation:+.2f}"
    return [
        ("pairs", f"{counts.pairs:,} of {counts.rows:,} rows, {counts.distinct_prompts:,} distinct prompts"),
        ("chosen longer", longer),
        ("difference", difference),
        ("BOS", ", ".join(f"{count:,} pairs with {number}" for number, count in counts.bos.items() if count)),
        ("no end token", ", ".join(f"{count:,} {side}" for side, count in counts.without_end.items())),
        ("epoch", f"{epoch.padded:,} tokens padded, {epoch.packed:,} packed, {epoch.shared:,} with shared prompts"),
        (
            "sharing saves",
            f"{show_share(epoch.saved_by_sharing)} of packed tokens, {show_share(in_all)} of padded ones",
        ),
    ]


def _bars(name: str, histogram: Histogram, narrow: bool) -> Text:
    """One line: bars, and the edges they stand between; the name in a line of its own where there is little room."""
    most = max(histogram.counts) or 1
    # a bin that is not empty is seen
    bars = "".join(_BLOCKS[-(-count * (len(_BLOCKS) - 1) // most)] for count in histogram.counts)
    first, last = (round(histogram.edges[at]) for at in (0, -1))
    low, high = ("≤" if histogram.below else "") + f"{first:,}", f"{last:,}" + ("+" if histogram.above else "")
    return Text(f"{name}\n{low} {bars} {high}" if narrow else f"{name:<10} {low:>7} {bars} {high}")


def finding_text(finding: Finding, *, plain: bool) -> Table:
    """A finding with its rows, and below it what to do."""
    text = Text(f"{finding.where}: {finding.text}")
    if finding.rows:
        text.append(f" {finding.where_rows}")
    for line in finding.detail:
        text.append(f"\n{line}", style="" if plain else "dim")
    if finding.todo:
        text.append(f"\n→ {finding.todo}")
    return _hanging(Text(f"{finding.level:<7}", style="" if plain else _LEVEL_STYLES[finding.level]), text)


def _hanging(head: Text, text: Text) -> Table:
    """A text whose further lines begin below its first word."""
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(head, text)
    return table


def summary(inspection: Inspection) -> Text:
    """How many findings there are, in a line."""
    counts = inspection.levels().items()
    return Text(", ".join(f"{count} {level}{'' if count == 1 else 's'}" for level, count in counts))
