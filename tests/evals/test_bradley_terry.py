"""Ratings against other solvers, and intervals against known strengths."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from simpo.errors import DataError
from simpo.evals.judges.bootstrap import interval_of_mean
from simpo.evals.judges.bradley_terry import BOUND, Battle, alone, count_wins, fit_ratings, rate, win_rates

Draw = Callable[[np.random.Generator], np.ndarray]


def random_battles(seed: int, models: int = 4, count: int = 400) -> list[Battle]:
    """Unequal numbers of meetings, weights 1 and 3, ties."""
    rng = np.random.default_rng(seed)
    strength = rng.normal(0, 0.8, models)
    battles = []
    for unit in range(count):
        first, second = rng.choice(models, 2, replace=False)
        won = rng.random() < 1 / (1 + math.exp(strength[second] - strength[first]))
        outcome = 0.5 if rng.random() < 0.2 else float(won)
        battles.append(
            Battle(unit, int(first), int(second), outcome, 1.0 if outcome == 0.5 else rng.choice([1.0, 3.0]))
        )
    return battles


def official_rows(battles: list[Battle], models: int) -> tuple[np.ndarray, np.ndarray]:
    """The regression of Arena-Hard v0.1: every battle twice, a tie once each way, +-ln 10 for the two models."""
    rows, labels = [], []
    for battle in alone(battles):
        row = np.zeros(models)
        row[battle.first], row[battle.second] = math.log(10), -math.log(10)
        for copy in (0, 1):
            rows.append(row)
            labels.append(battle.outcome if battle.outcome != 0.5 else 1.0 - copy)
    return np.array(rows), np.array(labels)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_scikit_learn(seed: int) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    battles = random_battles(seed)
    x, y = official_rows(battles, 4)
    fitted = linear_model.LogisticRegression(fit_intercept=False, C=np.inf, tol=1e-10, max_iter=1000).fit(x, y)
    ratings = 400 * fitted.coef_[0] + 1000
    np.testing.assert_allclose(
        fit_ratings(count_wins(battles, 4).sum(0), 2), ratings + 1000 - ratings[2], atol=0.01, rtol=0
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_gradient_descent_on_the_official_regression(seed: int) -> None:
    battles = random_battles(seed)
    x, y = official_rows(battles, 4)
    coefficients = np.zeros(4)
    for _ in range(4000):
        coefficients += 0.2 * x.T @ (y - 1 / (1 + np.exp(-x @ coefficients))) / len(x)
    ratings = 400 * coefficients + 1000
    np.testing.assert_allclose(
        fit_ratings(count_wins(battles, 4).sum(0), 1), ratings + 1000 - ratings[1], atol=1e-6, rtol=0
    )


def test_two_models_have_the_share_of_weighted_points() -> None:
    """A>>B counts three times, a tie is half a point: (3 + 1 + 1/2) of 3 + 1 + 1 + 1."""
    battles = [Battle(0, 0, 1, 1.0, 3.0), Battle(0, 0, 1, 1.0), Battle(1, 0, 1, 0.5), Battle(1, 0, 1, 0.0)]
    ratings = fit_ratings(count_wins(battles, 2).sum(0), 1)
    assert ratings[1] == 1000
    np.testing.assert_allclose(win_rates(ratings, 1), [75.0, 50.0], atol=1e-9)
    np.testing.assert_allclose(ratings[0], 1000 + 400 * math.log10(3), atol=1e-9)


def test_models_that_only_met_the_baseline_do_not_move_each_other() -> None:
    """The boards of Arena-Hard are such stars: each win rate is that of the two alone."""
    battles = [battle._replace(second=0) for battle in random_battles(3) if battle.first != 0]
    together = win_rates(fit_ratings(count_wins(battles, 4).sum(0), 0), 0)
    for model in (1, 2, 3):
        own = [battle for battle in battles if battle.first == model]
        points = sum(battle.outcome * battle.weight for battle in own)
        np.testing.assert_allclose(together[model], 100 * points / sum(battle.weight for battle in own), atol=1e-8)


def test_winning_everything_is_bounded() -> None:
    battles = [Battle(unit, 0, 1, 1.0) for unit in range(5)]
    found = rate(count_wins(battles, 2), 1, rounds=10)
    assert found.rating[0] <= 1000 + 400 / math.log(10) * BOUND
    assert found.win_rate[0] == pytest.approx(100, abs=1e-6) and found.win_low[0] == pytest.approx(100, abs=1e-6)


def test_models_without_a_link_are_refused() -> None:
    battles = [Battle(0, 0, 1, 1.0), Battle(1, 2, 3, 1.0)]
    with pytest.raises(DataError, match="nothing links model 2 to model 0"):
        rate(count_wins(battles, 4), 0)


def test_the_same_seed_gives_the_same_interval() -> None:
    wins = count_wins(random_battles(4), 4)
    for one, other in zip(rate(wins, 0, rounds=50, seed=7), rate(wins, 0, rounds=50, seed=7), strict=True):
        np.testing.assert_array_equal(one, other)


def share_covered(draw: Draw, truth: np.ndarray, anchor: int, simulations: int = 500) -> float:
    """How often the 95% intervals of ratings hold the true ones, over models other than the anchor."""
    inside = []
    for seed in range(simulations):
        found = rate(draw(np.random.default_rng(10_000 + seed)), anchor, seed=seed)
        others = np.arange(len(truth)) != anchor
        inside.append(((found.low <= truth) & (truth <= found.high))[others])
    return float(np.mean(inside))


def test_coverage_with_known_strengths() -> None:
    """Four models, each pair compared in 60 questions, 500 simulations."""
    strength = np.array([0.0, 0.5, -0.7, 1.0])
    pairs = [(i, j) for i in range(4) for j in range(i)]

    def draw(rng: np.random.Generator) -> np.ndarray:
        wins = np.zeros((60 * len(pairs), 4, 4))
        for number, (i, j) in enumerate(pairs):
            won = rng.random(60) < 1 / (1 + np.exp(strength[j] - strength[i]))
            wins[60 * number : 60 * (number + 1), i, j] = won
            wins[60 * number : 60 * (number + 1), j, i] = ~won
        return wins

    assert 0.92 <= share_covered(draw, 1000 + 400 / math.log(10) * strength, 0) <= 0.98


def verdicts(rng: np.random.Generator, questions: int = 300) -> list[Battle]:
    """Two games a question about answers of one quality, five verdicts: clear ones count three times."""
    quality = 0.4 + rng.normal(0, 1.5, questions)
    battles = []
    for unit in range(questions):
        for gap in quality[unit] + rng.logistic(0, 0.5, 2):
            outcome = 0.5 if abs(gap) < 0.4 else float(gap > 0)
            battles.append(Battle(unit, 0, 1, outcome, 3.0 if abs(gap) > 2 else 1.0))
    return battles


@pytest.fixture(scope="module")
def games() -> Any:
    """Verdicts of 500 simulations, and the rating that 200 000 questions give."""
    large = count_wins(verdicts(np.random.default_rng(1), 200_000), 2).sum(0)
    return [verdicts(np.random.default_rng(20_000 + seed)) for seed in range(500)], fit_ratings(large, 1)


@pytest.mark.parametrize("units, low, high", [("questions", 0.92, 0.98), ("battles", 0.5, 0.9)])
def test_coverage_where_the_two_games_of_a_question_agree(games: Any, units: str, low: float, high: float) -> None:
    """Drawing questions covers as it says; drawing battles apart, as the official code does, covers less."""
    simulations, truth = games[0][: 500 if units == "questions" else 150], games[1]
    numbers = iter(simulations)

    def draw(_: np.random.Generator) -> np.ndarray:
        battles = next(numbers)
        return count_wins(battles if units == "questions" else alone(battles), 2)

    assert low <= share_covered(draw, truth, 1, len(simulations)) <= high


def test_interval_of_a_mean_is_that_of_questions() -> None:
    """Equal scores within a question add nothing; a question without scores counts for nothing."""
    scores = np.random.default_rng(0).normal(5, 2, 100)
    mean, low, high = interval_of_mean(np.append(2 * scores, 0), np.append(np.full(100, 2), 0), rounds=4000)
    error = scores.std() / 10
    assert mean == pytest.approx(scores.mean())
    assert low == pytest.approx(mean - 1.96 * error, abs=0.05) and high == pytest.approx(mean + 1.96 * error, abs=0.05)
