"""Repetition within one response: pure functions of a sequence of tokens or words."""

from collections.abc import Hashable, Sequence

import numpy as np

Tokens = Sequence[Hashable]


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
