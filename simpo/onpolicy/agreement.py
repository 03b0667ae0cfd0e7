"""How far annotators agree: on the order of the responses of a prompt, and on the best of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

Values = Sequence[float | None]


@dataclass(frozen=True)
class Agreement:
    """Two annotators over the prompts that both scored.

    Args:
        first, second: their names.
        prompts: with two responses or more that both scored.
        tau: Kendall's tau-b, averaged over the prompts where neither gives one score to all; NaN without any.
        same_best: part of the prompts where one response is best by both (of equal scores any counts); NaN without any.
    """

    first: str
    second: str
    prompts: int
    tau: float
    same_best: float


def agreement(first: str, second: str, scores: Iterable[tuple[Values, Values]]) -> Agreement:
    """Agreement of two annotators; `scores` are both lists of each prompt, None where there is no score."""
    taus: list[float] = []
    best: list[bool] = []
    for one, other in scores:
        both = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
        if len(both) < 2:
            continue
        left, right = np.array(both).T
        best.append(bool(np.any((left == left.max()) & (right == right.max()))))
        tau = kendall_tau(left, right)
        if not math.isnan(tau):
            taus.append(tau)
    nothing = float("nan")
    return Agreement(
        first, second, len(best), float(np.mean(taus)) if taus else nothing, float(np.mean(best)) if best else nothing
    )


def kendall_tau(one: Sequence[float] | np.ndarray, other: Sequence[float] | np.ndarray) -> float:
    """Kendall's tau-b of two lists of N numbers: from -1, opposite orders, to 1, the same; NaN where one is constant.

    tau_b = (concordant - discordant) / sqrt(pairs that one tells apart * pairs that the other tells apart)

    >>> kendall_tau([1, 2, 3], [1, 2, 3]), kendall_tau([1, 2, 3], [1, 3, 2])
    (1.0, 0.333...)
    """
    signs = [np.sign(np.subtract.outer(np.asarray(values), np.asarray(values))) for values in (one, other)]
    apart = np.abs(signs[0]).sum() * np.abs(signs[1]).sum()
    return float((signs[0] * signs[1]).sum() / math.sqrt(apart)) if apart else float("nan")


def agreement_table(records: Sequence[dict[str, Values]]) -> list[str]:
    """Lines of a table over every two annotators; none with fewer than two. Each record holds a prompt's scores."""
    names = list(dict.fromkeys(name for record in records for name in record))
    rows = [("", "prompts", "Kendall's tau", "same best")]
    for first, second in combinations(names, 2):
        found = agreement(
            first, second, [(one[first], one[second]) for one in records if first in one and second in one]
        )
        tau = "-" if math.isnan(found.tau) else f"{found.tau:.3f}"
        best = "-" if math.isnan(found.same_best) else f"{found.same_best:.1%}"
        rows.append((f"{first} and {second}", f"{found.prompts:,}", tau, best))
    if len(rows) == 1:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return [
        "  " + "  ".join([row[0].ljust(widths[0]), *(row[n].rjust(widths[n]) for n in (1, 2, 3))]).rstrip()
        for row in rows
    ]
