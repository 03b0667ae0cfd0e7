"""Bradley-Terry ratings of models that were compared in pairs, with bootstrap intervals.

    P(i beats j)  = 1 / (1 + 10 ** ((r_j - r_i) / 400))          Bradley and Terry 1952, on Elo's scale
    r             = the maximum of sum over battles of weight * log P(winner beats loser), with r_anchor = 1000

as in Arena-Hard v0.1 (`utils_math.py`, `compute_mle_elo`). There every battle is entered twice and a tie once each
way, which is the same as a tie that is half a win for both. The likelihood needs nothing but who beat whom how often,
so that is what is kept: a matrix of wins per question.

Shapes: Q units that are drawn together (questions), M models, R rounds of the bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simpo.errors import DataError
from simpo.evals.judges.bootstrap import times_drawn

SCALE, BASE, INITIAL = 400.0, 10.0, 1000.0
BOUND = 25.0
"""A model that won or lost everything has no finite rating: it is held so many nats (4343 points) from the anchor."""

_POINTS = SCALE / math.log(BASE)  # rating points of one nat
_STEPS = 100

Floats = NDArray[np.float64]


class Battle(NamedTuple):
    """One comparison.

    Args:
        unit: what it belongs to, from 0: battles of one unit (a question) are drawn together.
        first, second: the two models, by number.
        outcome: 1 where the first won, 0 where the second did, 1/2 for a tie.
        weight: how often it counts.
    """

    unit: int
    first: int
    second: int
    outcome: float
    weight: float = 1.0


class Ratings(NamedTuple):
    """Ratings with the ends of their intervals, each [M]; win rates against the anchor in %, each [M]."""

    rating: Floats
    low: Floats
    high: Floats
    win_rate: Floats
    win_low: Floats
    win_high: Floats


def count_wins(battles: Sequence[Battle], models: int) -> Floats:
    """Weighted wins [Q, M, M] of row model over column model in every unit; a tie is half a win each way."""
    units = max((battle.unit for battle in battles), default=-1) + 1
    wins = np.zeros((units, models, models))
    for unit, first, second, outcome, weight in battles:
        wins[unit, first, second] += weight * outcome
        wins[unit, second, first] += weight * (1 - outcome)
    return wins


def alone(battles: Sequence[Battle]) -> list[Battle]:
    """The same battles, each one a unit, and one of weight 3 three of them: how Arena-Hard v0.1 draws them."""
    copies = [battle for battle in battles for _ in range(round(battle.weight))]
    return [battle._replace(unit=number, weight=1.0) for number, battle in enumerate(copies)]


def fit_ratings(wins: Floats, anchor: int) -> Floats:
    """Ratings [..., M] of the largest likelihood, by Newton's method for all leading dimensions at once.

    Args:
        wins: [..., M, M] weighted wins of row model over column model.
        anchor: the model whose rating is 1000.

    Raises:
        DataError: Newton's method does not settle, since battles do not link a model to the anchor.
    """
    models = wins.shape[-1]
    free = [model for model in range(models) if model != anchor]
    games = wins + np.swapaxes(wins, -1, -2)
    strength = np.zeros(wins.shape[:-1])
    for _ in range(_STEPS):
        expected = games / (1 + np.exp(strength[..., None, :] - strength[..., :, None]))
        slope = (wins - expected).sum(-1)[..., free]
        curve = expected * (1 - np.divide(expected, games, out=np.zeros_like(games), where=games > 0))
        hessian = np.einsum("...ij->...i", curve)[..., None] * np.eye(models) - curve
        hessian = hessian[..., free, :][..., :, free] + 1e-12 * np.eye(len(free))
        step = np.clip(np.linalg.solve(hessian, slope[..., None])[..., 0], -1.0, 1.0)
        before = strength[..., free]
        after = np.clip(before + step, -BOUND, BOUND)
        strength[..., free] = after
        if np.abs(after - before).max(initial=0.0) < 1e-10:
            return INITIAL + _POINTS * strength
    raise DataError("ratings: do not settle; the battles do not link every model to the anchor")


def win_rates(ratings: Floats, anchor: int) -> Floats:
    """Expected win rates against the anchor in %, [..., M]; 50 for the anchor itself."""
    return 100 / (1 + BASE ** ((ratings[..., [anchor]] - ratings) / SCALE))


def rate(wins: Floats, anchor: int, *, rounds: int = 1000, seed: int = 0) -> Ratings:
    """Ratings and 95% percentile intervals, drawing units with replacement.

    Two games about one question are not independent, so the question is the unit. Arena-Hard v0.1 draws single battles,
    and the three copies of a clear verdict apart (`alone` gives these units): intervals that are too narrow.

    Args:
        wins: [Q, M, M], from `count_wins`.
        anchor: the model whose rating is 1000.
        rounds: of the bootstrap.
        seed: of the draws.

    Raises:
        DataError: battles do not link every model to the anchor.
    """
    total = wins.sum(0)
    _check_linked(total, anchor)
    drawn = (times_drawn(len(wins), rounds, seed) @ wins.reshape(len(wins), -1)).reshape(rounds, *total.shape)
    rating = fit_ratings(total, anchor)
    low, high = np.percentile(fit_ratings(drawn, anchor), [2.5, 97.5], axis=0)
    return Ratings(rating, low, high, *(win_rates(one, anchor) for one in (rating, low, high)))


def _check_linked(total: Floats, anchor: int) -> None:
    met = total + total.T > 0
    reached = np.zeros(len(total), bool)
    reached[anchor] = True
    for _ in range(len(total)):
        reached |= met[reached].any(0)
    if not reached.all():
        raise DataError(f"battles: nothing links model {int(np.argmin(reached))} to model {anchor}, the anchor")
