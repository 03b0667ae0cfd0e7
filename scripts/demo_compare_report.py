"""What the comparison of objectives shows: a table, a CSV, a picture, and which findings of the paper it has seen."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from scripts.demo_report import BLUE, GREEN, GREY, ORANGE, PURPLE

_WIDTH = 120
SIMPO, SUMS, DPO = "SimPO", "SimPO, sums", "DPO"


@dataclass(frozen=True)
class Trial:
    """A model on the N held-out pairs, and what it cost.

    Attributes:
        title: of its objective.
        setting: the objective's settings.
        chosen, rejected: [N] log-probs per token, in nats.
        chosen_lengths, rejected_lengths: [N] tokens.
        good: share of the model's own answers that are true, friendly and on topic, word for word.
        margins: [N] reward of the chosen less that of the rejected response, on the objective's own scale; empty where
            there is no objective.
        cpu_seconds: of its run, without the import of libraries.
        peak_mb: most memory of its process; `above_libraries_mb` of it came after the import of libraries.
    """

    title: str
    setting: str
    chosen: np.ndarray
    rejected: np.ndarray
    chosen_lengths: np.ndarray
    rejected_lengths: np.ndarray
    good: float
    margins: np.ndarray = field(default_factory=lambda: np.array([]))
    cpu_seconds: float = float("nan")
    peak_mb: float = float("nan")
    above_libraries_mb: float = float("nan")

    @property
    def reward_accuracy(self) -> float:
        """Share of pairs with the larger reward on the chosen response."""
        return float((self.margins > 0).mean()) if len(self.margins) else float("nan")

    @property
    def likelihood_accuracy(self) -> float:
        """Share of pairs with the larger log-prob per token on the chosen response."""
        return float((self.chosen > self.rejected).mean())

    @property
    def disagreement(self) -> float:
        """Share of pairs that reward and log-prob per token put into different orders."""
        if not len(self.margins):
            return float("nan")
        return float(((self.margins > 0) != (self.chosen > self.rejected)).mean())

    @property
    def length_correlation(self) -> float:
        """Spearman's correlation of length and log-prob per token, over all held-out responses."""
        lengths = np.concatenate([self.chosen_lengths, self.rejected_lengths])
        return spearman(lengths, np.concatenate([self.chosen, self.rejected]))

    def gap(self, *, chosen_longer: bool) -> float:
        """Mean of chosen less rejected log-prob per token over pairs whose chosen response is longer, or shorter."""
        longer, shorter = self.chosen_lengths > self.rejected_lengths, self.chosen_lengths < self.rejected_lengths
        of = longer if chosen_longer else shorter
        return float((self.chosen - self.rejected)[of].mean())


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation; equal values share the mean of their ranks."""
    ranks = []
    for values in (first, second):
        _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
        ends = np.cumsum(counts)
        ranks.append((ends - (counts - 1) / 2)[group])
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def above(first: float, second: float, count: int) -> bool | None:
    """Whether one share of `count` is above another; None where they are within two standard errors of a difference."""
    error = np.sqrt((first * (1 - first) + second * (1 - second)) / count)
    return None if abs(first - second) <= 2 * error else first > second


def _columns(trial: Trial) -> dict[str, float]:
    return {
        "reward accuracy": trial.reward_accuracy,
        "likelihood accuracy": trial.likelihood_accuracy,
        "orders differ": trial.disagreement,
        "reward margin": float(trial.margins.mean()) if len(trial.margins) else float("nan"),
        "logp chosen": float(trial.chosen.mean()),
        "logp rejected": float(trial.rejected.mean()),
        "length correlation": trial.length_correlation,
        "good answers": trial.good,
        "CPU seconds": trial.cpu_seconds,
        "peak MB": trial.peak_mb,
    }


_FORMATS = {"accuracy": "{:.1%}", "differ": "{:.1%}", "good": "{:.1%}", "seconds": "{:.0f}", "MB": "{:.0f}"}


def _shown(name: str, value: float) -> str:
    text = next((text for key, text in _FORMATS.items() if key in name), "{:.3f}")
    return "" if np.isnan(value) else text.format(value)


def print_table(results: Sequence[Trial], pairs: int) -> None:
    """One row a model, with what the columns mean."""
    table = Table(title=f"\n{pairs} held-out pairs, whose prompts were never trained on", title_justify="left",
                  box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))  # fmt: skip
    table.add_column("objective", vertical="bottom", no_wrap=True)
    for name in _columns(results[0]):
        table.add_column(name.replace(" ", "\n"), justify="right", no_wrap=True)
    for trial in results:
        bold = "bold" if trial.title == SIMPO else None
        table.add_row(trial.title, *(_shown(name, value) for name, value in _columns(trial).items()), style=bold)
    console = Console(width=_WIDTH, highlight=False)
    console.print(table)
    console.print(
        "likelihood: log-prob per token (nats). length correlation: Spearman's, of length and log-prob per token, over "
        "chosen and rejected responses. Reward margins have each objective's own scale. good answers: greedy answers "
        "that are true, friendly and on topic, word for word."
    )
    for trial in results[1:]:
        console.print(f"  {trial.title:<12} {trial.setting}")


def save_csv(results: Sequence[Trial], path: Path) -> Path:
    """The table with all digits; returns `path`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["objective", "setting", *(name.replace(" ", "_") for name in _columns(results[0]))])
        for trial in results:
            values = ("" if np.isnan(value) else f"{value:.6g}" for value in _columns(trial).values())
            writer.writerow([trial.title, trial.setting, *values])
    return path


def findings(results: Sequence[Trial]) -> list[str]:
    """What the paper found and a small model can show: seen or not, with the figures."""
    by = {trial.title: trial for trial in results}
    lines = ["", "Findings of the paper, on this model of a million parameters and these pairs:"]

    def tell(seen: bool | None, text: str) -> None:
        verdict = "unclear" if seen is None else "seen" if seen else "not seen"
        lines.append(f"  {verdict:<8}  {text}")

    if SIMPO not in by or DPO not in by:
        return [*lines, "  SimPO and DPO are needed for this; they were left out"]
    simpo, dpo, start = by[SIMPO], by[DPO], results[0]
    tell(
        simpo.disagreement == 0 and simpo.reward_accuracy == simpo.likelihood_accuracy,
        f"SimPO's reward orders pairs as the likelihood does: {simpo.reward_accuracy:.1%} and "
        f"{simpo.likelihood_accuracy:.1%} right (so by construction)",
    )
    right = dpo.margins > 0
    less_likely = float((dpo.chosen < dpo.rejected)[right].mean())
    tell(
        less_likely > 0,
        f"Of the pairs that DPO's reward orders rightly, {less_likely:.1%} have the less likely chosen response "
        "(paper: about half, on its training pairs)",
    )
    tell(
        above(simpo.reward_accuracy, dpo.reward_accuracy, len(simpo.margins)),
        f"SimPO's reward accuracy, {simpo.reward_accuracy:.1%}, is above DPO's, {dpo.reward_accuracy:.1%}",
    )
    tell(
        simpo.length_correlation < dpo.length_correlation,
        f"Likelihood goes along with length less under SimPO, {simpo.length_correlation:+.3f}, than under DPO, "
        f"{dpo.length_correlation:+.3f} (start: {start.length_correlation:+.3f})",
    )
    if SUMS in by:
        _tell_of_sums(by[SUMS], simpo, dpo, tell)
    tell(
        simpo.cpu_seconds < dpo.cpu_seconds,
        f"SimPO takes less time than DPO: {simpo.cpu_seconds:.0f} and {dpo.cpu_seconds:.0f} CPU seconds "
        f"({simpo.cpu_seconds / dpo.cpu_seconds - 1:+.0%}; paper: about -20 %, with a second model)",
    )
    tell(
        abs(dpo.peak_mb / simpo.peak_mb - 1) < 0.05,
        f"DPO takes SimPO's memory once the reference is data: {dpo.peak_mb:.0f} and {simpo.peak_mb:.0f} MB at most "
        f"({dpo.peak_mb / simpo.peak_mb - 1:+.1%}; after the libraries {dpo.above_libraries_mb:.0f} and "
        f"{simpo.above_libraries_mb:.0f} MB, and a second model would be 4 MB: too small to tell here)",
    )
    return lines


def _tell_of_sums(sums: Trial, simpo: Trial, dpo: Trial, tell: Any) -> None:
    """Length normalisation (the paper's table 5 and figure 2)."""
    tell(
        sums.length_correlation > max(simpo.length_correlation, dpo.length_correlation),
        f"Without length normalisation the likelihood goes along with length most: {sums.length_correlation:+.3f}",
    )
    shorter, longer = (sums.gap(chosen_longer=value) for value in (False, True))
    own = [simpo.gap(chosen_longer=value) for value in (False, True)]
    tell(
        longer - shorter > own[1] - own[0],
        "Without it, pairs with the shorter chosen response are learnt worse: chosen less rejected log-prob per token "
        f"{shorter:.3f} where it is shorter, {longer:.3f} where it is longer (SimPO: {own[0]:.3f} and {own[1]:.3f})",
    )
    worse = above(simpo.good, sums.good, len(simpo.chosen))
    tell(worse, f"Without it the model answers worse: {sums.good:.1%} good, SimPO {simpo.good:.1%}")


def save_picture(results: Sequence[Trial], path: Path) -> Path:
    """Draw the table; returns `path`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style: dict[Any, Any] = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 10}
    with plt.rc_context(style):
        figure, axes = plt.subplots(1, 4, figsize=(16, 0.42 * len(results) + 2.2), sharey=True, layout="constrained")
        rows = np.arange(len(results))
        _dots(axes[0], rows, [100 * trial.reward_accuracy for trial in results], ORANGE, "o", "by reward", 130)
        _dots(axes[0], rows, [100 * trial.likelihood_accuracy for trial in results], BLUE, "D", "by likelihood")
        _dots(axes[0], rows, [100 * trial.good for trial in results], GREY, "s", "good answers")
        axes[0].set(title="Pairs in the right order; good answers", xlabel="%")
        _dots(axes[1], rows, [trial.chosen.mean() for trial in results], GREEN, "o", "chosen")
        _dots(axes[1], rows, [trial.rejected.mean() for trial in results], PURPLE, "s", "rejected")
        axes[1].set(title="Mean log-probability", xlabel="nats per token")
        _bars(axes[2], rows, [trial.length_correlation for trial in results], "%+.2f")
        axes[2].set(title="Length and likelihood", xlabel="Spearman's correlation")
        axes[2].axvline(0, color="black", linewidth=1)
        _bars(axes[3], rows, [trial.cpu_seconds for trial in results], "%.0f")
        axes[3].set(title="Time of the run", xlabel="CPU seconds")
        axes[0].set_yticks(rows, [trial.title for trial in results])
        axes[0].invert_yaxis()
        for axis in axes[:2]:
            axis.grid(axis="x", alpha=0.3)
            axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, fontsize=9)
        for axis in axes:
            axis.hlines(rows, *axis.get_xlim(), color=GREY, alpha=0.15, linewidth=1, zorder=0)
        figure.suptitle("The objectives of SimPO's comparison on one small model and its held-out pairs", fontsize=13)
        figure.savefig(path, dpi=130, bbox_inches="tight", pad_inches=0.15)
        plt.close(figure)
    return path


def _dots(
    axis: Any, rows: np.ndarray, values: Sequence[float], color: str, marker: str, label: str, size: int = 42
) -> None:
    axis.scatter(values, rows, color=color, marker=marker, label=label, s=size, alpha=0.85, zorder=3)


def _bars(axis: Any, rows: np.ndarray, values: Sequence[float], text: str) -> None:
    bars = axis.barh(rows, np.nan_to_num(values), color=BLUE, height=0.55)
    axis.bar_label(bars, labels=["" if np.isnan(value) else text % value for value in values], padding=3, fontsize=9)
    axis.margins(x=0.15)
