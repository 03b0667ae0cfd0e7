"""Typed settings of an SFT run, and their bounds."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from transformers import SchedulerType
from trl import SFTConfig

from simpo.checks import Problem, is_number, process_contradictions
from simpo.config import settle_precision
from simpo.data.config import DataConfig
from simpo.data.dialogues import DIALOGUE_COLUMNS
from simpo.data.schema import TEMPLATE_COLUMNS
from simpo.errors import ConfigError
from simpo.redact import TellsNoSecrets

_COUNT = (lambda v: is_number(v) and v >= 1, "must be at least 1")
_COUNT_OR_NONE = (lambda v: v is None or (is_number(v) and v >= 1), "must be at least 1, or left out")
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "learning_rate": (lambda v: is_number(v) and v >= 0, "must be 0 or more; the published runs use 2e-5"),
    "warmup_steps": (lambda v: is_number(v) and v >= 0, "must be 0 or more; below 1 it is a part of all steps"),
    "max_length": _COUNT,
    "per_device_train_batch_size": _COUNT,
    "per_device_eval_batch_size": _COUNT,
    "gradient_accumulation_steps": _COUNT,
    "total_train_batch_size": _COUNT_OR_NONE,
    "dataset_num_proc": _COUNT_OR_NONE,
    "hang_timeout": (lambda v: v is None or (is_number(v) and v >= 0), "must be a number of seconds, 0 or more"),
    "packing_strategy": (
        lambda v: v != "wrapped",
        "lets conversations see one another; write bfd, which keeps them apart, or packing: false",
    ),
    "auto_find_batch_size": (
        lambda v: not v,
        "is not supported; set total_train_batch_size and lower per_device_train_batch_size until it fits",
    ),
    "bf16_full_eval": (
        lambda v: not v,
        "is not supported: it rounds the float32 masters; bf16: true evaluates in bf16",
    ),
    "fp16_full_eval": (
        lambda v: not v,
        "is not supported: it rounds the float32 masters; fp16: true evaluates in fp16",
    ),
}


def find_sft_problems(values: Mapping[str, Any]) -> list[Problem]:
    """Every number out of bounds and every contradiction among SFT settings, without building anything.

    `values` maps setting names to values; names that are absent are not checked.
    """
    problems = []
    for key, (holds, text) in _RULES.items():
        if key in values and not holds(values[key]):
            problems.append(Problem((key,), f"{key}: {values[key]!r} {text}"))
    if values.get("bf16") and values.get("fp16"):
        problems.append(Problem(("fp16", "bf16"), "bf16 and fp16 cannot both be true; keep bf16: true"))
    return problems + process_contradictions(values)


@dataclass
class SFTDataConfig(DataConfig):
    """What an SFT run reads: `DataConfig`, for rows of `simpo.data.dialogues`.

    Args:
        deduplicate: `exact` leaves out training rows that stand earlier already.

    Raises:
        ConfigError: a number is out of bounds, or settings contradict each other.
    """

    readable: ClassVar[tuple[str, ...]] = (*DIALOGUE_COLUMNS, *TEMPLATE_COLUMNS)

    deduplicate: Literal["off", "exact"] = "off"


@dataclass(repr=False)  # the inherited __repr__ hides hub tokens
class SFTSettings(TellsNoSecrets, SFTConfig):
    """Training settings of the SFT stage: `trl.SFTConfig` with the published values as defaults.

    Loss: mean over the learnt tokens of an optimizer step of -log pi(token | what stands before it), in nats.

    Args:
        total_train_batch_size: rows per optimizer step over all devices, packed ones where rows are packed; a multiple
            of per_device_train_batch_size x processes. None: that product x gradient_accumulation_steps.
        max_length: tokens of a row, or of a pack; what is longer loses its end.
        packing: fill rows of max_length with several conversations, which do not see one another.
        assistant_only_loss: learn answers only, each with its end-of-turn token; false: every token.
        add_empty_system: put an empty system turn before conversations that have none.
        hang_timeout: seconds without progress or sign of life after which a run on several processes ends and names
            the one that hangs or is lost; below ddp_timeout; 0 never. None: a third of ddp_timeout.

    Raises:
        ConfigError: a number is out of bounds, or settings contradict each other.
    """

    learning_rate: float = field(default=2e-5, metadata={"help": "Peak learning rate."})
    lr_scheduler_type: SchedulerType | str = field(default="cosine", metadata={"help": "Learning-rate schedule."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up steps; below 1 a part of all steps."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the training rows."})
    per_device_train_batch_size: int = field(default=4, metadata={"help": "Rows per micro-batch and device."})
    per_device_eval_batch_size: int = field(default=4, metadata={"help": "Rows per evaluation batch and device."})
    logging_steps: float = field(default=5, metadata={"help": "Optimizer steps between two log lines."})
    report_to: str | list[str] | None = field(default="none", metadata={"help": "Experiment trackers, or none."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Log zero in place of a loss that is NaN."})
    resume_from_checkpoint: str | bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "A checkpoint folder; true: the last one; false: never; left out: automatic."}
    )
    # Two names for one thing: transformers renamed it. Both are accepted and kept equal.
    activation_checkpointing: bool | None = field(default=None, metadata={"help": "Recompute activations."})
    gradient_checkpointing: bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Other name of activation_checkpointing."}
    )
    activation_checkpointing_kwargs: dict[str, Any] | str | None = field(default=None)
    gradient_checkpointing_kwargs: dict[str, Any] | str | None = field(default=None)

    max_length: int = field(default=2048, metadata={"help": "Tokens of a row, or of a pack."})  # type: ignore[assignment]
    packing: bool = field(default=True, metadata={"help": "Fill rows of max_length with several conversations."})
    assistant_only_loss: bool = field(default=True, metadata={"help": "Learn answers only."})
    add_empty_system: bool = field(default=False, metadata={"help": "Put an empty system turn first where none is."})
    total_train_batch_size: int | None = field(
        default=None, metadata={"help": "Rows per optimizer step over all devices; accumulation follows from it."}
    )
    hang_timeout: float | None = field(
        default=None, metadata={"help": "Seconds after which a process that hangs or is lost ends the run."}
    )

    # What simpo.data does in TRL's place; attributes that TRL reads, and no settings.
    trust_remote_code: bool = field(init=False, default=False)
    chat_template_path: str | None = field(init=False, default=None)
    completion_only_loss: bool | None = field(init=False, default=None)
    dataset_text_field: str = field(init=False, default="text")
    dataset_kwargs: dict[str, Any] | str | None = field(init=False, default=None)
    eos_token: str | None = field(init=False, default=None)
    pad_token: str | None = field(init=False, default=None)
    padding_free: bool = field(init=False, default=False)
    truncation_mode: str = field(init=False, default="keep_start")

    def __post_init__(self) -> None:
        problems = find_sft_problems(vars(self))
        if problems:
            raise ConfigError("\n".join(problem.text for problem in problems))
        self._settle_names()
        settle_precision(self)
        self._settle_batch()  # before the parent builds engines, which read the accumulation
        super().__post_init__()

    def _settle_names(self) -> None:
        for old, new in (
            ("gradient_checkpointing", "activation_checkpointing"),
            ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
        ):
            if getattr(self, new) is None:
                setattr(self, new, getattr(self, old))
        if self.activation_checkpointing is None:
            self.activation_checkpointing = True
        self.gradient_checkpointing = self.activation_checkpointing
        self.gradient_checkpointing_kwargs = self.activation_checkpointing_kwargs
        self.report_to = self.report_to or "none"  # transformers would make the list [None] of None

    def _settle_batch(self) -> None:
        processes = int(os.environ.get("WORLD_SIZE", "1"))  # what every launcher sets
        together = self.per_device_train_batch_size * processes
        product = together * self.gradient_accumulation_steps
        if self.total_train_batch_size is None:
            self.total_train_batch_size = product
        elif self.gradient_accumulation_steps != 1 and product != self.total_train_batch_size:
            raise ConfigError(
                f"total_train_batch_size: {self.total_train_batch_size} contradicts per_device_train_batch_size x "
                f"gradient_accumulation_steps x {processes} processes = {product}; leave gradient_accumulation_steps "
                "out, it follows from total_train_batch_size"
            )
        elif self.total_train_batch_size % together:
            raise ConfigError(
                f"total_train_batch_size: {self.total_train_batch_size} is no multiple of per_device_train_batch_size "
                f"{self.per_device_train_batch_size} x {processes} processes; write a "
                "per_device_train_batch_size that divides it"
            )
        self.gradient_accumulation_steps = self.total_train_batch_size // together
