"""A policy from its settings: config, tokenizer, what ends its responses, and the engine that samples them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from simpo.engines.base import Engine
from simpo.errors import ConfigError, ModelError
from simpo.sampling.prompts import Prompt, Renderer
from simpo.sampling.settings import PolicySettings
from simpo.weights import loading_hint

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_PIECES, _PIECE_BYTES = 64, 2**16


class Policy:
    """What prompts are rendered and bounded by; no weights.

    Args:
        settings: the policy's.

    Attributes:
        tokenizer: of the model.
        context: longest prompt with response, in tokens; None for no bound.

    Raises:
        ConfigError: the chat template cannot be read, or does not work.
        ModelError: config or tokenizer cannot be loaded.
    """

    def __init__(self, settings: PolicySettings) -> None:
        from simpo.model import load_tokenizer

        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(
            settings.model_name_or_path,
            revision=settings.model_revision,
            trust_remote_code=settings.trust_remote_code,
        )
        self._config = _model_config(settings)
        self._settings = settings
        self._renderer = Renderer(self.tokenizer, settings.chat_template)
        self._end: int | None = None
        self.context: int | None = settings.context_length or getattr(
            self._config.get_text_config(), "max_position_embeddings", None
        )

    def prepare(self, prompts: list[Prompt]) -> None:
        """Fill in ids and text of every prompt, or its error.

        Raises:
            DataError: there are messages and no chat template.
        """
        self._end = self._renderer.prepare(prompts, self.context) or self._end

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Every token that ends a response: generation_config.json's, the tokenizer's EOS, the end of a turn of the
        template (once prompts were prepared), and those of the settings."""
        from transformers import GenerationConfig

        settings = self._settings
        try:
            name = base_model(settings.model_name_or_path, settings.model_revision)
            # the revision is the adapter's where there is one
            revision = settings.model_revision if name == settings.model_name_or_path else None
            listed = GenerationConfig.from_pretrained(name, revision=revision or "main").eos_token_id
        except (OSError, ValueError):  # there is none
            listed = getattr(self._config, "eos_token_id", None)
        several = listed if isinstance(listed, list) else [listed]
        found = [*several, self.tokenizer.eos_token_id, self._end, *settings.stop_token_ids]
        return tuple(sorted({int(token) for token in found if token is not None}))

    def room(self, prompt: Prompt, wanted: int) -> int:
        """Tokens that a response to a prompt may have: as many as wanted, or what the context leaves."""
        return wanted if self.context is None else min(wanted, self.context - len(prompt.ids))


def _model_config(settings: PolicySettings) -> PretrainedConfig:
    from transformers import AutoConfig

    name = base_model(settings.model_name_or_path, settings.model_revision)
    revision = settings.model_revision if name == settings.model_name_or_path else None
    try:
        return AutoConfig.from_pretrained(
            name, revision=revision or "main", trust_remote_code=settings.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0] + loading_hint(name, error)
        raise ModelError(f"cannot load a model config from {name!r}: {reason}") from error


def base_model(name_or_path: str, revision: str | None) -> str:
    """The model itself, or the one that an adapter was trained on."""
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        found = find_adapter_config_file(name_or_path, revision=revision)
    except OSError:  # no such model; loading it says so
        return name_or_path
    if found is None:
        return name_or_path
    return str(json.loads(Path(found).read_text(encoding="utf-8"))["base_model_name_or_path"])


def weights_fingerprint(name_or_path: str) -> str | None:
    """What tells the weights in a folder from those of another training; None for a hub name.

    Names and sizes of the files, and 64 pieces of each, spread over it: training changes weights everywhere.
    """
    folder = Path(name_or_path)
    files = sorted(path for path in folder.glob("*") if path.suffix in (".safetensors", ".bin") and path.is_file())
    if not files:
        return None
    digest = hashlib.blake2b(digest_size=12)
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with open(path, "rb") as file:
            for piece in range(_PIECES):
                file.seek(max(0, size - _PIECE_BYTES) * piece // (_PIECES - 1))
                digest.update(file.read(_PIECE_BYTES))
    return digest.hexdigest()


def on_cpu(settings: PolicySettings) -> bool:
    """Whether the policy was told to run on a CPU; `accelerate launch --cpu` says so by environment only."""
    return settings.use_cpu or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on")


def build_engine(settings: PolicySettings, batch_size: int | None = None) -> Engine:
    """The engine that the settings name.

    Args:
        settings: the policy's.
        batch_size: requests that the transformers engine computes together; None: as the settings say.

    Raises:
        ConfigError: the environment variable of the key is not set.
        EngineError: vLLM is not installed, or cannot load the model.
        ModelError: the model cannot be loaded.
    """
    name = settings.model_name_or_path
    loading: dict[str, Any] = {
        "dtype": settings.dtype,
        "revision": settings.model_revision,
        "trust_remote_code": settings.trust_remote_code,
    }
    if settings.engine == "transformers":
        from simpo.engines.transformers_engine import load_transformers_engine

        device = "cpu" if on_cpu(settings) else None
        return load_transformers_engine(name, batch_size=batch_size or settings.batch_size, device=device, **loading)
    if settings.engine == "vllm":
        from simpo.engines.vllm_engine import VllmEngine

        return VllmEngine(
            name,
            tensor_parallel_size=settings.tensor_parallel_size,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            max_model_len=settings.context_length,
            **loading,
        )
    return _server_engine(settings)


def _server_engine(settings: PolicySettings) -> Engine:
    from simpo.engines.server_engine import ServerEngine, ServerOptions

    key = None
    if settings.api_key_env is not None:
        key = os.environ.get(settings.api_key_env)
        if not key:
            raise ConfigError(f"api_key_env: the environment variable {settings.api_key_env} is not set")
    return ServerEngine(
        ServerOptions(
            urls=cast(list[str], settings.server_urls),
            model=settings.server_model or settings.model_name_or_path,
            api=settings.server_api,
            max_in_flight=settings.max_in_flight,
            timeout=settings.server_timeout,
            retries=settings.server_retries,
            patience=settings.server_patience,
            api_key=key,
            extra=settings.server_extra,
        )
    )
