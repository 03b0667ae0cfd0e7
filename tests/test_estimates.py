"""Intervals against hand-computed values, values of scipy 1.17, scipy itself where it is, and their promise of 95%."""

import math

import numpy as np
import pytest

from simpo.estimates import deviation, mean, ranks, ratio, share, spearman, student_quantile
from tests.analysis.made import rho_of

SCORES = [0.3, -1.2, 2.5, 0.7, 0.1, 4.4]
ONE, OTHER = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3], [2, 7, 1, 8, 2, 8, 1, 8, 2, 8]


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [  # scipy.stats.binomtest(hits, count).proportion_ci(method="wilson")
        (8, 10, 0.4901624715366418, 0.9433178485456248),
        (0, 7, 0.0, 0.35433043506668743),
        (7, 7, 0.6456695649333126, 1.0),
        (523, 1000, 0.4920142012545934, 0.5538097678550709),
    ],
)
def test_wilson(hits, count, low, high):
    found = share(hits, count)
    assert (found.value, found.count) == (hits / count, count)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)


def test_wilson_by_hand():
    # with z^2 = 3.8414588 and n = 1, p = 1: from 1 / (1 + z^2) to 1
    assert share(1, 1).low == pytest.approx(1 / 4.8414588, abs=1e-7) and share(1, 1).high == 1


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (6, 2.447), (8, 2.306), (12, 2.179), (30, 2.042),
     (200, 1.972)],
)  # fmt: skip
def test_student_quantiles_of_the_printed_table(freedom, quantile):
    assert student_quantile(freedom) == pytest.approx(quantile, abs=8e-4)


def test_mean():
    found = mean(SCORES)
    assert found.value == pytest.approx(6.8 / 6) and found.count == 6
    # scipy.stats.t.interval(0.95, 5, mean, sem)
    assert (found.low, found.high) == pytest.approx((-0.9620369076913386, 3.228703574358006), abs=1e-3)
    assert mean([2, 4]).high == pytest.approx(3 + 12.7062)  # standard error 1


def test_ratio_by_hand():
    # r = 6 / 12; residuals 1 - 1, 2 - 2, 3 - 3 -> no spread
    assert ratio([1, 2, 3], [2, 4, 6]) == mean([0.5] * 3)
    # r = 4 / 4; residuals -1, 1; error sqrt(2 / 1 * 2) / 4 = 0.5
    found = ratio([1, 3], [2, 2])
    assert (found.value, found.high) == (1, pytest.approx(1 + 12.7062 * 0.5))


def test_deviation_by_hand():
    # centred -3, -1, 1, 3: m2 = 5, m4 = 41, s = sqrt(20 / 3)
    found = deviation([0, 2, 4, 6])
    factor = math.exp(1.959964 * math.sqrt((41 / 25 - 1) / 16))
    assert found.value == pytest.approx(math.sqrt(20 / 3))
    assert (found.low, found.high) == pytest.approx((found.value / factor, found.value * factor), abs=1e-6)
    assert deviation([7, 7, 7, 7]).value == 0 and math.isnan(deviation([7, 7, 7, 7]).low)


def test_nothing_gives_nan_and_no_warning(recwarn):
    for found in (
        mean([]),
        share(0, 0),
        deviation([]),
        deviation([1]),
        spearman([], []),
        spearman([1, 1, 1], [1, 2, 3]),
    ):
        assert math.isnan(found.value) and math.isnan(found.low) and math.isnan(found.high)
    assert mean([5.0]).value == 5 and math.isnan(mean([5.0]).low)
    assert spearman([1, 2, 3], [1, 3, 2]).value == 0.5 and math.isnan(spearman([1, 2, 3], [1, 3, 2]).low)
    assert not len(recwarn)


def test_ranks_share_places():
    assert ranks([5, 1, 5, 5, 2]).tolist() == [4, 1, 4, 4, 2]
    assert ranks([]).tolist() == []


def test_spearman():
    assert spearman([1, 2, 3, 4], [10, 20, 30, 35]).value == 1
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]).high == -1
    # 1 - 6 sum d^2 / n (n^2 - 1) without ties: d = 1, 1, 1, 1, 0 -> 1 - 24 / 120
    assert spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]).value == pytest.approx(0.8)
    # scipy.stats.spearmanr, with ties on both sides
    assert spearman(ONE, OTHER).value == pytest.approx(0.13471506281091267, abs=1e-14)


def test_spearman_interval_by_hand():
    found = spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5])
    half = 1.959964 * math.sqrt(1.32 / 2)
    assert found.low == pytest.approx(math.tanh(math.atanh(0.8) - half), abs=1e-6)
    assert found.high == pytest.approx(math.tanh(math.atanh(0.8) + half), abs=1e-6)


def test_against_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for count in (6, 40, 500):
        one, other = rng.integers(0, count // 2, count), rng.normal(size=count).round(1)
        np.testing.assert_array_equal(ranks(one), stats.rankdata(one))
        assert spearman(one, other).value == pytest.approx(stats.spearmanr(one, other).statistic, abs=1e-12)
        low, high = stats.t.interval(0.95, count - 1, other.mean(), stats.sem(other))
        assert (mean(other).low, mean(other).high) == pytest.approx((low, high), abs=1e-3)
        wilson = stats.binomtest(count // 3, count).proportion_ci(method="wilson")
        assert (share(count // 3, count).low, share(count // 3, count).high) == pytest.approx(tuple(wilson))
    for freedom in range(1, 300):
        assert student_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=8e-4)


def covered(estimates, truth):
    return np.mean([one.low <= truth <= one.high for one in estimates])


# 400 simulations: a true 95% gives 0.95 -+ 0.033 (3 standard deviations)
def test_means_are_covered():
    rng = np.random.default_rng(1)
    assert 0.917 <= covered([mean(row) for row in rng.normal(2, 3, (400, 8))], 2) <= 0.983


def test_deviations_are_covered():
    rng = np.random.default_rng(4)
    for draws, truth in ((rng.normal(0, 2, (400, 500)), 2), (rng.exponential(3, (400, 2000)), 3)):
        assert 0.917 <= covered([deviation(row) for row in draws], truth) <= 0.983


def test_shares_are_covered():
    hits = np.random.default_rng(2).binomial(60, 0.7, 400)
    assert 0.917 <= covered([share(int(one), 60) for one in hits], 0.7) <= 0.983


@pytest.mark.parametrize("r", [-0.3, 0.0, 0.8])
def test_rank_correlations_are_covered(r):
    rng = np.random.default_rng(3)
    one, noise = rng.normal(size=(2, 400, 60))
    other = np.exp(r * one + math.sqrt(1 - r * r) * noise)  # a rising function leaves ranks as they are
    found = [spearman(a, b) for a, b in zip(one, other, strict=True)]
    assert 0.917 <= covered(found, rho_of(r)) <= 0.983
