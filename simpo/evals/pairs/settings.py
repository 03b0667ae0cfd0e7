"""Settings of `simpo eval pairs`; what is left out comes from the manifest of the model's run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from simpo.checks import is_number
from simpo.data.config import DataConfig
from simpo.errors import ConfigError
from simpo.evals.manifest import run_settings
from simpo.evals.results import default_folder, model_name

_DEFAULTS = {
    "tokenization": "standard",
    "max_length": 1024,
    "max_prompt_length": 512,
    "add_empty_system": False,
    "truncation": "cut",
    "beta": 2.0,
}
"""Where neither settings nor a manifest say: as in training; beta is the paper's."""


@dataclass
class PairsSettings:
    """Which model, which pairs, and how they are read.

    Args:
        model_name_or_path: a hub name or a directory, also of an adapter.
        output_dir: where results.json and pairs.parquet go; empty: outputs/eval/NAME/pairs.
        dataset_mixer, dataset_name, dataset_splits, dataset_configs, dataset_columns: the pairs, as for training; of
            sources with splits the test split, or the splits that are named.
        max_samples: at most so many rows, drawn by the seed.
        name: of the model in tables; empty: the last part of model_name_or_path.
        beta: scale of rewards; None: that of the model's run where its objective is simpo, else 2.
        tokenization, max_length, max_prompt_length, add_empty_system, truncation: as for training; None: those of the
            model's run, else the defaults of training.
        chat_template: jinja text, a .jinja file or the name of a shipped template; None: the tokenizer's, which after
            a run is the run's.
        max_tokens_per_batch: tokens that are computed at once; a longer pair is computed alone.
        prefix_sharing, attn_backend: as for training.
        dtype: of the weights; None: bfloat16, and float32 on a CPU.
        model_revision, trust_remote_code: as for training.
        use_cpu: compute on the CPU although there is another device.
        dataset_num_proc: processes that tokenise.
        seed: of samples and of the bootstrap.

    Raises:
        ConfigError: a setting is missing or out of bounds, or two contradict each other.
    """

    OF_TOKENS: ClassVar[tuple[str, ...]] = (
        "tokenization", "max_length", "max_prompt_length", "add_empty_system", "truncation",
    )  # fmt: skip

    model_name_or_path: str
    output_dir: str = ""
    dataset_mixer: dict[str, float] | None = None
    dataset_name: str | None = None
    dataset_splits: list[str] | None = None
    dataset_configs: list[str | None] | dict[str, str | None] | None = None
    dataset_columns: dict[str, str | dict[str, str]] | None = None
    max_samples: int | None = None
    name: str = ""
    beta: float | None = None
    tokenization: Literal["standard", "paper"] | None = None
    max_length: int | None = None
    max_prompt_length: int | None = None
    add_empty_system: bool | None = None
    truncation: Literal["cut", "drop"] | None = None
    chat_template: str | None = None
    max_tokens_per_batch: int = 16_384
    prefix_sharing: bool = True
    attn_backend: str = "auto"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] | None = None
    model_revision: str | None = None
    trust_remote_code: bool = False
    use_cpu: bool = False
    dataset_num_proc: int | None = None
    seed: int = 42

    def __post_init__(self) -> None:
        if not self.model_name_or_path:
            raise ConfigError("model_name_or_path: must not be empty")
        if not (self.dataset_mixer or self.dataset_name):
            raise ConfigError("dataset_name: is missing; name a preference set, or several in dataset_mixer")
        for key in ("max_samples", "max_tokens_per_batch", "dataset_num_proc"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"{key}: {value} must be at least 1")
        if self.beta is not None and not (is_number(self.beta) and self.beta > 0):
            raise ConfigError(f"beta: {self.beta!r} must be above 0")
        self.name = self.name or model_name(self.model_name_or_path)
        self.output_dir = self.output_dir or default_folder(self.name, "pairs")
        _ = self.data  # its checks

    @property
    def data(self) -> DataConfig:
        """What is read."""
        return DataConfig(
            dataset_mixer=self.dataset_mixer,
            dataset_name=self.dataset_name,
            dataset_splits=self.dataset_splits,
            dataset_configs=self.dataset_configs,
            dataset_columns=self.dataset_columns,
            max_eval_samples=self.max_samples,
        )

    def resolve(self) -> dict[str, Any]:
        """How pairs become tokens, and beta: as set, else as in the model's run, else the defaults.

        Raises:
            ConfigError: the lengths contradict each other.
            ModelError: there is a manifest that cannot be read.
        """
        run = run_settings(self.model_name_or_path)
        if run.get("objective", "simpo") != "simpo":
            run.pop("beta", None)  # the scale of another reward
        told = {key: run.get(key, default) for key, default in _DEFAULTS.items()}
        told |= {key: getattr(self, key) for key in _DEFAULTS if getattr(self, key) is not None}
        if told["max_prompt_length"] >= told["max_length"]:
            raise ConfigError(
                f"max_prompt_length: {told['max_prompt_length']} must be below max_length: {told['max_length']}"
            )
        return told
