"""What the demo shows at its end: a table, sample answers, and a picture."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from scripts.demo_model import Judgement
from scripts.demo_pairs import FLAWS, DemoData
from simpo import PreferenceConfig

# Okabe and Ito's palette, which people with any colour vision can tell apart
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8C8C8C"
FLAW_LABELS = {"false": "true, not a rumour", "rude": "friendly, not rude", "evasive": "on topic, not evasive"}
_WIDTH = 100


@dataclass(frozen=True)
class Run:
    """What a SimPO run has logged.

    Attributes:
        train: name -> [K] means since the last log; `step` says when.
        held_out: name -> [E] means over the evaluation set; `step` says when. The first is from before training.
        first, last: the first and the last evaluation.
    """

    train: dict[str, np.ndarray]
    held_out: dict[str, np.ndarray]

    @property
    def first(self) -> dict[str, float]:
        return {name: float(values[0]) for name, values in self.held_out.items()}

    @property
    def last(self) -> dict[str, float]:
        return {name: float(values[-1]) for name, values in self.held_out.items()}


@dataclass(frozen=True)
class Results:
    """The run, and the model's judgement before and after it."""

    run: Run
    before: Judgement
    after: Judgement
    settings: PreferenceConfig


def read_run(folder: Path) -> Run:
    """Read the history that a run leaves in `trainer_state.json`."""
    history: list[dict[str, Any]] = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return Run(
        train=_columns([entry for entry in history if "loss" in entry]),
        held_out=_columns([entry for entry in history if "eval_loss" in entry]),
    )


def _columns(entries: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    names = [name for name in entries[0] if all(name in entry for entry in entries)]
    return {name.removeprefix("eval_"): np.array([entry[name] for entry in entries], dtype=float) for name in names}


def print_results(results: Results, data: DemoData) -> None:
    """The table and the sample answers."""
    console = Console(width=_WIDTH, highlight=False)
    console.print(_table(results, len(data.test)))
    console.print(_samples(results, data))


def _table(results: Results, pairs: int) -> Table:
    table = Table(title=f"\n{pairs} held-out pairs, whose prompts were never trained on", title_justify="left")
    table.add_column("")
    for name in ("before SimPO", "after SimPO"):
        table.add_column(name, justify="right")
    first, last, before, after = results.run.first, results.run.last, results.before, results.after

    def percent(name: str, old: float, new: float, style: str | None = None) -> None:
        table.add_row(name, f"{old:.1%}", f"{new:.1%}", style=style)

    def number(name: str, key: str) -> None:
        table.add_row(name, f"{first[key]:.3f}", f"{last[key]:.3f}")

    percent("reward accuracy", first["rewards/accuracies"], last["rewards/accuracies"], "bold")
    for flaw in FLAWS:
        percent(f"  pairs on: {FLAW_LABELS[flaw]}", before.accuracies[flaw], after.accuracies[flaw])
    number(f"reward margin (target {results.settings.gamma:g})", "rewards/margins")
    number("mean log-probability of the chosen answer (nats per token)", "logps/chosen")
    number("mean log-probability of the rejected answer (nats per token)", "logps/rejected")
    number("loss", "loss")
    percent("greedy answers that are true, friendly and on topic", before.good, after.good, "bold")
    return table


def _samples(results: Results, data: DemoData) -> Table:
    table = Table(
        title="\nGreedy answers to held-out questions", title_justify="left", show_header=False, show_lines=True
    )
    for number in _sample_numbers(data):
        question = data.test_questions[number]
        truth = ", ".join(data.world[question.item, attribute][0] for attribute in question.attributes)
        table.add_row(
            "[bold]question[/bold]\ntruth\nbefore\nafter",
            f"[bold]{question.text}[/bold]\n{truth}\n{results.before.replies[number]}\n{results.after.replies[number]}",
        )
    return table


def _sample_numbers(data: DemoData) -> list[int]:
    """The first two questions about one attribute and the first two about two, each on another item."""
    numbers: list[int] = []
    items: set[str] = set()
    for wanted in (1, 2, 1, 2):
        for number, question in enumerate(data.test_questions):
            if len(question.attributes) == wanted and question.item not in items:
                numbers.append(number)
                items.add(question.item)
                break
    return numbers


def save_figure(results: Results, path: Path) -> Path:
    """Draw the run and what came of it; returns `path`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style: dict[Any, Any] = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "font.size": 10,
    }
    with plt.rc_context(style):
        figure, axes = plt.subplots(2, 3, figsize=(14, 7.6), layout="constrained")
        _draw_loss(axes[0, 0], results)
        _draw_margin(axes[0, 1], results)
        _draw_accuracy(axes[0, 2], results)
        _draw_logps(axes[1, 0], results)
        _draw_histogram(axes[1, 1], results)
        _draw_bars(axes[1, 2], results)
        args = results.settings
        figure.suptitle(
            f"SimPO on a small Llama: beta {args.beta:g}, gamma/beta {args.gamma_beta_ratio:g}, "
            f"{args.total_train_batch_size} pairs a step; held-out prompts never occur in training",
            fontsize=13,
            y=1.04,
        )
        figure.savefig(path, dpi=130, bbox_inches="tight", pad_inches=0.15)
        plt.close(figure)
    return path


def _curves(axis: Any, run: Run, name: str, scale: float = 1.0) -> None:
    axis.plot(run.train["step"], scale * run.train[name], color=BLUE, alpha=0.9, label="training batches")
    axis.plot(
        run.held_out["step"], scale * run.held_out[name], "o-", color=ORANGE, markersize=5, label="held-out pairs"
    )
    axis.set_xlabel("optimizer step")


def _draw_loss(axis: Any, results: Results) -> None:
    _curves(axis, results.run, "loss")
    axis.set(title="Loss", ylabel="SimPO loss (nats per pair)", ylim=(0, None))
    axis.legend(frameon=False)


def _draw_margin(axis: Any, results: Results) -> None:
    _curves(axis, results.run, "rewards/margins")
    axis.axhline(results.settings.gamma, color=GREY, linestyle="--")
    axis.text(
        axis.get_xlim()[1], results.settings.gamma, "target margin gamma", color="#555555", ha="right", va="bottom"
    )
    axis.set(title="Reward margin, chosen less rejected", ylabel="reward (beta × nats per token)")
    axis.legend(frameon=False)


def _draw_accuracy(axis: Any, results: Results) -> None:
    _curves(axis, results.run, "rewards/accuracies", 100)
    axis.axhline(50, color=GREY, linestyle="--")
    axis.text(axis.get_xlim()[1], 51, "chance", color="#555555", ha="right", va="bottom")
    axis.set(title="Reward accuracy", ylabel="pairs with the chosen answer ahead (%)", ylim=(35, 102))
    axis.legend(frameon=False, loc="center right")


def _draw_logps(axis: Any, results: Results) -> None:
    held_out = results.run.held_out
    axis.plot(held_out["step"], held_out["logps/chosen"], "o-", color=GREEN, markersize=5, label="chosen")
    axis.plot(held_out["step"], held_out["logps/rejected"], "s-", color=PURPLE, markersize=5, label="rejected")
    axis.set(
        title="Mean log-probability, held-out answers", xlabel="optimizer step", ylabel="nats per token", ylim=(None, 0)
    )
    axis.legend(frameon=False)


def _draw_histogram(axis: Any, results: Results) -> None:
    both = np.concatenate([results.before.margins, results.after.margins])
    bins = np.linspace(both.min(), both.max(), 41).tolist()
    axis.hist(results.before.margins, bins=bins, color=GREY, alpha=0.8, label="before SimPO")
    axis.hist(results.after.margins, bins=bins, color=ORANGE, alpha=0.7, label="after SimPO")
    axis.axvline(0, color="black", linewidth=1)
    axis.set(
        title="Reward margins of the held-out pairs", xlabel="reward margin (beta × nats per token)", ylabel="pairs"
    )
    axis.legend(frameon=False)


def _draw_bars(axis: Any, results: Results) -> None:
    labels = [FLAW_LABELS[flaw].replace(", ", ",\n") for flaw in FLAWS] + ["greedy answers\nthat are all three"]
    rows = np.arange(len(labels))
    for judgement, shift, color, name in (
        (results.before, -0.2, GREY, "before SimPO"),
        (results.after, 0.2, ORANGE, "after SimPO"),
    ):
        values = [100 * judgement.accuracies[flaw] for flaw in FLAWS] + [100 * judgement.good]
        bars = axis.barh(rows + shift, values, height=0.38, color=color, label=name)
        axis.bar_label(bars, fmt="%.0f", padding=3, fontsize=9)
    axis.set(title="What was learnt (held-out)", xlabel="reward accuracy, or share of answers (%)", xlim=(0, 112))
    axis.set_yticks(rows, labels)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.4, -0.14), ncols=2)
