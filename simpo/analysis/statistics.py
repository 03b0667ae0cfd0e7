"""What a model makes of a preference set: pure functions from log-probs of pairs to numbers.

Figures and tables are those of the SimPO paper (arXiv 2405.14734). Each function takes the `PairScores` of one model;
models are compared by calling it for each of them on the same set.

Shape letters: B pairs, K bins, G points of a curve.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from simpo.analysis.pairs import PairScores
from simpo.errors import ConfigError, DataError
from simpo.estimates import Estimate, deviation, mean, ratio, share, spearman

Reward = Literal["average", "sum", "log_ratio"]
Side = Literal["chosen", "rejected"]

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
_PAIRS_PER_BIN = 20  # at least, so that a bin's interval says something
_POINTS = 256


@dataclass(frozen=True)
class Accuracy:
    """How often a score puts the chosen response first.

    Args:
        share: of all pairs; a tie is no success, as in the logged `rewards/accuracies`.
        ties: pairs whose responses score the same.
    """

    share: Estimate
    ties: int


@dataclass(frozen=True, eq=False)
class MarginsByLength:
    """Margins of pairs, grouped by how much longer the chosen response is.

    Args:
        edges: [K + 1] tokens, |chosen| - |rejected|; a bin holds low <= difference < high.
        centres: [K] mean difference of a bin's pairs, in tokens; NaN where it is empty.
        bins: [K] mean margin of each bin.
        shorter, equal, longer: mean margin where the chosen response is shorter, as long, or longer.
    """

    edges: np.ndarray
    centres: np.ndarray
    bins: list[Estimate]
    shorter: Estimate
    equal: Estimate
    longer: Estimate


@dataclass(frozen=True, eq=False)
class LengthCorrelation:
    """Log-prob per token against length.

    Args:
        length: [B] tokens of each response.
        average: [B] its log-prob, in nats per token.
        rho: Spearman's.
    """

    length: np.ndarray
    average: np.ndarray
    rho: Estimate


@dataclass(frozen=True, eq=False)
class Distribution:
    """Where values lie and how far they spread.

    Args:
        mean: with its interval.
        deviation: standard deviation, with its interval.
        percentiles: by `PERCENTILES`.
        positive: share above 0.
        grid, density: [G] a smooth curve of the density.
    """

    mean: Estimate
    deviation: Estimate
    percentiles: dict[int, float]
    positive: Estimate
    grid: np.ndarray
    density: np.ndarray


@dataclass(frozen=True)
class Contingency:
    """Pairs by two orders: that of DPO's reward and that of likelihood.

    Args:
        both, reward_only, likelihood_only, neither: pairs that the named orders put right (chosen first).
        ties: pairs that an order does not tell apart; in no other count.
        agreement: share of pairs on which the orders agree.
        contradicted: of the pairs that the reward puts right, the share where likelihood prefers the rejected response.
        likelihood: `average` log-prob per token, or `sum`.
    """

    both: int
    reward_only: int
    likelihood_only: int
    neither: int
    ties: int
    agreement: Estimate
    contradicted: Estimate
    likelihood: Literal["average", "sum"] = "average"


@dataclass(frozen=True)
class Divergence:
    """Mean log pi(y) - log ref(y) over responses.

    Args:
        sequence: per response, in nats.
        token: summed over all responses and divided by all their tokens, in nats per token.
    """

    sequence: Estimate
    token: Estimate


def rewards(pairs: PairScores, reward: Reward = "average", beta: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """[B], [B] implicit rewards of chosen and rejected responses.

        average     beta / |y| log pi(y)            SimPO's, equation 4
        sum         beta log pi(y)                  SimPO's without length normalisation
        log_ratio   beta (log pi(y) - log ref(y))   DPO's, equation 1 without Z; needs the initial policy

    Args:
        beta: above 0; with 1 the unit is nats, of `average` nats per token.

    Raises:
        ConfigError: an unknown reward, or a beta that is not above 0.
        DataError: `log_ratio` without log-probs of the initial policy.
    """
    _known("reward", reward, Reward)
    if not beta > 0:
        raise ConfigError(f"beta: {beta} gives no order of responses; write a number above 0, 1 for nats")
    if reward == "log_ratio":
        chosen, rejected = pairs.log_ratios()
    elif reward == "sum":
        chosen, rejected = pairs.chosen, pairs.rejected
    else:
        chosen, rejected = pairs.chosen_average, pairs.rejected_average
    return beta * chosen, beta * rejected


def margins(pairs: PairScores, reward: Reward = "average", beta: float = 1.0) -> np.ndarray:
    """[B] reward of the chosen response less that of the rejected one; arguments as in `rewards`."""
    chosen, rejected = rewards(pairs, reward, beta)
    return chosen - rejected


def accuracy(pairs: PairScores, reward: Reward = "average") -> Accuracy:
    """Share of pairs with reward(chosen) > reward(rejected), with Wilson's interval: figures 3a and 4c.

    `average` gives the likelihood accuracy, by the paper's average log-likelihood, which is SimPO's reward accuracy
    too; `log_ratio` gives DPO's reward accuracy; `sum` the sum likelihood accuracy: whether the whole chosen response
    is more probable, which favours short ones.
    """
    found = margins(pairs, reward)
    return Accuracy(share(int((found > 0).sum()), len(found)), int((found == 0).sum()))


def length_edges(pairs: PairScores, bins: int = 10) -> np.ndarray:
    """[K + 1] edges for `margins_by_length`: bins of about equal counts, half of them on each side of 0.

    0 is an edge, so no bin mixes chosen responses that are shorter with others. Each side has fewer bins where it has
    fewer than 20 pairs for each or where many differences are equal.
    """
    difference = pairs.chosen_lengths - pairs.rejected_lengths
    edges: list[int] = []
    for side in (difference[difference < 0], difference[difference >= 0]):
        if len(side):
            count = max(1, min(bins // 2, len(side) // _PAIRS_PER_BIN))
            inner = np.quantile(side, np.arange(1, count) / count, method="inverted_cdf")
            low, high = (side.min(), 0) if side.max() < 0 else (0, side.max() + 1)  # a bin does not hold its upper edge
            edges += [int(low), *inner[inner > side.min()].astype(int).tolist(), int(high)]
    return np.unique(edges)


def margins_by_length(
    pairs: PairScores, reward: Reward = "average", beta: float = 1.0, edges: np.ndarray | None = None
) -> MarginsByLength:
    """Mean margin against |chosen| - |rejected|, in bins with t intervals: figure 2a.

    The paper measures every model with SimPO's reward (`average`), however it was trained. A model that was trained
    on summed log-probs then shows negative margins on the left, where the chosen response is shorter.

    Args:
        reward, beta: as in `rewards`.
        edges: [K + 1] rising; None: those of `length_edges`. Give those of one model to all, to compare bin by bin.
            Pairs beyond the ends are counted in the outermost bins.
    """
    found = margins(pairs, reward, beta)
    difference = pairs.chosen_lengths - pairs.rejected_lengths
    edges = length_edges(pairs) if edges is None else np.asarray(edges)
    if len(edges) < 2 or not (np.diff(edges) > 0).all():
        raise DataError(f"edges of bins must rise, and be two at least; these are {edges.tolist()}")
    place = np.clip(np.digitize(difference, edges) - 1, 0, len(edges) - 2)
    groups = [place == at for at in range(len(edges) - 1)]
    return MarginsByLength(
        edges=edges,
        centres=np.array([mean(difference[group]).value for group in groups]),
        bins=[mean(found[group]) for group in groups],
        shorter=mean(found[difference < 0]),
        equal=mean(found[difference == 0]),
        longer=mean(found[difference > 0]),
    )


def length_correlation(pairs: PairScores, side: Side = "chosen") -> LengthCorrelation:
    """Log-prob per token against length with Spearman's rho: figures 2b, 2c and 4a, table 6.

    A larger rho than the initial policy's says that training raised the probability of long responses more.
    One side at a time (`simpo eval pairs` puts both together): the two responses of a pair share a prompt and are not
    independent, as the interval of `simpo.estimates.spearman` asks.
    """
    _known("side", side, Side)
    length = pairs.chosen_lengths if side == "chosen" else pairs.rejected_lengths
    average = pairs.chosen_average if side == "chosen" else pairs.rejected_average
    return LengthCorrelation(length, average, spearman(length, average))


def distribution(values: ArrayLike) -> Distribution:
    """Location, spread and density of [B] values: of `margins` for figure 3b, of chosen `rewards` for figure 3c.

    The curve is a Gaussian kernel estimate with Silverman's width, 0.9 min(sd, IQR / 1.34) B^(-1/5); its grid reaches
    4 widths beyond the 1st and the 99th percentile.

    Raises:
        DataError: no value, or one that is no number.
    """
    found = np.asarray(values, dtype=np.float64)
    if not len(found) or not np.isfinite(found).all():
        raise DataError(
            f"a distribution needs finite numbers, one at least; {np.isfinite(found).sum()} of {len(found)} are"
        )
    spread = deviation(found)
    percentiles = {percent: float(np.percentile(found, percent)) for percent in PERCENTILES}
    widths = [width for width in (spread.value, (percentiles[75] - percentiles[25]) / 1.34) if width > 0]
    narrowest = 1e-4 * max(1.0, float(np.abs(found).max()))  # equal values still make a curve
    width = max(0.9 * min(widths, default=0.0) * len(found) ** -0.2, narrowest)
    grid = np.linspace(percentiles[1] - 4 * width, percentiles[99] + 4 * width, _POINTS)
    # point by point: memory stays that of one column
    heights = [float(np.exp(-0.5 * np.square((point - found) / width)).mean()) for point in grid]
    return Distribution(
        mean=mean(found),
        deviation=spread,
        percentiles=percentiles,
        positive=share(int((found > 0).sum()), len(found)),
        grid=grid,
        density=np.array(heights) / (width * np.sqrt(2 * np.pi)),
    )


def contingency(pairs: PairScores, likelihood: Literal["average", "sum"] = "average") -> Contingency:
    """Order by DPO's reward, beta (log pi - log ref), against order by likelihood: figure 4b.

    A positive beta does not change an order, so it is not asked for. With SimPO's reward there is nothing to compare:
    it is the average log-prob itself.

    Args:
        likelihood: `average` log-prob per token, as in the paper, or `sum`.

    Raises:
        DataError: there are no log-probs of the initial policy.
    """
    by_reward, by_likelihood = margins(pairs, "log_ratio"), margins(pairs, likelihood)
    told = (by_reward != 0) & (by_likelihood != 0)
    first, second = by_reward[told] > 0, by_likelihood[told] > 0
    both, reward_only = int((first & second).sum()), int((first & ~second).sum())
    likelihood_only, neither = int((~first & second).sum()), int((~first & ~second).sum())
    return Contingency(
        both=both,
        reward_only=reward_only,
        likelihood_only=likelihood_only,
        neither=neither,
        ties=int((~told).sum()),
        agreement=share(both + neither, int(told.sum())),
        contradicted=share(reward_only, both + reward_only),
        likelihood=likelihood,
    )


def divergence(pairs: PairScores, side: Side = "chosen") -> Divergence:
    """Mean of log pi(y) - log ref(y) over the responses of one side, with t intervals: figure 5a.

    What it estimates depends on where the responses y come from:

        from the policy pi      KL(pi || ref)
        from the initial policy -KL(ref || pi): never above 0, apart from chance
        from another source D   KL(D || ref) - KL(D || pi): how much nearer to D training brought the model; any sign

    Responses of a preference set are the third case (chosen ones sampled from the initial policy are close to the
    second, but selected). So on data it is the change of log-prob and no distance: 0 does not say that pi equals ref.

    Raises:
        DataError: there are no log-probs of the initial policy.
    """
    _known("side", side, Side)
    chosen, rejected = pairs.log_ratios()
    ratios, lengths = (chosen, pairs.chosen_lengths) if side == "chosen" else (rejected, pairs.rejected_lengths)
    return Divergence(sequence=mean(ratios), token=ratio(ratios, lengths))


def _known(name: str, value: str, kind: Any) -> None:
    if value not in get_args(kind):
        raise ConfigError(f"{name}: {value!r} is not known; write {', '.join(get_args(kind))}")
