"""The card of a binarized data set, and its histograms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simpo.onpolicy.scored import ScoredPrompt
from simpo.settings.oldnames import show

if TYPE_CHECKING:
    from simpo.onpolicy.binarize import BinarizeReport, BinarizeSettings

_COLOURS, _ALL = {"chosen": "#2166ac", "rejected": "#d6604d"}, "#bdbdbd"
_QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)


def dataset_card(
    settings: BinarizeSettings,
    report: BinarizeReport,
    rows: Sequence[Mapping[str, Any]],
    advice: Mapping[str, str],
    picture: str | None,
    sources: Mapping[str, Mapping[str, Any]],
) -> str:
    """Markdown: what is in the data set, where it is from, what was left out and why.

    Args:
        settings, report, rows: of `simpo binarize`.
        advice: cause of `report.dropped` -> what to do.
        picture: file of the histograms, where there is one.
        sources: title -> what responses and scores were made with.
    """
    options = {item.name: show(getattr(settings, item.name)) for item in fields(settings)}
    options["annotator"] = report.annotator
    dropped = [(cause, f"{count:,}", advice[cause.split(": ")[0]]) for cause, count in report.dropped.most_common()]
    return "\n".join(
        [
            "---", "tags: [preference-optimization, on-policy]", "---", "",
            f"# {Path(settings.output_dir).name}", "",
            f"Preference pairs from a policy's own responses, chosen by the scores of `{report.annotator}`.", "",
            "## Counts", "",
            _table(("", "count"), [
                ("prompts read", f"{report.total:,}"), ("prompts with a pair", f"{report.kept:,}"),
                ("pairs", f"{report.pairs:,}"),
                *((f"pairs in split {name}", f"{size:,}") for name, size in report.splits.items()),
                ("responses read", f"{report.responses:,}"),
                *((f"responses left out: {cause}", f"{count:,}") for cause, count in report.left_out.most_common()),
            ]), "",
            "## Prompts left out", "",
            _table(("cause", "prompts", "what to do"), dropped) if dropped else "None.", "",
            "## Scores and lengths", "",
            *([f"![Histograms of scores, margins and lengths]({picture})", ""] if picture else []),
            *_summaries(rows), "",
            "## Settings", "",
            _table(
                ("setting", "value"), list(options.items())
            ), "",
            *(line for title, source in sources.items() if source for line in (
                f"## {title} made with", "", _table(("setting", "value"), _said(source)), "",
            )),
            "Columns: `prompt`, `chosen`, `rejected` train as they are; the others say where a pair comes from.", "",
        ]
    )  # fmt: skip


def _said(source: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, show(value).replace("|", "\\|").replace("\n", " ")) for key, value in source.items()]


def _summaries(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    measured = [row for row in rows if row["chosen_tokens"] is not None and row["rejected_tokens"] is not None]
    columns = [("chosen score", rows), ("rejected score", rows), ("margin", rows)]
    columns += [("chosen tokens", measured), ("rejected tokens", measured)] if measured else []
    lines = []
    for name, of in columns:
        numbers = [row[name.replace(" ", "_")] for row in of]
        quantiles = (float(np.mean(numbers)), *np.quantile(numbers, _QUANTILES))
        lines.append([name, *(f"{value:.4g}" for value in quantiles)])
    text = [_table(("", "mean", "least", "10 %", "median", "90 %", "most"), lines)]
    if measured:
        longer = np.mean([row["chosen_tokens"] > row["rejected_tokens"] for row in measured])
        text += ["", f"The chosen response is the longer one in {longer:.0%} of the pairs."]
    return text


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw_histograms(
    prompts: Sequence[ScoredPrompt], rows: Sequence[Mapping[str, Any]], annotator: str, path: Path
) -> str | None:
    """Scores, margins and lengths as one PNG.

    Returns:
        The file's name; None without matplotlib (extra `plots`), which a message says.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no histograms: matplotlib is missing; pip install 'simpo[plots]'")
        return None
    everything = [score for prompt in prompts for score in prompt.scores.get(annotator, []) if score is not None]
    figure = Figure(figsize=(13, 3.8), dpi=120, layout="constrained")
    scores, margins, lengths = figure.subplots(1, 3)
    edges = _edges(everything)
    scores.hist(everything, edges, color=_ALL, label=f"all responses ({len(everything):,})")
    for side, colour in _COLOURS.items():
        scores.hist([row[f"{side}_score"] for row in rows], edges, histtype="step", lw=2, color=colour, label=side)
    scores.set(title=f"Scores of {annotator}", xlabel="score", ylabel="responses")
    values = [row["margin"] for row in rows]
    margins.hist(values, _edges(values), color=_COLOURS["chosen"])
    margins.set(title="Margins", xlabel="chosen score - rejected score", ylabel="pairs")
    _draw_lengths(lengths, rows)
    for axes in (scores, lengths):
        axes.margins(y=0.25)  # room for the legend above the bars
        axes.legend(frameon=False, loc="upper left", fontsize=9)
    for axes in (scores, margins, lengths):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    return path.name


def _draw_lengths(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    sides = {side: [row[f"{side}_tokens"] for row in rows if row[f"{side}_tokens"] is not None] for side in _COLOURS}
    edges = _edges([*sides["chosen"], *sides["rejected"]])
    for side, tokens in sides.items():
        label = f"{side}, mean {np.mean(tokens):.4g}" if tokens else f"{side}: not known"
        axes.hist(tokens, edges, histtype="step", lw=2, color=_COLOURS[side], label=label)
    axes.set(title="Lengths", xlabel="tokens", ylabel="responses")


def _edges(numbers: Sequence[float]) -> Any:
    """Edges of 40 bins; for whole numbers as many of them in each bin, which bins of any width would not have."""
    values = np.asarray(numbers)
    if not len(values) or not np.issubdtype(values.dtype, np.integer):
        return np.histogram_bin_edges(values, bins=40)
    step = -(-(values.max() - values.min() + 1) // 40)
    return np.arange(values.min(), values.max() + step + 1, step) - 0.5
