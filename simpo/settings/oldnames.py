"""Setting names of earlier releases (the published SimPO code, alignment-handbook, transformers 4) and their new forms.

Old names stay valid in YAML files and overrides: each is converted and reported once, as `old -> new`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from simpo.checks import is_number
from simpo.redact import HIDDEN, is_secret

# gamma and simpo_gamma are not here: they need beta, so `simpo.settings` converts them once every source is read.
RENAMED = {
    "auto_insert_empty_system_msg": "add_empty_system",
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "preprocessing_num_workers": "dataset_num_proc",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_token": "hub_token",
    "torch_dtype": "dtype",
}

GAMMA_NAMES = ("gamma", "simpo_gamma")

# Two current names of one setting, by the version of transformers: both are accepted, and one is kept.
ALIASES = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}


class Gone(NamedTuple):
    """A setting without a successor: the values that change nothing today, and what to do about others."""

    harmless: Callable[[Any], bool]
    advice: str


def _anything(_: Any) -> bool:
    return True


def _off(value: Any) -> bool:
    return not value


GONE = {
    "adafactor": Gone(_off, "write optim: adafactor"),
    "cpo_alpha": Gone(_off, "write sft_weight, the weight of the chosen response's mean token NLL"),
    "fp16_backend": Gone(_anything, "mixed precision is always torch's"),
    "generate_during_eval": Gone(_off, "leave it out: evaluation does not generate text"),
    "group_by_length": Gone(_off, "leave it out: micro-batches are formed from whole optimizer steps"),
    "half_precision_backend": Gone(_anything, "mixed precision is always torch's"),
    "include_inputs_for_metrics": Gone(_off, "write include_for_metrics: [inputs]"),
    "include_tokens_per_second": Gone(_anything, "num_tokens is logged with the other metrics"),
    "is_encoder_decoder": Gone(_off, "leave it out: only decoder models can be trained"),
    "label_pad_token_id": Gone(_anything, "scored tokens are chosen by position, nothing is padded"),
    "logging_dir": Gone(_anything, "set the environment variable TENSORBOARD_LOGGING_DIR"),
    "max_completion_length": Gone(lambda v: v is None, "write max_length and max_prompt_length"),
    "max_target_length": Gone(lambda v: v is None, "write max_length and max_prompt_length"),
    "overwrite_output_dir": Gone(_anything, "start with --overwrite to write over an earlier run"),
    "padding_value": Gone(_anything, "nothing is padded"),
    "save_safetensors": Gone(bool, "leave it out: weights are always written as safetensors"),
    "truncation_mode": Gone(lambda v: v in (None, "keep_end"), "leave it out: an overlong prompt keeps its end"),
    "truncation_side": Gone(lambda v: v in (None, "left"), "leave it out: an overlong prompt keeps its end"),
}

OLD_NAMES = (*RENAMED, *GAMMA_NAMES, *GONE, "use_flash_attention_2", "warmup_ratio")

# Settings of `simpo sft` that a preference run has not; an unknown name that stands here is told so.
SFT_ONLY = (
    "activation_offloading",
    "assistant_only_loss",
    "eval_packing",
    "packing",
    "packing_strategy",
    "pad_to_multiple_of",
    "router_aux_loss_coef",
    "shuffle_dataset",
)

# Keys of the file of a search, likewise.
SWEEP_ONLY = (
    "command",
    "devices",
    "direction",
    "keep",
    "metric",
    "pruner",
    "pruner_options",
    "sampler",
    "space",
    "trials",
)


class Converted(NamedTuple):
    """The new name and value (name None: nothing is left to set) and the line that reports the change."""

    key: str | None
    value: Any
    line: str


def convert(key: str, value: Any) -> Converted | None:
    """The present form of one setting, or None if its name is no old one.

    Raises:
        ValueError: the value has no present form; the message says what to write instead.
    """
    if key in RENAMED:
        return Converted(RENAMED[key], value, f"{key} -> {RENAMED[key]}")
    if key in GONE:
        gone = GONE[key]
        if not gone.harmless(value):
            raise ValueError(f"is not supported; {gone.advice}")
        return Converted(None, None, f"{key}: {show(value)} -> nothing; {gone.advice}")
    if key == "warmup_ratio":
        # From 1 on, warmup_steps counts steps; a ratio of 1 or more would silently become one step.
        if not is_number(value) or not 0 <= value < 1:
            raise ValueError("is not a part of all steps; write warmup_steps: a number below 1, or a count of steps")
        return Converted("warmup_steps", value, f"warmup_ratio: {show(value)} -> warmup_steps: {show(value)}")
    if key == "use_flash_attention_2":
        if not isinstance(value, bool | None):
            raise ValueError("is not true or false; write attn_implementation: flash_attention_2")
        if not value:
            return Converted(
                None, None, f"{key}: {show(value)} -> nothing; it is off unless attn_implementation says so"
            )
        return Converted(
            "attn_implementation", "flash_attention_2", f"{key}: true -> attn_implementation: flash_attention_2"
        )
    return None


def show(value: Any, name: str = "") -> str:
    """A value as it stands in YAML, for messages; of a secret's name, nothing of it."""
    if is_secret(name):
        return HIDDEN
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.12g}"
    return str(value)
