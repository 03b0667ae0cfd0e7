"""How much of each source is taken, how often it is seen, and what is held out: draws of row numbers, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from simpo.data.duplicates import Ints
from simpo.errors import DataError

Mask = np.ndarray[Any, np.dtype[np.bool_]]


def draw(amount: float, size: int, seed: int, where: str) -> Ints | None:
    """Rows of a source that are taken, in their order; None for all.

    Args:
        amount: a fraction in (0, 1], or a count: a whole number from 2 on.
        size: rows that there are.
        seed: of the draw.
        where: the source's name for messages.

    Raises:
        DataError: the count is above the size.
    """
    if amount == 1:
        return None
    if amount > size:
        raise DataError(f"{where}: {int(amount)} rows are asked for and {size} are there; write 1.0 for all of them")
    count = int(amount) if amount > 1 else max(1, int(round(amount * size, 6)))  # 0.29 of 100 is 28.999999999999996
    return some(np.arange(size), count, seed)


def some(rows: Ints, count: int, seed: int) -> Ints:
    """So many of the rows, drawn at random, in their order; all where there are no more."""
    if count >= len(rows):
        return rows
    return rows[np.sort(np.random.default_rng(seed).permutation(len(rows))[:count])]


def held_out(prompts: Ints, test_size: float, seed: int) -> Mask:
    """Rows [N] that are held out, by prompt: no prompt is on both sides, however many pairs share it.

    Args:
        prompts: keys of the rows' prompts; rows without one (0) are not held out.
        test_size: distinct prompts to hold out: a fraction below 1, or a count.
        seed: of the draw.

    Raises:
        DataError: fewer than one prompt would be left on a side.
    """
    distinct = np.unique(prompts[prompts != 0])
    count = round(test_size * len(distinct)) if test_size < 1 else int(test_size)
    if not 0 < count < len(distinct):
        raise DataError(
            f"test_size: {test_size} holds out {count} of {len(distinct)} distinct prompts; "
            "choose a fraction or a count that holds out at least 1 and leaves at least 1"
        )
    return np.isin(prompts, np.random.default_rng(seed).permutation(distinct)[:count])


def weighted(rows: Ints, sizes: Sequence[int], weights: Sequence[float], seed: int) -> Ints:
    """Rows as often as their source's weight says: 2.5 is each row twice, and half of them, drawn at random, once more.

    Args:
        rows: rows of the sources, which stand one after another.
        sizes: rows of each source.
        weights: of each source; 1 or more.
        seed: of the draw.
    """
    ends = np.cumsum(sizes)
    times = np.ones(len(rows), dtype=np.int64)
    for end, size, weight in zip(ends, sizes, weights, strict=True):
        own = np.flatnonzero((rows >= end - size) & (rows < end))
        times[own] = int(weight)
        times[some(own, round(weight % 1 * len(own)), seed)] += 1
    return np.repeat(rows, times)
