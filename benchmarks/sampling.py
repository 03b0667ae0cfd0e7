"""Steps cut in the order in which their pairs were drawn: what the balanced plan is compared with."""

from collections.abc import Iterator

import numpy as np

from simpo.batching import MicroBatch, StepSampler, micro_batches_per_rank


class UnbalancedSampler(StepSampler):
    """A `StepSampler` that gives every micro-batch as many pairs as the next, whatever their lengths."""

    def plans(self) -> Iterator[list[list[MicroBatch]]]:
        """The micro-batches of all ranks, step by step."""
        order = self._order()
        for step in range(len(self)):
            pairs = order[step * self.pairs_per_step : (step + 1) * self.pairs_per_step]
            yield self._cut(pairs.tolist())

    def _cut(self, pairs: list[int]) -> list[list[MicroBatch]]:
        per_rank = micro_batches_per_rank(len(pairs), self.budget.pairs, self.world_size)
        groups = [tuple(group.tolist()) for group in np.array_split(np.array(pairs), per_rank * self.world_size)]
        micro_batches = [MicroBatch(group) if group else MicroBatch((pairs[0],), fillers=1) for group in groups]
        return [micro_batches[rank :: self.world_size] for rank in range(self.world_size)]
