"""Settings of a policy that answers: which model, how it is rendered for, and where it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from simpo.checks import check_no_secrets, check_url, is_number
from simpo.errors import ConfigError
from simpo.settings.flat import default_of

_ENGINE_SETTINGS = {
    "transformers": ("batch_size", "use_cpu"),
    "vllm": ("tensor_parallel_size", "gpu_memory_utilization"),
    "server": (
        "server_urls", "server_model", "server_api", "server_timeout", "server_retries", "server_patience",
        "server_extra", "max_in_flight", "api_key_env",
    ),
}  # fmt: skip
_SHARED_BY = {"dtype": ("transformers", "vllm")}

Rules = dict[str, tuple[Callable[[Any], bool], str]]
"""Setting -> what must hold of it, and the words where it does not."""

_POSITIVE = (lambda v: is_number(v) and v > 0, "must be above 0")
COUNT = (lambda v: v is None or (is_number(v) and v >= 1), "must be at least 1")
_RULES: Rules = {
    "gpu_memory_utilization": (lambda v: is_number(v) and 0 < v <= 1, "must be above 0 and at most 1"),
    "server_timeout": _POSITIVE,
    "server_patience": (lambda v: is_number(v) and v >= 0, "must be 0 or more seconds"),
    "server_retries": (lambda v: is_number(v) and v >= 0, "must be 0 or more"),
    **dict.fromkeys(("context_length", "batch_size", "tensor_parallel_size", "max_in_flight"), COUNT),
}


@dataclass(kw_only=True)
class PolicySettings:
    """Which model answers, and where it runs.

    Args:
        model_name_or_path: the policy: a hub name or a directory. Servers are asked for its tokenizer's ids.
        model_revision, trust_remote_code: as for training.
        chat_template: jinja text, a .jinja file or the name of a shipped template; None: the tokenizer's.
        stop_token_ids: tokens that end a response, beside those that the model and its template have.
        context_length: longest prompt with response, in tokens; None: what the model's config says.
        engine: where the policy runs.
        dtype: `auto`, `bfloat16`, `float16`, `float32`; None: bfloat16, and float32 on a CPU.
        batch_size: responses that are sampled together.
        use_cpu: sample on the CPU although there is another device.
        tensor_parallel_size: devices that hold one model.
        gpu_memory_utilization: part of each device's memory that vLLM takes.
        server_urls: base URLs with their /v1.
        server_model: the policy's name there; None: model_name_or_path.
        server_api: `tokens` sends token ids (vLLM, SGLang), `text` the rendered prompt, `chat` messages, which the
            server renders with a template of its own.
        max_in_flight: requests under way at once, over all servers.
        server_timeout: seconds for one answer.
        server_retries: further attempts after a fault of a server.
        server_patience: seconds to wait while no server answers, or while all are busy.
        server_extra: further fields of each request.
        api_key_env: name of the environment variable that holds the servers' key.

    Raises:
        ConfigError: a setting is missing or out of bounds, or belongs to another engine.
    """

    model_name_or_path: str
    model_revision: str | None = None
    trust_remote_code: bool = False
    chat_template: str | None = None
    stop_token_ids: list[int] = field(default_factory=list)
    context_length: int | None = None
    engine: Literal["transformers", "vllm", "server"] = "transformers"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] | None = None
    batch_size: int = 40
    use_cpu: bool = False
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    server_urls: list[str] | None = None
    server_model: str | None = None
    server_api: Literal["tokens", "text", "chat"] = "tokens"
    max_in_flight: int = 64
    server_timeout: float = 600.0
    server_retries: int = 6
    server_patience: float = 600.0
    server_extra: dict[str, Any] = field(default_factory=dict)
    api_key_env: str | None = None

    def __post_init__(self) -> None:
        self.must_not_be_empty("model_name_or_path")
        self.must_hold(_RULES)
        self._check_engine()

    def must_not_be_empty(self, *names: str) -> None:
        """Raises ConfigError for a text without letters."""
        for name in names:
            if not getattr(self, name):
                raise ConfigError(f"{name}: must not be empty")

    def must_hold(self, rules: Rules) -> None:
        """Raises ConfigError for the first setting that breaks its rule."""
        for key, (holds, text) in rules.items():
            if not holds(getattr(self, key)):
                raise ConfigError(f"{key}: {getattr(self, key)!r} {text}")

    def _check_engine(self) -> None:
        given = {item.name for item in fields(self) if getattr(self, item.name) != default_of(item)}
        for engine, keys in _ENGINE_SETTINGS.items():
            unused = [key for key in keys if key in given]
            if engine != self.engine and unused:
                raise ConfigError(
                    f"{unused[0]}: belongs to engine: {engine}, and engine is {self.engine}; leave it out"
                )
        for key, engines in _SHARED_BY.items():
            if key in given and self.engine not in engines:
                raise ConfigError(f"{key}: is not used with engine: {self.engine}; leave it out")
        if self.engine != "server":
            return
        if not self.server_urls:
            raise ConfigError("server_urls: is missing; write e.g. [http://localhost:8000/v1]")
        for url in self.server_urls:
            check_url("server_urls", url)
        check_no_secrets("server_extra", self.server_extra)
