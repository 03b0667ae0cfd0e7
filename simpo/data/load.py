"""Sources to one training and one evaluation set of raw rows, with an account of what was taken and what left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from datasets import Dataset

from simpo.data.columns import concatenate, take_columns
from simpo.data.config import DataConfig
from simpo.data.duplicates import Ints, RowKeys, first_with_key, row_keys
from simpo.data.minhash import near_duplicates
from simpo.data.mix import draw, held_out, some, weighted
from simpo.data.sources import DEFAULT_SPLITS, Purpose, open_source, split_purpose, split_source
from simpo.data.tokenize import is_tokenized
from simpo.errors import ConfigError, DataError

DUPLICATE = "duplicate of an earlier row"
NEAR_DUPLICATE = "nearly a duplicate of an earlier row"

_SETTINGS = {DUPLICATE: "deduplicate: exact", NEAR_DUPLICATE: "deduplicate: near"}
_EXAMPLES = 5


@dataclass(frozen=True)
class RowKind:
    """What the rows of a run are, for reading: by default pairs.

    Args:
        take: columns of a source's rows, checked and by our names, from rows, the source's name and its column names.
        keys: what makes two prompts, and two rows, the same.
    """

    take: Callable[[Dataset, str, Mapping[str, str] | None], Dataset] = take_columns
    keys: Callable[[Dataset, int | None], RowKeys] = row_keys


PAIRS = RowKind()


@dataclass(frozen=True)
class Taken:
    """What was taken of one split of one source.

    Args:
        where: its name.
        there: rows that it has.
        rows: numbers of the rows that were taken, from 0; None for all.
        weight: how often each is seen in an epoch.
    """

    where: str
    there: int
    rows: Ints | None
    weight: float = 1.0

    @property
    def size(self) -> int:
        """Rows that were taken."""
        return self.there if self.rows is None else len(self.rows)


@dataclass
class LoadReport:
    """What became of the training rows of the sources: those taken are total = kept + held out + dropped.

    Args:
        taken: what was taken of each source, in their order.
        kept: rows that train, each counted once.
        held_out: rows held out for evaluation.
        dropped: cause -> rows left out.
        examples: cause -> the first five: (row, the earlier row), numbered through all that was taken.
        seen: rows of the training set: those kept, repeated by weight, and at most max_train_samples.
        numbers: of each row of the training set, its number among all that was taken.
    """

    taken: list[Taken]
    kept: int = 0
    held_out: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    seen: int = 0
    numbers: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64), repr=False, compare=False)

    @property
    def total(self) -> int:
        """Rows taken of all sources."""
        return sum(part.size for part in self.taken)

    def locate(self, row: int) -> tuple[str, int]:
        """Source, and number in it (from 0), of a row of those taken."""
        for part in self.taken:
            if row < part.size:
                return part.where, int(row if part.rows is None else part.rows[row])
            row -= part.size
        raise IndexError(row)

    def place(self, row: int) -> str:
        """The same as one text."""
        return "{} row {}".format(*self.locate(row))

    def origin(self, row: int) -> str:
        """Source and row number (from 0) of a row of the training set."""
        return self.place(int(self.numbers[row]))

    def lines(self) -> list[str]:
        """The account for people; nothing where every row of every source trains once."""
        lines = []
        for part in self.taken:
            if part.rows is not None or part.weight != 1:
                weight = f", each seen {part.weight:g} times an epoch" if part.weight != 1 else ""
                lines.append(f"  {part.where}: {part.size} of {part.there} rows{weight}")
        for cause, count in self.dropped.items():
            pairs = "; ".join(f"{self.place(row)} = {self.place(first)}" for row, first in self.examples[cause])
            more = "; ..." if count > _EXAMPLES else ""
            lines.append(
                f"  dropped {count}: {cause} ({pairs}{more}): {_SETTINGS[cause]} leaves them out, off keeps them"
            )
        if self.held_out:
            lines.append(f"  held out {self.held_out} for evaluation, with all rows of their prompts")
        if self.seen != self.kept and all(part.weight == 1 for part in self.taken):
            lines.append(f"  max_train_samples takes {self.seen} of {self.kept}")
        return [f"sources: {self.seen} training rows of {self.total}", *lines] if lines else []


class Loaded(NamedTuple):
    """Rows for training, rows for evaluation or None, and the account of the training rows."""

    train: Dataset
    evaluation: Dataset | None
    report: LoadReport


def load_datasets(settings: DataConfig, seed: int = 42, num_proc: int | None = None) -> tuple[Dataset, Dataset | None]:
    """Training rows and evaluation rows or None: `load_mix` without its account."""
    return load_mix(settings, seed, num_proc)[:2]


def load_mix(settings: DataConfig, seed: int = 42, num_proc: int | None = None, kind: RowKind = PAIRS) -> Loaded:
    """Read, mix and split everything that a run's settings name.

    Args:
        settings: the run's data settings.
        seed: of every draw; the same seed gives the same rows in the same order.
        num_proc: processes that compare rows, where that is asked for; None for this one.
        kind: what the rows are.

    Returns:
        Training rows and evaluation rows or None, in the order of the sources and of their rows, so that a row can be
        found in its file (steps draw their pairs from a seeded permutation). Rows are raw (`prompt`, `chosen`,
        `rejected`, `tools`, `chat_template_kwargs`), or token ids where the sources hold them.

    Raises:
        ConfigError: settings contradict each other.
        DataError: a source, split or column is missing, or a file cannot be read.
    """
    mixer = settings.dataset_mixer
    if not mixer:
        raise ConfigError("no training data: set dataset_mixer ({source: fraction}) or dataset_name")
    found = _read(settings, mixer, ("train",) if settings.eval_dataset_mixer else ("train", "eval"), seed, kind)
    if settings.eval_dataset_mixer:
        found |= _read(settings, settings.eval_dataset_mixer, ("eval",), seed, kind)
    if "train" not in found:
        raise DataError(f"no training rows: no split of dataset_splits {settings.dataset_splits} has train in its name")
    pool, report = found["train"]
    evaluation = found["eval"][0] if "eval" in found else None
    if settings.test_size and evaluation is not None:
        raise ConfigError(
            f"test_size: {settings.test_size} and an evaluation source ({len(evaluation)} rows) are both given; "
            "set test_size: 0 to use the source, or dataset_splits: [train] to hold out training prompts"
        )
    rows, held = _divide(pool, settings, report, seed, num_proc, kind)
    if len(held):
        evaluation = pool.select(held)
    if evaluation is not None and settings.max_eval_samples:
        evaluation = _select(evaluation, some(np.arange(len(evaluation)), settings.max_eval_samples, seed))
    return Loaded(_select(pool, rows), evaluation, report)


def load_rows(settings: DataConfig, seed: int = 42, kind: RowKind = PAIRS) -> tuple[Dataset, LoadReport]:
    """Read the rows of dataset_mixer to look at them: of the splits that are named, else of the test split.

    Args:
        settings: sources, splits and columns; `max_eval_samples` bounds the rows, all other settings are for training.
        seed: of every draw.
        kind: what the rows are.

    Returns:
        Rows as of `load_mix`, and where they come from: `report.origin(row)`.

    Raises:
        ConfigError: no source, or splits of both kinds, are named.
        DataError: as for `load_mix`.
    """
    if not settings.dataset_mixer:
        raise ConfigError("no data: set dataset_mixer ({source: fraction}) or dataset_name")
    splits = list(settings.dataset_splits or DEFAULT_SPLITS)
    purposes = {split_purpose(split) for split in splits} if splits != DEFAULT_SPLITS else {"eval"}
    if len(purposes) > 1:
        raise ConfigError(f"dataset_splits: {splits} holds splits to train on and to evaluate on; name one kind")
    (found,) = _read(settings, settings.dataset_mixer, [*purposes], seed, kind).values()  # type: ignore[list-item]
    rows, report = found
    report.numbers = some(np.arange(len(rows)), settings.max_eval_samples or len(rows), seed)
    report.kept = report.seen = len(report.numbers)
    return _select(rows, report.numbers), report


def _read(
    settings: DataConfig, mixer: Mapping[str, float], purposes: Sequence[Purpose], seed: int, kind: RowKind
) -> dict[Purpose, tuple[Dataset, LoadReport]]:
    """The rows of all sources by purpose; amounts cut only those that train, unless only evaluation is wanted."""
    parts: dict[Purpose, list[tuple[Taken, Dataset]]] = {}
    for source, amount in mixer.items():
        opened = open_source(source, settings.config_of(source))
        for purpose, where, data in split_source(opened, source, settings.dataset_splits, purposes):
            data = kind.take(data, where, settings.columns_of(source))
            rows = draw(amount, len(data), seed, where) if purpose == purposes[0] else None
            weight = (settings.dataset_weights or {}).get(source, 1.0) if purpose == "train" else 1.0
            taken = Taken(where, len(data), rows, weight)
            parts.setdefault(purpose, []).append((taken, data if rows is None else data.select(rows)))
    return {
        purpose: (
            concatenate([data for _, data in found], [taken.where for taken, _ in found]),
            LoadReport([taken for taken, _ in found]),
        )
        for purpose, found in parts.items()
    }


def _divide(
    pool: Dataset, settings: DataConfig, report: LoadReport, seed: int, num_proc: int | None, kind: RowKind
) -> tuple[Ints, Ints]:
    """Rows that train, repeated by weight, and rows held out; the report is filled in."""
    exact = settings.deduplicate == "exact"
    keys = kind.keys(pool, num_proc) if exact or settings.test_size else None
    rows = np.arange(len(pool))
    if settings.deduplicate != "off":
        if exact:
            assert keys is not None
            earlier = first_with_key(keys.pair)
        else:
            earlier = _near(pool, num_proc)
        repeated = np.flatnonzero(earlier >= 0)
        if len(repeated):
            cause = DUPLICATE if exact else NEAR_DUPLICATE
            report.dropped[cause] = len(repeated)
            report.examples[cause] = [(int(row), int(earlier[row])) for row in repeated[:_EXAMPLES]]
        rows = rows[earlier < 0]
    held = rows[:0]
    if settings.test_size:
        assert keys is not None
        mask = held_out(keys.prompt[rows], settings.test_size, seed)
        rows, held = rows[~mask], rows[mask]
    report.kept, report.held_out = len(rows), len(held)
    weights = [part.weight for part in report.taken]
    if any(weight != 1 for weight in weights):
        rows = weighted(rows, [part.size for part in report.taken], weights, seed)
    if settings.max_train_samples:
        rows = some(rows, settings.max_train_samples, seed)
    report.seen, report.numbers = len(rows), rows
    return rows, held


def _near(pool: Dataset, num_proc: int | None) -> Ints:
    if is_tokenized(pool):
        raise ConfigError("deduplicate: near compares texts, and the sources hold token ids; write exact, or off")
    return near_duplicates(pool, num_proc=num_proc)


def _select(data: Dataset, rows: Ints) -> Dataset:
    """Those rows; the data set itself where they are all of its rows, as that is faster to read."""
    return data if np.array_equal(rows, np.arange(len(data))) else data.select(rows)
