"""Length, repetition and ending of sampled responses.

Shape letters: N responses.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from simpo.analysis.statistics import Distribution, distribution
from simpo.errors import DataError
from simpo.estimates import Estimate, mean, share

Tokens = Sequence[Hashable]


@dataclass(frozen=True)
class GenerationStatistics:
    """What sampled responses look like.

    Args:
        lengths: tokens per response.
        distinct: by n, mean `distinct_n` over the responses of n tokens or more.
        repeated: mean `repeated_share`.
        looping: share of responses of which more than half is repeated.
        stopped: share of responses that the model ended itself, which is not cut by a limit of tokens.
    """

    lengths: Distribution
    distinct: dict[int, Estimate]
    repeated: Estimate
    looping: Estimate
    stopped: Estimate


def generation_statistics(
    responses: Sequence[Tokens], stopped: Iterable[bool], orders: Sequence[int] = (1, 2, 3, 4)
) -> GenerationStatistics:
    """Numbers on N responses of one model, with 95% intervals.

    A response without a token has a length, 0, and an ending, but no repetition.

    Args:
        responses: [N] each a sequence of token ids or words.
        stopped: [N] whether the model ended the response.
        orders: the n of `distinct_n`.

    Raises:
        DataError: no response, or another number of endings.
    """
    ended = [bool(one) for one in stopped]
    if not responses or len(responses) != len(ended):
        raise DataError(
            f"{len(responses)} responses and {len(ended)} endings; give one of each per response, and one at least"
        )
    repeats = [repeated_share(one) for one in responses if len(one)]
    return GenerationStatistics(
        lengths=distribution([len(one) for one in responses]),
        distinct={n: mean([distinct_n(one, n) for one in responses if len(one) >= n]) for n in orders},
        repeated=mean(repeats),
        looping=share(sum(part > 0.5 for part in repeats), len(repeats)),
        stopped=share(sum(ended), len(ended)),
    )


def distinct_n(tokens: Tokens, n: int) -> float:
    """Different n-grams of a response per n-gram, in (0, 1]; NaN below n tokens.

    After distinct-1 and -2 of Li et al. (arXiv 1510.03055), who count over all responses at once, per token: repetition
    between responses lowers theirs and not this one, so values do not compare.
    1 where nothing occurs twice. Long responses score lower than short ones of the same style.

    >>> distinct_n("to be or not to be".split(), 2)
    0.8
    """
    grams = list(zip(*(tokens[start:] for start in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else float("nan")


def repeated_share(tokens: Tokens) -> float:
    """Length of the longest n-gram that occurs twice or more, per token of the response, in [0, 1).

    Occurrences may overlap: a response that is a loop of period p from its start has (N - p) / N. NaN without a token.

    >>> repeated_share("a b c a b d".split()), repeated_share(list("abababab"))
    (0.333..., 0.75)
    """
    return longest_repeat(tokens) / len(tokens) if len(tokens) else float("nan")


def longest_repeat(tokens: Tokens) -> int:
    """Tokens of the longest n-gram that occurs at two places or more; 0 where no token does.

    Runs in n log^2 n: n-grams of length 2^j are numbered by the pair of numbers of their halves, and one of any length
    between by the two of length 2^j that cover it; whether a length repeats is then a search for its largest value.
    """
    numbers: dict[Hashable, int] = {}
    classes = [np.array([numbers.setdefault(token, len(numbers)) for token in tokens], dtype=np.int64)]
    if not _repeats(classes, 1):
        return 0
    while _repeats(classes, 2 ** len(classes)):
        half = 2 ** (len(classes) - 1)
        classes.append(np.unique(_covers(classes[-1], half), return_inverse=True)[1])
    low, high = 2 ** (len(classes) - 1), 2 ** len(classes)  # low repeats, high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _repeats(classes, middle) else (low, middle)
    return low


def _covers(numbered: np.ndarray, apart: int) -> np.ndarray:
    """One number for every two n-grams that start so far apart."""
    count = len(numbered)
    return numbered[: count - apart] * count + numbered[apart:]


def _repeats(classes: list[np.ndarray], length: int) -> bool:
    """Whether an n-gram of this length occurs twice; length is at most twice that of the last class."""
    level = min(length.bit_length() - 1, len(classes) - 1)
    found = classes[level]
    apart = length - 2**level
    if apart >= len(found):
        return False
    grams = _covers(found, apart)
    return len(np.unique(grams)) < len(grams)
