"""YAML files and `--key=value` overrides -> the typed, checked settings of `simpo generate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from simpo.checks import is_number
from simpo.errors import ConfigError
from simpo.sampling.settings import COUNT, PolicySettings, Rules
from simpo.settings.flat import Paths, read_flat

SEEDS = (13, 21, 42, 79, 100)
"""The seeds of the published data, one for each response."""

_RULES: Rules = {
    "temperature": (lambda v: is_number(v) and v >= 0, "must be 0 or more; the published data use 0.8"),
    "top_p": (lambda v: is_number(v) and 0 < v <= 1, "must be above 0 and at most 1; 1 keeps every token"),
    **dict.fromkeys(("num_responses", "max_new_tokens", "max_prompts"), COUNT),
}


@dataclass(kw_only=True)
class GenerateSettings(PolicySettings):
    """What `simpo generate` is told.

    Args:
        dataset_name: the prompts: a hub name, a directory or a .jsonl, .json, .parquet or .csv file.
        output_dir: where the responses go.
        dataset_config: configuration of a hub data set.
        dataset_split: which split; slices such as train[:1000] too. A file is the split train.
        prompt_column: texts, or lists of messages; None: `prompt`, else `messages`. A conversation that ends with an
            answer is asked again from its last question.
        keep_columns: further columns of the rows, such as a gold answer, for a function that scores.
        text_prompts: `chat` takes a text for a user's message, `plain` gives it to the model as it stands.
        max_prompts: at most so many rows, from the first on.
        num_responses: responses to each prompt; None: one for each of the seeds.
        seeds: of the responses, in their order; None: the published ones, then 101, 102, ...
        temperature: of sampling; 0 is greedy, which gives equal responses.
        top_p: keep the smallest set of most likely tokens with so much probability together.
        max_new_tokens: bound of a response, in tokens.
        retry_errors: ask again what came to an error in an earlier start.

    Raises:
        ConfigError: a setting is missing or out of bounds, or two contradict each other.
    """

    dataset_name: str
    output_dir: str
    dataset_config: str | None = None
    dataset_split: str = "train"
    prompt_column: str | None = None
    keep_columns: list[str] = field(default_factory=list)
    text_prompts: Literal["chat", "plain"] = "chat"
    max_prompts: int | None = None
    num_responses: int | None = None
    seeds: list[int] | None = None
    temperature: float = 0.8
    top_p: float = 0.95
    max_new_tokens: int = 2048
    retry_errors: bool = False

    def __post_init__(self) -> None:
        self.must_not_be_empty("model_name_or_path", "dataset_name", "output_dir")
        self.must_hold(_RULES)
        super().__post_init__()
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


def read_generate_settings(files: Paths, overrides: Sequence[str] = ()) -> GenerateSettings:
    """Read and check the settings of `simpo generate`.

    Raises:
        ConfigError: with file and line, setting, value, and what to write instead.
    """
    return read_flat(GenerateSettings, files, overrides)
