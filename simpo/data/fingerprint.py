"""A hash of all token ids of a data set: the same rows, however they are stored."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from simpo.data.schema import TOKEN_COLUMNS


def rows_fingerprint(rows: Any, columns: Sequence[str] = TOKEN_COLUMNS) -> str:
    """Hash of columns of token ids, of every row, in their order; 32 hex digits.

    Args:
        rows: a `datasets.Dataset`, or a sequence of mappings.
        columns: each a list of ids in every row.
    """
    digest = hashlib.blake2b(digest_size=16)
    if not isinstance(rows, Dataset):
        rows = Dataset.from_list([{key: list(row[key]) for key in columns} for row in rows])
    for table in rows.select_columns(list(columns)).with_format("arrow").iter(batch_size=10_000):
        for key in columns:
            column = table[key].combine_chunks()
            digest.update(np.asarray(column.value_lengths(), dtype=np.int64).tobytes())
            digest.update(np.asarray(column.flatten(), dtype=np.int64).tobytes())
    return digest.hexdigest()
