"""`DataConfig`: what a run reads, and every check of it that needs no file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from simpo.checks import is_number
from simpo.errors import ConfigError

COLUMNS = ("prompt", "chosen", "rejected", "tools", "chat_template_kwargs", "prompt_ids", "chosen_ids", "rejected_ids")
"""Every column that is read of a source."""


@dataclass
class DataConfig:
    """What is read for training and evaluation.

    Args:
        dataset_mixer: source -> how much of its training rows: a fraction in (0, 1], or a count, a whole number from 2
            on (1 and 1.0 are all rows). A source is a hub name, a directory written by `save_to_disk`, or a .jsonl,
            .json(.gz), .parquet or .csv file.
        dataset_splits: splits to read from every source; names with `train` in them train, the others evaluate.
        dataset_configs: configurations of hub data sets: source -> name, or a list with one (or null) per source, in
            the order of the mixer.
        dataset_columns: own column -> column of the sources, or source -> such a mapping.
        dataset_weights: source -> how often each of its training rows is seen in an epoch; 1 or more.
        eval_dataset_mixer: sources of evaluation pairs.
        dataset_name: one source, in place of a dataset_mixer.
        deduplicate: which training rows are left out: `off` none, `exact` the same prompt and answers again, `near`
            also nearly the same.
        test_size: prompts held out for evaluation where no evaluation source is: a fraction below 1, or a count.
        chat_template: jinja text, a path to a .jinja file, or the name of a shipped template; None: the tokenizer's.
        max_train_samples: at most so many training rows.
        max_eval_samples: at most so many evaluation rows.

    Raises:
        ConfigError: a number is out of bounds, or settings contradict each other.
    """

    readable: ClassVar[tuple[str, ...]] = COLUMNS

    dataset_mixer: dict[str, float] | None = None
    dataset_splits: list[str] | None = None
    dataset_configs: list[str | None] | dict[str, str | None] | None = None
    dataset_columns: dict[str, str | dict[str, str]] | None = None
    dataset_weights: dict[str, float] | None = None
    eval_dataset_mixer: dict[str, float] | None = None
    dataset_name: str | None = None
    deduplicate: Literal["off", "exact", "near"] = "off"
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
        self._check_forms()
        _check_mixer("dataset_mixer", self.dataset_mixer)
        _check_mixer("eval_dataset_mixer", self.eval_dataset_mixer)
        if not self.dataset_splits:
            raise ConfigError("dataset_splits is empty; write at least one split, e.g. [train, test]")
        self._check_configs()
        self._check_weights()
        self._check_columns()
        self._check_numbers()

    def config_of(self, source: str) -> str | None:
        """The configuration of a hub data set that is asked for, if any."""
        configs = self.dataset_configs
        if isinstance(configs, list):
            configs = dict(zip(self.dataset_mixer or {}, configs, strict=True))
        return (configs or {}).get(source)

    def columns_of(self, source: str) -> dict[str, str]:
        """Own column -> column of this source, for those that differ."""
        columns: Mapping[str, Any] = self.dataset_columns or {}
        if any(isinstance(value, Mapping) for value in columns.values()):
            columns = columns.get(source, {})
        return dict(columns)

    def _sources(self) -> list[str]:
        return [*(self.dataset_mixer or {}), *(self.eval_dataset_mixer or {})]

    def _check_forms(self) -> None:
        """Mappings and lists, which a YAML file's types have shown already, and a caller from Python has not."""
        for key in ("dataset_mixer", "eval_dataset_mixer", "dataset_weights", "dataset_columns"):
            value = getattr(self, key)
            if value is not None and not (isinstance(value, Mapping) and all(isinstance(name, str) for name in value)):
                raise ConfigError(f"{key}: {value!r} must be a mapping from texts, e.g. {{data/pairs.jsonl: 1.0}}")
        if not isinstance(self.dataset_splits, list) or not all(isinstance(name, str) for name in self.dataset_splits):
            raise ConfigError(f"dataset_splits: {self.dataset_splits!r} must be a list of names, e.g. [train, test]")
        if not isinstance(self.dataset_configs, list | Mapping | None):
            raise ConfigError(
                f"dataset_configs: {self.dataset_configs!r} must be a list with one name (or null) per source of "
                "dataset_mixer, or {source: name}"
            )

    def _check_configs(self) -> None:
        if isinstance(self.dataset_configs, Mapping):
            _check_known("dataset_configs", self.dataset_configs, self._sources())
        elif self.dataset_configs is not None and len(self.dataset_configs) != len(self.dataset_mixer or {}):
            raise ConfigError(
                f"dataset_configs has {len(self.dataset_configs)} entries for {len(self.dataset_mixer or {})} sources "
                "of dataset_mixer; write one per source, null where there is none, or {source: configuration}"
            )

    def _check_weights(self) -> None:
        _check_known("dataset_weights", self.dataset_weights or {}, self.dataset_mixer or {})
        for source, weight in (self.dataset_weights or {}).items():
            if not is_number(weight) or weight < 1:
                raise ConfigError(
                    f"dataset_weights: {source}: {weight!r} must be 1 or more: how often each row is seen in an epoch; "
                    "for less of a source write a fraction or a count into dataset_mixer"
                )

    def _check_columns(self) -> None:
        given: Mapping[str, Any] = self.dataset_columns or {}
        nested = [source for source, columns in given.items() if isinstance(columns, Mapping)]
        if nested and len(nested) < len(given):
            raise ConfigError(
                "dataset_columns mixes columns of one source with columns of all; write {prompt: question, ...} for "
                "all sources, or {source: {prompt: question, ...}} for each that needs it"
            )
        _check_known("dataset_columns", nested, self._sources())
        for columns in [given[source] for source in nested] if nested else [given]:
            unknown = [column for column in columns if column not in self.readable]
            if unknown:
                raise ConfigError(
                    f"dataset_columns: {unknown[0]!r} is no column that is read; on the left write one of "
                    f"{', '.join(self.readable)}, on the right the source's name for it"
                )
            if len(set(columns.values())) < len(columns):
                raise ConfigError("dataset_columns reads one column as two; give each column of a source one name")

    def _check_numbers(self) -> None:
        if self.deduplicate not in ("off", "exact", "near"):
            raise ConfigError(f"deduplicate: {self.deduplicate!r} must be off, exact or near")
        if not is_number(self.test_size) or self.test_size < 0 or (self.test_size > 1 and self.test_size % 1):
            raise ConfigError(
                f"test_size: {self.test_size!r} must be 0, a fraction below 1, or a whole number of prompts"
            )
        if self.test_size and self.eval_dataset_mixer:
            raise ConfigError("test_size is not used when eval_dataset_mixer is set; leave one of them out")
        for key in ("max_train_samples", "max_eval_samples"):
            value = getattr(self, key)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ConfigError(f"{key}: {value!r} must be a whole number of rows, at least 1, or left out")


def _check_mixer(key: str, mixer: Mapping[str, Any] | None) -> None:
    if mixer is None:
        return
    if not mixer:
        raise ConfigError(f"{key} is empty; write at least one source, e.g. {key}: {{data/pairs.jsonl: 1.0}}")
    for source, amount in mixer.items():
        if not source.strip():
            raise ConfigError(f"{key}: {source!r} names no source; write a file, a directory or a hub name")
        if not is_number(amount) or amount <= 0 or (amount > 1 and amount % 1):
            raise ConfigError(
                f"{key}: {source}: {amount!r} must be a fraction above 0 and at most 1, or a whole number of rows; "
                "for more than all rows see dataset_weights"
            )


def _check_known(key: str, names: Iterable[str], sources: Iterable[str]) -> None:
    unknown = [name for name in names if name not in sources]
    if unknown:
        raise ConfigError(f"{key}: {unknown[0]!r} is no source of this run; its sources: {', '.join(sources)}")
