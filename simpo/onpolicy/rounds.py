"""What the rounds of `simpo iterate` came to, in numbers with 95% intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from simpo.errors import DataError
from simpo.estimates import share
from simpo.onpolicy.binarize import MANIFEST
from simpo.onpolicy.scored import read_scored

_Z = 1.959963984540054
ACCURACY = "eval_rewards/accuracies"


class Interval(NamedTuple):
    """A number with the ends of its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Measured:
    """The answers of one policy to the evaluation prompts.

    Args:
        scores: prompt id -> mean score of its responses; prompts without any score are left out.
        tokens: mean length of the responses to each prompt; prompts whose lengths a server did not say are left out.
        responses: how many there are.
        cut: how many of them ended at the length limit.
        prompts: prompts that were asked.
    """

    scores: dict[str, float]
    tokens: list[float]
    responses: int
    cut: int
    prompts: int


@dataclass(frozen=True)
class RoundRow:
    """A line of the table.

    Args:
        round: its number; 0 is the policy that the first round starts with.
        pairs: pairs that trained it; None for round 0.
        prompts: evaluation prompts with a score.
        score: mean score.
        win_rate: part of the prompts on which it scores higher than round 0, ties half; None for round 0.
        tokens: mean tokens of a response; None where they are not known.
        cut: part of the responses that ended at the length limit.
        accuracy: held-out reward accuracy of the training run; None for round 0, and without held-out pairs.
    """

    round: int
    pairs: int | None
    prompts: int
    score: Interval
    win_rate: Interval | None
    tokens: Interval | None
    cut: float
    accuracy: float | None


def measure(responses: str, scores: str, annotator: str) -> Measured:
    """Read what `simpo generate` and `simpo annotate` left.

    Raises:
        StoreError: a folder is missing or damaged.
        DataError: no prompt has a score.
    """
    means: dict[str, float] = {}
    tokens: list[float] = []
    count = cut = prompts = 0
    for prompt in read_scored(responses, scores):
        prompts += 1
        given = [score for score in prompt.scores.get(annotator, []) if score is not None]
        lengths = [int(response.get("tokens", -1)) for response in prompt.responses]
        count += len(prompt.responses)
        cut += sum(response.get("finish_reason") == "length" for response in prompt.responses)
        if given:
            means[prompt.id] = sum(given) / len(given)
        if lengths and min(lengths) >= 0:
            tokens.append(sum(lengths) / len(lengths))
    if not means:
        raise DataError(f"{scores}: no evaluation prompt has a score of {annotator}; its records say why")
    return Measured(means, tokens, count, cut, prompts)


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean and its 95% interval, mean -+ 1.96 s / sqrt(n), of independent values; one value has no width."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return Interval(mean, mean, mean)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    half = _Z * spread / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def win_interval(ours: dict[str, float], theirs: dict[str, float]) -> Interval | None:
    """Part of the prompts on which ours is higher, ties half, with Wilson's 95% interval; None without common prompts.

    With ties counted half the variance is at most that of wins and losses, so the interval is no narrower than it has
    to be.
    """
    common = ours.keys() & theirs.keys()
    if not common:
        return None
    count = len(common)
    wins = sum((ours[key] > theirs[key]) + 0.5 * (ours[key] == theirs[key]) for key in common)
    found = share(wins, count)
    return Interval(found.value, found.low, found.high)


def row_of(number: int, measured: Measured, first: Measured, folder: Path | None = None) -> RoundRow:
    """The line of a round.

    Args:
        number: of the round.
        measured: its policy.
        first: the policy of round 0.
        folder: of the round, with `pairs` and `model`; None for round 0.
    """
    pairs = accuracy = None
    if folder is not None:
        pairs = pairs_in(folder / "pairs").get("train", 0)
        results = json.loads((folder / "model" / "all_results.json").read_text())
        accuracy = results.get(ACCURACY)
    return RoundRow(
        number,
        pairs,
        len(measured.scores),
        mean_interval(list(measured.scores.values())),
        win_interval(measured.scores, first.scores) if folder is not None else None,
        mean_interval(measured.tokens) if measured.tokens else None,
        measured.cut / measured.responses if measured.responses else 0.0,
        accuracy,
    )


def pairs_in(folder: Path) -> dict[str, int]:
    """Split -> pairs of a data set that `simpo binarize` made."""
    splits: dict[str, int] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["report"]["splits"]
    return splits
