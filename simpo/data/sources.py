"""One source of rows: a hub data set, a directory, or a file, read with huggingface `datasets`."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import json
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict

from simpo.errors import DataError

_BUILDERS: dict[str, str] = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_KNOWN = ", ".join(_BUILDERS)


def open_source(source: str, config: str | None = None) -> Dataset | DatasetDict:
    """Read one source.

    Args:
        source: a hub name, a directory (`save_to_disk`, or a hub repository's layout), or a .jsonl, .json, .parquet or
            .csv file, compressed (.gz) or not.
        config: configuration of a hub data set.

    Returns:
        A `Dataset` where the source has no splits (a file, a saved `Dataset`), else all its splits.

    Raises:
        DataError: there is no such source, or it cannot be read; with the file and the line where they are known.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _open_file(path)
    if path.is_dir():
        return _open_directory(path, config)
    if _builder(path) or source.startswith(("/", ".", "~")) or source.count("/") > 1:
        raise DataError(f"{source}: no such file or directory (looked for {path.absolute()})")
    return _open_hub(source, config)


def _builder(path: Path) -> str | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _OPENERS:
        suffixes.pop()
    return _BUILDERS.get(suffixes[-1]) if suffixes else None


def _open_file(path: Path) -> Dataset:
    builder = _builder(path)
    if builder is None:
        raise DataError(f"{path}: unknown kind of file; use one of {_KNOWN} (also with .gz)")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty")
    # pandas reads answers such as "None" or "NA" as missing unless told otherwise
    options: dict[str, Any] = {"keep_default_na": False} if builder == "csv" else {}
    try:
        with _no_library_log():
            data = datasets.load_dataset(builder, data_files={"train": str(path.absolute())}, **options)["train"]
        data.data.validate(full=True)  # Arrow's JSON parser lets broken UTF-8 through, to fail much later
    except Exception as error:  # the builders raise whatever their parsers raise
        problem = _find_json_problem(path) if builder == "json" else None
        raise DataError(f"{path}{problem or ': cannot be read as ' + builder + ': ' + _innermost(error)}") from error
    return data


def _open_directory(path: Path, config: str | None) -> Dataset | DatasetDict:
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return datasets.load_from_disk(str(path))
        splits = sorted(part.parent for part in path.glob("*/state.json"))
        if splits:
            return DatasetDict({split.name: Dataset.load_from_disk(str(split)) for split in splits})
        with _no_library_log():
            return datasets.load_dataset(str(path), config)
    except Exception as error:
        raise DataError(
            f"{path}: cannot be read as a data set: {_innermost(error)}; "
            f"write it with save_to_disk, or name one file in it ({_KNOWN})"
        ) from error


def _open_hub(source: str, config: str | None) -> DatasetDict:
    try:
        return datasets.load_dataset(source, config)
    except Exception as error:
        named = f" (configuration {config!r})" if config else ""
        raise DataError(
            f"{source}{named}: is no local file or directory, and cannot be loaded from the hub: {_innermost(error)}"
        ) from error


def _find_json_problem(path: Path) -> str | None:
    """Where a JSON file goes wrong: ':line: what', found by reading it line by line; None where every line is fine."""
    opener = _OPENERS.get(path.suffix.lower(), open)
    rows = number = 0
    try:
        with opener(path, "rb") as lines:
            for number, raw in enumerate(lines, start=1):
                line = raw.decode("utf-8-sig")
                if number == 1 and line.lstrip().startswith("["):
                    return _array_problem(line + lines.read().decode())
                if not line.strip():
                    continue
                rows += 1
                value = json.loads(line)
                if not isinstance(value, dict):
                    return f":{number}: holds a {type(value).__name__}; each line must be one JSON object"
    except json.JSONDecodeError as error:
        return f":{number}: bad JSON at column {error.colno}: {error.msg}; each line must be one whole JSON object"
    except (EOFError, lzma.LZMAError) as error:
        return f": the compressed file ends early, after line {number} ({error}); copy or download it again"
    except UnicodeDecodeError as error:
        return f":{number}: is no UTF-8 text ({error.reason}); save the file as UTF-8"
    except OSError as error:
        return f": cannot be decompressed ({error}); give it the suffix that fits its content"
    return None if rows else ": the file holds no rows"


def _array_problem(text: str) -> str | None:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        return f":{error.lineno}: bad JSON at column {error.colno}: {error.msg}"
    if not rows:
        return ": the file holds no rows"
    wrong = next((at for at, row in enumerate(rows) if not isinstance(row, dict)), None)
    return None if wrong is None else f": entry {wrong} is a {type(rows[wrong]).__name__}; each must be a JSON object"


def _innermost(error: BaseException) -> str:
    """The first line of the error that started it: `datasets` wraps parsers' errors in one that says nothing."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


@contextlib.contextmanager
def _no_library_log() -> Iterator[None]:
    """Parsers log what they then raise; the user gets one error."""
    before = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(before)
