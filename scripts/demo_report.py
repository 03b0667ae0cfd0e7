"""What the demo shows at its end: a table, sample answers, and a picture."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from scripts.demo_judge import QUALITIES, Answers, Comparison, Estimate
from scripts.demo_pairs import DemoData

# Okabe and Ito's palette, which people with any colour vision can tell apart
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8C8C8C"
_WIDTH = 110


@dataclass(frozen=True)
class Run:
    """What a SimPO run has logged.

    Attributes:
        train: name -> [K] means since the last log; `step` says when.
        held_out: name -> [E] means over the evaluation set; `step` says when. The first is from before training.
    """

    train: dict[str, np.ndarray]
    held_out: dict[str, np.ndarray]


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


def print_results(found: Comparison, before: Answers, after: Answers, data: DemoData) -> None:
    """The table and the sample answers."""
    console = Console(width=_WIDTH, highlight=False)
    console.print(_table(found, before, after))
    console.print(f"95% intervals: bootstrap over the {len(before.questions)} questions, before and after paired")
    console.print(_samples(before, after, data))


def _table(found: Comparison, before: Answers, after: Answers) -> Table:
    title = f"\n{before.scores.size:,} sampled answers to {len(before.questions)} held-out questions"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in ("SFT", "SimPO", "difference"):
        table.add_column(name, justify="right")
    table.add_row(
        "task accuracy: all three", found.accuracy_before.percent(), found.accuracy_after.percent(),
        f"{found.gain.change()} points", style="bold",
    )  # fmt: skip
    for at, name in enumerate(QUALITIES):
        old, new = (float(answers.qualities[..., at].mean()) for answers in (before, after))
        table.add_row(f"  {name}", f"{old:.1%}", f"{new:.1%}", f"{100 * (new - old):+.1f} points")
    table.add_row(
        "mean length, tokens", found.length_before.number(), found.length_after.number(),
        f"{found.length_change.change()} %", style="bold",
    )  # fmt: skip
    return table


def _samples(before: Answers, after: Answers, data: DemoData) -> Table:
    table = Table(
        title="\nAnswers to held-out questions (the first one sampled)", title_justify="left", show_header=False,
        show_lines=True,
    )  # fmt: skip
    for number in _sample_numbers(data):
        question = data.test_questions[number]
        truth = ", ".join(data.world[question.item, attribute][0] for attribute in question.attributes)
        table.add_row(
            "[bold]question[/bold]\ntruth\nSFT\nSimPO",
            f"[bold]{question.text}[/bold]\n{truth}\n{_verdict(before, number)}\n{_verdict(after, number)}",
        )
    return table


def _verdict(answers: Answers, number: int) -> str:
    return f"{int(answers.scores[number, 0])}/3  {escape(answers.texts[number][0])}"


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


def print_seeds(results: Sequence[Mapping[str, Any]]) -> None:
    """One line for each seed, from what each demo has left, and their means."""
    table = Table(title="\nHeld-out questions, with 95% intervals", title_justify="left")
    for name in (
        "seed",
        "accuracy SFT",
        "accuracy SimPO",
        "gain",
        "length SFT",
        "length SimPO",
        "change, %",
        "s",
        "CPU s",
    ):
        table.add_column(name, justify="right")
    names = ("accuracy_before", "accuracy_after", "gain", "length_before", "length_after", "length_change")
    for result in results:
        found = {name: Estimate(**result[name]) for name in names}
        spent = result["seconds"]["all"]
        table.add_row(
            str(result["seed"]),
            found["accuracy_before"].percent(),
            found["accuracy_after"].percent(),
            found["gain"].change(),
            found["length_before"].number(),
            found["length_after"].number(),
            found["length_change"].change(),
            f"{spent['seconds']:.0f}",
            f"{spent['cpu_seconds']:.0f}",
        )
    means = {name: float(np.mean([result[name]["value"] for result in results])) for name in names}
    table.add_row(
        "mean", f"{means['accuracy_before']:.1%}", f"{means['accuracy_after']:.1%}", f"{100 * means['gain']:+.1f}",
        f"{means['length_before']:.1f}", f"{means['length_after']:.1f}", f"{100 * means['length_change']:+.1f}",
        style="bold",
    )  # fmt: skip
    Console(width=150, highlight=False).print(table)
    for result in results:
        for problem in result["problems"]:
            print(f"seed {result['seed']} FAILED: {problem}")


def save_figure(run: Run, found: Comparison, before: Answers, after: Answers, path: Path) -> Path:
    """Draw the SimPO run and what came of it; returns `path`."""
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
        _draw_loss(axes[0, 0], run)
        _draw_accuracy(axes[0, 1], run)
        _draw_logps(axes[0, 2], run)
        _draw_qualities(axes[1, 0], found, before, after)
        _draw_scores(axes[1, 1], before, after)
        _draw_lengths(axes[1, 2], before, after)
        figure.suptitle(
            "SimPO on a small Llama's own answers, ranked by a program; above the run, below held-out questions",
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


def _draw_loss(axis: Any, run: Run) -> None:
    _curves(axis, run, "loss")
    axis.set(title="Loss", ylabel="SimPO loss (nats per pair)", ylim=(0, None))
    axis.legend(frameon=False)


def _draw_accuracy(axis: Any, run: Run) -> None:
    _curves(axis, run, "rewards/accuracies", 100)
    axis.axhline(50, color=GREY, linestyle="--")
    axis.text(axis.get_xlim()[1], 51, "chance", color="#555555", ha="right", va="bottom")
    axis.set(title="Reward accuracy", ylabel="pairs with the chosen answer ahead (%)", ylim=(None, 102))
    axis.legend(frameon=False, loc="center right")


def _draw_logps(axis: Any, run: Run) -> None:
    held_out = run.held_out
    axis.plot(held_out["step"], held_out["logps/chosen"], "o-", color=GREEN, markersize=5, label="chosen")
    axis.plot(held_out["step"], held_out["logps/rejected"], "s-", color=PURPLE, markersize=5, label="rejected")
    axis.set(
        title="Mean log-probability, held-out pairs", xlabel="optimizer step", ylabel="nats per token", ylim=(None, 0)
    )
    axis.legend(frameon=False)


def _draw_qualities(axis: Any, found: Comparison, before: Answers, after: Answers) -> None:
    rows = np.arange(len(QUALITIES) + 1)
    for answers, accuracy, shift, color, name in (
        (before, found.accuracy_before, -0.2, GREY, "SFT"),
        (after, found.accuracy_after, 0.2, ORANGE, "SimPO"),
    ):
        values = [100 * float(share) for share in (accuracy.value, *answers.qualities.mean(axis=(0, 1)))]
        bars = axis.barh(rows + shift, values, height=0.38, color=color, label=name)
        axis.bar_label(bars, fmt="%.0f", padding=9, fontsize=9)
        spread = [[100 * (accuracy.value - accuracy.low)], [100 * (accuracy.high - accuracy.value)]]
        axis.errorbar([values[0]], [shift], xerr=spread, color="black", capsize=3, linewidth=1.2)
    axis.set(title="Task accuracy (95% interval) and its parts", xlabel="share of sampled answers (%)", xlim=(0, 115))
    axis.set_yticks(rows, ["right:\nall three", *QUALITIES])
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.4, -0.14), ncols=2)


def _draw_scores(axis: Any, before: Answers, after: Answers) -> None:
    scores = np.arange(4)
    for answers, shift, color, name in ((before, -0.2, GREY, "SFT"), (after, 0.2, ORANGE, "SimPO")):
        shares = [100 * float((answers.scores == score).mean()) for score in scores]
        axis.bar(scores + shift, shares, width=0.38, color=color, label=name)
    axis.set(title="The checker's scores", xlabel="qualities of an answer", ylabel="share of sampled answers (%)")
    axis.set_xticks(scores)
    axis.grid(axis="x", visible=False)
    axis.legend(frameon=False)


def _draw_lengths(axis: Any, before: Answers, after: Answers) -> None:
    longest = int(max(before.tokens.max(), after.tokens.max()))
    for answers, color, name in ((before, GREY, "SFT"), (after, ORANGE, "SimPO")):
        shares = 100 * np.bincount(answers.tokens.astype(int).ravel(), minlength=longest + 1) / answers.tokens.size
        axis.step(np.arange(longest + 1), shares, where="mid", color=color, linewidth=2, label=name)
        axis.axvline(answers.tokens.mean(), color=color, linestyle="--")
    axis.set(title="Lengths (dashed: mean)", xlabel="tokens of an answer", ylabel="share of sampled answers (%)")
    axis.legend(frameon=False)
