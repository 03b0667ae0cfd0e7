"""PackTrainer: transformers' Trainer, given optimizer steps of packs, on any engine. It knows no objective.

The optimizer step is the unit: the data loader yields all micro-batches of a step, `training_step` runs them, and every
sum is divided once by the counts of the whole step over all ranks. So the trajectory does not depend on the number of
devices, the engine, or how a step is cut.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import DistributedType, DynamoBackend, TorchDynamoPlugin
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import EvalLoopOutput

from simpo.batching import PlanSummary, StepSampler
from simpo.config import PreferenceConfig
from simpo.data.tokenize import is_tokenized, tokenized
from simpo.errors import ConfigError, DataError
from simpo.loaders import PackLoaders
from simpo.metrics import PairResults
from simpo.model import float32_results
from simpo.packing import PackedBatch

logger = logging.getLogger(__name__)

Look = Callable[[nn.Module, PackedBatch], dict[str, Tensor]]
"""What is read from the model for a pack on its device: [B] for each name."""


class PackTrainer(Trainer):
    """Run optimizer steps of packs through a model; a subclass says what a pack's loss is (`compute_loss`).

    Args:
        args: settings.
        mismatched: put the prompts with responses of other pairs beside each pack, for KTO.
        named: as in transformers; data sets are tokenised ones.

    Raises:
        ConfigError: accelerate was asked to cut sequences, or to compile the whole model.
    """

    args: PreferenceConfig

    def __init__(self, *, args: PreferenceConfig, mismatched: bool, **named: Any) -> None:
        _use_one_device_per_process(args)
        self.loaders = PackLoaders(args, mismatched=mismatched)
        self._evaluated_first = False
        super().__init__(args=args, data_collator=cast(Any, list), **named)  # packing happens in PackedDataset
        self._keep_float32_results()
        if any(size > 1 for size in (self.get_tp_size(), self.get_cp_size(), self.get_sp_size())):
            raise ConfigError(
                "tensor, context and sequence parallelism are not supported: a pack's segments lie whole on one "
                "device. Use ZeRO-3 or FSDP2 with gradient_checkpointing, max_tokens_per_microbatch, or an adapter"
            )

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        """As in transformers, but accelerate compiles nothing: `compile_layers` does."""
        options = super()._build_accelerator_args(**kwargs)
        if options["dynamo_plugin"].backend != DynamoBackend.NO and not self.args.torch_compile:
            raise ConfigError("accelerate's dynamo_backend compiles whole models, which packs of many lengths do not "
                              "allow; take it out, and write torch_compile: true")  # fmt: skip
        return {**options, "dynamo_plugin": TorchDynamoPlugin(backend="no")}

    def _keep_float32_results(self) -> None:
        """Under FSDP2, stop accelerate's policy from rounding log-probs and reduced gradients to 16 bits."""
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        policy = getattr(plugin, "mixed_precision_policy", None)
        if plugin is not None and isinstance(policy, MixedPrecisionPolicy):
            plugin.mixed_precision_policy = float32_results(policy)

    # Loaders

    def plan_summary(self) -> PlanSummary:
        """How the first epoch is cut into micro-batches, and what that costs."""
        return self._train_sampler().summary()

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Loader that yields optimizer steps: lists of this rank's packed micro-batches."""
        sampler = self._train_sampler()
        if not len(sampler):
            raise DataError(
                f"the train_dataset's {len(sampler.tokens)} pairs do not fill one step of {sampler.pairs_per_step}; "
                "lower total_train_batch_size, or set dataloader_drop_last: false"
            )
        return self.loaders.train(self.train_dataset, sampler)

    def _train_sampler(self) -> StepSampler:
        if self.train_dataset is None:
            raise DataError("training needs a train_dataset; pass one to the trainer")
        return self.loaders.train_sampler(self.train_dataset, self.accelerator)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Loader that yields packed micro-batches in the data set's order, cut over the ranks."""
        if isinstance(eval_dataset, str):
            eval_dataset = cast(dict[str, Any], self.eval_dataset)[eval_dataset]
        dataset: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise DataError("evaluation needs an eval_dataset; pass one to the trainer or to evaluate()")
        if not is_tokenized(dataset):
            with self.args.main_process_first(desc="tokenising"):
                dataset, _ = tokenized(dataset, self.processing_class, self.args, "eval")
        if not len(dataset):
            raise DataError("the eval_dataset holds no pairs")
        return self.loaders.ordered(self.loaders.packs_of(dataset), self.accelerator)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """The same loader as for evaluation."""
        return self.get_eval_dataloader(test_dataset)

    def get_total_train_batch_size(self, args: Any) -> int:
        """Pairs per optimizer step over all devices."""
        return args.total_train_batch_size

    def _prepare_inputs(self, inputs: Any) -> Any:
        """Move one pack to the device."""
        return {
            key: self._prepare_inputs(value)
            if isinstance(value, Mapping)
            else value.to(self.args.device, non_blocking=True)
            for key, value in inputs.items()
        }

    # Steps

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers. After an evaluation, DDP replicas are synchronised all the same.

        Raises:
            ConfigError: after evaluate() or compute_references() under DeepSpeed or FSDP, which prepare a model for one
                of the two only.
        """
        if self._evaluated_first:
            if self._sharded:
                raise ConfigError("evaluate() or compute_references() was called before train(), which DeepSpeed and "
                                  "FSDP do not allow; set eval_on_start: true instead, training computes log-probs "
                                  "of the initial policy by itself")  # fmt: skip
            # accelerate takes the model that it prepared for evaluation for a ready one, and would skip the DDP wrapper
            self.model.__dict__.pop("_is_accelerate_prepared", None)
            self._evaluated_first = False
        return super().train(*args, **kwargs)

    @property
    def _sharded(self) -> bool:
        return self.accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP)

    def get_batch_samples(
        self, epoch_iterator: Iterator[list[PackedBatch]], num_batches: int, device: torch.device
    ) -> tuple[list[list[PackedBatch]], Tensor | None]:
        """The next optimizer step, and what it holds over all ranks: [pairs, chosen tokens], which divide its loss."""
        steps, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not steps:
            return steps, None
        counts = torch.zeros(2)
        for pack in (pack for step in steps for pack in step):
            counts[0] += pack["pair_weights"].sum()
            counts[1] += (pack["pair_weights"] * pack["chosen_lengths"]).sum()
        counts.clamp_(min=1e-9)  # a step may hold no chosen response
        return steps, cast(Tensor, self.accelerator.reduce(counts.to(device, non_blocking=True), reduction="sum"))

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Forward and backward of all micro-batches of one optimizer step; gradients are synchronised at the last."""
        total = torch.zeros((), device=self.args.device)
        for number, pack in enumerate(inputs, start=1):
            last = number == len(inputs)
            # DeepSpeed decides by this flag whether the engine reduces and steps, DDP by no_sync. FSDP reduces every
            # micro-batch: deferring would keep whole gradients on every device.
            defer = not last and not self._sharded
            with self.accelerator.no_sync(model) if defer else contextlib.nullcontext():
                self.accelerator.sync_gradients = last
                total += super().training_step(model, pack, num_items_in_batch)
        return total

    def floating_point_ops(self, inputs: Any) -> int:
        """Floating-point operations of an optimizer step on this rank, by transformers' estimate."""
        packs = [inputs] if isinstance(inputs, Mapping) else inputs
        tokens = sum(pack["input_ids"].shape[1] for pack in packs)
        return super().floating_point_ops({"input_ids": torch.empty(1, tokens, device="meta")})

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """As transformers', less its pickle of the arguments, which nobody reads: settings stand in the manifest."""
        super()._save(output_dir, state_dict)
        Path(str(output_dir or self.args.output_dir), TRAINING_ARGS_NAME).unlink(missing_ok=True)

    # Looking at every pair

    def observe(self, dataloader: DataLoader[Any], look: Look) -> dict[str, np.ndarray]:
        """What `look` says of each pair of an evaluation loader, in order; every process must call it.

        Args:
            dataloader: of packed micro-batches.
            look: model and pack -> [B] for each name.

        Returns:
            [N] float64 for each name.
        """
        _, found = self._observe(dataloader, look, "Scoring")
        self.callback_handler.on_predict(self.args, self.state, self.control, {})  # closes the progress bar
        return found

    def _observe(
        self,
        dataloader: DataLoader[Any],
        look: Look,
        description: str,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> tuple[EvalLoopOutput, dict[str, np.ndarray]]:
        """The same, after what transformers' loop returns."""
        self._note_scoring()
        self._look, self._seen = look, PairResults()
        output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
        return output, self._seen.gather(self.accelerator)

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[None, None, None]:
        """Look at one pack; the results are gathered once, at the end of the evaluation loop."""
        pack = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            observed = self._look(model, pack)
        self._seen.add(observed, pack["pair_weights"], pack["pair_index"])
        return None, None, None

    def _note_scoring(self) -> None:
        """The engine is about to prepare the policy for an evaluation, maybe before training."""
        if self.is_in_train or self.state.global_step > 0:
            return
        plugin = getattr(self.args, "deepspeed_plugin", None)
        if plugin is not None and plugin.zero_stage != 3:
            raise ConfigError(
                "evaluate() and the log-probs of the initial policy before train() need ZeRO-3, not "
                f"ZeRO-{plugin.zero_stage}; for the former set eval_on_start: true, training computes the latter"
            )
        self._evaluated_first = True


def _use_one_device_per_process(args: PreferenceConfig) -> None:
    if args.n_gpu > 1:  # torch.nn.DataParallel would cut the packed row in pieces
        logger.warning(
            "%d GPUs are visible to one process; using the first. Start with `accelerate launch`", args.n_gpu
        )
        args._n_gpu = 1
