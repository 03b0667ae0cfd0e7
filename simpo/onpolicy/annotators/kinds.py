"""The kinds of annotators and their settings."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from hashlib import sha256
from typing import Any, Literal

from simpo.checks import check_no_secrets, is_number
from simpo.errors import ConfigError
from simpo.settings.nested import fit_mapping, nearest

Dtype = Literal["auto", "bfloat16", "float16", "float32"]


_FILES = ("chat_template", "prompt_template")
"""Settings that may name a file."""


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{name}: {value} must be at least 1")


@dataclass(frozen=True)
class RewardModelSettings:
    """A sequence-classification reward model, ArmoRM among them.

    Args:
        model: hub name or directory.
        revision: of a hub model.
        dtype: auto: bfloat16 on a GPU, float32 on a CPU.
        trust_remote_code: run Python code from the model's repository, as ArmoRM needs.
        chat_template: jinja text, file or name of a shipped one; null: that of the model's tokenizer.
        max_length: longest prompt with response in tokens; null: what the model takes. What is longer has no score.
        max_batch_tokens: tokens of a padded batch.
    """

    model: str
    revision: str | None = None
    dtype: Dtype = "auto"
    trust_remote_code: bool = False
    chat_template: str | None = None
    max_length: int | None = None
    max_batch_tokens: int = 16384

    def __post_init__(self) -> None:
        _check_count("max_batch_tokens", self.max_batch_tokens)
        if self.max_length is not None:
            _check_count("max_length", self.max_length)


@dataclass(frozen=True)
class PairRMSettings:
    """PairRM in the form of transformers (llm-blender/PairRM-hf).

    Args:
        model: hub name or directory.
        revision: of a hub model.
        dtype: auto: bfloat16 on a GPU, float32 on a CPU.
        max_prompt_length: tokens of the prompt that are read, as published.
        max_total_length: tokens of prompt and two responses that are read, as published.
        max_batch_tokens: tokens of a padded batch.
    """

    model: str = "llm-blender/PairRM-hf"
    revision: str | None = None
    dtype: Dtype = "auto"
    max_prompt_length: int = 1224
    max_total_length: int = 2048
    max_batch_tokens: int = 16384

    def __post_init__(self) -> None:
        _check_count("max_batch_tokens", self.max_batch_tokens)
        _check_count("max_prompt_length", self.max_prompt_length)
        if self.max_total_length < self.max_prompt_length + 2 * 8:
            raise ConfigError(f"max_total_length: {self.max_total_length} leaves no room for two responses")


@dataclass(frozen=True)
class JudgeSettings:
    """A language model behind an OpenAI-compatible server that compares responses two at a time.

    Args:
        model: its name on the server.
        base_urls: one address, or several that serve the same model.
        api_key_env: environment variable that holds the key, where one is needed.
        prompt_template: jinja file; null: the shipped simpo/onpolicy/annotators/judge.jinja.
        max_new_tokens: of a verdict.
        temperature: of the judge.
        max_in_flight: requests under way at once.
        timeout: seconds for one answer.
        retries: further attempts after a fault of a server.
        patience: seconds to wait while no server answers, or while all are busy.
        extra: further fields of each request.
    """

    model: str
    base_urls: str | list[str]
    api_key_env: str | None = None
    prompt_template: str | None = None
    max_new_tokens: int = 1024
    temperature: float = 0.0
    max_in_flight: int = 16
    timeout: float = 600.0
    retries: int = 6
    patience: float = 600.0
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "max_in_flight"):
            _check_count(name, getattr(self, name))
        if not is_number(self.temperature) or self.temperature < 0:
            raise ConfigError(f"temperature: {self.temperature} must be 0 or more")
        for name in ("timeout", "patience", "retries"):
            if not is_number(getattr(self, name)) or getattr(self, name) < (name == "timeout"):
                raise ConfigError(f"{name}: {getattr(self, name)} must be {'1' if name == 'timeout' else '0'} or more")
        check_no_secrets("extra", self.extra)
        if self.api_key_env is not None and self.api_key_env not in os.environ:
            raise ConfigError(f"api_key_env: {self.api_key_env} is not set; export it")


@dataclass(frozen=True)
class FunctionSettings:
    """A Python function.

    Args:
        function: module:function, found in the working directory or among what is installed; it is called with the
            prompt (messages or text) and the list of responses, and with `columns`, a mapping of the columns that
            `keep_columns` of the generations names, where it has such an argument; it returns a number, or None, for
            each response.
    """

    function: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.]+:[\w.]+", self.function):
            raise ConfigError(f"function: {self.function!r} must be module:function; write e.g. my_checks:score")


AnySettings = RewardModelSettings | PairRMSettings | JudgeSettings | FunctionSettings
KINDS: dict[str, type[Any]] = {
    "reward_model": RewardModelSettings,
    "pairrm": PairRMSettings,
    "judge": JudgeSettings,
    "function": FunctionSettings,
}


def read_annotators(value: Mapping[str, Any]) -> dict[str, AnySettings]:
    """The annotators of a run by their names: name -> {kind: ..., and the settings of that kind}.

    Raises:
        ConfigError: there is none, or a setting is unknown, missing, of the wrong type or out of bounds.
    """
    if not value:
        raise ConfigError("annotators: is empty; write annotators: {NAME: {kind: reward_model, model: ...}}")
    found: dict[str, AnySettings] = {}
    for name, entry in value.items():
        where = f"annotators.{name}"
        if not isinstance(entry, Mapping) or "kind" not in entry:
            raise ConfigError(f"{where}: write a mapping with kind, one of {', '.join(KINDS)}")
        kind, rest = entry["kind"], {key: item for key, item in entry.items() if key != "kind"}
        if kind not in KINDS:
            raise ConfigError(f"{where}: kind: {kind} is unknown: {nearest(str(kind), KINDS)}")
        found[str(name)] = fit_mapping(KINDS[kind], rest, where)
    return found


def identity(settings: AnySettings) -> dict[str, Any]:
    """What scores depend on, for the check that a folder goes on with the same annotators. Of templates the text
    counts: a file that is edited between two starts is another one."""
    passing = {"max_batch_tokens", "max_in_flight", "base_urls", "api_key_env", "timeout", "retries", "patience"}
    return {
        "kind": next(kind for kind, owner in KINDS.items() if isinstance(settings, owner)),
        **{item.name: _content(getattr(settings, item.name), item.name in _FILES)
           for item in fields(settings) if item.name not in passing},
    }  # fmt: skip


def _content(value: Any, may_be_file: bool) -> Any:
    if not may_be_file or value is None or not os.path.isfile(file := os.path.expanduser(value)):
        return value
    with open(file, "rb") as opened:
        return f"{value} ({sha256(opened.read()).hexdigest()[:12]})"
