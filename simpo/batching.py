"""Which pairs form which micro-batch on which rank.

The optimizer step is the unit: the sampler yields, for one rank, all micro-batches of a step. Which pairs a step holds
depends on the seed, the epoch and the total batch size only, never on the number of devices or the micro-batch size.
How a step is cut is free, so it is cut for speed: micro-batches of similar token counts, the same number on every rank.
"""

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
        pairs: pairs in a micro-batch on average; rules where `tokens` is None.
        tokens: upper bound of tokens in a micro-batch; a single longer pair still runs alone.
    """

    pairs: int
    tokens: int | None = None


def micro_batches_per_rank(pairs: int, pairs_per_micro_batch: int, world_size: int) -> int:
    """Micro-batches that each rank runs for `pairs` pairs, at `pairs_per_micro_batch` on average.

    >>> micro_batches_per_rank(128, 2, 8)
    8
    """
    return math.ceil(pairs / (pairs_per_micro_batch * world_size))


def plan_step(pairs: Sequence[int], tokens: Sequence[int], budget: Budget, world_size: int) -> list[list[MicroBatch]]:
    """Cut one step's pairs into micro-batches of similar token counts, the same number on every rank.

    Longest pair first, each into the micro-batch with the fewest tokens so far. The micro-batches that the ranks run at
    the same time are neighbours in size, since ranks wait for the largest.

    Args:
        pairs: dataset rows of the step, at least one.
        tokens: packed tokens of each of these pairs.
        budget: how large a micro-batch may be.
        world_size: number of ranks.

    Returns:
        One list of micro-batches for each rank.
    """
    if budget.tokens is None:
        per_rank = micro_batches_per_rank(len(pairs), budget.pairs, world_size)
        slots = _fill(tokens, per_rank * world_size)
    else:
        per_rank = max(1, math.ceil(sum(tokens) / (budget.tokens * world_size)))
        slots = _fill(tokens, per_rank * world_size)
        while any(load > budget.tokens and len(members) > 1 for load, members in slots):
            per_rank += 1
            slots = _fill(tokens, per_rank * world_size)
    slots.sort(key=lambda slot: -slot[0])
    plan: list[list[MicroBatch]] = [[] for _ in range(world_size)]
    for micro_step in range(per_rank):
        together = slots[micro_step * world_size : (micro_step + 1) * world_size]
        # forth and back over the ranks, so that no rank always gets the largest
        ranks = range(world_size) if micro_step % 2 == 0 else range(world_size - 1, -1, -1)
        for rank, (_, members) in zip(ranks, together, strict=True):
            rows = tuple(pairs[member] for member in members)
            plan[rank].append(MicroBatch(rows) if rows else MicroBatch((pairs[0],), fillers=1))
    return plan


def _fill(tokens: Sequence[int], slots: int) -> list[tuple[int, list[int]]]:
    """Longest first into the emptiest of `slots`: (tokens, positions of the pairs) for each."""
    heap: list[tuple[int, int, list[int]]] = [(0, slot, []) for slot in range(slots)]
    for position in sorted(range(len(tokens)), key=lambda index: -tokens[index]):
        load, slot, members = heap[0]
        members.append(position)
        heapq.heapreplace(heap, (load + tokens[position], slot, members))
    return [(load, members) for load, _, members in heap]


class StepSampler(torch.utils.data.Sampler[list[MicroBatch]]):
    """Batch sampler that yields one optimizer step at a time: this rank's micro-batches.

    Args:
        tokens: packed tokens of each pair of the dataset.
        pairs_per_step: pairs of an optimizer step over all ranks; the last step of an epoch holds what is left.
        budget: how large a micro-batch may be.
        world_size, rank: number of ranks, and this one.
        seed: seeds the shuffle, with the epoch added; None keeps the dataset's order.
        drop_last: leave out a last step that is not full.
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
    ) -> None:
        self.tokens = np.asarray(tokens)
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
        full, rest = divmod(len(self.tokens), self.pairs_per_step)
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
        if self.seed is None:
            return np.arange(len(self.tokens))
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return torch.randperm(len(self.tokens), generator=generator).numpy()


class PlanSummary(NamedTuple):
    """An epoch's plan in numbers.

    Fields:
        steps: optimizer steps.
        micro_batches: micro-batches that each rank runs.
        tokens: packed tokens over all ranks, fillers included.
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
            total += sum(loads)
            waited += max(loads)
            longest = max(longest, *loads)
            fillers += sum(micro_batch.fillers for micro_batch in together)
    return PlanSummary(steps, micro_batches, total, longest, waited * world / total if total else 1.0, fillers)
