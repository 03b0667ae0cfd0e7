"""PreferenceTrainer on transformers.Trainer; SimPOTrainer is its SimPO form. No maths here.

The optimizer step is the unit: the data loader yields all micro-batches of a step, `training_step` runs them, and every
sum is divided once by the counts of the whole step over all ranks. So the trajectory does not depend on the number of
devices, the engine, or how a step is cut.
"""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import DistributedType, DynamoBackend, TorchDynamoPlugin
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils.data import DataLoader
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase, Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import EvalLoopOutput, denumpify_detensorize

from simpo.batching import PlanSummary, StepSampler
from simpo.config import PreferenceConfig
from simpo.data.tokenize import is_tokenized, tokenized, tokenized_sets
from simpo.errors import ConfigError, DataError, ModelError
from simpo.forward import attention_backend
from simpo.initial_policy import InitialPolicy, ReferenceCallback, is_initial_without, named_sets
from simpo.loaders import PackLoaders
from simpo.losses import Objective, step_loss
from simpo.metrics import PairResults, RunningMeans, evaluation_means, mean_logged_loss, pair_metrics
from simpo.model import (
    build_policy,
    check_liger_kernel,
    compile_layers,
    disable_dropout,
    float32_results,
    load_model_config,
    load_tokenizer,
)
from simpo.monitor import FiniteCheck, Monitors
from simpo.objectives import OBJECTIVES
from simpo.packing import PackedBatch, PackedDataset
from simpo.reference import policy_fingerprint
from simpo.scoring import Scorer

logger = logging.getLogger(__name__)


class PreferenceTrainer(Trainer):
    """Train a decoder model on preference pairs with packs, with any objective.

    Where the objective compares with the initial policy, its log-probs are computed in one pass at the start of
    training (or of an evaluation), kept on disk (`args.reference_cache`) and used again; there is no second model.
    Data with the columns `ref_chosen` and `ref_rejected` bring their own, but not for KTO.

    Args:
        model: a path or hub name, a causal language model, or a PEFT model around one.
        args: settings; `PreferenceConfig()` when None.
        train_dataset: raw pairs in one of TRL's formats, or tokenised ones (with `prompt_ids` ...).
        eval_dataset: the same, or a dict of them by name.
        processing_class: tokenizer; loaded with the model when None.
        peft_config: adapter to add (LoRA and its relatives).
        quantization_config: how to load the base model; needs an adapter.
        callbacks, optimizers: as in transformers.
        compute_metrics: called after evaluation with an EvalPrediction whose `predictions` is a dict of [N] arrays by
            the names of `simpo.metrics.PAIR_METRICS`, in the order of the data set.
        objective: maps `PairLogps` to `PairLosses`; by default the one that `args.objective` names.

    Raises:
        ConfigError, DataError, ModelError: what is wrong, where, and what to write instead.
    """

    args: PreferenceConfig

    def __init__(
        self,
        model: str | PreTrainedModel | nn.Module,
        args: PreferenceConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: Any = None,
        quantization_config: Any = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        compute_metrics: Any = None,
        objective: Objective | None = None,
    ) -> None:
        args = PreferenceConfig() if args is None else args
        spec = OBJECTIVES[args.objective]
        self._needs_kl = objective is None and spec.kl
        reference = args.log_kl or (objective is None and spec.reference)
        self._initial_policy: InitialPolicy | None = None
        if reference:
            options = cast(dict[str, Any] | None, args.model_init_kwargs)
            fingerprint = policy_fingerprint(model, options, quantization_config)
            self._initial_policy = InitialPolicy(self, fingerprint, fresh_adapter=is_initial_without(peft_config))
        self.loaders = PackLoaders(args, mismatched=self._needs_kl)
        tokenizer = processing_class or _tokenizer_of(model, args)
        if isinstance(model, str):  # before data and weights: the config alone can rule a model out
            config = load_model_config(model, **_hub_options(args))
            attention_backend(config, args.attn_backend, args.device, args.compute_dtype)
        with args.main_process_first(desc="tokenising"):
            train_dataset, eval_dataset, reports = tokenized_sets(train_dataset, eval_dataset, tokenizer, args)
        self.train_report = reports.pop("train", None)
        self.eval_reports = reports
        policy, self.master_dtype_note = build_policy(
            model,
            bf16=bool(args.bf16),
            fp16=args.fp16,
            deepspeed=getattr(args, "deepspeed_plugin", None) is not None,
            peft_config=peft_config,
            quantization_config=quantization_config,
            model_init_kwargs=cast(dict[str, Any], args.model_init_kwargs),
            attn_backend=args.attn_backend,
        )
        if args.disable_dropout:
            disable_dropout(policy)
        _use_one_device_per_process(args)
        self._train_means, self._eval_results, self._finite = RunningMeans(), PairResults(), FiniteCheck(self)
        self.scorer = Scorer(policy, objective or spec.bind(args.objective_settings), args)
        self._look: Callable[[nn.Module, PackedBatch], dict[str, Tensor]] = self.scorer.metrics
        self._evaluated_first = False
        self.name_row: Callable[[int], str] = "row {}".format  # of the training data, in errors
        self.is_interrupted: Callable[[], bool] = lambda: False  # whether its next start goes on where it ended
        super().__init__(
            model=policy,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
            compute_metrics=compute_metrics,
            data_collator=cast(Any, list),  # packing happens in PackedDataset
        )
        if self._initial_policy is not None:
            self.add_callback(ReferenceCallback(self, self._initial_policy))
        if args.monitor != "off":
            self.add_callback(Monitors(self))
        self._keep_float32_results()
        if args.use_liger_kernel:
            check_liger_kernel(policy)
        if args.torch_compile:
            compile_layers(
                policy,
                backend=str(args.torch_compile_backend),
                mode=args.torch_compile_mode,
                checkpointed=bool(args.gradient_checkpointing),
            )
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

    # Data

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

    # The initial policy

    def compute_references(self) -> None:
        """Log-probs of the initial policy for all data sets, cached or computed now; every process must call it.

        Training and evaluation do this by themselves.

        Raises:
            ConfigError: the cache holds numbers of another model, or there are none and the policy is already trained.
        """
        if self._initial_policy is not None:
            for name, dataset in named_sets(self.train_dataset, self.eval_dataset).items():
                self._initial_policy.fill(self.loaders.packs_of(dataset), name)

    def observe(
        self, dataloader: DataLoader[Any], look: Callable[[nn.Module, PackedBatch], dict[str, Tensor]]
    ) -> dict[str, np.ndarray]:
        """What `look` says of each pair of an evaluation loader, in order; every process must call it.

        Args:
            dataloader: of packed micro-batches.
            look: model and pack -> [B] for each name.

        Returns:
            [N] float64 for each name.
        """
        self._note_scoring()
        self._eval_results, self._look = PairResults(), look
        try:
            super().evaluation_loop(dataloader, "Scoring", True)
        finally:
            self._look = self.scorer.metrics
        self.callback_handler.on_predict(self.args, self.state, self.control, {})  # closes the progress bar
        return self._eval_results.gather(self.accelerator)

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

    # Training

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers. After an evaluation, DDP replicas are synchronised all the same.

        Raises:
            ConfigError: after evaluate() or compute_references() under DeepSpeed or FSDP, which prepare a model for one
                of the two only.
        """
        if self._evaluated_first:
            if self.accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP):
                raise ConfigError("evaluate() or compute_references() was called before train(), which DeepSpeed and "
                                  "FSDP do not allow; set eval_on_start: true instead, training computes log-probs "
                                  "of the initial policy by itself")  # fmt: skip
            # accelerate takes the model that it prepared for evaluation for a ready one, and would skip the DDP wrapper
            self.model.__dict__.pop("_is_accelerate_prepared", None)
            self._evaluated_first = False
        self._train_means, self._finite = RunningMeans(), FiniteCheck(self)
        self._resumed = bool(args[0] if args else kwargs.get("resume_from_checkpoint"))
        return super().train(*args, **kwargs)

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
        if self._needs_kl:
            self.scorer.kl = self._estimate_kl(model, inputs)
        total = torch.zeros((), device=self.args.device)
        for number, pack in enumerate(inputs, start=1):
            last = number == len(inputs)
            # DeepSpeed decides by this flag whether the engine reduces and steps, DDP by no_sync. FSDP reduces every
            # micro-batch: deferring would keep whole gradients on every device.
            sharded = self.accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP)
            defer = not last and not sharded
            with self.accelerator.no_sync(model) if defer else contextlib.nullcontext():
                self.accelerator.sync_gradients = last
                total += super().training_step(model, pack, num_items_in_batch)
        return total

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """As transformers', less its pickle of the arguments, which nobody reads: settings stand in the manifest."""
        super()._save(output_dir, state_dict)
        Path(str(output_dir or self.args.output_dir), TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def _estimate_kl(self, model: nn.Module, packs: Iterable[PackedBatch]) -> Tensor:
        """KL(pi || ref) in nats, at least 0, from the mismatched pairs of a whole step over all ranks."""
        model.eval()
        sums = torch.zeros(2, device=self.args.device)
        with torch.no_grad(), self.compute_loss_context_manager():
            for pack in packs:
                inputs = self._prepare_inputs(pack["mismatched"])
                sums[0] += (self.scorer.mismatched_log_ratios(model, inputs) * inputs["pair_weights"]).sum()
                sums[1] += inputs["pair_weights"].sum()
        total, count = cast(Tensor, self.accelerator.reduce(sums, reduction="sum"))
        return (total / count).clamp(min=0)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """This micro-batch's share of the step's loss, scaled for engines that average gradients over ranks."""
        logps, results = self.scorer.score(model, inputs)
        self._train_means.add(pair_metrics(logps, results), inputs["pair_weights"], inputs["input_ids"].shape[1])
        self._finite.add(inputs, logps, results.losses)
        pairs_in_step, chosen_tokens_in_step = cast(Tensor, num_items_in_batch)
        share = step_loss(
            results.losses,
            logps.chosen,
            inputs["pair_weights"],
            pairs_in_step=pairs_in_step,
            chosen_tokens_in_step=chosen_tokens_in_step,
            sft_weight=self.args.sft_weight,
        )
        loss = share * self.accelerator.num_processes
        return (loss, results) if return_outputs else loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """As in transformers, just before the update, which a norm that is not finite stops."""
        norm = super()._get_grad_norm(model, grad_norm)
        self._finite.check_gradients(norm)
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means of the per-pair metrics since the last log, over all ranks."""
        if "loss" in logs:
            self._finite.check_logged(logs["loss"])
            means = self._train_means.pop(self.accelerator)
            self.state.num_input_tokens_seen += int(means.pop("num_tokens", 0))
            means["num_tokens"] = self.state.num_input_tokens_seen
            preference_loss = means.pop("loss", None)
            if self.args.sft_weight and preference_loss is not None:
                means["preference_loss"] = preference_loss
            logs = {**logs, **means}
        elif "train_loss" in logs and self._resumed:  # transformers' counts the steps since the last start only
            logs["train_loss"] = mean_logged_loss(self.state.log_history, logs["train_loss"])
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Any) -> int:
        """Floating-point operations of an optimizer step on this rank, by transformers' estimate."""
        packs = [inputs] if isinstance(inputs, Mapping) else inputs
        tokens = sum(pack["input_ids"].shape[1] for pack in packs)
        return super().floating_point_ops({"input_ids": torch.empty(1, tokens, device="meta")})

    # Evaluation

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[None, None, None]:
        """Score one pack; the results are gathered once, at the end of the evaluation loop."""
        pack = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            observed = self._look(model, pack)
        self._eval_results.add(observed, pack["pair_weights"], pack["pair_index"])
        return None, None, None

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate every pair once. Metrics are means over pairs, whatever the batch size and number of ranks."""
        self._note_scoring()
        if self._initial_policy is not None:
            self._initial_policy.fill(cast(PackedDataset, dataloader.dataset), metric_key_prefix)
        if self._needs_kl:
            ratios = self.observe(
                dataloader, lambda model, pack: {"kl": self.scorer.mismatched_log_ratios(model, pack["mismatched"])}
            )
            self.scorer.kl = torch.tensor(max(0.0, float(ratios["kl"].mean())), device=self.args.device)
        self._eval_results = PairResults()
        output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
        results = self._eval_results.gather(self.accelerator)
        means = evaluation_means(results, sft_weight=self.args.sft_weight)
        if self.compute_metrics is not None:
            own = self.compute_metrics(EvalPrediction(predictions=results, label_ids=None))  # type: ignore[arg-type]
            means |= denumpify_detensorize(own)
        metrics = output.metrics or {}
        metrics |= {
            name if name.startswith(f"{metric_key_prefix}_") else f"{metric_key_prefix}_{name}": value
            for name, value in means.items()
        }
        return EvalLoopOutput(predictions=results, label_ids=None, metrics=metrics, num_samples=output.num_samples)  # type: ignore[arg-type]


class SimPOTrainer(PreferenceTrainer):
    """Train with SimPO (arXiv 2405.14734): no reference model, length-normalised rewards, a target margin.

    Takes the arguments of `PreferenceTrainer`; the objective follows from `args`.

    Example:
        ```python
        from datasets import load_dataset
        from simpo import PreferenceConfig, SimPOTrainer

        trainer = SimPOTrainer(
            model="meta-llama/Meta-Llama-3-8B-Instruct",
            args=PreferenceConfig(output_dir="outputs/llama-3-8b-simpo", beta=10.0, gamma_beta_ratio=0.3),
            train_dataset=load_dataset("princeton-nlp/llama3-ultrafeedback-armorm", split="train"),
        )
        trainer.train()
        ```
    """

    def __init__(
        self, model: str | PreTrainedModel | nn.Module, args: PreferenceConfig | None = None, *more: Any, **named: Any
    ) -> None:
        if args is not None and args.objective != "simpo":
            raise ConfigError(f"SimPOTrainer with objective: {args.objective}; use PreferenceTrainer")
        super().__init__(model, args, *more, **named)


def _hub_options(args: PreferenceConfig) -> dict[str, Any]:
    options = cast(dict[str, Any], args.model_init_kwargs or {})
    return {key: options[key] for key in ("revision", "trust_remote_code") if key in options}


def _tokenizer_of(model: str | nn.Module, args: PreferenceConfig) -> PreTrainedTokenizerBase:
    name = model if isinstance(model, str) else getattr(getattr(model, "config", None), "name_or_path", "")
    if not name:
        raise ModelError("the model does not know where it came from; pass its tokenizer as processing_class")
    return load_tokenizer(name, **_hub_options(args))


def _use_one_device_per_process(args: PreferenceConfig) -> None:
    if args.n_gpu > 1:  # torch.nn.DataParallel would cut the packed row in pieces
        logger.warning(
            "%d GPUs are visible to one process; using the first. Start with `accelerate launch`", args.n_gpu
        )
        args._n_gpu = 1
