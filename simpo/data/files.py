"""One file of rows, read with huggingface `datasets`; whatever is wrong with it is one error with its place."""

from __future__ import annotations

import bz2
import contextlib
import csv
import glob
import gzip
import json
import lzma
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from datasets import Dataset, Features, Json, Value

from simpo.errors import DataError

_BUILDERS: dict[str, str] = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
KNOWN = ", ".join(_BUILDERS)
"""Suffixes of the files that can be read."""


class _Flaw(ValueError):
    """What is wrong in a file, as the end of a message that begins with its path."""


def builder_of(path: Path) -> str | None:
    """The builder of `datasets` for a file's suffix; None where there is none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _OPENERS:
        suffixes.pop()
    return _BUILDERS.get(suffixes[-1]) if suffixes else None


def open_file(path: Path) -> Dataset:
    """Read a .jsonl, .json, .parquet or .csv file, compressed or not.

    Raises:
        DataError: it cannot be read; with the line where it is known.
    """
    builder = builder_of(path)
    if builder is None:
        raise DataError(f"{path}: unknown kind of file; use one of {KNOWN} (also with .gz)")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty")
    try:
        return {"json": _read_json, "csv": _read_csv, "parquet": _read_parquet}[builder](path)
    except _Flaw as flaw:
        raise DataError(f"{path}{flaw}") from flaw.__cause__
    except Exception as error:  # the builders raise whatever their parsers raise
        raise DataError(
            f"{path}: cannot be read as {builder}: {innermost(error)}; "
            "give it the suffix that fits its content, or write it again"
        ) from error


def _load(builder: str, path: Path, **options: Any) -> Dataset:
    with no_library_log():
        files = {"train": glob.escape(str(path.absolute()))}
        return datasets.load_dataset(builder, data_files=files, **options)["train"]


def invalid_row(data: Dataset) -> int | None:
    """The first row whose text is no UTF-8; Arrow's parsers let it through, to fail much later."""
    start = 0
    for batch in data.data.to_batches():
        try:
            batch.validate(full=True)
        except pa.ArrowInvalid:
            return start + next((row for row in range(batch.num_rows) if not _is_text(batch.slice(row, 1))), 0)
        start += batch.num_rows
    return None


def _is_text(batch: Any) -> bool:
    try:
        pa.Table.from_batches([batch]).to_pylist()
    except UnicodeDecodeError:
        return False
    return True


def _read_parquet(path: Path) -> Dataset:
    try:
        return _load("parquet", path)
    except Exception:
        with contextlib.suppress(pa.ArrowInvalid):
            if pq.read_metadata(path).num_rows == 0:
                raise _Flaw(": the file holds no rows") from None
        raise


# CSV


def _read_csv(path: Path) -> Dataset:
    # every column as text: an answer such as 007, None or NA is meant as it stands
    features = Features(dict.fromkeys(_csv_header(path), Value("string")))
    return _load("csv", path, features=features, keep_default_na=False)


def _csv_header(path: Path) -> list[str]:
    """The names of the columns; the whole file is looked through, since pandas fills and joins what does not fit."""
    limit = csv.field_size_limit(sys.maxsize)
    opener = _OPENERS.get(path.suffix.lower(), open)
    start, rows = 1, 0
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as text:
            lines = csv.reader(text, strict=True)
            header = next(lines, [])
            if not header:
                raise _Flaw(":1: holds no names of columns; write them into the first line")
            repeated = [name for at, name in enumerate(header) if name in header[:at]]
            if repeated:
                raise _Flaw(f":1: the column {repeated[0]} stands twice; rename or remove one")
            start = lines.line_num + 1
            for fields in lines:
                if fields and len(fields) != len(header):
                    raise _Flaw(
                        f":{start}: {len(fields)} fields where the header has {len(header)}; put texts that hold "
                        'commas, quotes or line ends in "..." and write a quote in them as ""'
                    )
                start = lines.line_num + 1
                rows += bool(fields)
            if not rows:
                raise _Flaw(": the file holds no rows")
            return header
    except csv.Error as error:
        raise _Flaw(f":{start}: bad CSV: {error}; a quote is missing, or one in a text is not doubled") from error
    except UnicodeDecodeError as error:
        raise _Flaw(f": is no UTF-8 text, near line {start} ({error.reason}); save the file as UTF-8") from error
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise _Flaw(_unpacking(error, start)) from error
    finally:
        csv.field_size_limit(limit)


# JSON


def _read_json(path: Path) -> Dataset:
    try:
        data = _load("json", path)
        altered = [field.name for field in data.features.arrow_schema if _alters(field.type)]
        if altered:
            data = _load("json", path, features=Features({**data.features, **dict.fromkeys(altered, Json())}))
    except Exception as error:
        try:
            columns = _check_json(path)
        except _Flaw as flaw:
            raise flaw from error
        # Every row is fine, only not of the types of the first rows: keep them as they are.
        return _load("json", path, features=Features(dict.fromkeys(columns, Json())))
    # the builder makes a column text of an array of texts or numbers
    if data.column_names == ["text"] or invalid_row(data) is not None:
        _check_json(path)
    return data


def _alters(kind: pa.DataType) -> bool:
    """Whether a column is more than texts, lists and plain messages: templates would write its values otherwise.

    Arrow takes texts that look like dates for dates, whole numbers beside fractions for fractions, and fills in nulls.
    """
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("role") < 0)  # a message alone is refused by its type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    item = kind.value_type
    inner = [field.type for field in item] if pa.types.is_struct(item) else [item]
    return any(pa.types.is_temporal(part) or _alters(part) for part in inner)


def _check_json(path: Path) -> list[str]:
    """Every name of a column, found by reading the file line by line.

    Raises:
        _Flaw: a line, or an entry of an array, is no JSON object.
    """
    opener = _OPENERS.get(path.suffix.lower(), open)
    columns: dict[str, None] = {}
    number = 0
    try:
        with opener(path, "rb") as lines:
            for number, raw in enumerate(lines, start=1):
                line = raw.decode("utf-8-sig")
                if number == 1 and line.lstrip().startswith("["):
                    return _check_array(line + lines.read().decode())
                if line.strip():
                    columns.update(dict.fromkeys(_object_of(line, number)))
    except UnicodeDecodeError as error:
        raise _Flaw(f":{number}: is no UTF-8 text ({error.reason}); save the file as UTF-8") from error
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise _Flaw(_unpacking(error, number)) from error
    if not columns:
        raise _Flaw(": the file holds no rows, or only empty ones")
    return list(columns)


def _object_of(line: str, number: int) -> dict[str, Any]:
    whole = "each line must be one whole JSON object"
    try:
        value = json.loads(line, parse_int=_number, object_pairs_hook=_distinct)
        if "\\ud" in line.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise _Flaw(f":{number}: bad JSON at column {error.colno}: {error.msg}; {whole}") from error
    except UnicodeEncodeError as error:
        raise _Flaw(f":{number}: holds half of a surrogate pair, which is no text; write the character") from error
    except ValueError as error:
        raise _Flaw(f":{number}: {error}") from error
    if not isinstance(value, dict):
        raise _Flaw(f":{number}: holds a {type(value).__name__}; {whole}")
    return value


def _number(digits: str) -> int:
    value = int(digits)
    if abs(value) >= 2**63:
        raise ValueError(f"the number {digits[:20]} is too large for 64 bits; write it as text")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{max(names, key=names.count)!r} stands twice in one object; keep one")
    return value


def _check_array(text: str) -> list[str]:
    try:
        rows = json.loads(text, parse_int=_number, object_pairs_hook=_distinct)
    except json.JSONDecodeError as error:
        raise _Flaw(f":{error.lineno}: bad JSON at column {error.colno}: {error.msg}") from error
    except ValueError as error:
        raise _Flaw(f": {error}") from error
    if not rows:
        raise _Flaw(": the file holds no rows")
    for at, row in enumerate(rows):
        if not isinstance(row, dict):
            raise _Flaw(f": entry {at} is a {type(row).__name__}; each must be a JSON object")
    return list(dict.fromkeys(column for row in rows for column in row))


# both


def _unpacking(error: BaseException, line: int) -> str:
    if isinstance(error, OSError):
        return f": cannot be decompressed ({error}); give it the suffix that fits its content"
    return f": the compressed file ends early, after line {line} ({error}); copy or download it again"


def innermost(error: BaseException) -> str:
    """The first line of the error that started it: `datasets` wraps parsers' errors in one that says nothing."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


@contextlib.contextmanager
def no_library_log() -> Iterator[None]:
    """Parsers log what they then raise; the user gets one error."""
    before = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(before)
