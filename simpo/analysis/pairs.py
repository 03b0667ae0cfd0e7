"""Log-probs of a model on a preference set, one row per pair: what every statistic starts from.

Shape letters: B pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from simpo.errors import DataError

COLUMNS = ("row", "chosen", "rejected", "chosen_lengths", "rejected_lengths")
REFERENCE_COLUMNS = ("ref_chosen", "ref_rejected")
SOURCE_COLUMN = "source"
_INTEGERS = ("row", "chosen_lengths", "rejected_lengths")
_Place = tuple[Any, int]  # source, or None where there is one, and row
_ABOVE_ZERO = 0.01  # nats; what rounding may leave of a log-prob of 0


@dataclass(frozen=True, eq=False)
class PairScores:
    """Log-probs of one model on a preference set. Arrays are converted and checked.

    Args:
        row: [B] which pair of the set, a whole number that none of its source shares.
        chosen, rejected: [B] log-prob of the response, summed over its tokens, in nats.
        chosen_lengths, rejected_lengths: [B] scored tokens, at least 1.
        ref_chosen, ref_rejected: [B] the same sums under the initial policy; both or none.
        source: [B] which part of the set, where rows are numbered anew in each; None: there is one.

    Raises:
        DataError: empty or of unequal lengths; a number that no log-prob or length can be, with its row.
    """

    row: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    chosen_lengths: np.ndarray
    rejected_lengths: np.ndarray
    ref_chosen: np.ndarray | None = None
    ref_rejected: np.ndarray | None = None
    source: np.ndarray | None = None

    def __post_init__(self) -> None:
        if (self.ref_chosen is None) != (self.ref_rejected is None):
            raise DataError("log-probs of the initial policy are there for one side only; give both or none")
        for field in fields(self):
            values = getattr(self, field.name)
            if values is not None and field.name != SOURCE_COLUMN:
                object.__setattr__(self, field.name, _checked(field.name, values, self.row))
        if self.source is not None:
            object.__setattr__(self, SOURCE_COLUMN, np.asarray(self.source, dtype=object))
            if np.shape(self.source) != self.row.shape:
                raise DataError(
                    f"source has the shape {np.shape(self.source)}, row {self.row.shape}; give one per pair"
                )
        (place, count), *_ = Counter(self.places()).most_common(1)
        if count > 1:
            raise DataError(f"{_named(place)} is there {count} times; each pair needs its own")

    def __len__(self) -> int:
        return len(self.row)

    def places(self) -> list[_Place]:
        """[B] what tells each pair from the others: its source, or None where there is one, and its row."""
        sources = [None] * len(self.row) if self.source is None else self.source.tolist()
        return list(zip(sources, self.row.tolist(), strict=True))

    @property
    def chosen_average(self) -> np.ndarray:
        """[B] nats per token."""
        return self.chosen / self.chosen_lengths

    @property
    def rejected_average(self) -> np.ndarray:
        """[B] nats per token."""
        return self.rejected / self.rejected_lengths

    def log_ratios(self) -> tuple[np.ndarray, np.ndarray]:
        """[B], [B] log pi(y) - log ref(y) of chosen and rejected responses, in nats.

        Raises:
            DataError: there are no log-probs of the initial policy.
        """
        if self.ref_chosen is None or self.ref_rejected is None:
            raise DataError(
                f"this needs log-probs of the initial policy, the columns {' and '.join(REFERENCE_COLUMNS)}; "
                "score the same pairs with the initial policy and join them: pairs.against(initial)"
            )
        return self.chosen - self.ref_chosen, self.rejected - self.ref_rejected

    def only(self, places: Sequence[tuple[Any, int]]) -> PairScores:
        """The pairs at these places, (source or None, row), in their order.

        Raises:
            KeyError: there is no such pair.
        """
        found = {place: at for at, place in enumerate(self.places())}
        order = np.array([found[place] for place in places])
        parts: dict[str, Any] = {
            field.name: None if (part := getattr(self, field.name)) is None else part[order] for field in fields(self)
        }
        return PairScores(**parts)

    def against(self, initial: PairScores) -> PairScores:
        """These scores with those of the initial policy on the same pairs, whatever their order, as `ref_*`.

        Raises:
            DataError: the initial policy lacks a pair, or its responses have other lengths; one of the two names
                sources of its rows and the other does not.
        """
        if (self.source is None) != (initial.source is None):
            raise DataError(
                "only one of the two scores says of which source its rows are; give both the column source, or neither"
            )
        places, found = self.places(), {place: at for at, place in enumerate(initial.places())}
        missing = [place for place in places if place not in found]
        if missing:
            raise DataError(
                f"the initial policy has no scores of {len(missing)} of {len(self)} pairs, the first is "
                f"{_named(missing[0])}; score both models on one set"
            )
        order = np.array([found[place] for place in places])
        for name in ("chosen_lengths", "rejected_lengths"):
            own, other = getattr(self, name), getattr(initial, name)[order]
            if (own != other).any():
                at = int((own != other).argmax())
                raise DataError(
                    f"{_named(places[at])}: {name} is {own[at]} here and {other[at]} under the initial policy; "
                    "score both with one tokenizer, template and max_length"
                )
        return replace(self, ref_chosen=initial.chosen[order], ref_rejected=initial.rejected[order])


def read_pairs(path: str | Path) -> PairScores:
    """Scores from a parquet file with `COLUMNS`, and `REFERENCE_COLUMNS` where the initial policy was scored too.

    `pairs.parquet` of `simpo eval pairs` is one; its rows are numbered in each `source`.

    Raises:
        DataError: no such file, none in parquet, a column or a value is missing, or a value is impossible.
    """
    try:
        with pq.ParquetFile(path) as file:
            present = file.schema_arrow.names
            missing = [name for name in COLUMNS if name not in present]
            if missing:
                raise DataError(f"{path} has no column {', '.join(missing)}; scores of pairs have {', '.join(COLUMNS)}")
            names = [name for name in (*COLUMNS, *REFERENCE_COLUMNS, SOURCE_COLUMN) if name in present]
            table = file.read(columns=names)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} cannot be read as a parquet file of scores: {error}") from error
    empty = [name for name in names if table[name].null_count]
    if empty:
        raise DataError(
            f"{path}: column {empty[0]} has {table[empty[0]].null_count} empty cells; score the pairs again"
        )
    try:
        return PairScores(**{name: table[name].to_numpy() for name in names})
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _named(place: _Place) -> str:
    source, row = place
    return f"row {row}" if source is None else f"{source} row {row}"


def _checked(name: str, values: np.ndarray, row: np.ndarray) -> np.ndarray:
    """One column as float64 or int64."""
    try:
        found = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} holds something that is no number: {error}") from error
    if found.shape != (np.size(row),) or not len(found):
        raise DataError(
            f"{name} has the shape {found.shape}, row {np.shape(row)}; each needs one number per pair, and a pair "
            "at least"
        )
    if name in _INTEGERS:
        wrong, meant = ~(found == np.floor(found)), "a whole number"
        if name != "row":
            wrong, meant = wrong | ~(found >= 1), "a number of tokens, 1 at least"
    else:
        wrong, meant = ~(np.isfinite(found) & (found <= _ABOVE_ZERO)), "a summed log-probability, 0 at most"
    if wrong.any():
        at = int(wrong.argmax())
        raise DataError(f"row {np.asarray(row)[at]}: {name} is {found[at]:g}, but must be {meant}")
    return np.asarray(values, dtype=np.int64) if name in _INTEGERS else found
