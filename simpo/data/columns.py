"""The columns of a source by our names, checked, and brought to one type where sources are mixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, Features, Json, List, Value, concatenate_datasets

from simpo.data.files import invalid_row
from simpo.data.schema import RAW_COLUMNS, TEMPLATE_COLUMNS, TOKEN_COLUMNS, check_columns
from simpo.data.token_ids import check_token_ids
from simpo.data.tokenize import is_tokenized
from simpo.data.unpaired import as_pairs
from simpo.errors import DataError

_IDS = List(Value("int64"))


def take_columns(data: Dataset, where: str, names: Mapping[str, str] | None = None) -> Dataset:
    """The columns that make a pair, by our names; all others are left behind.

    Args:
        data: rows of one source.
        where: its name for messages.
        names: own column -> the source's, for those that differ.

    Raises:
        DataError: there are no rows, a column is missing or of a wrong type, or token ids are none.
    """
    if not len(data):
        raise DataError(f"{where}: holds no rows")
    data = rename_columns(data, where, names or {})
    if is_tokenized(data):
        data = data.select_columns(list(TOKEN_COLUMNS))
        check_token_ids(data, where)
        return data
    data = as_pairs(data, where)
    check_columns(data.features, where)
    data = data.select_columns([column for column in (*RAW_COLUMNS, *TEMPLATE_COLUMNS) if column in data.features])
    row = invalid_row(data)
    if row is not None:
        raise DataError(f"{where}: row {row}: is no UTF-8 text; write the texts of the source as UTF-8")
    return data


def rename_columns(data: Dataset, where: str, names: Mapping[str, str]) -> Dataset:
    """The rows with columns by our names; `names` maps own column -> the source's.

    Raises:
        DataError: there is no such column.
    """
    for own, given in names.items():
        if given not in data.column_names:
            raise DataError(
                f"{where}: dataset_columns reads {own} from {given!r}, but its columns are "
                f"{', '.join(data.column_names)}; correct the name, or map the columns of each source by itself: "
                "dataset_columns: {source: {prompt: ...}}"
            )
    replaced = [own for own in names if own in data.column_names and own not in names.values()]
    return data.remove_columns(replaced).rename_columns({given: own for own, given in names.items() if given != own})


def concatenate(parts: Sequence[Dataset], names: Sequence[str]) -> Dataset:
    """One data set of several; a column that differs in type becomes JSON, which holds either form.

    Args:
        parts: rows by `take_columns`; at least one.
        names: of the parts, for messages.

    Raises:
        DataError: some hold token ids and others do not.
    """
    if len({is_tokenized(data) for data in parts}) > 1:
        raise DataError(f"token ids and raw rows cannot be mixed: {', '.join(names)}; use one of the two")
    if is_tokenized(parts[0]):
        own = Features(dict.fromkeys(TOKEN_COLUMNS, _IDS))
        aligned = [data if data.features == own or len(parts) == 1 else data.cast(own) for data in parts]
    else:
        odd = _odd_columns(parts)
        aligned = [_with_json(data, odd) for data in parts]
    return aligned[0] if len(aligned) == 1 else concatenate_datasets(aligned)


def _odd_columns(parts: Sequence[Dataset]) -> list[str]:
    """Columns whose Arrow type is not the same in all parts that have them."""
    types: dict[str, Any] = {}
    odd: dict[str, None] = {}
    for data in parts:
        for field in data.features.arrow_schema:
            if types.setdefault(field.name, field.type) != field.type:
                odd[field.name] = None
    return list(odd)


def _with_json(data: Dataset, columns: Sequence[str]) -> Dataset:
    changed = [column for column in columns if column in data.features and not isinstance(data.features[column], Json)]
    if not changed:
        return data
    features = Features({**data.features, **dict.fromkeys(changed, Json())})
    return data.map(_unchanged, batched=True, features=features, desc="Aligning columns")


def _unchanged(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return dict(batch)
