"""Which pairs form which micro-batch on which rank.

The optimizer step is the unit: the sampler yields, for one rank, all micro-batches of a step. Which pairs a step holds
depends on the seed, the epoch and the total batch size only, never on the number of devices or the micro-batch size.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch


class MicroBatch(NamedTuple):
    """Rows of the dataset that one rank packs together.

    `fillers` at the end are repeats with weight 0: they keep the ranks in step where pairs run out.
    """

    pairs: tuple[int, ...]
    fillers: int = 0


def micro_batches_per_rank(pairs: int, pairs_per_micro_batch: int, world_size: int) -> int:
    """Micro-batches that each rank runs for `pairs` pairs.

    >>> micro_batches_per_rank(128, 2, 8)
    8
    """
    return math.ceil(pairs / (pairs_per_micro_batch * world_size))


def plan_step(pairs: Sequence[int], pairs_per_micro_batch: int, world_size: int) -> list[list[MicroBatch]]:
    """Cut one step's pairs into micro-batches: the same number on every rank, sizes that differ by one at most.

    Args:
        pairs: dataset rows of the step, at least one.
        pairs_per_micro_batch: upper bound of pairs in a micro-batch, >= 1.
        world_size: number of ranks.

    Returns:
        One list of micro-batches for each rank.
    """
    per_rank = micro_batches_per_rank(len(pairs), pairs_per_micro_batch, world_size)
    slots = per_rank * world_size
    bounds = [slot * len(pairs) // slots for slot in range(slots + 1)]
    micro_batches = []
    for low, high in itertools.pairwise(bounds):
        if low == high:
            micro_batches.append(MicroBatch((pairs[0],), fillers=1))
        else:
            micro_batches.append(MicroBatch(tuple(pairs[low:high])))
    return [micro_batches[rank::world_size] for rank in range(world_size)]


class StepSampler(torch.utils.data.Sampler[list[MicroBatch]]):
    """Batch sampler that yields one optimizer step at a time: this rank's micro-batches.

    Args:
        num_pairs: pairs in the dataset.
        pairs_per_step: pairs of an optimizer step over all ranks; the last step of an epoch holds what is left.
        pairs_per_micro_batch: upper bound of pairs that a rank packs together.
        world_size, rank: number of ranks, and this one.
        seed: seeds the shuffle, with the epoch added; None keeps the dataset's order.
        drop_last: leave out a last step that is not full.
    """

    def __init__(
        self,
        num_pairs: int,
        *,
        pairs_per_step: int,
        pairs_per_micro_batch: int,
        world_size: int = 1,
        rank: int = 0,
        seed: int | None = None,
        drop_last: bool = False,
    ) -> None:
        self.num_pairs = num_pairs
        self.pairs_per_step = pairs_per_step
        self.pairs_per_micro_batch = pairs_per_micro_batch
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
        full, rest = divmod(self.num_pairs, self.pairs_per_step)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        """One list of micro-batches for each optimizer step."""
        order = self._order()
        for step in range(len(self)):
            pairs = order[step * self.pairs_per_step : (step + 1) * self.pairs_per_step]
            yield plan_step(pairs, self.pairs_per_micro_batch, self.world_size)[self.rank]

    def _order(self) -> Sequence[int]:
        if self.seed is None:
            return range(self.num_pairs)
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return torch.randperm(self.num_pairs, generator=generator).tolist()
