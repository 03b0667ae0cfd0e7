"""The prompts of a data set, each asked once."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from datasets import Dataset, DatasetDict

from simpo.data.files import invalid_row
from simpo.data.schema import (
    MALFORMED,
    NO_PROMPT,
    ROLE_ORDER,
    ROLES,
    SYSTEM_ROLES,
    TEMPLATE_COLUMNS,
    UNKNOWN_ROLE,
    Message,
    read_messages,
    roles_in_order,
    template_arguments,
)
from simpo.data.sources import open_source, take_split
from simpo.errors import DataError
from simpo.onpolicy.settings import GenerateSettings
from simpo.sampling.prompts import Prompt

_COLUMNS = ("prompt", "messages")


def read_prompts(settings: GenerateSettings) -> tuple[list[Prompt], int]:
    """The prompts of the data set, not rendered yet, and how many rows repeat an earlier one and are left out.

    Raises:
        DataError: there is no such data set, split or column, or no rows.
    """
    data = open_source(settings.dataset_name, settings.dataset_config)
    where = f"{settings.dataset_name} [{settings.dataset_split}]"
    parts = data if isinstance(data, DatasetDict) else DatasetDict({"train": data})
    rows = take_split(parts, settings.dataset_split, settings.dataset_name)
    if settings.max_prompts is not None:
        rows = rows.select(range(min(settings.max_prompts, len(rows))))
    if not len(rows):
        raise DataError(f"{where}: holds no rows")
    column = _column_of(rows, settings.prompt_column, where)
    absent = [name for name in settings.keep_columns if name not in rows.column_names]
    if absent:
        raise DataError(
            f"{where}: keep_columns: there is no column {absent[0]!r} (its columns: {', '.join(rows.column_names)})"
        )
    kept = [name for name in settings.keep_columns if name not in (column, *TEMPLATE_COLUMNS)]
    rows = rows.select_columns([column, *kept, *(name for name in TEMPLATE_COLUMNS if name in rows.column_names)])
    row = invalid_row(rows)
    if row is not None:
        raise DataError(f"{where}: row {row}: is no UTF-8 text; write the texts of the source as UTF-8")
    prompts: dict[str, Prompt] = {}
    for number, entry in enumerate(rows):
        prompt = _prompt_of(number, entry[column], [entry.get(name) for name in TEMPLATE_COLUMNS], settings)
        _keep(prompt, {name: entry[name] for name in settings.keep_columns})
        prompts.setdefault(prompt.key, prompt)
    return list(prompts.values()), len(rows) - len(prompts)


def _column_of(rows: Dataset, named: str | None, where: str) -> str:
    names = [named] if named else [name for name in _COLUMNS if name in rows.column_names]
    if not names or names[0] not in rows.column_names:
        asked = f"no column {named!r}" if named else f"none of the columns {' and '.join(_COLUMNS)}"
        raise DataError(
            f"{where}: {asked} (its columns: {', '.join(rows.column_names)}); name the prompts' one in prompt_column"
        )
    return names[0]


def _prompt_of(row: int, value: Any, columns: list[Any], settings: GenerateSettings) -> Prompt:
    content: str | list[Message] = ""
    arguments: dict[str, Any] = {}
    error = None
    if isinstance(value, str):
        error = None if value.strip() else NO_PROMPT
        content = value if settings.text_prompts == "plain" else [{"role": "user", "content": value}]
    elif value is None:
        error = NO_PROMPT
    else:
        messages = read_messages(value)
        if isinstance(messages, str):
            error = messages
        else:
            while messages and messages[-1]["role"] == "assistant":
                messages = messages[:-1]
            content, error = messages, _flaw(messages)
    if not isinstance(content, str):
        try:
            arguments = template_arguments(*columns)
        except (ValueError, RecursionError) as cause:
            error = error or f"{MALFORMED}: {cause}"
    return Prompt(_key(row, content, arguments, error), row, content, arguments, error=error)


def _keep(prompt: Prompt, columns: dict[str, Any]) -> None:
    """The same question with another gold answer is another prompt."""
    if not columns:
        return
    try:
        text = json.dumps(columns, sort_keys=True)
    except (TypeError, ValueError) as cause:
        prompt.error = prompt.error or f"keep_columns: a value is no JSON: {cause}"
        return
    prompt.columns = columns
    prompt.key = hashlib.blake2b(f"{prompt.key} {text}".encode(), digest_size=12).hexdigest()


def _flaw(messages: list[Message]) -> str | None:
    if not any(message["role"] not in SYSTEM_ROLES for message in messages):
        return NO_PROMPT
    if any(message["role"] not in ROLES for message in messages):
        return UNKNOWN_ROLE
    return None if roles_in_order(messages) else ROLE_ORDER


def _key(row: int, content: str | list[Message], arguments: dict[str, Any], error: str | None) -> str:
    # rows that cannot be asked are told apart by their numbers: what is wrong with them may have no text
    what = [content, arguments] if error is None else [content, arguments, row]
    return hashlib.blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=12).hexdigest()
