"""A data set of preference rows to token ids, with an account of every row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow.compute as pc  # type: ignore[import-untyped]
from datasets import Dataset, Features, List, Value

from simpo.data.account import RowReport, cache_name, encode_rows
from simpo.data.encode import Encoder
from simpo.data.schema import (
    DROP_CAUSES,
    RAW_COLUMNS,
    TEMPLATE_COLUMNS,
    TOKEN_COLUMNS,
    Pair,
    check_columns,
    holds_messages,
    normalise,
)
from simpo.data.truncate import TRUNCATION_CAUSES, TokenPair
from simpo.data.unpaired import as_pairs
from simpo.errors import ConfigError, DataError
from simpo.objectives import OBJECTIVES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from simpo.config import PreferenceConfig

_SOURCES = ("schema.py", "unpaired.py", "chat.py", "ids.py", "encode.py", "truncate.py", "tokenize.py")
_READ = "see docs/data.md"
_IDS = List(Value("int32"))
_FEATURES = Features(
    {
        **dict.fromkeys(TOKEN_COLUMNS, _IDS),
        "row": Value("int64"),
        "dropped": Value("string"),
        "cuts": List(Value("string")),
    }
)


@dataclass(frozen=True)
class TokenizeOptions:
    """How pairs become token ids.

    Args:
        tokenization: `standard`, or `paper` for the published implementation's ids.
        max_length: bound on prompt plus one response, in tokens; at least 2.
        max_prompt_length: a prompt is not cut below this where prompt plus response exceeds max_length; 1 up to
            max_length - 1.
        add_empty_system: put an empty system turn before conversations without one, where the template takes them.
        truncation: `cut` what does not fit into max_length, or `drop` the whole pair and cut nothing.
        unpaired: rows of one response are kept, with no token ids on the other side.

    Raises:
        ConfigError: a value is out of bounds.
    """

    tokenization: Literal["standard", "paper"] = "standard"
    max_length: int = 1024
    max_prompt_length: int = 512
    add_empty_system: bool = False
    truncation: Literal["cut", "drop"] = "cut"
    unpaired: bool = False

    def __post_init__(self) -> None:
        if self.tokenization not in ("standard", "paper"):
            raise ConfigError(f"tokenization: {self.tokenization!r} must be standard or paper")
        if self.truncation not in ("cut", "drop"):
            raise ConfigError(f"truncation: {self.truncation!r} must be cut or drop")
        if self.max_prompt_length < 1:
            raise ConfigError(f"max_prompt_length: {self.max_prompt_length} must be at least 1")
        if self.max_prompt_length >= self.max_length:
            raise ConfigError(
                f"max_prompt_length: {self.max_prompt_length} must be below max_length: {self.max_length}, "
                "or no room is left for a response"
            )


@dataclass
class TokenizeReport(RowReport):
    """What became of the rows of one data set: a `RowReport`, and more.

    Args:
        dropped: causes are `schema.DROP_CAUSES`.
        truncated: cause -> kept pairs that were cut (causes: `truncate.TRUNCATION_CAUSES`); a pair may count twice.
        prompt_mean, ...: lengths of kept pairs, in tokens.
        total_tokens: prompts once, plus both responses.
    """

    truncated: dict[str, int] = field(default_factory=dict)
    prompt_mean: float = 0.0
    prompt_max: int = 0
    chosen_mean: float = 0.0
    chosen_max: int = 0
    rejected_mean: float = 0.0
    rejected_max: int = 0
    total_tokens: int = 0

    def lines(self) -> list[str]:
        """The account for people, with what to do about each cause."""
        lines = [f"{self.desc}: {self.kept} of {self.total} pairs kept, {self.total_tokens} tokens"]
        if self.kept:
            sides = ("prompt", "chosen", "rejected")
            lengths = (f"{side} {getattr(self, side + '_mean'):.1f} / {getattr(self, side + '_max')}" for side in sides)
            lines.append(f"  tokens, mean / longest: {', '.join(lengths)}")
        lines += [f"  dropped {line}" for line in self.causes(self.dropped, DROP_CAUSES, _READ)]
        return lines + [f"  truncated {line}" for line in self.causes(self.truncated, TRUNCATION_CAUSES, _READ)]


def is_tokenized(dataset: Any) -> bool:
    """Whether a data set already holds prompt_ids, chosen_ids and rejected_ids."""
    return set(TOKEN_COLUMNS) <= set(getattr(dataset, "column_names", None) or [])


def tokenize_pairs(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    options: TokenizeOptions,
    *,
    num_proc: int | None = None,
    desc: str = "train",
) -> tuple[Dataset, TokenizeReport]:
    """Tokenise a data set of preference rows.

    Args:
        dataset: rows in one of the formats of `simpo.data.schema`.
        tokenizer: with the chat template that messages are rendered with.
        options: mode and bounds.
        num_proc: processes to work in; None for this one.
        desc: name of the data set, for the progress bar, the report and errors.

    Returns:
        The pairs that can be trained on: prompt_ids, chosen_ids, rejected_ids (lists of ids) and `row` (its number in
        `dataset`); and the account of all rows. A second call with the same data, tokenizer, template and options reads
        the `datasets` cache.

    Raises:
        DataError: columns are missing, the tokenizer has no EOS or no working chat template, or no pair is left.
    """
    if not isinstance(dataset, Dataset):
        raise DataError(f"{desc}: {type(dataset).__name__} is not supported; pass a datasets.Dataset (not streaming)")
    dataset = as_pairs(dataset, desc)
    check_columns(dataset.features, desc)
    if not len(dataset):
        raise DataError(f"{desc}: the data set has no rows")
    read = [column for column in (*RAW_COLUMNS, *TEMPLATE_COLUMNS) if column in dataset.column_names]
    dataset = dataset.select_columns(read)
    encoder = Encoder(tokenizer, options)
    if holds_messages(dataset.features):
        _ = encoder.chat  # a template that fails is an error here, once, not in every worker
    name = cache_name(dataset, tokenizer, options, _SOURCES)
    mapped = encode_rows(dataset, _tokenize_batch, encoder, _FEATURES, name=name, num_proc=num_proc, desc=desc)
    report, kept = _account(mapped, desc)
    if not report.kept:
        raise DataError("\n".join([f"{desc}: none of the {report.total} rows can be trained on", *report.lines()[1:]]))
    if report.kept < report.total:
        mapped = mapped.select(kept)
    return mapped.select_columns([*TOKEN_COLUMNS, "row"]), report


def tokenized(dataset: Any, tokenizer: Any, args: PreferenceConfig, name: str) -> tuple[Dataset, TokenizeReport | None]:
    """A data set of token ids: as it is, or tokenised by the settings, with the account of its rows.

    Raises:
        DataError: it is neither a data set nor a list of rows, or none of its rows can be trained on.
    """
    if isinstance(dataset, list):
        dataset = Dataset.from_list(dataset)
    if not isinstance(dataset, Dataset):
        raise DataError(
            f"the {name} dataset is a {type(dataset).__name__}; pass a datasets.Dataset or a list of rows "
            "(a stream has no length, so steps cannot be planned)"
        )
    if is_tokenized(dataset):
        return dataset, None
    options = TokenizeOptions(
        tokenization=args.tokenization,
        max_length=args.max_length,
        max_prompt_length=args.max_prompt_length,
        add_empty_system=args.add_empty_system,
        truncation=args.truncation,
        unpaired=OBJECTIVES[args.objective].kl,
    )
    return tokenize_pairs(dataset, tokenizer, options, num_proc=args.dataset_num_proc, desc=name)


def tokenized_sets(
    train: Any, evaluation: Any, tokenizer: Any, args: PreferenceConfig
) -> tuple[Any, Any, dict[str, TokenizeReport]]:
    """The data sets of a run as token ids, each None stays None, and the accounts of those that were tokenised.

    Args:
        train: rows to train on.
        evaluation: rows to evaluate on, or a mapping of such sets, whose accounts get eval_ before their names.
        tokenizer: of the model.
        args: settings of the run.

    Raises:
        DataError: as for `tokenized`.
    """
    reports: dict[str, TokenizeReport] = {}

    def ids_of(dataset: Any, name: str) -> Any:
        if dataset is None:
            return None
        dataset, report = tokenized(dataset, tokenizer, args, name)
        if report is not None:
            reports[name] = report
        return dataset

    train = ids_of(train, "train")
    if isinstance(evaluation, Mapping) and not isinstance(evaluation, Dataset):
        return train, {name: ids_of(data, f"eval_{name}") for name, data in evaluation.items()}, reports
    return train, ids_of(evaluation, "eval"), reports


def _tokenize_batch(batch: Mapping[str, list[Any]], indices: list[int], encoder: Encoder) -> dict[str, list[Any]]:
    results: list[Any] = [
        normalise(dict(zip(batch, row, strict=True)), unpaired=encoder.options.unpaired)
        for row in zip(*batch.values(), strict=True)
    ]
    at = [index for index, result in enumerate(results) if isinstance(result, Pair)]
    for index, result in zip(at, encoder([results[index] for index in at]), strict=True):
        results[index] = result
    pairs = [result if isinstance(result, TokenPair) else TokenPair([], [], []) for result in results]
    return {
        "prompt_ids": [pair.prompt for pair in pairs],
        "chosen_ids": [pair.chosen for pair in pairs],
        "rejected_ids": [pair.rejected for pair in pairs],
        "row": indices,
        "dropped": [result if isinstance(result, str) else None for result in results],
        "cuts": [pair.cuts for pair in pairs],
    }


def _account(mapped: Dataset, desc: str) -> tuple[TokenizeReport, np.ndarray]:
    """The report, and the positions of the rows that are kept."""
    report = TokenizeReport(desc)
    kept = report.read(mapped, "cuts", report.truncated)
    if report.kept:
        for column in TOKEN_COLUMNS:
            side = column.removesuffix("_ids")
            lengths = np.asarray(pc.list_value_length(mapped.data[column]))[kept]
            setattr(report, f"{side}_mean", float(lengths.mean()))
            setattr(report, f"{side}_max", int(lengths.max()))
            report.total_tokens += int(lengths.sum())
    return report, kept
