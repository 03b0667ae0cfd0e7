"""Bounds of training settings, and contradictions between them: plain functions of a mapping.

Nothing is built here, so a bad YAML file is refused before accelerate, a model or data are touched.
"""

import math
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from simpo.errors import ConfigError
from simpo.objectives import OBJECTIVES, all_knobs
from simpo.redact import secret_in


class Problem(NamedTuple):
    """One thing that is wrong: the settings it is about, the one to look at first, and what to write instead."""

    keys: tuple[str, ...]
    text: str


class _Rule(NamedTuple):
    key: str
    holds: Callable[[Any], bool]
    text: str


_NUMBER_RULES = (
    _Rule("beta", lambda v: v is None or v > 0, "must be above 0; SimPO uses 2 to 10, DPO 0.01 to 0.1"),
    _Rule("gamma_beta_ratio", lambda v: v is None or v >= 0, "must be 0 or more; the paper uses 0 to 1"),
    _Rule("label_smoothing", lambda v: v is None or 0 <= v < 0.5, "must be at least 0 and below 0.5"),
    _Rule("tau", lambda v: v is None or v > 0, "must be above 0; SimPO's authors tried 0.01 to 1"),
    _Rule("length_penalty", lambda v: v is None or v >= 0, "must be 0 or more"),
    _Rule("nll_weight", lambda v: v is None or v >= 0, "must be 0 or more"),
    _Rule("odds_weight", lambda v: v is None or v >= 0, "must be 0 or more"),
    _Rule("delta", lambda v: v is None or v > 0, "must be above 0"),
    _Rule("desirable_weight", lambda v: v is None or v >= 0, "must be 0 or more"),
    _Rule("undesirable_weight", lambda v: v is None or v >= 0, "must be 0 or more"),
    _Rule("alpha", lambda v: True, "must be a number"),
    _Rule("sft_weight", lambda v: v >= 0, "must be 0 or more"),
    _Rule("max_length", lambda v: v > 0, "must be a number of tokens above 0"),
    _Rule("max_prompt_length", lambda v: v > 0, "must be a number of tokens above 0"),
    _Rule("learning_rate", lambda v: v >= 0, "must be 0 or more; the paper uses 3e-7 to 1e-6"),
    _Rule("warmup_steps", lambda v: v >= 0, "must be 0 or more; below 1 it is a part of all steps"),
    _Rule("per_device_train_batch_size", lambda v: v >= 1, "must be at least 1"),
    _Rule("per_device_eval_batch_size", lambda v: v >= 1, "must be at least 1"),
    _Rule("gradient_accumulation_steps", lambda v: v >= 1, "must be at least 1"),
    _Rule("total_train_batch_size", lambda v: v is None or v >= 1, "must be at least 1, or left out"),
    _Rule("max_tokens_per_microbatch", lambda v: v is None or v >= 1, "must be at least 1, or left out"),
    _Rule("monitor_pairs", lambda v: v >= 1, "must be at least 1; monitor: off follows none"),
    _Rule("monitor_prompts", lambda v: v >= 0, "must be 0 or more"),
    _Rule("monitor_max_new_tokens", lambda v: v >= 1, "must be at least 1"),
    _Rule("dataset_num_proc", lambda v: v is None or v >= 1, "must be at least 1, or left out"),
    _Rule("hang_timeout", lambda v: v is None or v >= 0, "must be a number of seconds, 0 or more"),
)

# Settings of transformers.TrainingArguments that a loader of whole packed steps cannot honour: refused, never ignored.
_REFUSED_RULES = (
    _Rule(
        "include_num_input_tokens_seen",
        lambda v: v in ("no", False),
        "is not supported; leave it out: num_tokens, the tokens processed so far, is logged with the other metrics",
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
        "bf16_full_eval",
        lambda v: not v,
        "is not supported: it rounds the float32 masters; bf16: true evaluates in bf16",
    ),
    _Rule(
        "fp16_full_eval",
        lambda v: not v,
        "is not supported: it rounds the float32 masters; fp16: true evaluates in fp16",
    ),
    _Rule(
        "torch_compile_mode",
        lambda v: v not in ("reduce-overhead", "max-autotune"),
        "is not supported: it records CUDA graphs for one shape each, and packs differ in shape; write "
        "max-autotune-no-cudagraphs, or leave it out",
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
    problems += _objective_contradictions(values)
    if values.get("loss_type") not in (None, "sigmoid", "hinge"):
        text = f"loss_type: {values['loss_type']!r} is unknown; write sigmoid or hinge"
        problems.append(Problem(("loss_type",), text))
    if values.get("tokenization", "standard") not in ("standard", "paper"):
        text = f"tokenization: {values['tokenization']!r} is unknown; write standard or paper"
        problems.append(Problem(("tokenization",), text))
    if values.get("truncation", "cut") not in ("cut", "drop"):
        text = f"truncation: {values['truncation']!r} is unknown; write cut or drop"
        problems.append(Problem(("truncation",), text))
    if values.get("attn_backend", "auto") not in ("auto", "flash", "varlen", "flex", "sdpa"):
        text = f"attn_backend: {values['attn_backend']!r} is unknown; write auto, flash, varlen, flex or sdpa"
        problems.append(Problem(("attn_backend",), text))
    if values.get("monitor", "warn") not in ("off", "warn", "stop", False, True):
        text = f"monitor: {values['monitor']!r} is unknown; write off, warn or stop"
        problems.append(Problem(("monitor",), text))
    if values.get("loss_type") == "hinge" and values.get("label_smoothing"):
        text = "label_smoothing is not used by loss_type: hinge; leave it out, or write loss_type: sigmoid"
        problems.append(Problem(("label_smoothing", "loss_type"), text))
    if values.get("bf16") and values.get("fp16"):
        problems.append(Problem(("fp16", "bf16"), "bf16 and fp16 cannot both be true; keep bf16: true"))
    problems += _liger_contradictions(values)
    problems += _engine_contradictions(values)
    return problems + process_contradictions(values)


def process_contradictions(values: Mapping[str, Any]) -> list[Problem]:
    """Time-outs of several processes, of any kind of run: ours must come before the engine's, which names nobody."""
    ours, engines = values.get("hang_timeout"), values.get("ddp_timeout", 1800)
    if not (is_number(ours) and is_number(engines) and ours >= engines):
        return []
    text = (
        f"hang_timeout: {ours:g} must be below ddp_timeout: {engines:g}, which ends processes without saying why; "
        "raise ddp_timeout as well"
    )
    return [Problem(("hang_timeout", "ddp_timeout"), text)]


def _objective_contradictions(values: Mapping[str, Any]) -> list[Problem]:
    """A name that is no objective, and settings of other objectives than the one that is trained."""
    name = values.get("objective", "simpo")
    if name not in OBJECTIVES:
        return [Problem(("objective",), f"objective: {name!r} is unknown; write one of {', '.join(OBJECTIVES)}")]
    used = OBJECTIVES[name].knobs
    return [
        Problem(
            (knob, "objective"),
            f"{knob} is not used by objective: {name}, which has {', '.join(used) or 'no settings'}; leave it out",
        )
        for knob in all_knobs()
        if knob not in used and values.get(knob) is not None
    ]


def _liger_contradictions(values: Mapping[str, Any]) -> list[Problem]:
    """Liger's kernels serve the layers; the log-probs of packs come from this package's own head."""
    if not values.get("use_liger_kernel"):
        return []
    problems = []
    kernels = values.get("liger_kernel_config")
    for name in ("cross_entropy", "fused_linear_cross_entropy"):
        if isinstance(kernels, dict) and kernels.get(name):
            text = (
                f"liger_kernel_config: {name} is not supported; leave it out: it replaces the head, which here builds "
                "no logits either. rope, rms_norm, swiglu and the like are served"
            )
            problems.append(Problem(("liger_kernel_config",), text))
    if any(values.get(key) for key in ("torch_compile", "torch_compile_backend", "torch_compile_mode")):
        text = "use_liger_kernel and torch_compile both replace the layers' small operations; keep one of them"
        problems.append(Problem(("use_liger_kernel", "torch_compile"), text))
    if values.get("use_cpu"):
        text = "use_liger_kernel: true needs a GPU, since its kernels are written in Triton; leave it out on a CPU"
        problems.append(Problem(("use_liger_kernel", "use_cpu"), text))
    if find_spec("liger_kernel") is None:
        text = "use_liger_kernel: true needs the package liger-kernel; install it with: pip install 'simpo[liger]'"
        problems.append(Problem(("use_liger_kernel",), text))
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
    for name in ("split_batches", "dispatch_batches", "gradient_accumulation_kwargs"):
        if isinstance(loader, dict) and loader.get(name):
            text = (
                f"accelerator_config: {name} is not supported; leave it out: each process plans its own micro-batches"
            )
            problems.append(Problem(("accelerator_config",), text))
    return problems


def check_url(setting: str, url: str) -> None:
    """Raise ConfigError unless it is the address of a server, without a password."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{setting}: {url!r} must begin with http:// or https:// and name a host")
    if parts.username or parts.password:
        raise ConfigError(
            f"{setting}: holds a password; put the key into an environment variable and name it in api_key_env"
        )


def check_no_secrets(setting: str, value: Any) -> None:
    """Raise ConfigError where a mapping that files of a run will hold holds a token, key or password."""
    found = secret_in(value)
    if found:
        raise ConfigError(
            f"{setting}: {found} is a secret, and settings are written down with what they made; put it into an "
            "environment variable (api_key_env names that of a server; HF_TOKEN is the hub's)"
        )
