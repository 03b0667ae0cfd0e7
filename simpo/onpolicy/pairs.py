"""Scored responses to one prompt -> pairs, or the cause for which there is none: pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import permutations
from typing import Literal, NamedTuple

Choice = Literal["best_worst", "best_random", "top_k"]

TOO_FEW = "fewer than two usable responses"
ALL_SAME = "all responses identical"
ALL_TIED = "all scores equal"
SMALL_MARGIN = "margin below min_margin"
LENGTHS_DIFFER = "no two responses of similar length"

PAIR_CAUSES: dict[str, str] = {
    TOO_FEW: "sample more responses, raise max_new_tokens, or set drop_cut_off: false",
    ALL_SAME: "sample at a higher temperature",
    ALL_TIED: "use an annotator that tells these responses apart, or sample more",
    SMALL_MARGIN: "lower min_margin",
    LENGTHS_DIFFER: "raise max_length_ratio",
}
"""Why a prompt gives no pair -> what to do about it."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One response that may be part of a pair.

    Args:
        index: its place among the responses of its prompt, from 0.
        text: as it was sampled.
        score: finite; higher is better.
        tokens: its length; -1 where it is not known.
    """

    index: int
    text: str
    score: float
    tokens: int


class Picked(NamedTuple):
    """A pair of two candidates; `margin` is the difference of their scores, above 0."""

    chosen: Candidate
    rejected: Candidate

    @property
    def margin(self) -> float:
        return self.chosen.score - self.rejected.score


def pick_pairs(
    candidates: Sequence[Candidate],
    choice: Choice = "best_worst",
    *,
    pairs_per_prompt: int = 1,
    min_margin: float = 0.0,
    max_length_ratio: float | None = None,
    seed: int = 0,
    key: str = "",
) -> list[Picked] | str:
    """The pairs of one prompt.

    Args:
        candidates: responses that may be used; with fewer than two there is no pair.
        choice: `best_worst`: the widest margin. `best_random`: the best response against one of those that are worse,
            drawn with `seed` and `key`. `top_k`: the `pairs_per_prompt` widest margins.
        min_margin: smallest difference of scores, in their unit; equal scores are no pair whatever it is.
        max_length_ratio: tokens of the longer response over those of the shorter one, at most; None: any.
        key: what tells this prompt from others; the draw depends on it and on the seed, and on nothing else.

    Returns:
        Pairs, the widest margin first (of equal ones that of the earliest responses), none of them a tie or of twice
        the same text (up to space at its ends); or a cause of `PAIR_CAUSES`.
    """
    if len(candidates) < 2:
        return TOO_FEW
    tests: tuple[tuple[str, Callable[[Picked], bool]], ...] = (
        (ALL_SAME, lambda pair: pair.chosen.text.strip() != pair.rejected.text.strip()),
        (ALL_TIED, lambda pair: 0 < pair.margin < math.inf),
        (SMALL_MARGIN, lambda pair: pair.margin >= min_margin),
        (LENGTHS_DIFFER, lambda pair: max_length_ratio is None or length_ratio(pair) <= max_length_ratio),
    )
    pairs = [Picked(*both) for both in permutations(candidates, 2)]
    for cause, holds in tests:
        pairs = [pair for pair in pairs if holds(pair)]
        if not pairs:
            return cause
    pairs.sort(key=lambda pair: (-pair.margin, pair.chosen.index, pair.rejected.index))
    if choice == "top_k":
        return pairs[:pairs_per_prompt]
    if choice == "best_random":
        best = min((pair.chosen for pair in pairs), key=lambda one: (-one.score, one.index))
        worse = sorted((pair for pair in pairs if pair.chosen == best), key=lambda pair: pair.rejected.index)
        return [worse[int(hash_of(seed, key), 16) % len(worse)]]
    return pairs[:1]


def length_ratio(pair: Picked) -> float:
    """Tokens of the longer response over those of the shorter one, 1 or more."""
    shorter, longer = sorted((pair.chosen.tokens, pair.rejected.tokens))
    return longer / max(shorter, 1)


def hash_of(seed: int, text: str) -> str:
    """A number in hexadecimal digits that depends on a seed and a text only: the same on every machine."""
    return sha256(f"{seed}\0{text}".encode("utf-8", "surrogatepass")).hexdigest()
