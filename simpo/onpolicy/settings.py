"""YAML files and `--key=value` overrides -> the typed, checked settings of a step of on-policy data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal
from urllib.parse import urlsplit

from simpo.checks import is_number
from simpo.errors import ConfigError
from simpo.settings.flat import Paths, default_of, read_flat

SEEDS = (13, 21, 42, 79, 100)
"""The seeds of the published data, one for each response."""

_ENGINE_SETTINGS = {
    "transformers": ("batch_size", "use_cpu"),
    "vllm": ("tensor_parallel_size", "gpu_memory_utilization"),
    "server": (
        "server_urls", "server_model", "server_api", "server_timeout", "server_retries", "server_patience",
        "server_extra", "max_in_flight", "api_key_env",
    ),
}  # fmt: skip
_SHARED_BY = {"dtype": ("transformers", "vllm")}

_POSITIVE = (lambda v: is_number(v) and v > 0, "must be above 0")
_COUNT = (lambda v: v is None or (is_number(v) and v >= 1), "must be at least 1")
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "temperature": (lambda v: is_number(v) and v >= 0, "must be 0 or more; the published data use 0.8"),
    "top_p": (lambda v: is_number(v) and 0 < v <= 1, "must be above 0 and at most 1; 1 keeps every token"),
    "gpu_memory_utilization": (lambda v: is_number(v) and 0 < v <= 1, "must be above 0 and at most 1"),
    "server_timeout": _POSITIVE,
    "server_patience": (lambda v: is_number(v) and v >= 0, "must be 0 or more seconds"),
    "server_retries": (lambda v: is_number(v) and v >= 0, "must be 0 or more"),
    **dict.fromkeys(
        ("num_responses", "max_new_tokens", "max_prompts", "context_length", "batch_size", "tensor_parallel_size",
         "max_in_flight"),
        _COUNT,
    ),
}  # fmt: skip


@dataclass
class GenerateSettings:
    """What `simpo generate` is told.

    Args:
        model_name_or_path: the policy: a hub name or a directory. Servers are asked for its tokenizer's ids.
        dataset_name: the prompts: a hub name, a directory or a .jsonl, .json, .parquet or .csv file.
        output_dir: where the responses go.
        dataset_config: configuration of a hub data set.
        dataset_split: which split; slices such as train[:1000] too. A file is the split train.
        prompt_column: texts, or lists of messages; None: `prompt`, else `messages`. A conversation that ends with an
            answer is asked again from its last question.
        text_prompts: `chat` takes a text for a user's message, `plain` gives it to the model as it stands.
        max_prompts: at most so many rows, from the first on.
        num_responses: responses to each prompt; None: one for each of the seeds.
        seeds: of the responses, in their order; None: the published ones, then 101, 102, ...
        temperature: of sampling; 0 is greedy, which gives equal responses.
        top_p: keep the smallest set of most likely tokens with so much probability together.
        max_new_tokens: bound of a response, in tokens.
        stop_token_ids: tokens that end a response, beside those that the model and its template have.
        context_length: longest prompt with response, in tokens; None: what the model's config says.
        retry_errors: ask again what came to an error in an earlier start.
        chat_template: jinja text, a .jinja file or the name of a shipped template; None: the tokenizer's.
        model_revision, trust_remote_code: as for training.
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
        ConfigError: a setting is missing or out of bounds, or two contradict each other.
    """

    model_name_or_path: str
    dataset_name: str
    output_dir: str
    dataset_config: str | None = None
    dataset_split: str = "train"
    prompt_column: str | None = None
    text_prompts: Literal["chat", "plain"] = "chat"
    max_prompts: int | None = None
    num_responses: int | None = None
    seeds: list[int] | None = None
    temperature: float = 0.8
    top_p: float = 0.95
    max_new_tokens: int = 2048
    stop_token_ids: list[int] = field(default_factory=list)
    context_length: int | None = None
    retry_errors: bool = False
    chat_template: str | None = None
    model_revision: str | None = None
    trust_remote_code: bool = False
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
        for key in ("model_name_or_path", "dataset_name", "output_dir"):
            if not getattr(self, key):
                raise ConfigError(f"{key}: must not be empty")
        for key, (holds, text) in _RULES.items():
            if not holds(getattr(self, key)):
                raise ConfigError(f"{key}: {getattr(self, key)!r} {text}")
        self._check_engine()
        self._settle_seeds()

    def _settle_seeds(self) -> None:
        if self.seeds is None:
            count = self.num_responses or len(SEEDS)
            self.seeds = [*SEEDS, *range(101, 101 + count)][:count]
        self.num_responses = self.num_responses or len(self.seeds)
        if len(self.seeds) != self.num_responses or not self.seeds:
            raise ConfigError(
                f"seeds: there are {len(self.seeds)} for num_responses: {self.num_responses}; write one of them only"
            )
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ConfigError(f"seeds: {self.seeds} must differ and be 0 or more: equal ones give equal responses")
        if self.temperature == 0 and len(self.seeds) > 1:
            raise ConfigError(
                f"temperature: 0 gives the same response {len(self.seeds)} times; write num_responses: 1, or 0.8"
            )

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
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ConfigError(f"server_urls: {url!r} must begin with http:// or https:// and name a host")
            if parts.username or parts.password:
                raise ConfigError(
                    "server_urls: holds a password; put the key into an environment variable and name it in api_key_env"
                )


def read_generate_settings(
    files: Paths, overrides: Sequence[str] = (), others: Collection[str] = ()
) -> GenerateSettings:
    """Read and check the settings of `simpo generate`; `others` are settings of other steps, which are passed over.

    Raises:
        ConfigError: with file and line, setting, value, and what to write instead.
    """
    return read_flat(GenerateSettings, files, overrides, others)
