"""Plans of optimizer steps: the same pairs in a step however it is cut, and cuts that keep all ranks busy."""

import itertools
import time

import numpy as np
import pytest

from simpo.batching import Budget, MicroBatch, StepSampler, micro_batches_per_rank, plan_step, summarize


def _real_pairs(micro_batches):
    return [row for m in micro_batches for row in m.pairs[: len(m.pairs) - m.fillers]]


def _lengths(count: int, seed: int = 0) -> np.ndarray:
    """Lengths spread as those of UltraFeedback are: log-normal, some pairs ten times as long as others."""
    rng = np.random.default_rng(seed)
    parts = [rng.lognormal(np.log(mean) - 0.32, 0.8, count) for mean in (172, 331, 312)]
    return np.clip(sum(parts), 3, 3700).astype(int)


@pytest.mark.parametrize("pairs,size,world", list(itertools.product((1, 2, 5, 8, 13), (1, 3, 8), (1, 2, 4))))
def test_plan_holds_every_pair_once(pairs, size, world) -> None:
    ranks = plan_step(list(range(100, 100 + pairs)), _lengths(pairs), Budget(size), world)
    assert len(ranks) == world
    (count,) = {len(rank) for rank in ranks}
    assert count <= micro_batches_per_rank(pairs, size, world)
    rows = [row for rank in ranks for row in _real_pairs(rank)]
    assert sorted(rows) == list(range(100, 100 + pairs))
    assert all(m.pairs and m.fillers in (0, len(m.pairs)) for rank in ranks for m in rank)


@pytest.mark.parametrize("world", [1, 2, 8])
def test_token_budget_is_kept_and_longer_pairs_run_alone(world) -> None:
    tokens = _lengths(128).tolist()
    tokens[7] = 9000
    ranks = plan_step(list(range(128)), tokens, Budget(2, tokens=4096), world)
    assert len({len(rank) for rank in ranks}) == 1
    for micro_batch in (m for rank in ranks for m in rank):
        total = sum(tokens[row] for row in micro_batch.pairs)
        assert total <= 4096 or micro_batch.pairs == (7,)
    assert sorted(row for rank in ranks for row in _real_pairs(rank)) == list(range(128))
    # no more micro-batches than needed, but for the few that the long pair forces
    assert len(ranks[0]) <= -(-sum(tokens) // (4096 * world)) + 2


@pytest.mark.parametrize("world,pairs,bound", [(8, 128, 1.02), (64, 1024, 1.05)])
@pytest.mark.parametrize("budget", [Budget(2), Budget(4), Budget(2, 4096), Budget(2, 8192)])
def test_ranks_of_a_micro_step_are_alike(world, pairs, bound, budget) -> None:
    summary = _sampler(20_000, pairs, budget, world, seed=0, drop_last=True).summary()
    assert summary.imbalance <= bound
    one_pair_each = [[MicroBatch((row,))] for row in range(8)]
    assert summarize([one_pair_each], _lengths(8)).imbalance > 1.2


def test_a_long_pair_is_run_beside_micro_batches_of_its_size() -> None:
    tokens = [1000, *[100] * 40]  # evenly: 1000 beside 800, then 800 beside 800 twice
    ranks = plan_step(list(range(41)), tokens, Budget(7), 2)
    loads = [[sum(tokens[row] for row in m.pairs) for m in rank] for rank in ranks]
    assert loads == [[1000, 800, 700], [1000, 800, 700]]


def test_never_more_micro_batches_than_pairs_ask_for() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        count, size, world = (int(n) for n in rng.integers((1, 1, 1), (40, 5, 9)))
        tokens = np.ceil(rng.lognormal(4, 1.5, count)).astype(int).tolist()
        ranks = plan_step(list(range(count)), tokens, Budget(size), world)
        assert len(ranks[0]) <= micro_batches_per_rank(count, size, world)
        assert sorted(row for rank in ranks for row in _real_pairs(rank)) == list(range(count))


def test_fillers_are_short_and_count_as_time_lost() -> None:
    tokens = [900, 800, 10]
    ranks = plan_step([0, 1, 2], tokens, Budget(1), 4)
    assert [m.pairs for rank in ranks for m in rank if m.fillers] == [(2,)]
    summary = summarize([ranks], np.array(tokens))
    assert (summary.tokens, summary.fillers) == (1710, 1)
    assert summary.imbalance == pytest.approx(900 * 4 / 1710)


def test_no_larger_micro_batch_than_an_even_spread_needs() -> None:
    for seed in range(20):
        tokens = _lengths(128, seed).tolist()
        ranks = plan_step(list(range(128)), tokens, Budget(2), 8)
        even = plan_step(list(range(128)), tokens, Budget(2, 10**9), 64)  # one micro-batch for each of 64
        largest = [max(sum(tokens[row] for row in m.pairs) for rank in plan for m in rank) for plan in (ranks, even)]
        assert largest[0] <= largest[1]
        assert len(ranks[0]) <= 8


def _sampler(num_pairs, pairs_per_step, size, world, rank=0, **kwargs):
    return StepSampler(
        _lengths(num_pairs), pairs_per_step=pairs_per_step, budget=size if isinstance(size, Budget) else Budget(size),
        world_size=world, rank=rank, **kwargs,
    )  # fmt: skip


def _steps(num_pairs, pairs_per_step, size, world, epoch=0, **kwargs):
    samplers = [_sampler(num_pairs, pairs_per_step, size, world, rank, **kwargs) for rank in range(world)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    assert len({len(sampler) for sampler in samplers}) == 1
    steps = list(zip(*samplers, strict=True))
    assert len(steps) == len(samplers[0])
    return [sorted(row for rank in step for row in _real_pairs(rank)) for step in steps]


def test_steps_do_not_depend_on_devices_or_micro_batches() -> None:
    reference = _steps(37, 8, 8, 1, seed=7)
    assert [len(step) for step in reference] == [8, 8, 8, 8, 5]
    for size, world in ((1, 1), (2, 2), (3, 2), (1, 8), (5, 3), (Budget(2, 1000), 2)):
        assert _steps(37, 8, size, world, seed=7) == reference


def test_epochs_differ_and_repeat() -> None:
    first, second = _steps(20, 4, 2, 1, seed=1, epoch=0), _steps(20, 4, 2, 1, seed=1, epoch=1)
    assert first != second
    assert first == _steps(20, 4, 2, 1, seed=1, epoch=0)
    assert sorted(sum(first, [])) == sorted(sum(second, [])) == list(range(20))


def test_without_seed_the_order_is_kept() -> None:
    assert _steps(5, 2, 2, 1) == [[0, 1], [2, 3], [4]]


def test_drop_last() -> None:
    assert _steps(5, 2, 2, 1, drop_last=True) == [[0, 1], [2, 3]]


def test_a_million_pairs_are_planned_in_seconds() -> None:
    sampler = _sampler(1_000_000, 128, Budget(2, 8192), 8, seed=0)
    start = time.perf_counter()
    assert sum(1 for _ in sampler) == len(sampler) == 7813
    assert time.perf_counter() - start < 10
