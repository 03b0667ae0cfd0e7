"""Which pairs form which micro-batch on which rank.

The optimizer step is the unit: the sampler yields, for one rank, all micro-batches of a step. Which pairs a step holds
depends on the seed, the epoch and the total batch size only, never on the number of devices or the micro-batch size.
How a step is cut is free, so it is cut for speed: micro-batches of similar token counts, the same number on every rank.
"""

import bisect
import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch


class MicroBatch(NamedTuple):
    """Rows of the dataset that one rank packs together.

    `fillers` at the end are repeats with weight 0: they keep the ranks in step where pairs run out.
    """

    pairs: tuple[int, ...]
    fillers: int = 0


class Budget(NamedTuple):
    """How large a micro-batch may be.

    Fields:
        pairs: where `tokens` is None: as many tokens as the largest micro-batch would have if the step's pairs were
            spread evenly over micro-batches of this many pairs on average.
        tokens: upper bound of tokens in a micro-batch; a single longer pair still runs alone.
    """

    pairs: int
    tokens: int | None = None


def micro_batches_per_rank(pairs: int, pairs_per_micro_batch: int, world_size: int) -> int:
    """Most micro-batches that each rank runs for `pairs` pairs, at `pairs_per_micro_batch` on average.

    >>> micro_batches_per_rank(128, 2, 8)
    8
    """
    return math.ceil(pairs / (pairs_per_micro_batch * world_size))


def plan_step(pairs: Sequence[int], tokens: Sequence[int], budget: Budget, world_size: int) -> list[list[MicroBatch]]:
    """Cut one step's pairs into micro-batches, the same number on every rank and alike at the same time.

    Pairs are spread evenly, longest first, each into the micro-batch with the fewest tokens so far. Ranks wait for the
    largest of the micro-batches that they run at the same time; so where a pair is longer than the average micro-batch
    and sets the pace, the ranks beside it are filled up to its length, if that takes less time.

    Args:
        pairs: dataset rows of the step, at least one.
        tokens: packed tokens of each of these pairs.
        budget: how large a micro-batch may be.
        world_size: number of ranks.

    Returns:
        One list of micro-batches for each rank.
    """
    shortest = min(range(len(pairs)), key=lambda position: tokens[position])
    plan: list[list[MicroBatch]] = [[] for _ in range(world_size)]
    for number, together in enumerate(_micro_steps(tokens, _limit(tokens, budget, world_size), world_size)):
        # forth and back over the ranks, so that no rank always gets the largest
        ranks = range(world_size) if number % 2 == 0 else range(world_size - 1, -1, -1)
        for rank, (_, members) in zip(ranks, together, strict=True):
            rows = tuple(pairs[member] for member in members)
            plan[rank].append(MicroBatch(rows) if rows else MicroBatch((pairs[shortest],), fillers=1))
    return plan


class _Slot(NamedTuple):
    """A micro-batch in the making: its tokens, and the positions of its pairs in the step."""

    tokens: int
    members: list[int]


def _limit(tokens: Sequence[int], budget: Budget, world_size: int) -> int:
    """Tokens that a micro-batch may hold: as given, or those of the largest if pairs were spread evenly."""
    if budget.tokens is not None:
        return budget.tokens
    slots = micro_batches_per_rank(len(tokens), budget.pairs, world_size) * world_size
    return max(slot.tokens for slot in _spread(range(len(tokens)), tokens, slots))


def _micro_steps(tokens: Sequence[int], limit: int, world_size: int) -> list[list[_Slot]]:
    """The micro-batches that the ranks run at the same time, in the cut that takes less time."""
    shortest_first = sorted(range(len(tokens)), key=lambda position: tokens[position])
    even = _even_cut(shortest_first, tokens, limit, world_size)
    if tokens[shortest_first[-1]] * len(even) * world_size <= sum(tokens):
        return even
    paced = _paced_cut(shortest_first, tokens, limit, world_size)
    return even if len(paced) > len(even) else min(even, paced, key=_lock_step_tokens)


def _lock_step_tokens(micro_steps: list[list[_Slot]]) -> int:
    """Tokens that the ranks wait for."""
    return sum(together[0].tokens for together in micro_steps)


def _paced_cut(rest: list[int], tokens: Sequence[int], limit: int, world_size: int) -> list[list[_Slot]]:
    """While the longest pair exceeds the average micro-batch, the ranks beside it are filled up to its length."""
    micro_steps: list[list[_Slot]] = []
    rest, left = list(rest), sum(tokens)
    while rest:
        count = math.ceil(left / (limit * world_size))
        if count == 1 or tokens[rest[-1]] * count * world_size <= left:
            return micro_steps + _even_cut(rest, tokens, limit, world_size)
        micro_steps.append(_beside_the_longest(rest, tokens, limit, world_size))
        left -= sum(slot.tokens for slot in micro_steps[-1])
    return micro_steps


def _even_cut(positions: Sequence[int], tokens: Sequence[int], limit: int, world_size: int) -> list[list[_Slot]]:
    """As few micro-batches of similar size as the limit allows, largest first."""
    count = math.ceil(sum(tokens[position] for position in positions) / (limit * world_size))
    slots = _spread(positions, tokens, count * world_size)
    while any(slot.tokens > limit and len(slot.members) > 1 for slot in slots):
        count += 1
        slots = _spread(positions, tokens, count * world_size)
    slots.sort(key=lambda slot: -slot.tokens)
    return [slots[start : start + world_size] for start in range(0, len(slots), world_size)]


def _beside_the_longest(rest: list[int], tokens: Sequence[int], limit: int, world_size: int) -> list[_Slot]:
    """Take pairs out of `rest` (shortest first) for one micro-batch a rank, each as large as the longest pair."""
    target = min(limit, tokens[rest[-1]])
    heap = [_Slot(tokens[position], [position]) for position in (rest.pop() for _ in range(min(world_size, len(rest))))]
    done = [_Slot(0, []) for _ in range(world_size - len(heap))]
    heapq.heapify(heap)
    while heap:
        slot = heapq.heappop(heap)
        fits = bisect.bisect_right(rest, target - slot.tokens, key=lambda position: tokens[position])
        if fits == 0:
            done.append(slot)
            continue
        position = rest.pop(fits - 1)  # the longest that fits
        heapq.heappush(heap, _Slot(slot.tokens + tokens[position], [*slot.members, position]))
    return sorted(done, key=lambda slot: -slot.tokens)


def _spread(positions: Iterable[int], tokens: Sequence[int], slots: int) -> list[_Slot]:
    """Longest first into the emptiest of `slots`."""
    heap: list[tuple[int, int, list[int]]] = [(0, slot, []) for slot in range(slots)]
    for position in sorted(positions, key=lambda position: -tokens[position]):
        load, slot, members = heap[0]
        members.append(position)
        heapq.heapreplace(heap, (load + tokens[position], slot, members))
    return [_Slot(load, members) for load, _, members in heap]


class StepSampler(torch.utils.data.Sampler[list[MicroBatch]]):
    """Batch sampler that yields one optimizer step at a time: this rank's micro-batches.

    Args:
        tokens: packed tokens of each pair of the dataset.
        pairs_per_step: pairs of an optimizer step over all ranks; the last step of an epoch holds what is left.
        budget: how large a micro-batch may be.
        world_size, rank: number of ranks, and this one.
        seed: seeds the shuffle, with the epoch added; None keeps the dataset's order.
        drop_last: leave out a last step that is not full.
        rows: the part of the dataset that is gone through; all of it when None.
    """

    def __init__(
        self,
        tokens: Sequence[int] | np.ndarray,
        *,
        pairs_per_step: int,
        budget: Budget,
        world_size: int = 1,
        rank: int = 0,
        seed: int | None = None,
        drop_last: bool = False,
        rows: range | None = None,
    ) -> None:
        self.tokens = np.asarray(tokens)
        self.rows = range(len(self.tokens)) if rows is None else rows
        self.pairs_per_step = pairs_per_step
        self.budget = budget
        self.world_size = world_size
        self.rank = rank
        self.seed = seed
        self.drop_last = drop_last
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the shuffle of this epoch (counted from 0)."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Optimizer steps in an epoch."""
        full, rest = divmod(len(self.rows), self.pairs_per_step)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        """One list of micro-batches for each optimizer step."""
        for plan in self.plans():
            yield plan[self.rank]

    def plans(self) -> Iterator[list[list[MicroBatch]]]:
        """The micro-batches of all ranks, step by step."""
        order = self._order()
        for step in range(len(self)):
            pairs = order[step * self.pairs_per_step : (step + 1) * self.pairs_per_step]
            yield plan_step(pairs.tolist(), self.tokens[pairs].tolist(), self.budget, self.world_size)

    def summary(self) -> "PlanSummary":
        """What the epoch's plan costs; walks through the whole epoch."""
        return summarize(self.plans(), self.tokens)

    def _order(self) -> np.ndarray:
        rows = np.asarray(self.rows)
        if self.seed is None:
            return rows
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return rows[torch.randperm(len(rows), generator=generator).numpy()]


class PlanSummary(NamedTuple):
    """An epoch's plan in numbers.

    Fields:
        steps: optimizer steps.
        micro_batches: micro-batches that each rank runs.
        tokens: packed tokens over all ranks, without fillers.
        longest: tokens of the largest micro-batch.
        imbalance: time of ranks in lock step over the time of a perfect split, taking time as tokens; 1 is perfect.
        fillers: micro-batches that only keep a rank in step.
    """

    steps: int
    micro_batches: int
    tokens: int
    longest: int
    imbalance: float
    fillers: int

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"{self.steps:,} steps, {self.micro_batches:,} micro-batches a device, {self.tokens:,} tokens an epoch, "
            f"at most {self.longest:,} in a micro-batch, imbalance {self.imbalance:.3f}, no padding"
            + (f", {self.fillers} fillers" if self.fillers else "")
        )


def summarize(plans: Iterable[list[list[MicroBatch]]], tokens: np.ndarray) -> PlanSummary:
    """Add up the plans of an epoch's steps; `tokens` as in `StepSampler`."""
    steps = micro_batches = total = longest = waited = fillers = 0
    world = 1
    for plan in plans:
        steps, world = steps + 1, len(plan)
        for together in zip(*plan, strict=True):  # the ranks of one micro-step wait for the largest
            loads = [int(tokens[list(micro_batch.pairs)].sum()) for micro_batch in together]
            micro_batches += 1
            total += sum(load for load, micro_batch in zip(loads, together, strict=True) if not micro_batch.fillers)
            waited += max(loads)
            longest = max(longest, *loads)
            fillers += sum(micro_batch.fillers for micro_batch in together)
    return PlanSummary(steps, micro_batches, total, longest, waited * world / total if total else 1.0, fillers)
