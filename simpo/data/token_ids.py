"""Token ids that come ready-made: whether a model could read them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.compute as pc  # type: ignore[import-untyped]
from datasets import Dataset, LargeList, List, Value

from simpo.data.schema import TOKEN_COLUMNS
from simpo.errors import DataError


def check_token_ids(data: Dataset, where: str, vocabulary: int | None = None) -> None:
    """Refuse token ids that no model could read; they come from a program, so one wrong row says that it has a flaw.

    Args:
        data: prompt_ids, chosen_ids and rejected_ids.
        where: the data set's name for messages.
        vocabulary: number of ids that there are; None leaves the upper bound unchecked.

    Raises:
        DataError: a column holds no lists of whole numbers, a list is empty, or an id is out of bounds.
    """
    for column in TOKEN_COLUMNS:
        feature = data.features[column]
        item = feature.feature if isinstance(feature, List | LargeList) else None
        if not isinstance(item, Value) or not item.dtype.startswith(("int", "uint")):
            raise DataError(f"{where}: column {column} has type {feature!r}; write lists of token ids (whole numbers)")
    start = 0
    for batch in data.select_columns(list(TOKEN_COLUMNS)).with_format("arrow").iter(10_000):
        for column in TOKEN_COLUMNS:
            found = _bad_ids(batch[column], vocabulary)
            if found is not None:
                row, problem = found
                raise DataError(f"{where}: row {start + row}: {column} {problem}; write these rows again")
        start += batch.num_rows


def _bad_ids(lists: Any, vocabulary: int | None) -> tuple[int, str] | None:
    """The first row with a flaw, and the flaw."""
    lists = lists.combine_chunks()
    sizes = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    if not sizes.all():
        return int(np.argmin(sizes)), "is empty"
    ids, rows = pc.list_flatten(lists), pc.list_parent_indices(lists)
    if ids.null_count:
        return rows[pc.index(pc.is_null(ids), True).as_py()].as_py(), "holds null"
    values = ids.to_numpy()
    wrong = (values < 0) if vocabulary is None else (values < 0) | (values >= vocabulary)
    if not wrong.any():
        return None
    at = int(wrong.argmax())
    bound = "is below 0" if values[at] < 0 else f"is not in the vocabulary of {vocabulary} ids"
    return rows[at].as_py(), f"holds {values[at]}, which {bound}"
