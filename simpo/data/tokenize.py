"""A data set of preference rows to token ids: once, in batches, cached, and with an account of every row."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow.compute as pc  # type: ignore[import-untyped]
from datasets import Dataset, Features, List, Value

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

_EXAMPLES = 5
_SOURCES = ("schema.py", "unpaired.py", "chat.py", "ids.py", "encode.py", "truncate.py", "tokenize.py")
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
class TokenizeReport:
    """What became of the rows of one data set.

    Args:
        desc: name of the data set.
        total, kept: rows read, and rows that became pairs.
        dropped: cause -> rows left out (causes: `schema.DROP_CAUSES`; after a colon what the template said).
        truncated: cause -> kept pairs that were cut (causes: `truncate.TRUNCATION_CAUSES`); a pair may count twice.
        examples: cause -> the first five row numbers.
        prompt_mean, ...: lengths of kept pairs, in tokens.
        total_tokens: prompts once, plus both responses.
    """

    desc: str = "train"
    total: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    truncated: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[int]] = field(default_factory=dict)
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
        lines += self._cause_lines("dropped", self.dropped, DROP_CAUSES)
        lines += self._cause_lines("truncated", self.truncated, TRUNCATION_CAUSES)
        return lines

    def _cause_lines(self, what: str, counts: Mapping[str, int], advice: Mapping[str, str]) -> Iterator[str]:
        for cause, count in sorted(counts.items(), key=lambda item: -item[1]):
            rows = ", ".join(str(row) for row in self.examples.get(cause, []))
            more = ", ..." if count > _EXAMPLES else ""
            todo = advice.get(cause.split(":")[0], "see docs/data.md")
            yield f"  {what} {count}: {cause} (rows {rows}{more}): {todo}"


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
    with quiet_forks(num_proc):
        mapped = dataset.map(
            _tokenize_batch,
            with_indices=True,
            batched=True,
            batch_size=500,
            fn_kwargs={"encoder": encoder},
            remove_columns=dataset.column_names,
            features=_FEATURES,
            num_proc=num_proc if num_proc and num_proc > 1 else None,
            new_fingerprint=cache_name(dataset, tokenizer, options),
            desc=f"Tokenising {desc}",
        )
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
    table = mapped.data  # a fresh result of map: in row order, without an indices mapping
    report = TokenizeReport(desc=desc, total=len(mapped))
    kept = np.flatnonzero(pc.is_null(table["dropped"]).to_numpy())
    report.kept = len(kept)
    for row, cause in enumerate(table["dropped"].to_pylist()):
        if cause is not None:
            _count(report.dropped, report.examples, cause, row)
    touched = np.flatnonzero(np.asarray(pc.greater(pc.list_value_length(table["cuts"]), 0)))
    for row, cuts in zip(touched.tolist(), table["cuts"].take(touched).to_pylist(), strict=True):
        for cause in cuts:
            _count(report.truncated, report.examples, cause, row)
    if report.kept:
        for column in TOKEN_COLUMNS:
            side = column.removesuffix("_ids")
            lengths = np.asarray(pc.list_value_length(table[column]))[kept]
            setattr(report, f"{side}_mean", float(lengths.mean()))
            setattr(report, f"{side}_max", int(lengths.max()))
            report.total_tokens += int(lengths.sum())
    return report, kept


def _count(counts: dict[str, int], examples: dict[str, list[int]], cause: str, row: int) -> None:
    counts[cause] = counts.get(cause, 0) + 1
    rows = examples.setdefault(cause, [])
    if len(rows) < _EXAMPLES:
        rows.append(row)


def cache_name(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, options: Any, sources: Sequence[str] = _SOURCES
) -> str:
    """Names the result in the cache: everything that the ids depend on, and nothing that changes with use.

    A tokenizer object remembers padding and truncation of its last call, so its own hash would miss the cache.

    Args:
        dataset: rows.
        tokenizer: with its chat template.
        options: an instance of a dataclass: mode and bounds.
        sources: files of this folder whose code makes the ids.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str())
        content.update(padding=None, truncation=None)
    else:
        content = {"class": type(tokenizer).__name__, "vocabulary": sorted(tokenizer.get_vocab().items())}
    code = [(Path(__file__).parent / name).read_text(encoding="utf-8") for name in sources]
    specials = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    state = [dataset._fingerprint, content, specials, tokenizer.chat_template, vars(options), code]
    return hashlib.sha256(json.dumps(state, sort_keys=True, default=str).encode()).hexdigest()[:32]


@contextlib.contextmanager
def quiet_forks(num_proc: int | None) -> Iterator[None]:
    """Forked workers warn about the tokenizer's threads unless they are switched off."""
    name = "TOKENIZERS_PARALLELISM"
    if not num_proc or num_proc < 2 or name in os.environ:
        yield
        return
    os.environ[name] = "false"
    try:
        yield
    finally:
        del os.environ[name]
