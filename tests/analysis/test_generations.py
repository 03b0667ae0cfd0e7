"""Repetition, length and ending of responses, against hand-computed values and a plain search."""

import math
import random

import pytest

from simpo.analysis.generations import distinct_n, generation_statistics, longest_repeat, repeated_share
from simpo.errors import DataError


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


def test_statistics_by_hand():
    responses = [list("abcd"), list("aaaaa"), [], ["a"]]
    found = generation_statistics(responses, [True, False, True, True], orders=(1, 2))
    assert found.lengths.mean.value == 2.5 and found.lengths.percentiles[50] == 2.5
    assert found.distinct[1].value == pytest.approx((1 + 1 / 5 + 1) / 3) and found.distinct[1].count == 3
    assert found.distinct[2].value == pytest.approx((1 + 1 / 4) / 2)
    assert found.repeated.value == pytest.approx((0 + 4 / 5 + 0) / 3)
    assert (found.looping.value, found.looping.count) == (1 / 3, 3)
    assert (found.stopped.value, found.stopped.count) == (0.75, 4)


def test_half_repeated_is_no_loop():
    found = generation_statistics([[1, 2, 3, 4] * 2], [True])
    assert (found.repeated.value, found.looping.value) == (0.5, 0)


def test_a_collapsed_model_stands_apart():
    rng = random.Random(1)
    sound = [[rng.randrange(5000) for _ in range(rng.randrange(50, 300))] for _ in range(40)]
    broken = [[*one[:40], *([7, 8, 9] * 100)] for one in sound]
    good, bad = generation_statistics(sound, [True] * 40), generation_statistics(broken, [False] * 40)
    assert good.repeated.high < 0.05 and bad.repeated.low > 0.5 and bad.looping.value == 1
    assert good.distinct[4].low > 0.95 and bad.distinct[4].high < 0.2 and bad.stopped.high < 0.1


def test_every_response_has_an_ending():
    with pytest.raises(DataError, match="2 responses and 1 endings"):
        generation_statistics([["a"], ["b"]], [True])
    with pytest.raises(DataError, match="0 responses"):
        generation_statistics([], [])
