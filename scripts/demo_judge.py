"""How the demo's answers are judged: the checker's verdicts on held-out questions, before and after, with intervals."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scripts.demo_checker import qualities, read_question
from simpo.onpolicy.scored import read_scored

RIGHT = 3.0  # the checker's score of an answer that is friendly, on topic and true
QUALITIES = ("friendly", "on topic", "true")
MOST_LENGTH_CHANGE = 0.15
_DRAWS = 10_000
_CHUNK = 500


@dataclass(frozen=True)
class Answers:
    """K sampled answers to each of N held-out questions.

    Attributes:
        questions: [N]
        texts: [N][K]
        scores: of the checker, 0 to 3. [N, K]
        tokens: lengths, with the end token. [N, K]
        qualities: whether an answer is friendly, on topic, true. [N, K, 3]
    """

    questions: list[str]
    texts: list[list[str]]
    scores: np.ndarray
    tokens: np.ndarray
    qualities: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """Share of each question's answers that are right. [N]"""
        shares: np.ndarray = (self.scores == RIGHT).mean(axis=1)
        return shares


@dataclass(frozen=True)
class Estimate:
    """A number with the bounds of its 95% interval."""

    value: float
    low: float
    high: float

    def percent(self) -> str:
        """As a share."""
        return f"{self.value:.1%} [{100 * self.low:.1f}, {100 * self.high:.1f}]"

    def change(self) -> str:
        """As a difference of shares in points, or a relative change in percent, without the unit."""
        return f"{100 * self.value:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"

    def number(self) -> str:
        """As it is."""
        return f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}]"


@dataclass(frozen=True)
class Comparison:
    """The model before SimPO and after, on the same questions.

    Attributes:
        accuracy_before, accuracy_after: share of right answers.
        gain: their difference.
        length_before, length_after: mean tokens of an answer.
        length_change: after / before - 1.
    """

    accuracy_before: Estimate
    accuracy_after: Estimate
    gain: Estimate
    length_before: Estimate
    length_after: Estimate
    length_change: Estimate


def read_answers(generations: Path, scores: Path, town: Path) -> Answers:
    """The answers in the folders of `simpo generate` and `simpo annotate`, by row."""
    truth = json.loads(town.read_text(encoding="utf-8"))
    prompts = sorted(read_scored(str(generations), str(scores)), key=lambda prompt: prompt.row)
    questions = [str(prompt.prompt[-1]["content"]) for prompt in prompts]  # type: ignore[index]
    texts = [prompt.texts for prompt in prompts]
    seen = [
        [list(vars(qualities(read_question(question), text, truth)).values()) for text in row]
        for question, row in zip(questions, texts, strict=True)
    ]
    return Answers(
        questions=questions,
        texts=texts,
        scores=np.array([prompt.scores["checker"] for prompt in prompts], dtype=float),
        tokens=np.array([[response["tokens"] for response in prompt.responses] for prompt in prompts], dtype=float),
        qualities=np.array(seen),
    )


def compare(before: Answers, after: Answers) -> Comparison:
    """Means and 95% percentile-bootstrap intervals over questions.

    Questions are drawn with replacement, each with all of its answers from before and after: answers to one question
    are alike, so they are no separate observations, and the comparison is a paired one.
    """
    columns = np.stack([before.right, after.right, before.tokens.mean(axis=1), after.tokens.mean(axis=1)])
    means, drawn = columns.mean(axis=1), _bootstrap(columns)

    def estimate(value: float, values: np.ndarray) -> Estimate:
        low, high = np.percentile(values, [2.5, 97.5])
        return Estimate(float(value), float(low), float(high))

    singles = [estimate(mean, values) for mean, values in zip(means, drawn, strict=True)]
    return Comparison(
        accuracy_before=singles[0],
        accuracy_after=singles[1],
        gain=estimate(means[1] - means[0], drawn[1] - drawn[0]),
        length_before=singles[2],
        length_after=singles[3],
        length_change=estimate(means[3] / means[2] - 1, drawn[3] / drawn[2] - 1),
    )


def _bootstrap(columns: np.ndarray) -> np.ndarray:
    """Means over questions that were drawn with replacement: [C, N] -> [C, draws]."""
    rng, count = np.random.default_rng(0), columns.shape[1]
    parts = [columns[:, rng.integers(0, count, (_CHUNK, count))].mean(axis=2) for _ in range(_DRAWS // _CHUNK)]
    return np.concatenate(parts, axis=1)


def problems_of(found: Comparison) -> list[str]:
    """Why SimPO has not won clearly; empty where it has."""
    problems = []
    if found.gain.low <= 0 or found.accuracy_after.low <= found.accuracy_before.high:
        problems.append(
            f"accuracy went from {found.accuracy_before.percent()} to {found.accuracy_after.percent()}: not above it "
            "by more than the 95% interval"
        )
    if abs(found.length_change.value) > MOST_LENGTH_CHANGE:
        problems.append(
            f"the mean length changed by {found.length_change.value:+.1%}, more than {MOST_LENGTH_CHANGE:.0%}"
        )
    return problems
