"""95% intervals of what is measured on pairs, by the bootstrap over pairs.

Letters: N pairs, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 1000


def bootstrap(
    statistics: Sequence[Callable[[Floats], float]], count: int, *, resamples: int = RESAMPLES, seed: int = 0
) -> Floats:
    """Ends of 95% percentile intervals by drawing N pairs with replacement, the same draws for all statistics.

    Args:
        statistics: each maps [N] weights, how often a pair was drawn, to a number. NaN is left out.
        count: N.
        resamples: R.
        seed: of the draws.

    Returns:
        [statistics, 2] low and high.
    """
    generator = np.random.default_rng(seed)
    values = np.empty((resamples, len(statistics)))
    for at in range(resamples):
        weights = np.bincount(generator.integers(count, size=count), minlength=count).astype(np.float64)
        values[at] = [statistic(weights) for statistic in statistics]
    return np.array([_ends(column) for column in values.T])


def _ends(values: Floats) -> tuple[float, float]:
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


class Spearman:
    """Spearman's rank correlation of two variables, for any weights of their values.

    rho = correlation of the ranks, ties having their mean rank. A weight of w counts as w equal values. Values are
    sorted once, so a resample costs no sorting.

    Args:
        first, second: [M] values.
    """

    def __init__(self, first: Floats, second: Floats) -> None:
        self._groups = [np.unique(values, return_inverse=True)[1] for values in (first, second)]

    def __call__(self, weights: Floats) -> float:
        """rho for [M] weights; NaN where a variable is constant."""
        first, second = (_ranks(groups, weights) for groups in self._groups)
        total = weights.sum()
        first, second = (ranks - (weights @ ranks) / total for ranks in (first, second))
        scale = np.sqrt((weights @ first**2) * (weights @ second**2))
        return float(weights @ (first * second) / scale) if scale > 0 else float("nan")


def _ranks(groups: NDArray[np.intp], weights: Floats) -> Floats:
    sizes = np.bincount(groups, weights=weights)
    return (np.cumsum(sizes) - (sizes - 1) / 2)[groups]
