"""Data loaders of a run: tokenised data sets -> packed micro-batches of this rank."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader

from simpo.batching import Budget, StepSampler
from simpo.errors import DataError
from simpo.packing import (
    PackedBatch,
    PackedDataset,
    StepDataLoader,
    mismatched_rows,
    only_pack,
    packed_tokens,
    token_counts,
)
from simpo.reference import REFERENCE_COLUMNS

if TYPE_CHECKING:
    from accelerate import Accelerator

    from simpo.config import PreferenceConfig


class PackLoaders:
    """Makes the loaders of a run. A data set is packed by one object, so that all its loaders see its references.

    Args:
        args: settings of the run.
        mismatched: put the prompts with responses of other pairs beside each pack, for KTO.
    """

    def __init__(self, args: PreferenceConfig, *, mismatched: bool) -> None:
        self.args = args
        self.mismatched = mismatched
        self._packed: dict[int, PackedDataset] = {}

    def packs_of(self, dataset: Any) -> PackedDataset:
        """The packed form of a tokenised data set; references that it brings as columns are taken over."""
        if id(dataset) not in self._packed:
            self._check_sides(dataset)
            packed = PackedDataset(dataset, prefix_sharing=self.args.prefix_sharing, max_length=self.args.max_length)
            if self.mismatched:
                packed.partners = mismatched_rows(dataset, self.args.seed)
            elif set(REFERENCE_COLUMNS) <= set(getattr(dataset, "column_names", ())):
                packed.references = {name: np.asarray(dataset[name], np.float32) for name in REFERENCE_COLUMNS}
            self._packed[id(dataset)] = packed
        return self._packed[id(dataset)]

    def _check_sides(self, dataset: Any) -> None:
        empty = np.flatnonzero((token_counts(dataset)[1:] == 0).any(axis=0))
        if len(empty) and not self.mismatched:
            raise DataError(
                f"row {empty[0]} of the tokenised data has one response only (so have {len(empty)} in all), which "
                f"objective: {self.args.objective} cannot compare; take them out, or write objective: kto"
            )

    def train_sampler(self, dataset: Any, accelerator: Accelerator) -> StepSampler:
        """Shuffled optimizer steps."""
        assert self.args.total_train_batch_size is not None  # the settings compute it
        return StepSampler(
            packed_tokens(dataset, prefix_sharing=self.args.prefix_sharing),
            pairs_per_step=self.args.total_train_batch_size,
            budget=Budget(self.args.per_device_train_batch_size, self.args.max_tokens_per_microbatch),
            world_size=accelerator.num_processes,
            rank=accelerator.process_index,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            drop_last=self.args.dataloader_drop_last,
        )

    def train(self, dataset: Any, sampler: StepSampler) -> DataLoader[Any]:
        """Yields optimizer steps: lists of this rank's packed micro-batches."""
        return self._loader(self.packs_of(dataset), sampler, list)

    def ordered(self, packed: PackedDataset, accelerator: Accelerator, rows: range | None = None) -> DataLoader[Any]:
        """Yields packed micro-batches in the data set's order, or of some of its rows, cut over the ranks."""
        return self._loader(packed, self._ordered_sampler(packed, accelerator, rows), only_pack)

    def ordered_packs(self, packed: PackedDataset, accelerator: Accelerator) -> list[PackedBatch]:
        """This rank's packs of `ordered`, all at once: unlike a loader, this draws no random number."""
        return [packed[micro_batch] for step in self._ordered_sampler(packed, accelerator) for micro_batch in step]

    def _ordered_sampler(
        self, packed: PackedDataset, accelerator: Accelerator, rows: range | None = None
    ) -> StepSampler:
        pairs = self.args.per_device_eval_batch_size
        return StepSampler(
            packed_tokens(packed.pairs, prefix_sharing=self.args.prefix_sharing),
            pairs_per_step=pairs * accelerator.num_processes,
            budget=Budget(pairs),
            world_size=accelerator.num_processes,
            rank=accelerator.process_index,
            rows=rows,
        )

    def _loader(self, packed: PackedDataset, sampler: StepSampler, collate: Any) -> DataLoader[Any]:
        workers = self.args.dataloader_num_workers
        return StepDataLoader(
            cast(Any, packed),
            batch_sampler=cast(Any, sampler),
            collate_fn=collate,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
            persistent_workers=self.args.dataloader_persistent_workers and workers > 0,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
        )
