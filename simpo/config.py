"""Typed settings of a run, and every check between them that needs neither a model nor data.

`PreferenceConfig` (training), `DataConfig` (what is read; it stands in `simpo.data.config`) and `ModelSettings` (what
is trained) share no field name, so one flat YAML file can hold all three (`simpo.settings`).
"""

from __future__ import annotations

import copy
import os
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal

import torch
from accelerate.utils import DynamoBackend
from transformers import SchedulerType, TrainingArguments
from transformers.utils import (
    is_torch_bf16_gpu_available,
    is_torch_cuda_available,
    is_torch_xla_available,
    is_torch_xpu_available,
)
from trl import ModelConfig

from simpo.batching import micro_batches_per_rank
from simpo.checks import find_problems
from simpo.data.config import DataConfig
from simpo.errors import ConfigError
from simpo.objectives import OBJECTIVES
from simpo.redact import TellsNoSecrets

__all__ = ["DataConfig", "ModelSettings", "PreferenceConfig", "SimPOConfig", "defaults_of"]


def defaults_of(settings_class: type) -> dict[str, Any]:
    """Field name -> default of a settings dataclass."""
    found = {}
    for item in fields(settings_class):
        if item.default is not MISSING:
            found[item.name] = item.default
        elif item.default_factory is not MISSING:
            found[item.name] = item.default_factory()
    return found


def settle_precision(args: Any) -> None:
    """Turn bf16 on where it was left open and the device has it, in TrainingArguments not checked yet.

    Raises:
        ConfigError: bf16 was asked for on a device that does not have it.
    """
    # `accelerate launch` says use_cpu by environment only, which transformers' bf16 check does not read.
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on"):
        args.use_cpu = True
    on_device = not args.use_cpu and (is_torch_bf16_gpu_available() or is_torch_xla_available())
    if args.bf16 is None:
        args.bf16 = on_device and not args.fp16
    elif args.bf16 and not args.use_cpu and not on_device:
        raise ConfigError(
            "bf16: true, but no device with bf16 was found; write bf16: false, or use_cpu: true to run on the CPU"
        )


@dataclass(repr=False)  # the inherited __repr__ hides hub tokens
class PreferenceConfig(TellsNoSecrets, TrainingArguments):
    """Training settings: `transformers.TrainingArguments` plus objective, lengths and batch.

    Each objective uses some of the settings from `beta` to `alpha`; those that it does not use stay None, and giving
    one is an error. Left out, one takes the default of the objective's loss (`simpo.losses`).

    Args:
        objective: a name in `simpo.objectives.OBJECTIVES`: simpo, dpo, ipo, kto, r-dpo, cpo, orpo, rrhf, slic-hf,
            alphapo.
        beta: scale of rewards; above 0.
        gamma_beta_ratio: target margin gamma divided by beta; 0 or more. `gamma` is computed from both.
        loss_type: `sigmoid` or `hinge`.
        label_smoothing: probability that a pair's preference is swapped; in [0, 0.5), sigmoid only.
        length_normalization: divide log-probs, or log-ratios, by the response's length.
        tau: regularisation of IPO; above 0.
        length_penalty: what a token costs under R-DPO; 0 or more.
        nll_weight: weight of the chosen response's negative log-likelihood (nats, summed over its tokens) under CPO,
            RRHF and SLiC-HF; 0 or more.
        odds_weight: weight of ORPO's odds-ratio term; 0 or more.
        delta: margin of SLiC-HF in nats; above 0.
        desirable_weight, undesirable_weight: weights of chosen and rejected responses under KTO; 0 or more.
        alpha: shape of AlphaPO's reward; any number.
        sft_weight: weight of the chosen responses' mean token negative log-likelihood (nats per token), beside any
            objective; 0 or more.
        log_kl: compute the log-probs of the initial policy also where the objective does not need them, and log
            log-ratios to it.
        reference_cache: folder of the log-probs of initial policies. None: beside the data sets' cache.
        max_length: tokens of prompt and response together.
        max_prompt_length: tokens that an overlong prompt is cut to; below max_length.
        truncation: `cut` what exceeds max_length, or `drop` the whole pair.
        tokenization: `standard`, or `paper` for the token ids of the published implementation.
        add_empty_system: put an empty system turn before conversations that have none.
        prefix_sharing: compute the prompt of a pair once; false runs each response with its own prompt.
        attn_backend: kernel for the attention of packs: auto, flash, varlen, flex or sdpa (simpo.attention.backends).
        total_train_batch_size: pairs per optimizer step over all devices. None: per_device_train_batch_size x
            gradient_accumulation_steps x processes.
        max_tokens_per_microbatch: upper bound of packed tokens in a micro-batch; a single longer pair still runs alone.
            None: as many tokens as micro-batches of per_device_train_batch_size pairs would need.
        disable_dropout: set every dropout probability of the policy to 0.
        dataset_num_proc: processes that tokenise.
        model_init_kwargs: passed to `from_pretrained` when the model is given by name (dict, or JSON text).
        monitor: what watching the run does: `off` nothing, `warn` warns, `stop` also ends the run where it is lost
            (`simpo.monitor`). False is `off`, True is `warn`.
        monitor_pairs: pairs whose log-probs are followed.
        monitor_prompts: prompts that are answered at the same times; 0 for none.
        monitor_max_new_tokens: bound of those answers.
        hang_timeout: seconds without progress or sign of life after which a run on several processes ends and names
            the one that hangs or is lost; below ddp_timeout; 0 never. None: a third of ddp_timeout.

    The optimizer step is the unit: after construction `gradient_accumulation_steps` is always 1, what was given is in
    `total_train_batch_size`. How a step is cut into micro-batches never changes what is computed.

    Raises:
        ConfigError: a number is out of bounds, or settings contradict each other.
    """

    # Values that may be given as JSON text; both checkpointing names on every transformers version.
    _VALID_DICT_FIELDS = sorted(
        {
            *TrainingArguments._VALID_DICT_FIELDS,
            "activation_checkpointing_kwargs",
            "gradient_checkpointing_kwargs",
            "model_init_kwargs",
        }
    )

    # Defaults of TrainingArguments that the paper sets otherwise.
    learning_rate: float = field(default=1e-6, metadata={"help": "Peak learning rate; the paper uses 3e-7 to 1e-6."})
    lr_scheduler_type: SchedulerType | str = field(default="cosine", metadata={"help": "Learning-rate schedule."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up steps; below 1 a part of all steps."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the training pairs."})
    per_device_train_batch_size: int = field(default=2, metadata={"help": "Pairs per micro-batch and device."})
    per_device_eval_batch_size: int = field(default=4, metadata={"help": "Pairs per evaluation batch and device."})
    logging_steps: float = field(default=5, metadata={"help": "Optimizer steps between two log lines."})
    bf16: bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "bf16 autocast. Left out: on where the device has bf16 and fp16 is off."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator picks its own columns."})
    report_to: str | list[str] | None = field(default="none", metadata={"help": "Experiment trackers, or none."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Log zero in place of a loss that is NaN."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Search for parameters without gradient in every step; text models have none."}
    )
    resume_from_checkpoint: str | bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "A checkpoint folder; true: the last one; false: never; left out: automatic."}
    )
    # Two names for one thing: transformers renamed it in 5.18 or later. Both are accepted and kept equal.
    activation_checkpointing: bool | None = field(
        default=None, metadata={"help": "Recompute activations in the backward pass to save memory."}
    )
    activation_checkpointing_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "For `gradient_checkpointing_enable`; left out: use_reentrant false."}
    )
    gradient_checkpointing: bool | None = field(  # type: ignore[assignment,unused-ignore]
        default=None, metadata={"help": "Other name of activation_checkpointing."}
    )
    gradient_checkpointing_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Other name of activation_checkpointing_kwargs."}
    )

    # The objective.
    objective: str = field(default="simpo", metadata={"help": "Name of the objective."})
    beta: float | None = field(default=None, metadata={"help": "Scale of rewards."})
    gamma_beta_ratio: float | None = field(default=None, metadata={"help": "Target margin divided by beta."})
    loss_type: Literal["sigmoid", "hinge"] | None = field(default=None, metadata={"help": "Form of SimPO's loss."})
    label_smoothing: float | None = field(default=None, metadata={"help": "Probability that a preference is swapped."})
    length_normalization: bool | None = field(
        default=None, metadata={"help": "Divide log-probs, or log-ratios, by the response's length."}
    )
    tau: float | None = field(default=None, metadata={"help": "Regularisation of IPO."})
    length_penalty: float | None = field(default=None, metadata={"help": "What a token costs under R-DPO."})
    nll_weight: float | None = field(
        default=None, metadata={"help": "Weight of the chosen response's summed NLL under CPO, RRHF and SLiC-HF."}
    )
    odds_weight: float | None = field(default=None, metadata={"help": "Weight of ORPO's odds-ratio term."})
    delta: float | None = field(default=None, metadata={"help": "Margin of SLiC-HF in nats."})
    desirable_weight: float | None = field(default=None, metadata={"help": "Weight of KTO's desirable responses."})
    undesirable_weight: float | None = field(default=None, metadata={"help": "Weight of KTO's undesirable responses."})
    alpha: float | None = field(default=None, metadata={"help": "Shape of AlphaPO's reward; 0 is SimPO."})
    sft_weight: float = field(default=0.0, metadata={"help": "Weight of the chosen responses' mean token NLL."})
    log_kl: bool = field(
        default=False, metadata={"help": "Log log-ratios to the initial policy, whatever the objective."}
    )
    reference_cache: str | None = field(
        default=None, metadata={"help": "Folder of cached log-probs of initial policies."}
    )

    # Tokens.
    max_length: int = field(default=1024, metadata={"help": "Tokens of prompt and response together."})
    max_prompt_length: int = field(default=512, metadata={"help": "Tokens that an overlong prompt is cut to."})
    tokenization: Literal["standard", "paper"] = field(
        default="standard", metadata={"help": "paper: the token ids of the published implementation."}
    )
    truncation: Literal["cut", "drop"] = field(
        default="cut", metadata={"help": "What becomes of a pair that exceeds max_length: cut it, or drop it."}
    )
    add_empty_system: bool = field(default=False, metadata={"help": "Put an empty system turn first where none is."})
    dataset_num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenise."})

    # The step.
    prefix_sharing: bool = field(default=True, metadata={"help": "Compute the prompt of a pair once."})
    attn_backend: Literal["auto", "flash", "varlen", "flex", "sdpa"] = field(
        default="auto", metadata={"help": "Kernel for the attention of packs; auto takes the fastest that serves."}
    )
    total_train_batch_size: int | None = field(
        default=None, metadata={"help": "Pairs per optimizer step over all devices; accumulation follows from it."}
    )
    max_tokens_per_microbatch: int | None = field(
        default=None, metadata={"help": "Upper bound of packed tokens in a micro-batch; replaces the count of pairs."}
    )
    disable_dropout: bool = field(default=True, metadata={"help": "Set every dropout probability to 0."})
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Passed to from_pretrained when the model is given by name."}
    )
    hang_timeout: float | None = field(
        default=None, metadata={"help": "Seconds after which a process that hangs or is lost ends the run."}
    )

    # Watching the run.
    monitor: Literal["off", "warn", "stop"] | bool = field(  # YAML takes a bare off for false
        default="warn", metadata={"help": "off, warn, or stop: also end a run that is lost."}
    )
    monitor_pairs: int = field(default=64, metadata={"help": "Pairs whose log-probs are followed."})
    monitor_prompts: int = field(default=4, metadata={"help": "Prompts that are answered to be looked at."})
    monitor_max_new_tokens: int = field(default=64, metadata={"help": "Tokens of such an answer at most."})

    def __post_init__(self) -> None:
        self._settle_names()
        settle_precision(self)
        problems = find_problems(vars(self))
        if problems:
            raise ConfigError("\n".join(problem.text for problem in problems))
        for name, default in OBJECTIVES[self.objective].knobs.items():
            if getattr(self, name) is None:
                setattr(self, name, default)
        self._settle_kernels()
        # Engines read this number while the parent builds them, so it must be 1 before that.
        accumulation, self.gradient_accumulation_steps = self.gradient_accumulation_steps, 1
        super().__post_init__()
        if isinstance(self.model_init_kwargs, str):
            raise ConfigError(
                f"model_init_kwargs: {self.model_init_kwargs!r} is not a mapping; write {{name: value}} or JSON"
            )
        self._settle_batch(accumulation)

    def _settle_names(self) -> None:
        for old, new in (
            ("gradient_checkpointing", "activation_checkpointing"),
            ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
        ):
            if getattr(self, new) is None:
                setattr(self, new, getattr(self, old))
            setattr(self, old, getattr(self, new))
        self.activation_checkpointing = self.gradient_checkpointing = bool(self.activation_checkpointing)
        if isinstance(self.monitor, bool):
            self.monitor = "warn" if self.monitor else "off"
        if self.report_to is None:  # transformers would make the list [None] of it
            self.report_to = "none"

    def _settle_kernels(self) -> None:
        if str(self.torch_compile_backend or "inductor").upper() not in {*DynamoBackend.list()} - {"NO"}:
            raise ConfigError(f"torch_compile_backend: {self.torch_compile_backend!r} is unknown; write inductor")
        if self.torch_compile or self.torch_compile_backend or self.torch_compile_mode:
            self.tf32 = bool(self.tf32)  # transformers would round float32 products to TF32 unasked
        if self.use_liger_kernel:
            if not (is_torch_cuda_available() or is_torch_xpu_available()):
                raise ConfigError("use_liger_kernel: true, but no GPU was found, which its kernels need; leave it out")
            own_head = {"cross_entropy": False, "fused_linear_cross_entropy": False}
            self.liger_kernel_config = {**(self.liger_kernel_config or {}), **own_head}

    def _settle_batch(self, accumulation: int) -> None:
        per_device, world = self.per_device_train_batch_size, self.world_size
        product = per_device * accumulation * world
        if self.total_train_batch_size is None:
            self.total_train_batch_size = product
        elif accumulation != 1 and product != self.total_train_batch_size:
            raise ConfigError(
                f"total_train_batch_size: {self.total_train_batch_size} contradicts per_device_train_batch_size "
                f"{per_device} x gradient_accumulation_steps {accumulation} x {world} processes = {product}; "
                "leave gradient_accumulation_steps out, it follows from total_train_batch_size"
            )
        if self.total_train_batch_size < world:
            raise ConfigError(
                f"total_train_batch_size: {self.total_train_batch_size} is below the {world} processes of this run; "
                f"write {world} or more, or start fewer processes"
            )

    @property
    def gamma(self) -> float:
        """Target reward margin: beta * gamma_beta_ratio; 0 where the objective has none."""
        return (self.beta or 0.0) * (self.gamma_beta_ratio or 0.0)

    @property
    def objective_settings(self) -> dict[str, Any]:
        """The settings that the objective uses, with their values."""
        return {name: getattr(self, name) for name in OBJECTIVES[self.objective].knobs}

    @property
    def compute_dtype(self) -> torch.dtype:
        """What the layers compute in, as far as the settings tell."""
        given = self.model_init_kwargs.get("dtype") if isinstance(self.model_init_kwargs, dict) else None
        named = {"bfloat16": torch.bfloat16, "float16": torch.float16}
        return torch.bfloat16 if self.bf16 else torch.float16 if self.fp16 else named.get(str(given), torch.float32)

    @property
    def micro_batches_per_step(self) -> int:
        """Most micro-batches of a process in one optimizer step where max_tokens_per_microbatch is not set."""
        assert self.total_train_batch_size is not None  # set in __post_init__
        return micro_batches_per_rank(self.total_train_batch_size, self.per_device_train_batch_size, self.world_size)


@dataclass(repr=False)
class SimPOConfig(PreferenceConfig):
    """Settings of SimPO, the default of `PreferenceConfig`.

        rewards = beta / |y| * log pi(y | x),   loss = -log sigmoid(rewards_chosen - rewards_rejected - gamma)

    Source: SimPO (arXiv 2405.14734), equations 4 to 6.

    Raises:
        ConfigError: `objective` names another one.
    """

    def __post_init__(self) -> None:
        if self.objective != "simpo":
            raise ConfigError(f"SimPOConfig with objective={self.objective!r}; write PreferenceConfig")
        super().__post_init__()


@dataclass
class ModelSettings(ModelConfig):
    """What is trained: `trl.ModelConfig`, with the weights' dtype left to the trainer unless it is given.

    Args:
        dtype: `auto`, `bfloat16`, `float16`, `float32`, or None: float32 where the optimizer needs float32 masters.
        lora_target_modules: names of modules, or one text such as `all-linear`.
        trust_remote_code: run code that comes with the model.

    Raises:
        ConfigError: settings contradict each other.
    """

    dtype: str | None = field(
        default=None,
        metadata={"help": "Type of the weights.", "choices": ["auto", "bfloat16", "float16", "float32"]},
    )
    lora_target_modules: list[str] | str | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Modules that get adapters; all-linear for every linear layer."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})

    def __post_init__(self) -> None:
        quantised = [key for key in ("load_in_4bit", "load_in_8bit") if getattr(self, key)]
        if len(quantised) == 2:
            raise ConfigError("load_in_4bit and load_in_8bit cannot both be true; keep one")
        if quantised and not self.use_peft:
            raise ConfigError(f"{quantised[0]}: true trains adapters only; write use_peft: true beside it")
        if isinstance(self.lora_target_modules, str):
            return  # the parent takes a text of one letter for a list
        super().__post_init__()

    def peft_config(self) -> Any:
        """The LoRA configuration, or None without `use_peft`. Imports peft."""
        from trl import get_peft_config

        return get_peft_config(self)

    def quantization_config(self) -> Any:
        """The bitsandbytes configuration, or None. Computes in bfloat16 unless `dtype` names a type."""
        from trl import get_quantization_config

        concrete = copy.copy(self)
        if self.dtype in (None, "auto"):
            concrete.dtype = "bfloat16"
        return get_quantization_config(concrete)
