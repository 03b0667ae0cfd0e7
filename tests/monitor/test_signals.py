"""Rules: from logged numbers to findings."""

import dataclasses
import math
import re
from pathlib import Path

import pytest

from simpo.monitor import signals
from simpo.monitor.signals import PROBE_RULES, RULES, TRAINING_RULES, History, findings

DOCS = Path(__file__).resolve().parents[2] / "docs" / "monitors.md"
START = {"step": 0, signals.CHOSEN: -0.4, signals.REJECTED: -0.5, signals.DROP: 0.0, signals.GAIN: 0.0,
         signals.FELL: 0.0, signals.ACCURACY: 0.55, signals.END: 0.6, signals.STOPPED: 1.0, signals.REPEATED: 0.1,
         signals.ENTROPY: 0.4}  # fmt: skip
# What a published recipe looks like at its end: both fall, the rejected ones by more
HEALTHY = {"step": 400, signals.CHOSEN: -0.75, signals.REJECTED: -1.3, signals.DROP: 0.35, signals.GAIN: 0.45,
           signals.FELL: 0.98, signals.ACCURACY: 0.85, signals.END: 0.45, signals.STOPPED: 1.0, signals.REPEATED: 0.15,
           signals.ENTROPY: 0.5}  # fmt: skip


def history(*logs, max_steps=400, pairs=128, probe=64) -> History:
    return History(list(logs), max_steps, pairs, probe)


def named(found) -> dict[str, str]:
    return {one.name: one.level for one in found}


def steps(values: dict[str, list[float]], every: int = 5) -> list[dict[str, float]]:
    """Log lines with these numbers, every so many steps; each with a loss."""
    count = len(next(iter(values.values())))
    lines = [{"step": every * (at + 1), "loss": 1.0} for at in range(count)]
    return [line | {name: numbers[at] for name, numbers in values.items()} for at, line in enumerate(lines)]


def test_a_healthy_run_raises_nothing() -> None:
    assert findings(history(START, HEALTHY), RULES) == []
    assert findings(history(), RULES) == findings(history(START), RULES) == []


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({signals.DROP: 0.99, signals.GAIN: 0.9}, {}),
        ({signals.DROP: 1.0, signals.GAIN: 1.2}, {"chosen_falls": "warn"}),
        ({signals.DROP: 2.5, signals.GAIN: 3.0}, {"chosen_falls": "stop"}),
        ({signals.DROP: 0.5, signals.GAIN: 0.2}, {"falls_without_margin": "warn"}),
        ({signals.DROP: 0.5, signals.GAIN: -0.2}, {"falls_without_margin": "warn"}),
        ({signals.DROP: 0.2, signals.GAIN: 0.01}, {}),
        ({signals.DROP: -0.5, signals.GAIN: -0.1}, {}),  # the chosen ones rise
        ({signals.END: 0.21}, {}),
        ({signals.END: 0.19}, {"end_forgotten": "warn"}),
        ({signals.END: 0.02}, {"end_forgotten": "stop"}),
        ({signals.STOPPED: 0.25}, {"stops_no_more": "warn"}),
        ({signals.STOPPED: 0.5}, {}),
        ({signals.REPEATED: 0.5}, {"repeats": "warn"}),
        ({signals.REPEATED: 0.39}, {}),
        ({signals.ENTROPY: 1.4}, {}),
        ({signals.ENTROPY: 1.5}, {"entropy_high": "warn"}),
        ({signals.ENTROPY: 6.1}, {"entropy_high": "stop"}),
        ({signals.ENTROPY: 0.01}, {"entropy_low": "note"}),
        ({signals.ACCURACY: 0.99}, {"saturated": "warn"}),
        ({signals.DROP: math.nan, signals.END: math.nan, signals.ENTROPY: math.nan}, {}),
    ],
)
def test_probe_rules(numbers, expected) -> None:
    assert named(findings(history(START, HEALTHY | numbers), PROBE_RULES)) == expected


def test_what_was_so_at_the_start_is_no_finding() -> None:
    """A base model that never ends its answers and repeats itself from the start."""
    base = START | {signals.END: 0.01, signals.STOPPED: 0.0, signals.REPEATED: 0.8, signals.ENTROPY: 4.0}
    later = HEALTHY | {signals.END: 0.0001, signals.STOPPED: 0.0, signals.REPEATED: 0.9, signals.ENTROPY: 4.5}
    assert findings(history(base, later), PROBE_RULES) == []
    doubled = {signals.ENTROPY: 1.4}, {signals.ENTROPY: 2.9}
    assert findings(history(START | doubled[0], HEALTHY | doubled[1]), PROBE_RULES) == []
    assert named(findings(history(START | doubled[0], HEALTHY | {signals.ENTROPY: 3.1}), PROBE_RULES)) == {
        "entropy_high": "warn"
    }


def test_few_pairs_are_told_apart_by_chance() -> None:
    assert findings(history(START, HEALTHY | {signals.ACCURACY: 1.0}, probe=31), PROBE_RULES) == []


def test_numbers_that_were_not_measured_are_left_out() -> None:
    few = {key: HEALTHY[key] for key in ("step", signals.CHOSEN, signals.DROP)}
    assert findings(history(START, few | {signals.DROP: 1.5}), PROBE_RULES)[0].name == "chosen_falls"


def test_pairs_that_are_trained_on_may_be_told_apart() -> None:
    seen = dataclasses.replace(history(START, HEALTHY | {signals.ACCURACY: 1.0}), held_out=False)
    assert findings(seen, PROBE_RULES) == []


def test_accuracy_too_good_too_early() -> None:
    accuracy = "rewards/accuracies"
    early = steps({accuracy: [0.6, 0.99, 1.0]})
    assert named(findings(history(*early), TRAINING_RULES)) == {"learns_too_fast": "warn"}
    assert findings(history(*early, max_steps=50), TRAINING_RULES) == []  # not early any more
    assert findings(history(*early, pairs=4), TRAINING_RULES) == []  # 12 lines of 20 pairs would be needed
    assert findings(history(*steps({accuracy: [0.6, 0.9, 0.95]})), TRAINING_RULES) == []


def test_accuracy_at_chance() -> None:
    accuracy = "rewards/accuracies"
    stuck = steps({accuracy: [0.5, 0.52, 0.49, 0.51, 0.5, 0.52]})
    assert named(findings(history(*stuck, max_steps=100), TRAINING_RULES)) == {"at_chance": "warn"}
    assert findings(history(*stuck, max_steps=400), TRAINING_RULES) == []  # too early to say
    assert findings(history(*stuck, max_steps=100, pairs=8), TRAINING_RULES) == []  # too few pairs to say
    learned = steps({accuracy: [0.5, 0.52, 0.55, 0.6, 0.58, 0.57]})
    assert findings(history(*learned, max_steps=100), TRAINING_RULES) == []


def test_gradient_spikes() -> None:
    norms = [2.0, 3.0, 2.5] * 5
    assert findings(history(*steps({"grad_norm": [*norms, 20.0]})), TRAINING_RULES) == []
    assert named(findings(history(*steps({"grad_norm": [*norms, 30.0]})), TRAINING_RULES)) == {"gradient_spike": "note"}
    assert named(findings(history(*steps({"grad_norm": [*norms, 200.0]})), TRAINING_RULES)) == {
        "gradient_spike": "warn"
    }
    assert findings(history(*steps({"grad_norm": [2.0, 200.0]})), TRAINING_RULES) == []  # nothing is usual yet
    vanished = [2.0, *[1e-12] * 12, 1e-10]
    assert findings(history(*steps({"grad_norm": vanished})), TRAINING_RULES) == []


def test_an_overflow_that_loss_scaling_leaves_out_is_no_spike() -> None:
    norms = [math.inf, math.inf, *[2.0, 3.0, 2.5] * 5]
    assert findings(history(*steps({"grad_norm": [*norms, math.inf]})), TRAINING_RULES) == []
    assert named(findings(history(*steps({"grad_norm": [*norms, math.nan, 30.0]})), TRAINING_RULES)) == {
        "gradient_spike": "note"
    }


def test_loss_spikes() -> None:
    falling = [2.0, 1.8, 1.5, 1.2, 1.0, 0.9, 0.8, 0.8, 0.7, 0.7, 0.7, 0.6]
    assert findings(history(*steps({"loss": [*falling, 2.0]})), TRAINING_RULES) == []  # no worse than at the start
    assert named(findings(history(*steps({"loss": [*falling, 4.0]})), TRAINING_RULES)) == {"loss_spike": "warn"}
    assert findings(history(*steps({"loss": [-2.0] * 12 + [9.0]})), TRAINING_RULES) == []  # no ratio below 0


def test_a_finding_says_what_was_seen_and_what_to_do() -> None:
    (found,) = findings(history(START, HEALTHY | {signals.DROP: 1.25, signals.GAIN: 1.5}), PROBE_RULES)
    assert dataclasses.asdict(found).keys() == {"step", "name", "level", "text", "advice"}
    assert found.step == 400
    assert "lost 1.25 nats per token" in found.text and "98% of the pairs" in found.text
    assert "learning_rate" in found.advice and 'docs/diagnosis.md, "both rewards fall"' in found.advice


def test_every_rule_is_documented_with_its_limits() -> None:
    text = DOCS.read_text()
    for rule in RULES:
        (line,) = re.findall(rf"^\| `{rule.name}` \|.*$", text, re.MULTILINE)
        for level, limit in rule.limits.items():
            assert f"{level} {limit:g}" in line, (rule.name, level)
    assert len(set(re.findall(r"^\| `(\w+)` \| (?:note|warn|stop) ", text, re.MULTILINE))) == len(RULES)
