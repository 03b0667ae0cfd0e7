"""Rows of one judged response, as KTO takes them: prompt, completion, label -> a pair that lacks one side."""

from collections.abc import Mapping
from typing import Any

from datasets import Dataset, Features, Value

from simpo.errors import DataError

COLUMNS = ("completion", "label")


def is_unpaired(dataset: Dataset) -> bool:
    """Whether the rows hold one response each, and whether it is a good one."""
    names = dataset.column_names
    return set(COLUMNS) <= set(names) and not {"chosen", "rejected"} <= set(names)


def as_pairs(dataset: Dataset, where: str) -> Dataset:
    """Unpaired rows with the columns of pairs: a good completion as `chosen`, a bad one as `rejected`, null the other.

    Other data sets come back as they are.

    Args:
        dataset: raw rows.
        where: their name for messages.

    Raises:
        DataError: a label is neither true nor false.
    """
    if not is_unpaired(dataset):
        return dataset
    label = dataset.features["label"]
    if not (isinstance(label, Value) and label.dtype in ("bool", "null")):
        raise DataError(
            f"{where}: column label has type {label!r}; write true for good completions, false for bad ones"
        )
    completion = dataset.features["completion"]
    rest = {name: kind for name, kind in dataset.features.items() if name not in (*COLUMNS, "chosen", "rejected")}
    return dataset.map(
        _with_sides,
        batched=True,
        remove_columns=[name for name in dataset.column_names if name not in rest],
        features=Features({**rest, "chosen": completion, "rejected": completion}),
        desc=f"Reading {where}",
    )


def _with_sides(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    rows = list(zip(batch["completion"], batch["label"], strict=True))
    rest = {name: values for name, values in batch.items() if name not in (*COLUMNS, "chosen", "rejected")}
    return {
        **rest,
        "chosen": [text if label is True else None for text, label in rows],
        "rejected": [text if label is False else None for text, label in rows],
    }
