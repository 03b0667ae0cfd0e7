"""Repetition within a response, against hand-computed values and a plain search."""

import math
import random

import pytest

from simpo.repetition import distinct_n, longest_repeat, repeated_share


def plain_longest_repeat(tokens):
    """Every length, from the longest on."""
    for length in range(len(tokens) - 1, 0, -1):
        grams = [tuple(tokens[at : at + length]) for at in range(len(tokens) - length + 1)]
        if len(set(grams)) < len(grams):
            return length
    return 0


def test_longest_repeat_is_that_of_a_plain_search():
    rng = random.Random(0)
    for _ in range(1500):
        words = rng.choice([1, 2, 3, 30])
        tokens = [rng.randrange(words) for _ in range(rng.randrange(28))]
        assert longest_repeat(tokens) == plain_longest_repeat(tokens), tokens


@pytest.mark.parametrize(
    ("text", "longest"),
    [("", 0), ("a", 0), ("a b c", 0), ("a a", 1), ("a a a a", 3), ("a b c a b d", 2), ("x y z w x y z", 3)],
)
def test_longest_repeat_by_hand(text, longest):
    assert longest_repeat(text.split()) == longest


def test_a_planted_loop_is_measured():
    """200 tokens that do not repeat, then a phrase of 7 over and over."""
    loop = list(range(200)) + [1000 + at % 7 for at in range(300)]
    assert longest_repeat(loop) == 293 and repeated_share(loop) == 293 / 500
    assert repeated_share(range(200)) == 0 and math.isnan(repeated_share([]))


def test_distinct_n_by_hand():
    words = list("ababc")
    assert distinct_n(words, 1) == 3 / 5
    assert distinct_n(words, 2) == 3 / 4  # ab, ba, ab, bc
    assert distinct_n(words, 5) == 1 and math.isnan(distinct_n(words, 6))
