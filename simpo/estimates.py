"""Numbers with their 95% intervals: shares, means, ratios, spreads, rank correlations.

Every interval takes its observations as independent: with several pairs of one prompt it is too narrow.

Shape letters: N observations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

_Z = NormalDist().inv_cdf(0.975)
_T = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764}  # where the series of `student_quantile` is too coarse
_NAN = float("nan")


@dataclass(frozen=True)
class Estimate:
    """A number and the ends of its 95% interval.

    Args:
        value: NaN where there is nothing to estimate it from.
        low, high: ends; NaN where there are too few observations.
        count: observations.
    """

    value: float
    low: float
    high: float
    count: int


def share(hits: float, count: int) -> Estimate:
    """hits / count, with Wilson's score interval (1927), which stays in [0, 1]; a tie may be half a hit.

        (p + z^2 / 2n  -+  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n),   z = 1.96

    >>> share(8, 10)
    Estimate(value=0.8, low=0.490..., high=0.943..., count=10)
    """
    if not count:
        return Estimate(_NAN, _NAN, _NAN, 0)
    part, scale = hits / count, 1 + _Z**2 / count
    middle = (part + _Z**2 / (2 * count)) / scale
    half = _Z * math.sqrt(part * (1 - part) / count + _Z**2 / (4 * count**2)) / scale
    # at 0 and 1 the ends are exact, which rounding would miss
    return Estimate(part, middle - half if hits else 0.0, middle + half if hits < count else 1.0, count)


def mean(values: ArrayLike) -> Estimate:
    """Mean of [N] values with Student's t interval: mean -+ t sd / sqrt(N).

    >>> mean([1, 2, 3, 4, 5])
    Estimate(value=3.0, low=1.036..., high=4.963..., count=5)
    """
    return ratio(values, np.ones(np.size(values)))


def ratio(numerators: ArrayLike, denominators: ArrayLike) -> Estimate:
    """sum(a) / sum(b) of [N] numerators a and denominators b > 0, with a t interval by linearisation:

        r -+ t sqrt(N / (N - 1) sum((a - r b)^2)) / sum(b)

    It serves means over tokens, where the tokens of a response are no independent observations but responses are.
    With b = 1 it is the interval of a mean.
    """
    a, b = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    count = len(a)
    if not count:
        return Estimate(_NAN, _NAN, _NAN, 0)
    value = float(a.sum() / b.sum())
    if count < 2:
        return Estimate(value, _NAN, _NAN, count)
    error = math.sqrt(count / (count - 1) * float(np.square(a - value * b).sum())) / float(b.sum())
    half = student_quantile(count - 1) * error
    return Estimate(value, value - half, value + half, count)


def deviation(values: ArrayLike) -> Estimate:
    """Standard deviation s of [N] values, N - 1 in the denominator, with an approximate interval for large N:

        s exp(-+ z sqrt((k - 1) / 4N)),   k = m4 / m2^2, the kurtosis: 3 of a normal distribution

    NaN of fewer than 2 values; no interval of fewer than 4, or of equal ones.
    """
    found = np.asarray(values, dtype=np.float64)
    count = len(found)
    if count < 2:
        return Estimate(_NAN, _NAN, _NAN, count)
    centred = found - found.mean()
    second = float(np.square(centred).mean())
    value = math.sqrt(second * count / (count - 1))
    if count < 4 or not second:
        return Estimate(value, _NAN, _NAN, count)
    kurtosis = float(np.square(np.square(centred)).mean()) / second**2
    factor = math.exp(_Z * math.sqrt(max(0.0, kurtosis - 1) / (4 * count)))
    return Estimate(value, value / factor, value * factor, count)


def student_quantile(freedom: int) -> float:
    """The 97.5% quantile of Student's t, to 3 decimals: tabled up to 4 degrees of freedom, beyond that by the
    Cornish-Fisher series around the normal quantile (Abramowitz and Stegun 26.7.5).

    >>> round(student_quantile(10), 3)
    2.228
    """
    if freedom in _T:
        return _T[freedom]
    z, n = _Z, freedom
    terms = (
        z,
        (z**3 + z) / (4 * n),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3),
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * n**4),
    )
    return math.fsum(terms)


def ranks(values: ArrayLike) -> np.ndarray:
    """[N] ranks from 1 on; equal values share the mean of their places.

    >>> ranks([10, 30, 20, 30]).tolist()
    [1.0, 3.5, 2.0, 3.5]
    """
    _, place, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def spearman(one: ArrayLike, other: ArrayLike) -> Estimate:
    """Spearman's rho of two lists of N numbers: Pearson's correlation of their ranks.

    The interval is Fisher's with the variance of Bonett and Wright (2000), good for |rho| below about 0.95:

        tanh(atanh(rho) -+ z sqrt((1 + rho^2 / 2) / (N - 3)))

    NaN where a list is constant; no interval with fewer than 4 observations.

    >>> spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]).value
    0.8
    """
    left, right = ranks(one), ranks(other)
    count = len(left)
    left, right = left - left.sum() / max(count, 1), right - right.sum() / max(count, 1)
    size = math.sqrt(float(left @ left) * float(right @ right))
    if not size:
        return Estimate(_NAN, _NAN, _NAN, count)
    rho = min(1.0, max(-1.0, float(left @ right) / size))
    if count < 4:
        return Estimate(rho, _NAN, _NAN, count)
    if abs(rho) == 1:  # the limit of the formula
        return Estimate(rho, rho, rho, count)
    half = _Z * math.sqrt((1 + rho**2 / 2) / (count - 3))
    return Estimate(rho, math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half), count)
