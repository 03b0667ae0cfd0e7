"""When a run's numbers are worth a warning: pure rules from what was logged to findings.

`RULES` is the one table of thresholds, each with its reason; docs/monitors.md shows it, and a test compares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any, Literal, NamedTuple

Level = Literal["note", "warn", "stop"]
LEVELS: tuple[Level, ...] = ("note", "warn", "stop")


@dataclass(frozen=True)
class Finding:
    """One warning, as it is written to `warnings.jsonl`.

    Args:
        step: when it was found.
        name: of the rule.
        level: `note` is to be known, `warn` wants a look, `stop` ends a run with `monitor: stop`.
        text: what was seen, in numbers, and what it usually means.
        advice: what to do.
    """

    step: int
    name: str
    level: Level
    text: str
    advice: str


@dataclass(frozen=True)
class History:
    """What a run has logged.

    Args:
        logs: entries of `TrainerState.log_history`, oldest first.
        max_steps: optimizer steps of the whole run.
        pairs_per_step: pairs of an optimizer step.
        probe_pairs: pairs that a probe measures.
        held_out: they are not trained on.
    """

    logs: Sequence[Mapping[str, Any]]
    max_steps: int
    pairs_per_step: int
    probe_pairs: int
    held_out: bool = True
    steps: list[Mapping[str, Any]] = field(init=False)
    probes: list[Mapping[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", [entry for entry in self.logs if "loss" in entry])
        object.__setattr__(self, "probes", [entry for entry in self.logs if CHOSEN in entry])

    @property
    def step(self) -> int:
        """Of the last entry."""
        return int(self.logs[-1]["step"]) if self.logs else 0

    def at_start(self, name: str) -> float:
        """What the first probe measured; NaN without."""
        return _number(self.probes[0], name) if self.probes else math.nan

    def now(self, name: str) -> float:
        """What the last probe measured; NaN where there is none after the first."""
        return _number(self.probes[-1], name) if len(self.probes) > 1 else math.nan


CHOSEN, REJECTED = "monitor/logps/chosen", "monitor/logps/rejected"
DROP, GAIN, FELL = "monitor/chosen_drop", "monitor/margin_gain", "monitor/chosen_fell"
DROP_PER_GAIN = "monitor/drop_per_margin"
ACCURACY, END = "monitor/accuracy", "monitor/end_probability"
STOPPED, REPEATED, ENTROPY = "monitor/stopped", "monitor/repeated", "monitor/entropy"


class Seen(NamedTuple):
    """What a rule looks at: a number that is worse the larger it is, and what was seen, in words."""

    value: float
    text: str


class Rule(NamedTuple):
    """One thing that is watched.

    Fields:
        name: of the rule.
        look: the number, and what was seen; None where it does not apply (yet).
        limits: the number from which on it is a note, a warning, a reason to stop.
        why: the reason of the limits.
        meaning: what it usually means.
        advice: what to change.
        section: of docs/diagnosis.md.
    """

    name: str
    look: Callable[[History], Seen | None]
    limits: Mapping[Level, float]
    why: str
    meaning: str
    advice: str
    section: str

    def apply(self, history: History) -> Finding | None:
        """The finding, if any: NaN is never one."""
        seen = self.look(history)
        if seen is None:
            return None
        reached = [level for level in LEVELS if level in self.limits and seen.value >= self.limits[level]]
        if not reached:
            return None
        advice = f"{self.advice} (docs/diagnosis.md, {self.section})"
        return Finding(history.step, self.name, reached[-1], f"{seen.text}. {self.meaning}", advice)


def findings(history: History, rules: Sequence[Rule]) -> list[Finding]:
    """What the rules say about a history, at most one finding each."""
    return [found for rule in rules if (found := rule.apply(history)) is not None]


def _number(entry: Mapping[str, Any], name: str) -> float:
    return float(entry.get(name, math.nan))


# Rules of the probe: the last one against the first

_SMALL_DROP = 0.3  # nats per token: SimPO lowers chosen responses too, the more the larger gamma (paper, figure 3c)
_ENOUGH_PAIRS = 32  # below, an accuracy of 100% is chance
_LOST = 3.0  # nats per generated token: 20 equally likely ones
_RISE = 0.3  # of the repeated share: greedy answers repeat themselves a little from the start


def _chosen_falls(history: History) -> Seen | None:
    drop = history.now(DROP)
    return Seen(
        drop,
        f"the chosen responses have lost {drop:.2f} nats per token since the start ({history.at_start(CHOSEN):.2f} -> "
        f"{history.now(CHOSEN):.2f}; they fell in {history.now(FELL):.0%} of the pairs), while the margin to the "
        f"rejected ones grew by {history.now(GAIN):.2f}",
    )


def _falls_without_margin(history: History) -> Seen | None:
    drop, gain = history.now(DROP), history.now(GAIN)
    if not drop >= _SMALL_DROP:
        return None
    text = f"the chosen responses have lost {drop:.2f} nats per token and the margin has gained {gain:.2f}"
    return Seen(drop / gain if gain > 0 else math.inf, text)


def _end_forgotten(history: History) -> Seen | None:
    start, now = history.at_start(END), history.now(END)
    if not start >= 0.1 or math.isnan(now):
        return None  # a model that does not end its answers at the start can lose nothing
    text = (
        f"at the true end of chosen responses the model ends with a probability of {now:.3f}, at the start {start:.3f}"
    )
    return Seen(start / max(now, 1e-9), text)


def _stops_no_more(history: History) -> Seen | None:
    start, now = history.at_start(STOPPED), history.now(STOPPED)
    text = f"{now:.0%} of the answers end by themselves within monitor_max_new_tokens, {start:.0%} at the start"
    return Seen(start - now, text)


def _repeats(history: History) -> Seen | None:
    start, now = history.at_start(REPEATED), history.now(REPEATED)
    if not now - start >= _RISE:
        return None
    return Seen(now, f"{now:.0%} of an answer is one phrase that it has said before ({start:.0%} at the start)")


def _entropy_high(history: History) -> Seen | None:
    start, now = history.at_start(ENTROPY), history.now(ENTROPY)
    if not (now >= 3 * start or now >= max(2 * start, _LOST)):
        return None
    return Seen(now, f"the entropy of a generated token is {now:.2f} nats, {start:.2f} at the start")


def _entropy_low(history: History) -> Seen | None:
    start, now = history.at_start(ENTROPY), history.now(ENTROPY)
    if not start >= 0.1:
        return None
    return Seen(start / max(now, 1e-9), f"the entropy of a generated token fell from {start:.2f} to {now:.4f} nats")


def _saturated(history: History) -> Seen | None:
    accuracy = history.now(ACCURACY)
    if history.probe_pairs < _ENOUGH_PAIRS or not history.held_out:
        return None  # pairs that are trained on may well be told apart
    return Seen(accuracy, f"{accuracy:.1%} of {history.probe_pairs} followed pairs are told apart")


# Rules of what is logged while training

_EARLY = 0.25  # of all steps
_EARLY_PAIRS = 500
_LATE = 0.3  # of all steps: by then the warm-up is over and three of ten probes were made
_LATE_PAIRS = 800  # the accuracy of as many is known to 1.8 points
_BEFORE = 10  # log lines that make a median
_WINDOW = 50
_VANISHED = 1e-6  # a norm below is rounding, and so is any ratio of two of them
_ABOVE_START = 1.5  # a loss is a spike only where it is above that of the untrained model


def _recent(history: History, name: str, pairs: int) -> float:
    """Mean of the last log lines that stand for so many pairs; NaN where fewer were seen."""
    last, values = history.step, []
    ends = [0, *(int(entry["step"]) for entry in history.steps)]
    for since, entry in zip(reversed(ends[:-1]), reversed(history.steps), strict=True):
        if name in entry:
            values.append(float(entry[name]))
        if values and (last - since) * history.pairs_per_step >= pairs:
            return fmean(values)
    return math.nan


def _learns_too_fast(history: History) -> Seen | None:
    if not history.steps or history.step > _EARLY * history.max_steps:
        return None
    accuracy = _recent(history, "rewards/accuracies", _EARLY_PAIRS)
    return Seen(accuracy, f"{accuracy:.1%} of the training pairs are told apart at step {history.step} of "
                          f"{history.max_steps}")  # fmt: skip


def _at_chance(history: History) -> Seen | None:
    if not history.steps or history.step < _LATE * history.max_steps:
        return None
    accuracy = _recent(history, "rewards/accuracies", _LATE_PAIRS)
    return Seen(1 - accuracy, f"{accuracy:.1%} of the training pairs are told apart at step {history.step} of "
                              f"{history.max_steps}; 50% is chance")  # fmt: skip


def _earlier(history: History, name: str) -> list[float]:
    values = [_number(entry, name) for entry in history.steps[-_WINDOW - 1 : -1]]
    values = [value for value in values if math.isfinite(value)]
    return values if len(values) >= _BEFORE else []


def _gradient_spike(history: History) -> Seen | None:
    earlier = _earlier(history, "grad_norm")
    norm = _number(history.steps[-1], "grad_norm") if earlier else math.nan
    if not math.isfinite(norm):
        return None  # fp16's loss scaling makes such a norm now and then, and leaves the update out
    if norm < _VANISHED:
        return None
    usual = median(earlier)
    return Seen(norm / max(usual, 1e-12), f"the gradients' norm is {norm:.3g}; {usual:.3g} is usual in this run")


def _loss_spike(history: History) -> Seen | None:
    earlier = _earlier(history, "loss")
    if not earlier:
        return None
    loss, usual = float(history.steps[-1]["loss"]), median(earlier)
    first = fmean(float(entry["loss"]) for entry in history.steps[:3])
    if not (usual > 0 and loss >= _ABOVE_START * first):
        return None
    return Seen(loss / usual, f"the loss is {loss:.3g}; it was {first:.3g} at the start and {usual:.3g} of late")


_BOTH, _STUCK, _FULL = '"both rewards fall"', '"accuracy is stuck at 50%"', '"accuracy 100% at step 20"'
_LOOPS, _ENDLESS = '"it repeats"', '"it never stops"'

PROBE_RULES: tuple[Rule, ...] = (
    Rule(
        "chosen_falls", _chosen_falls, {"warn": 1.0, "stop": 2.5},
        "SimPO lowers chosen responses too, the more the larger gamma (arXiv 2405.14734, figure 3c); with 1 a token of "
        "a good answer is 2.7 times less likely than before, with 2.5 it is 12 times: it no longer writes such answers",
        "Some fall is normal; this much means that the margin is made by making all text unlikely",
        "lower learning_rate (3e-7 to 1e-6 for full fine-tuning), raise beta, or write sft_weight: 0.1", _BOTH,
    ),
    Rule(
        "falls_without_margin", _falls_without_margin, {"warn": 2.0},
        "a working run gains more margin than the chosen responses lose; asked only where they have lost 0.3 nats per "
        "token or more",
        "Both responses fall alike: what is lost is the language, and not the preference",
        "lower learning_rate, or raise beta; look whether chosen and rejected differ in content (simpo inspect)", _BOTH,
    ),
    Rule(
        "end_forgotten", _end_forgotten, {"warn": 3.0, "stop": 20.0},
        "an end that is 3 times less likely makes answers noticeably longer; at 20 times they run into the limit. "
        "Asked where the end had a probability of 0.1 or more at the start",
        "The model forgets to end its answers, usually since chosen responses lack their end or rejected ones alone "
        "have it",
        "look at end_missing in simpo inspect; raise max_length where answers were cut, or truncation: drop", _ENDLESS,
    ),
    Rule(
        "stops_no_more", _stops_no_more, {"warn": 0.75},
        "of 4 prompts, 3 that ended before do not: not chance, since the answers are greedy",
        "The model runs on where it used to end its answer",
        "look at end_missing and length_bias in simpo inspect, and at the answers in monitor/generations.jsonl",
        _ENDLESS,
    ),
    Rule(
        "repeats", _repeats, {"warn": 0.5},
        "half of an answer and more is a loop; asked where the share rose by 0.3: some models loop from the start",
        "Loops are the common sign of a collapse",
        "lower learning_rate, raise beta or lower gamma_beta_ratio; see monitor/generations.jsonl", _LOOPS,
    ),
    Rule(
        "entropy_high", _entropy_high, {"warn": 1.5, "stop": 6.0},
        "a language model hesitates between a few tokens (below 1 nat on average in greedy text); 1.5 nats are 4.5 "
        "equally likely ones, 6 are 400. Asked where it tripled, or doubled to 3 or more",
        "The model no longer knows what to say: it has unlearned its language",
        "lower learning_rate, and start afresh", _BOTH,
    ),
    Rule(
        "entropy_low", _entropy_low, {"note": 20.0},
        "sharper is what preference tuning makes; 20 times is more than that. Asked where there were 0.1 nats at "
        "first",
        "Sampled answers will be alike",
        "raise beta, or lower gamma_beta_ratio or num_train_epochs, if answers are to vary", _LOOPS,
    ),
    Rule(
        "saturated", _saturated, {"warn": 0.985},
        "judges and people agree in fewer pairs than that, so held-out pairs of real data are told apart in 60 to 90%; "
        "asked of 32 held-out pairs or more",
        "Either these pairs were trained on, or one sign gives the chosen response away",
        "look at leakage, eval_overlap and length_bias in simpo inspect, and at what all chosen responses share", _FULL,
    ),
)  # fmt: skip

TRAINING_RULES: tuple[Rule, ...] = (
    Rule(
        "learns_too_fast", _learns_too_fast, {"warn": 0.98},
        "over 500 pairs within the first quarter of the run; published runs are at 60 to 80% by then",
        "Something other than content tells the responses apart",
        "look at simpo inspect: length_bias, scored_header, end_missing, duplicate_pairs; if these are clean, lower "
        "learning_rate", _FULL,
    ),
    Rule(
        "at_chance", _at_chance, {"warn": 0.47},
        "the share of wrong pairs over 800 of them, after 30% of the run: 53% of right ones is chance within two "
        "standard errors",
        "Labels that say nothing, chosen and rejected swapped in half of the rows, or a learning rate without effect",
        "look at contradictions and answers_alike in simpo inspect and read some pairs; else raise learning_rate",
        _STUCK,
    ),
    Rule(
        "gradient_spike", _gradient_spike, {"note": 10.0, "warn": 50.0},
        "times the median of the last 50 log lines (10 at least): clipping bounds one such step, so 10 times is only "
        "to be known; 50 times is no ordinary pair any more. Asked where the norm is 1e-6 or more",
        "A pair unlike all others, or the beginning of a divergence",
        "if it comes back: lower learning_rate, keep max_grad_norm: 1.0, look at the longest pairs", _BOTH,
    ),
    Rule(
        "loss_spike", _loss_spike, {"warn": 2.0},
        "times the median of the last 50 log lines (10 at least), and 1.5 times the loss at the start: worse than not "
        "trained at all",
        "The run diverges",
        "lower learning_rate or lengthen warmup_steps; go on from a checkpoint before this step", _BOTH,
    ),
)  # fmt: skip

RULES = (*PROBE_RULES, *TRAINING_RULES)
