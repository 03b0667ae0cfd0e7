"""The initial policy of a run: its log-probs of every data set, without a second model.

Before the first step the policy is its own reference; an adapter that the run has added is switched off, at any time.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm  # type: ignore[import-untyped]
from transformers import TrainerCallback

from simpo.packing import PackedBatch, PackedDataset
from simpo.reference import ReferenceCache, cache_key, fill_references

if TYPE_CHECKING:
    from simpo.trainer import PreferenceTrainer


class InitialPolicy:
    """Gives the data sets of a trainer their reference log-probs.

    Args:
        trainer: whose policy it is.
        fingerprint: from `simpo.reference.policy_fingerprint`, taken before anything was trained.
        fresh_adapter: the trainer added an adapter, without which the policy is the initial one.
    """

    def __init__(self, trainer: PreferenceTrainer, fingerprint: str, *, fresh_adapter: bool) -> None:
        self.trainer = trainer
        self.fingerprint = fingerprint
        self.fresh_adapter = fresh_adapter

    def fill(self, packed: PackedDataset, name: str) -> None:
        """Give a data set its reference log-probs, from the cache or computed now; every process must call it.

        Raises:
            ConfigError: the cache holds numbers of another model, or there are none and the policy is already trained.
        """
        if packed.references:
            return
        args = self.trainer.args
        key = cache_key(
            policy=self.fingerprint,
            pairs=packed.pairs,
            dtype=args.compute_dtype,
            mismatched=None if packed.partners is None else {"seed": args.seed, "max_length": args.max_length},
        )
        cache = ReferenceCache(args.reference_cache, key)
        if self.trainer.is_world_process_zero():
            # tqdm.write, for the bar of the steps is already there
            tqdm.write(f"Log-probs of the initial policy on {name}, {len(packed):,} pairs, kept in {cache.path}")
        initial = self.fresh_adapter or self.trainer.state.global_step == 0
        fill_references(
            packed,
            cache,
            functools.partial(self._part, packed) if initial else None,
            exact=args.compute_dtype == torch.float32,
            name=name,
        )

    def _part(self, packed: PackedDataset, rows: range) -> dict[str, np.ndarray]:
        """[len(rows)] float32 arrays: the log-probs of some rows."""
        accelerator = self.trainer.accelerator
        policy: Any = accelerator.unwrap_model(self.trainer.model)
        with policy.disable_adapter() if self.fresh_adapter else contextlib.nullcontext():
            found = self.trainer.observe(self.trainer.loaders.ordered(packed, accelerator, rows), self._log_probs)
        return {name: values.astype(np.float32) for name, values in found.items()}

    def _log_probs(self, model: nn.Module, pack: PackedBatch) -> dict[str, Tensor]:
        chosen, rejected = self.trainer.scorer.response_logps(model, pack)
        found = {"ref_chosen": chosen, "ref_rejected": rejected}
        if "mismatched" in pack:
            found["ref_mismatched"] = self.trainer.scorer.response_logps(model, pack["mismatched"])[0]
        return found


class ReferenceCallback(TrainerCallback):
    """Once the engine holds the policy, and before the first step, computes its log-probs of all data sets."""

    def __init__(self, trainer: PreferenceTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.trainer.compute_references()


def named_sets(train: Any, evaluation: Any) -> dict[str, Any]:
    """The data sets of a trainer by their names; those that are None are left out."""
    others = evaluation if isinstance(evaluation, Mapping) else {"eval": evaluation}
    return {name: data for name, data in {"train": train, **others}.items() if data is not None}
