"""95% intervals of means over questions, by drawing questions with replacement."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simpo.errors import ConfigError


def check_rounds(rounds: int) -> None:
    """Raise ConfigError for too few rounds."""
    if rounds < 100:
        raise ConfigError(f"rounds: {rounds} must be at least 100: the ends of a 95% interval need them")


def times_drawn(units: int, rounds: int, seed: int) -> NDArray[np.float64]:
    """How often each unit is drawn, [rounds, units]: `units` draws with replacement in each round.

    Counting picks gives the same distribution as `Generator.multinomial`, some four times faster.
    """
    picks = np.random.default_rng(seed).integers(units, size=(rounds, units)) + units * np.arange(rounds)[:, None]
    return np.bincount(picks.ravel(), minlength=rounds * units).reshape(rounds, units).astype(float)


def interval_of_mean(
    sums: ArrayLike, counts: ArrayLike, *, rounds: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """The mean of all judgments, and the 2.5% and 97.5% percentiles of it over draws of questions.

    Args:
        sums: [Q] sum of a question's scores.
        counts: [Q] how many scores that are; a question may have none.
        rounds: of the bootstrap.
        seed: of the draws.
    """
    total, weight = np.asarray(sums, float), np.asarray(counts, float)
    draws = times_drawn(len(total), rounds, seed)
    kept = draws @ weight > 0
    means = (draws @ total)[kept] / (draws @ weight)[kept]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(total.sum() / weight.sum()), float(low), float(high)
