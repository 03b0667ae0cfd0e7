"""Statistics of pairs against hand-computed values, and planted effects that must be found."""

import numpy as np
import pytest

from simpo.analysis.statistics import (
    accuracy,
    contingency,
    distribution,
    divergence,
    length_correlation,
    length_edges,
    margins,
    margins_by_length,
    rewards,
)
from simpo.errors import ConfigError, DataError
from tests.analysis.made import TokenModel, population, rho_of, scores


def test_rewards_by_hand():
    pairs = scores([-6.0], [-8.0], [(3, 2)], ref_chosen=[-5.0], ref_rejected=[-9.5])
    assert [side.tolist() for side in rewards(pairs, "average", beta=2)] == [[-4], [-8]]
    assert [side.tolist() for side in rewards(pairs, "sum", beta=0.5)] == [[-3], [-4]]
    assert [side.tolist() for side in rewards(pairs, "log_ratio", beta=0.1)] == [[-0.1], [pytest.approx(0.15)]]
    assert margins(pairs, "average", beta=2).tolist() == [4]


def test_accuracies_by_hand():
    # averages: -1 > -2, -2 < -1, tie, -1 > -1.5; sums: -6 < -4, -2 > -3, -3 > -6, tie
    pairs = scores([-6, -2, -3, -3], [-4, -3, -6, -3], [(6, 2), (1, 3), (3, 6), (3, 2)])
    found = accuracy(pairs)
    assert (found.share.value, found.share.count, found.ties) == (0.5, 4, 1)
    assert found.share.low == pytest.approx(0.15003899, abs=1e-6)  # Wilson of 2 in 4
    by_sum = accuracy(pairs, "sum")
    assert (by_sum.share.value, by_sum.ties) == (0.5, 1)


def test_a_dpo_accuracy_uses_the_initial_policy():
    pairs = scores([-6, -6, -6], [-5, -5, -7], ref_chosen=[-8, -6, -6], ref_rejected=[-5, -6, -7])
    assert accuracy(pairs, "log_ratio").share.value == pytest.approx(1 / 3)
    assert accuracy(pairs, "log_ratio").ties == 1
    with pytest.raises(DataError, match="needs log-probs of the initial policy"):
        accuracy(scores([-1], [-2]), "log_ratio")


def test_margins_by_length_by_hand():
    # differences -3, -1, 0, 2, 2, 5; margins 1, 2, 3, 4, 6, 10 in nats per token of responses
    lengths = [(2, 5), (4, 5), (5, 5), (7, 5), (7, 5), (10, 5)]
    wanted = np.array([1, 2, 3, 4, 6, 10])
    chosen = [-0.5 * length for length, _ in lengths]
    pairs = scores(chosen, (-0.5 - wanted) * 5, lengths)
    found = margins_by_length(pairs, edges=[-4, 0, 2, 5, 6])
    assert [(one.value, one.count) for one in found.bins] == [(1.5, 2), (3, 1), (5, 2), (10, 1)]
    assert found.centres.tolist() == [-2, 0, 2, 5]
    assert (found.shorter.value, found.equal.value, found.longer.value) == (1.5, 3, pytest.approx(20 / 3))
    # standard error 0.5 of two values; one value has no interval
    assert found.bins[0].high == pytest.approx(1.5 + 12.7062 * 0.5) and np.isnan(found.bins[1].low)
    assert margins_by_length(pairs, beta=2, edges=[-4, 6]).bins[0].value == pytest.approx(2 * wanted.mean())


def test_bins_hold_what_lies_beyond_the_edges_and_may_be_empty():
    pairs = scores([-5, -5], [-10, -20], [(5, 10), (30, 10)])
    found = margins_by_length(pairs, edges=[0, 5, 10])
    assert [one.count for one in found.bins] == [1, 1]
    found = margins_by_length(pairs, edges=[-9, 0, 5, 25])
    assert [one.count for one in found.bins] == [1, 0, 1] and np.isnan(found.centres[1])


def test_edges_meet_at_zero_and_share_out_evenly():
    pairs = population(2000, seed=0)
    edges = length_edges(pairs)
    found = margins_by_length(pairs)
    assert 0 in edges and len(edges) == 11 and (np.diff(edges) > 0).all()
    counts = [one.count for one in found.bins]
    assert sum(counts) == 2000 and min(counts) > 150 and max(counts) < 250
    assert found.shorter.count == sum(counts[:5])


@pytest.mark.parametrize("lengths", [[(5, 5)], [(5, 9)], [(9, 5)], [(5, 5)] * 50, [(1, 9)] * 50 + [(9, 1)] * 50])
def test_edges_of_odd_sets(lengths):
    pairs = scores([-1] * len(lengths), [-2] * len(lengths), lengths)
    found = margins_by_length(pairs)
    assert sum(one.count for one in found.bins) == len(lengths) and all(one.count for one in found.bins)


def test_small_sets_have_few_bins():
    assert len(length_edges(population(60, seed=1))) <= 4


def test_a_planted_length_bias_shows_in_the_bins():
    """A model whose margin falls as the chosen response gets shorter, beside one whose margin does not."""
    level, tilted = (population(3000, seed=4, slope=slope) for slope in (0.0, 0.2))
    assert all(one.low > 0 for one in margins_by_length(level).bins)
    found = margins_by_length(tilted)
    assert found.shorter.high < 0 < found.longer.low and found.bins[0].high < 0 < found.bins[-1].low
    near = [one.low - 0.02 <= 0.15 + 0.002 * at <= one.high + 0.02
            for one, at in zip(found.bins, found.centres, strict=True)]  # fmt: skip
    assert np.mean(near) >= 0.8


@pytest.mark.parametrize("r", [-0.6, 0.0, 0.4])
def test_a_planted_correlation_with_length_is_found(r):
    found = length_correlation(population(4000, seed=5, r=r), "rejected")
    assert found.rho.low <= rho_of(r) <= found.rho.high
    assert found.rho.high - found.rho.low < 0.07


def test_each_side_has_its_lengths():
    pairs = scores([-1, -4, -9], [-9, -4, -3], [(1, 3), (2, 2), (3, 3)])
    assert length_correlation(pairs).rho.value == -1 and length_correlation(pairs).average.tolist() == [-1, -2, -3]
    assert length_correlation(pairs, "rejected").length.tolist() == [3, 2, 3]


def test_distribution_by_hand():
    found = distribution([-1.0, 0.0, 1.0, 4.0])
    assert (found.mean.value, found.positive.value) == (1, 0.5)
    assert found.deviation.value == pytest.approx(np.sqrt(14 / 3))
    assert (found.percentiles[50], found.percentiles[25]) == (0.5, -0.25)
    width = 0.9 * (2 / 1.34) * 4**-0.2  # the middle half reaches from -0.25 to 1.75
    at = found.grid[100]
    heights = [np.exp(-0.5 * ((at - value) / width) ** 2) for value in (-1, 0, 1, 4)]
    assert found.density[100] == pytest.approx(np.mean(heights) / width / np.sqrt(2 * np.pi))


def test_a_density_is_that_of_its_population():
    values = np.random.default_rng(6).normal(1, 2, 5000)
    found = distribution(values)
    assert np.trapezoid(found.density, found.grid) == pytest.approx(1, abs=0.01)
    normal = np.exp(-0.5 * ((found.grid - 1) / 2) ** 2) / 2 / np.sqrt(2 * np.pi)
    assert np.abs(found.density - normal).max() < 0.015
    assert found.deviation.value == pytest.approx(2, rel=0.05)


def test_a_density_against_scipy():
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(7).normal(size=300)
    found = distribution(values)
    spread = min(values.std(ddof=1), np.subtract(*np.percentile(values, [75, 25])) / 1.34)
    theirs = stats.gaussian_kde(values, bw_method=0.9 * spread * 300**-0.2 / values.std(ddof=1))
    np.testing.assert_allclose(found.density, theirs(found.grid), atol=1e-12)


@pytest.mark.parametrize("values", [[0.0], [0.0] * 9, [-300.0] * 5, [0.0] * 99 + [1e6], [1.0, 2.0]])
def test_distributions_of_odd_values(values, recwarn):
    found = distribution(values)
    assert np.isfinite(found.density).all() and (np.diff(found.grid) > 0).all() and not len(recwarn)


def test_a_larger_planted_spread_is_found():
    """What a larger gamma does in figure 3b: the same centre apart, a flatter distribution."""
    narrow, wide = (distribution(margins(population(3000, seed=8, spread=spread))) for spread in (0.25, 0.5))
    assert wide.deviation.value == pytest.approx(2 * narrow.deviation.value, rel=0.1)
    assert wide.deviation.low > narrow.deviation.high and wide.density.max() < narrow.density.max()


def test_contingency_by_hand():
    chosen, rejected = [-6, -6, -4, -4, -5, -5], [-5, -5, -5, -5, -5, -6]
    # log ratios of chosen less rejected: 2, 1, -1, 3, 1, 0; averages: wrong, wrong, right, right, tie, right
    reference = [-8, -7, -3, -7, -6, -5], [-5, -5, -5, -5, -5, -6]
    pairs = scores(chosen, rejected, ref_chosen=reference[0], ref_rejected=reference[1])
    found = contingency(pairs)
    assert (found.both, found.reward_only, found.likelihood_only, found.neither, found.ties) == (1, 2, 1, 0, 2)
    assert found.agreement.value == 0.25 and found.agreement.count == 4
    assert found.contradicted.value == pytest.approx(2 / 3) and found.contradicted.count == 3


def test_contingency_by_sums_differs():
    pairs = scores([-6], [-5], [(6, 2)], ref_chosen=[-9], ref_rejected=[-5])
    assert contingency(pairs).both == 1 and contingency(pairs, "sum").reward_only == 1


def test_orders_that_have_nothing_to_do_with_each_other():
    """Half of the pairs contradict each other, as the paper finds for DPO."""
    rng = np.random.default_rng(9)
    values = -100 + rng.normal(size=(4, 2000))
    values[2:] += values[:2]  # log ratios are drawn on their own
    pairs = scores(values[0], values[1], ref_chosen=values[2], ref_rejected=values[3])
    found = contingency(pairs)
    assert found.contradicted.low <= 0.5 <= found.contradicted.high
    assert found.both + found.reward_only + found.likelihood_only + found.neither == 2000


def test_divergence_by_hand():
    pairs = scores([-6, -2], [-5, -5], [(4, 1), (2, 5)], ref_chosen=[-4, -3], ref_rejected=[-5, -4])
    found = divergence(pairs)
    assert (found.sequence.value, found.token.value) == (-0.5, pytest.approx(-1 / 6))
    assert divergence(pairs, "rejected").token.value == pytest.approx(-1 / 6)
    assert divergence(pairs, "rejected").sequence.count == 2
    with pytest.raises(DataError, match="needs log-probs of the initial policy"):
        divergence(scores([-1], [-1]))


POLICY, INITIAL, SOURCE = (
    TokenModel(one) for one in ([0.04, 0.5, 0.3, 0.16], [0.05, 0.4, 0.25, 0.3], [0.03, 0.3, 0.4, 0.27])
)


def of_samples(source, rng, count=300):
    """Log-probs of what a model samples, as both sides of pairs."""
    drawn = source.sample(count, rng)
    lengths = np.column_stack([drawn.sum(axis=1)] * 2)
    logps, reference = POLICY.logps(drawn), INITIAL.logps(drawn)
    return scores(logps, logps, lengths, ref_chosen=reference, ref_rejected=reference)


@pytest.mark.parametrize(
    ("source", "token"),
    [
        (POLICY, POLICY.token_kl(INITIAL)),
        (INITIAL, -INITIAL.token_kl(POLICY)),
        (SOURCE, SOURCE.token_kl(INITIAL) - SOURCE.token_kl(POLICY)),
    ],
    ids=["samples of the policy", "of the initial policy", "of another source"],
)
def test_a_known_divergence_is_covered(source, token):
    rng = np.random.default_rng(10)
    found = [divergence(of_samples(source, rng)) for _ in range(400)]
    by_token = np.mean([one.token.low <= token <= one.token.high for one in found])
    sequence = token * source.mean_length
    by_sequence = np.mean([one.sequence.low <= sequence <= one.sequence.high for one in found])
    assert 0.917 <= by_token <= 0.983 and 0.917 <= by_sequence <= 0.983
    assert np.mean([one.sequence.value for one in found]) == pytest.approx(sequence, rel=0.02)


def test_what_is_not_known_is_refused():
    pairs = scores([-1.0, -2.0], [-2.0, -1.0])
    with pytest.raises(ConfigError, match="reward: 'mean' is not known; write average, sum, log_ratio"):
        accuracy(pairs, "mean")
    with pytest.raises(ConfigError, match="side: 'both' is not known; write chosen, rejected"):
        length_correlation(pairs, "both")
    with pytest.raises(ConfigError, match="beta: 0 gives no order"):
        rewards(pairs, beta=0)
    with pytest.raises(DataError, match="finite numbers, one at least; 1 of 2 are"):
        distribution([1.0, float("nan")])
    with pytest.raises(DataError, match="0 of 0 are"):
        distribution([])
    for edges in ([3], [3, 3], [1, 0]):
        with pytest.raises(DataError, match="edges of bins must rise"):
            margins_by_length(pairs, edges=edges)
