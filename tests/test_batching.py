"""Plans of optimizer steps: the same pairs in a step, however it is cut."""

import itertools

import pytest

from simpo.batching import StepSampler, micro_batches_per_rank, plan_step


def _real_pairs(micro_batches):
    return [row for m in micro_batches for row in m.pairs[: len(m.pairs) - m.fillers]]


@pytest.mark.parametrize("pairs,size,world", list(itertools.product((1, 2, 5, 8, 13), (1, 3, 8), (1, 2, 4))))
def test_plan_holds_every_pair_once(pairs, size, world) -> None:
    ranks = plan_step(list(range(100, 100 + pairs)), size, world)
    assert len(ranks) == world
    assert {len(rank) for rank in ranks} == {micro_batches_per_rank(pairs, size, world)}
    rows = [row for rank in ranks for row in _real_pairs(rank)]
    assert sorted(rows) == list(range(100, 100 + pairs))
    assert all(1 <= len(m.pairs) <= size for rank in ranks for m in rank)


def _steps(num_pairs, pairs_per_step, size, world, epoch=0, **kwargs):
    samplers = [
        StepSampler(
            num_pairs, pairs_per_step=pairs_per_step, pairs_per_micro_batch=size, world_size=world, rank=rank, **kwargs
        )
        for rank in range(world)
    ]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    assert len({len(sampler) for sampler in samplers}) == 1
    steps = list(zip(*samplers, strict=True))
    assert len(steps) == len(samplers[0])
    return [sorted(row for rank in step for row in _real_pairs(rank)) for step in steps]


def test_steps_do_not_depend_on_devices_or_micro_batches() -> None:
    reference = _steps(37, 8, 8, 1, seed=7)
    assert [len(step) for step in reference] == [8, 8, 8, 8, 5]
    for size, world in ((1, 1), (2, 2), (3, 2), (1, 8), (5, 3)):
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
