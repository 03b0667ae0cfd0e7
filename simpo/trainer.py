"""PreferenceTrainer: steps of packs with an objective; SimPOTrainer is its SimPO form. No maths here.

How steps run, on which engine, is `simpo.pack_trainer`'s; here is what is scored, what a loss is, what is logged.
"""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import EvalLoopOutput, denumpify_detensorize

from simpo.config import PreferenceConfig
from simpo.data.tokenize import tokenized_sets
from simpo.errors import ConfigError, ModelError
from simpo.forward import attention_backend
from simpo.initial_policy import InitialPolicy, ReferenceCallback, is_initial_without, named_sets
from simpo.losses import Objective, step_loss
from simpo.metrics import RunningMeans, evaluation_means, mean_logged_loss, pair_metrics
from simpo.model import (
    build_policy,
    check_liger_kernel,
    compile_layers,
    disable_dropout,
    load_model_config,
    load_tokenizer,
)
from simpo.monitor import FiniteCheck, Monitors
from simpo.objectives import OBJECTIVES
from simpo.pack_trainer import PackTrainer
from simpo.packing import PackedBatch, PackedDataset
from simpo.reference import policy_fingerprint
from simpo.scoring import Scorer


class PreferenceTrainer(PackTrainer):
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
        tokenizer = processing_class or _tokenizer_of(model, args)
        if isinstance(model, str):  # before data and weights: the config alone can rule a model out
            config = load_model_config(model, **_hub_options(args))
            attention_backend(config, args.attn_backend, args.device, args.compute_dtype)
        with args.main_process_first(desc="tokenising"):
            train_dataset, eval_dataset, reports = tokenized_sets(train_dataset, eval_dataset, tokenizer, args)
        self.train_report = reports.pop("train", None)
        self.eval_reports = reports
        policy, self.master_dtype_note = _policy_of(model, args, peft_config, quantization_config)
        self._train_means, self._finite = RunningMeans(), FiniteCheck(self)
        self.scorer = Scorer(policy, objective or spec.bind(args.objective_settings), args)
        self.name_row: Callable[[int], str] = "row {}".format  # of the training data, in errors
        self.is_interrupted: Callable[[], bool] = lambda: False  # whether its next start goes on where it ended
        super().__init__(
            model=policy,
            args=args,
            mismatched=self._needs_kl,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
            compute_metrics=compute_metrics,
        )
        if self._initial_policy is not None:
            self.add_callback(ReferenceCallback(self, self._initial_policy))
        if args.monitor != "off":
            self.add_callback(Monitors(self))
        if args.use_liger_kernel:
            check_liger_kernel(policy)
        if args.torch_compile:
            compile_layers(
                policy,
                backend=str(args.torch_compile_backend),
                mode=args.torch_compile_mode,
                checkpointed=bool(args.gradient_checkpointing),
            )

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

    # Training

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in `PackTrainer`; what is logged, and watched for numbers that are not finite, begins anew."""
        self._train_means, self._finite = RunningMeans(), FiniteCheck(self)
        self._resumed = bool(args[0] if args else kwargs.get("resume_from_checkpoint"))
        return super().train(*args, **kwargs)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """As in `PackTrainer`, after the step's estimate of the KL where the objective needs one."""
        if self._needs_kl:
            self.scorer.kl = self._estimate_kl(model, inputs)
        return super().training_step(model, inputs, num_items_in_batch)

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

    # Evaluation

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate every pair once. Metrics are means over pairs, whatever the batch size and number of ranks."""
        if self._initial_policy is not None:
            self._initial_policy.fill(cast(PackedDataset, dataloader.dataset), metric_key_prefix)
        if self._needs_kl:
            ratios = self.observe(
                dataloader, lambda model, pack: {"kl": self.scorer.mismatched_log_ratios(model, pack["mismatched"])}
            )
            self.scorer.kl = torch.tensor(max(0.0, float(ratios["kl"].mean())), device=self.args.device)
        output, results = self._observe(dataloader, self.scorer.metrics, description, ignore_keys, metric_key_prefix)
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


def _policy_of(
    model: str | nn.Module, args: PreferenceConfig, peft_config: Any, quantization_config: Any
) -> tuple[nn.Module, str]:
    """The policy as the settings want it, and a note on the dtype of its weights."""
    policy, note = build_policy(
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
    return policy, note


def _hub_options(args: PreferenceConfig) -> dict[str, Any]:
    options = cast(dict[str, Any], args.model_init_kwargs or {})
    return {key: options[key] for key in ("revision", "trust_remote_code") if key in options}


def _tokenizer_of(model: str | nn.Module, args: PreferenceConfig) -> PreTrainedTokenizerBase:
    name = model if isinstance(model, str) else getattr(getattr(model, "config", None), "name_or_path", "")
    if not name:
        raise ModelError("the model does not know where it came from; pass its tokenizer as processing_class")
    return load_tokenizer(name, **_hub_options(args))
