"""Statistics of responses, against hand-computed values."""

import random

import pytest

from simpo.analysis.generations import generation_statistics
from simpo.errors import DataError


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
