"""Typed settings of a run, and every check between them that needs neither a model nor data.

`SimPOConfig` (training), `DataConfig` (what is read) and `ModelSettings` (what is trained) share no field name, so one
flat YAML file can hold all three (`simpo.settings`).
"""

from __future__ import annotations

import copy
import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal, NamedTuple

from transformers import SchedulerType, TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available, is_torch_xla_available
from trl import ModelConfig

from simpo.errors import ConfigError

logger = logging.getLogger(__name__)


class Problem(NamedTuple):
    """One thing that is wrong: the settings it is about, the one to look at first, and what to write instead."""

    keys: tuple[str, ...]
    text: str


class _Rule(NamedTuple):
    key: str
    holds: Callable[[Any], bool]
    text: str


_NUMBER_RULES = (
    _Rule("beta", lambda v: v > 0, "must be above 0; the paper uses 2 to 10"),
    _Rule("gamma_beta_ratio", lambda v: v >= 0, "must be 0 or more; the paper uses 0 to 1"),
    _Rule("sft_weight", lambda v: v >= 0, "must be 0 or more"),
    _Rule("label_smoothing", lambda v: 0 <= v < 0.5, "must be at least 0 and below 0.5"),
    _Rule("max_length", lambda v: v > 0, "must be a number of tokens above 0"),
    _Rule("max_prompt_length", lambda v: v > 0, "must be a number of tokens above 0"),
    _Rule("learning_rate", lambda v: v >= 0, "must be 0 or more; the paper uses 3e-7 to 1e-6"),
    _Rule("warmup_steps", lambda v: v >= 0, "must be 0 or more; below 1 it is a part of all steps"),
    _Rule("per_device_train_batch_size", lambda v: v >= 1, "must be at least 1"),
    _Rule("per_device_eval_batch_size", lambda v: v >= 1, "must be at least 1"),
    _Rule("gradient_accumulation_steps", lambda v: v >= 1, "must be at least 1"),
    _Rule("total_train_batch_size", lambda v: v is None or v >= 1, "must be at least 1, or left out"),
    _Rule("dataset_num_proc", lambda v: v is None or v >= 1, "must be at least 1, or left out"),
)

# Settings of transformers.TrainingArguments that the packed, step-wise dataloader cannot honour: refused, never ignored.
_REFUSED_RULES = (
    _Rule(
        "include_num_input_tokens_seen",
        lambda v: v in ("no", False),
        "is not supported; leave it out: tokens seen are logged with the other metrics anyway",
    ),
    _Rule(
        "train_sampling_strategy",
        lambda v: v == "random",
        "is not supported; leave it out: pairs are shuffled, and micro-batches are formed from whole optimizer steps",
    ),
    _Rule(
        "auto_find_batch_size",
        lambda v: not v,
        "is not supported; set total_train_batch_size and lower per_device_train_batch_size until it fits",
    ),
    _Rule(
        "label_smoothing_factor",
        lambda v: v == 0,
        "is not used by preference objectives; write label_smoothing for the probability that a pair is swapped",
    ),
)


def is_number(value: object) -> bool:
    """True for a finite int or float; bool is not a number here."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def find_problems(values: Mapping[str, Any]) -> list[Problem]:
    """Every contradiction and out-of-range number among training settings, without building anything.

    `values` maps setting names to values; names that are absent are not checked.
    """
    problems = []
    for key, holds, text in _NUMBER_RULES:
        if key in values and not ((values[key] is None or is_number(values[key])) and _true(holds, values[key])):
            problems.append(Problem((key,), f"{key}: {values[key]!r} {text}"))
    for key, holds, text in _REFUSED_RULES:
        if key in values and not holds(values[key]):
            problems.append(Problem((key,), f"{key}: {values[key]!r} {text}"))
    return problems or _contradictions(values)


def _true(holds: Callable[[Any], bool], value: object) -> bool:
    try:
        return holds(value)
    except TypeError:  # None where a number is needed
        return False


def _contradictions(values: Mapping[str, Any]) -> list[Problem]:
    problems = []
    length, prompt = values.get("max_length"), values.get("max_prompt_length")
    if length is not None and prompt is not None and prompt >= length:
        keys = ("max_prompt_length", "max_length")
        text = f"max_prompt_length: {prompt} must be below max_length: {length}, or no token is left for a response"
        problems.append(Problem(keys, text))
    if values.get("loss_type", "sigmoid") not in ("sigmoid", "hinge"):
        text = f"loss_type: {values['loss_type']!r} is unknown; write sigmoid or hinge"
        problems.append(Problem(("loss_type",), text))
    if values.get("tokenization", "standard") not in ("standard", "paper"):
        text = f"tokenization: {values['tokenization']!r} is unknown; write standard or paper"
        problems.append(Problem(("tokenization",), text))
    if values.get("loss_type") == "hinge" and values.get("label_smoothing"):
        text = "label_smoothing is not used by loss_type: hinge; leave it out, or write loss_type: sigmoid"
        problems.append(Problem(("label_smoothing", "loss_type"), text))
    if values.get("bf16") and values.get("fp16"):
        problems.append(Problem(("fp16", "bf16"), "bf16 and fp16 cannot both be true; keep bf16: true"))
    problems += _engine_contradictions(values)
    return problems


def _engine_contradictions(values: Mapping[str, Any]) -> list[Problem]:
    """DeepSpeed and accelerate settings that would cut or count batches a second time."""
    problems = []
    engine = values.get("deepspeed")
    if isinstance(engine, dict) and engine.get("gradient_accumulation_steps", 1) not in (1, "auto"):
        given = engine["gradient_accumulation_steps"]
        text = (
            f"deepspeed: gradient_accumulation_steps {given!r} must be 'auto': one optimizer step is one engine step "
            "here; set total_train_batch_size instead"
        )
        problems.append(Problem(("deepspeed",), text))
    loader = values.get("accelerator_config")
    for name in ("split_batches", "dispatch_batches"):
        if isinstance(loader, dict) and loader.get(name):
            text = (
                f"accelerator_config: {name} is not supported; leave it out: each process plans its own micro-batches"
            )
            problems.append(Problem(("accelerator_config",), text))
    return problems


def defaults_of(settings_class: type) -> dict[str, Any]:
    """Field name -> default of a settings dataclass."""
    found = {}
    for item in fields(settings_class):
        if item.default is not MISSING:
            found[item.name] = item.default
        elif item.default_factory is not MISSING:
            found[item.name] = item.default_factory()
    return found


@dataclass(repr=False)  # the inherited __repr__ hides hub tokens
class SimPOConfig(TrainingArguments):
    """Training settings: `transformers.TrainingArguments` plus the objective, lengths and batch of SimPO.

        rewards = beta / |y| * log pi(y | x),   loss = -log sigmoid(rewards_chosen - rewards_rejected - gamma)

    Source: SimPO (arXiv 2405.14734), equations 4 to 6. Defaults are the paper's method.

    Args:
        beta: scale of the length-averaged log-probability; above 0.
        gamma_beta_ratio: target margin gamma divided by beta; 0 or more. `gamma` is computed from both.
        sft_weight: weight of the chosen responses' mean token negative log-likelihood (nats per token); 0 or more.
        label_smoothing: probability that a pair's preference is swapped; in [0, 0.5), sigmoid only.
        loss_type: `sigmoid` or `hinge`.
        max_length: tokens of prompt and response together.
        max_prompt_length: tokens that an overlong prompt is cut to; below max_length.
        tokenization: `standard`, or `paper` for the token ids of the published implementation.
        add_empty_system: put an empty system turn before conversations that have none.
        prefix_sharing: compute the prompt of a pair once; false runs each response with its own prompt.
        total_train_batch_size: pairs per optimizer step over all devices. None: per_device_train_batch_size x
            gradient_accumulation_steps x processes.
        disable_dropout: set every dropout probability of the policy to 0.
        dataset_num_proc: processes that tokenise.
        model_init_kwargs: passed to `from_pretrained` when the model is given by name (dict, or JSON text).

    The optimizer step is the unit: after construction `gradient_accumulation_steps` is always 1, what was given is in
    `total_train_batch_size`, and each process runs `micro_batches_per_step` micro-batches per step.

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
    report_to: None | str | list[str] = field(default="none", metadata={"help": "Experiment trackers, or none."})
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
    beta: float = field(default=2.0, metadata={"help": "Scale of the length-averaged log-probability."})
    gamma_beta_ratio: float = field(default=0.5, metadata={"help": "Target margin divided by beta."})
    sft_weight: float = field(default=0.0, metadata={"help": "Weight of the chosen responses' mean token NLL."})
    label_smoothing: float = field(default=0.0, metadata={"help": "Probability that a preference is swapped."})
    loss_type: Literal["sigmoid", "hinge"] = field(default="sigmoid", metadata={"help": "Form of the loss."})

    # Tokens.
    max_length: int = field(default=1024, metadata={"help": "Tokens of prompt and response together."})
    max_prompt_length: int = field(default=512, metadata={"help": "Tokens that an overlong prompt is cut to."})
    tokenization: Literal["standard", "paper"] = field(
        default="standard", metadata={"help": "paper: the token ids of the published implementation."}
    )
    add_empty_system: bool = field(default=False, metadata={"help": "Put an empty system turn first where none is."})
    dataset_num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenise."})

    # The step.
    prefix_sharing: bool = field(default=True, metadata={"help": "Compute the prompt of a pair once."})
    total_train_batch_size: int | None = field(
        default=None, metadata={"help": "Pairs per optimizer step over all devices; accumulation follows from it."}
    )
    disable_dropout: bool = field(default=True, metadata={"help": "Set every dropout probability to 0."})
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Passed to from_pretrained when the model is given by name."}
    )

    def __post_init__(self) -> None:
        self._settle_names()
        self._settle_precision()
        problems = find_problems(vars(self))
        if problems:
            raise ConfigError("\n".join(problem.text for problem in problems))
        # Engines read this number while the parent builds them, so it must be 1 before that.
        accumulation, self.gradient_accumulation_steps = self.gradient_accumulation_steps, 1
        super().__post_init__()
        if isinstance(self.model_init_kwargs, str):
            raise ConfigError(
                f"model_init_kwargs: {self.model_init_kwargs!r} is not a mapping; write {{name: value}} or JSON"
            )
        self._settle_devices()
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
        if self.report_to is None:  # transformers would make the list [None] of it
            self.report_to = "none"

    def _settle_precision(self) -> None:
        # `accelerate launch` says use_cpu by environment only, which transformers' bf16 check does not read.
        if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on"):
            self.use_cpu = True
        on_device = not self.use_cpu and (is_torch_bf16_gpu_available() or is_torch_xla_available())
        if self.bf16 is None:
            self.bf16 = on_device and not self.fp16
        elif self.bf16 and not self.use_cpu and not on_device:
            raise ConfigError(
                "bf16: true, but no device with bf16 was found; write bf16: false, or use_cpu: true to run on the CPU"
            )

    def _settle_devices(self) -> None:
        if self.n_gpu > 1:  # one process with several GPUs would mean torch.nn.DataParallel, which cannot split a pack
            logger.warning(
                "%d GPUs are visible to this one process: training on the first only. "
                "Start with `accelerate launch` to use all.",
                self.n_gpu,
            )
            self._n_gpu = 1

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
        """Target reward margin: beta * gamma_beta_ratio."""
        return self.beta * self.gamma_beta_ratio

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches that each process runs for one optimizer step."""
        assert self.total_train_batch_size is not None  # set in __post_init__
        return math.ceil(self.total_train_batch_size / (self.per_device_train_batch_size * self.world_size))


@dataclass
class DataConfig:
    """What is read for training and evaluation.

    Args:
        dataset_mixer: source -> fraction in (0, 1] of its training rows. A source is a hub name, a directory written by
            `save_to_disk`, or a .jsonl, .json(.gz), .parquet or .csv file.
        dataset_splits: splits to read from every source; names with `train` in them train, the others evaluate.
        dataset_configs: one configuration name (or null) per source, in the order of the mixer.
        eval_dataset_mixer: sources of evaluation pairs.
        dataset_name: one source, in place of a dataset_mixer.
        test_size: prompts held out for evaluation where no evaluation source is: a fraction below 1, or a count.
        chat_template: jinja text, a path to a .jinja file, or the name of a shipped template; None: the tokenizer's.
        max_train_samples: at most so many training rows.
        max_eval_samples: at most so many evaluation rows.

    Raises:
        ConfigError: a number is out of bounds, or settings contradict each other.
    """

    dataset_mixer: dict[str, float] | None = None
    dataset_splits: list[str] | None = None
    dataset_configs: list[str | None] | None = None
    eval_dataset_mixer: dict[str, float] | None = None
    dataset_name: str | None = None
    test_size: float = 0.0
    chat_template: str | None = None
    max_train_samples: int | None = None
    max_eval_samples: int | None = None

    def __post_init__(self) -> None:
        if self.dataset_name is not None and self.dataset_mixer not in (None, {self.dataset_name: 1.0}):
            raise ConfigError("dataset_name and dataset_mixer are both set; write every source into dataset_mixer")
        if self.dataset_name is not None:
            self.dataset_mixer = {self.dataset_name: 1.0}
        if self.dataset_splits is None:
            self.dataset_splits = ["train", "test"]
        self._check_mixers()
        self._check_numbers()

    def _check_mixers(self) -> None:
        for key, mixer in (("dataset_mixer", self.dataset_mixer), ("eval_dataset_mixer", self.eval_dataset_mixer)):
            if mixer is None:
                continue
            if not mixer:
                raise ConfigError(f"{key} is empty; write at least one source, e.g. {key}: {{data/pairs.jsonl: 1.0}}")
            for source, fraction in mixer.items():
                if not is_number(fraction) or not 0 < fraction <= 1:
                    raise ConfigError(f"{key}: {source}: {fraction!r} must be a fraction above 0 and at most 1")
        if not self.dataset_splits:
            raise ConfigError("dataset_splits is empty; write at least one split, e.g. [train, test]")
        if self.dataset_configs is not None and len(self.dataset_configs) != len(self.dataset_mixer or {}):
            raise ConfigError(
                f"dataset_configs has {len(self.dataset_configs)} entries for {len(self.dataset_mixer or {})} sources "
                "of dataset_mixer; write one per source, null where there is none"
            )

    def _check_numbers(self) -> None:
        if not is_number(self.test_size) or self.test_size < 0 or (self.test_size > 1 and self.test_size % 1):
            raise ConfigError(
                f"test_size: {self.test_size!r} must be 0, a fraction below 1, or a whole number of prompts"
            )
        if self.test_size and self.eval_dataset_mixer:
            raise ConfigError("test_size is not used when eval_dataset_mixer is set; leave one of them out")
        for key in ("max_train_samples", "max_eval_samples"):
            value = getattr(self, key)
            if value is not None and (not is_number(value) or value < 1):
                raise ConfigError(f"{key}: {value!r} must be at least 1, or left out")


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
