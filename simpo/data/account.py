"""Rows through an encoder: once, in batches, cached, and with an account of every row.

An encoder's columns are token ids and two of this account's: `dropped`, the cause for which a row is left out or None,
and one with what happened to a row that is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc  # type: ignore[import-untyped]
from datasets import Dataset, Features

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_EXAMPLES = 5


@dataclass
class RowReport:
    """What became of the rows of one data set.

    Args:
        desc: name of the data set.
        total, kept: rows read, and rows that are trained on.
        dropped: cause -> rows left out; after a colon what the template said.
        examples: cause, or what happened -> the first five row numbers.
    """

    desc: str = "train"
    total: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[int]] = field(default_factory=dict)

    def causes(self, counts: Mapping[str, int], advice: Mapping[str, str], otherwise: str = "") -> Iterator[str]:
        """A line for each cause, the most frequent first: how many rows, which, and what to do.

        Args:
            counts: cause -> rows.
            advice: cause, as it is before a colon -> what to do.
            otherwise: for causes without one.
        """
        for cause, count in sorted(counts.items(), key=lambda item: -item[1]):
            rows = ", ".join(map(str, self.examples.get(cause, []))) + (", ..." if count > _EXAMPLES else "")
            todo = advice.get(cause.split(":")[0], otherwise)
            yield f"{count}: {cause} (rows {rows})" + (f": {todo}" if todo else "")

    def read(self, mapped: Dataset, noted: str, notes: dict[str, int]) -> np.ndarray:
        """Count the rows of a fresh result of `encode_rows`, and give the positions [kept] of those that are kept.

        Args:
            mapped: the result, in row order, without an indices mapping.
            noted: its column of what happened to rows that are kept.
            notes: where that is counted.
        """
        table = mapped.data
        kept = np.flatnonzero(pc.is_null(table["dropped"]).to_numpy())
        self.total, self.kept = len(mapped), len(kept)
        for row, cause in enumerate(table["dropped"].to_pylist()):
            if cause is not None:
                self._count(self.dropped, cause, row)
        touched = np.flatnonzero(np.asarray(pc.greater(pc.list_value_length(table[noted]), 0)))
        for row, found in zip(touched.tolist(), table[noted].take(touched).to_pylist(), strict=True):
            for note in found:
                self._count(notes, note, row)
        return kept

    def _count(self, counts: dict[str, int], cause: str, row: int) -> None:
        counts[cause] = counts.get(cause, 0) + 1
        rows = self.examples.setdefault(cause, [])
        if len(rows) < _EXAMPLES:
            rows.append(row)


def encode_rows(
    dataset: Dataset,
    encode_batch: Callable[..., dict[str, list[Any]]],
    encoder: Any,
    features: Features,
    *,
    name: str,
    num_proc: int | None,
    desc: str,
) -> Dataset:
    """What an encoder makes of all rows, with those that it drops.

    Args:
        dataset: rows.
        encode_batch: columns of some rows, their numbers, encoder=encoder -> columns by `features`.
        encoder: what it needs.
        features: of the result.
        name: of the result in the cache, by `cache_name`.
        num_proc: processes to work in; None for this one.
        desc: name of the data set.
    """
    with _quiet_forks(num_proc):
        return dataset.map(
            encode_batch,
            with_indices=True,
            batched=True,
            batch_size=500,
            fn_kwargs={"encoder": encoder},
            remove_columns=dataset.column_names,
            features=features,
            num_proc=num_proc if num_proc and num_proc > 1 else None,
            new_fingerprint=name,
            desc=f"Tokenising {desc}",
        )


def cache_name(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, options: Any, sources: Sequence[str]) -> str:
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
def _quiet_forks(num_proc: int | None) -> Iterator[None]:
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
