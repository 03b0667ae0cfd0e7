"""One source of rows: a hub data set, a directory, or a file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import datasets
from datasets import Dataset, DatasetDict, ReadInstruction, concatenate_datasets

from simpo.data.files import KNOWN, builder_of, innermost, no_library_log, open_file
from simpo.errors import ConfigError, DataError

DEFAULT_SPLITS = ["train", "test"]
Purpose = Literal["train", "eval"]


class Part(NamedTuple):
    """One split of one source: what it is for, its name for messages, and its rows."""

    purpose: Purpose
    where: str
    data: Dataset


def open_source(source: str, config: str | None = None) -> Dataset | DatasetDict:
    """Read one source.

    Args:
        source: a hub name, a directory (`save_to_disk`, or a hub repository's layout), or a .jsonl, .json, .parquet or
            .csv file, compressed (.gz) or not.
        config: configuration of a hub data set, or of a directory of that layout.

    Returns:
        A `Dataset` where the source has no splits (a file, a saved `Dataset`), else all its splits.

    Raises:
        ConfigError: a configuration is named for a source that has none.
        DataError: there is no such source, or it cannot be read; with the file and the line where they are known.
    """
    path = Path(source).expanduser()
    if path.is_file():
        _refuse_config(path, config)
        return open_file(path)
    if path.is_dir():
        return _open_directory(path, config)
    if path.is_symlink():
        raise DataError(f"{source}: a link to {path.readlink()}, where no file is")
    if builder_of(path) or source.startswith(("/", ".", "~")) or source.count("/") > 1:
        raise DataError(f"{source}: no such file or directory (looked for {path.absolute()})")
    return _open_hub(source, config)


def _refuse_config(path: Path, config: str | None) -> None:
    if config not in (None, "default"):
        raise ConfigError(f"dataset_configs: {path} has no configuration {config!r}, nor any other; write null")


def _open_directory(path: Path, config: str | None) -> Dataset | DatasetDict:
    splits = sorted(part.parent for part in path.glob("*/state.json"))
    saved = any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))
    if saved or splits:
        _refuse_config(path, config)
    try:
        if saved:
            return datasets.load_from_disk(str(path))
        if splits:
            return DatasetDict({split.name: Dataset.load_from_disk(str(split)) for split in splits})
        with no_library_log():
            return datasets.load_dataset(str(path), config)
    except Exception as error:
        raise DataError(
            f"{path}: cannot be read as a data set: {innermost(error)}; "
            f"write it with save_to_disk, or name one file in it ({KNOWN})"
        ) from error


def _open_hub(source: str, config: str | None) -> DatasetDict:
    try:
        with no_library_log():
            return datasets.load_dataset(source, config)
    except Exception as error:
        named = f" (configuration {config!r})" if config else ""
        raise DataError(
            f"{source}{named}: is no local file or directory, and cannot be loaded from the hub: {innermost(error)}"
        ) from error


def split_source(
    data: Dataset | DatasetDict, source: str, splits: Sequence[str] | None, purposes: Sequence[Purpose]
) -> list[Part]:
    """The wanted splits of one source.

    Args:
        data: what `open_source` returned.
        source: its name for messages.
        splits: splits to read; "train" in the name: for training; "test", "eval" or "validation": for evaluation. None
            or the default `[train, test]` takes the test split only from sources that have one.
        purposes: what is wanted. A source without splits is training data, unless only evaluation data are wanted.

    Raises:
        ConfigError: a split's name tells no purpose.
        DataError: there is no such split, or none that evaluates where only these are wanted.
    """
    if isinstance(data, Dataset):
        return [Part(purposes[0], source, data)]
    default = splits is None or list(splits) == DEFAULT_SPLITS
    parts: list[Part] = []
    for split in DEFAULT_SPLITS if splits is None else splits:
        purpose = split_purpose(split)
        if purpose not in purposes:
            continue
        if default and split not in data and (purpose == "eval" and "train" in purposes):
            continue
        parts.append(Part(purpose, f"{source} [{split}]", take_split(data, split, source)))
    if not parts and list(purposes) == ["eval"]:
        raise DataError(
            f"{source}: dataset_splits {list(splits or [])} names no evaluation split; add one of {', '.join(data)}"
        )
    return parts


def split_purpose(split: str) -> Purpose:
    """What a split is for, by its name.

    Raises:
        ConfigError: the name does not tell.
    """
    name = re.split(r"[\[+]", split)[0].lower()
    if "train" in name:
        return "train"
    if any(word in name for word in ("test", "eval", "validation")):
        return "eval"
    raise ConfigError(
        f"dataset_splits: {split!r} does not tell whether it trains or evaluates; "
        "a split's name must contain train, or one of test, eval and validation"
    )


def take_split(data: DatasetDict, split: str, source: str) -> Dataset:
    """A split by name, or a slice of it in the notation of `datasets` (train[:10%])."""
    if split in data:
        return data[split]
    try:
        slices = ReadInstruction.from_spec(split).to_absolute({name: len(part) for name, part in data.items()})
        return concatenate_datasets([data[part.splitname].select(range(part.from_, part.to)) for part in slices])
    except (ValueError, AssertionError) as error:
        raise DataError(
            f"{source}: no split {split!r}; it has {', '.join(data)}: name these in dataset_splits"
        ) from error
    except IndexError as error:
        sizes = ", ".join(f"{name} has {len(part)} rows" for name, part in data.items())
        raise DataError(f"{source}: {split!r} begins behind the last row; {sizes}") from error
