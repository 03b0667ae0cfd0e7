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

_CHOSEN, _REJECTED, _ALL = "#2166ac", "#d6604d", "#bdbdbd"
_QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)


def dataset_card(
    settings: BinarizeSettings,
    report: BinarizeReport,
    rows: Sequence[Mapping[str, Any]],
    advice: Mapping[str, str],
    picture: str | None,
) -> str:
    """Markdown: what is in the data set, where it is from, what was left out and why."""
    values = {
        "chosen score": [row["chosen_score"] for row in rows],
        "rejected score": [row["rejected_score"] for row in rows],
        "margin": [row["margin"] for row in rows],
        "chosen tokens": [row["chosen_tokens"] for row in rows],
        "rejected tokens": [row["rejected_tokens"] for row in rows],
    }
    longer = np.mean([row["chosen_tokens"] > row["rejected_tokens"] for row in rows])
    chosen_by = {item.name: show(getattr(settings, item.name)) for item in fields(settings)}
    chosen_by["annotator"] = report.annotator
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
            _table(
                ("", "mean", "least", "10 %", "median", "90 %", "most"),
                [(name, *_summary(numbers)) for name, numbers in values.items()],
            ), "",
            f"The chosen response is the longer one in {longer:.0%} of the pairs.", "",
            "## Settings", "",
            _table(
                ("setting", "value"), list(chosen_by.items())
            ), "",
            "Columns: `prompt`, `chosen`, `rejected` train as they are; the others say where a pair comes from.", "",
        ]
    )  # fmt: skip


def _summary(numbers: Sequence[float]) -> list[str]:
    return [f"{value:.4g}" for value in (float(np.mean(numbers)), *np.quantile(numbers, _QUANTILES))]


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
    pair = {"chosen": _CHOSEN, "rejected": _REJECTED}
    edges = _edges(everything)
    scores.hist(everything, edges, color=_ALL, label=f"all responses ({len(everything):,})")
    for side, colour in pair.items():
        scores.hist([row[f"{side}_score"] for row in rows], edges, histtype="step", lw=2, color=colour, label=side)
    scores.set(title=f"Scores of {annotator}", xlabel="score", ylabel="responses")
    margins.hist([row["margin"] for row in rows], _edges([row["margin"] for row in rows]), color=_CHOSEN)
    margins.set(title="Margins", xlabel="chosen score - rejected score", ylabel="pairs")
    edges = _edges([row[f"{side}_tokens"] for row in rows for side in pair])
    for side, colour in pair.items():
        tokens = [row[f"{side}_tokens"] for row in rows]
        label = f"{side}, mean {np.mean(tokens):.4g}"
        lengths.hist(tokens, edges, histtype="step", lw=2, color=colour, label=label)
    lengths.set(title="Lengths", xlabel="tokens", ylabel="responses")
    for axes in (scores, lengths):
        axes.margins(y=0.25)  # room for the legend above the bars
        axes.legend(frameon=False, loc="upper left", fontsize=9, ncols=1)
    for axes in (scores, margins, lengths):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    return path.name


def _edges(numbers: Sequence[float]) -> Any:
    """Edges of 40 bins; for whole numbers as many of them in each bin, which bins of any width would not have."""
    values = np.asarray(numbers)
    if not np.issubdtype(values.dtype, np.integer):
        return np.histogram_bin_edges(values, bins=40)
    step = -(-(values.max() - values.min() + 1) // 40)
    return np.arange(values.min(), values.max() + step + 1, step) - 0.5
