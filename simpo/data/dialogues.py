"""The row formats of supervised data, and one row brought to one shape: a conversation, or a text to continue.

Formats (those of TRL):
    messages              a column `messages`: a conversation; every assistant turn is an answer
    prompt, completion    two lists of messages; the assistant turns of the completion are the answers
    prompt, completion    two texts; no chat template is applied
    text                  a text; no chat template is applied
`messages` win over the other columns. `tools` and `chat_template_kwargs` are what they are in `simpo.data.schema`.
A row that cannot be trained on becomes a cause (one of `DIALOGUE_CAUSES`), never an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, Features

from simpo.data.columns import rename_columns
from simpo.data.config import DataConfig
from simpo.data.duplicates import RowKeys, compared, hash_of
from simpo.data.files import invalid_row
from simpo.data.load import Loaded, RowKind, load_mix
from simpo.data.schema import (
    MALFORMED,
    MALFORMED_TOOLS,
    PROMPT_REWRITTEN,
    ROLE_ORDER,
    ROLES,
    TEMPLATE_COLUMNS,
    TEMPLATE_FAILS,
    TURN_LOST,
    UNKNOWN_ROLE,
    Message,
    column_kind,
    read_messages,
    roles_in_order,
    template_arguments,
)
from simpo.errors import DataError

DIALOGUE_COLUMNS = ("messages", "prompt", "completion", "text")

MISSING = "an empty field"
NO_ANSWER = "no assistant turn"
EMPTY_ANSWER = "empty answer"
ANSWER_CUT = "no answer within max_length"

DIALOGUE_CAUSES: dict[str, str] = {
    MISSING: "fill messages, or prompt and completion, or text, in these rows",
    MALFORMED: 'write every message as {"role": ..., "content": text}, and prompt and completion in one form',
    MALFORMED_TOOLS: "write tools as a list of JSON schemas and chat_template_kwargs as a mapping, or their JSON text",
    UNKNOWN_ROLE: "rename the roles to system, user, assistant or tool",
    ROLE_ORDER: "system first if at all, then user and assistant in turn",
    NO_ANSWER: "remove these rows: nothing in them is learnt",
    EMPTY_ANSWER: "remove these rows, or their empty answers",
    TEMPLATE_FAILS: "change the rows, or set chat_template to one that accepts them (after the colon: its own message)",
    TURN_LOST: "set chat_template to one that writes such turns, or remove them (after the colon: which)",
    PROMPT_REWRITTEN: "set chat_template to one whose generation prompt is how it begins an answer",
    ANSWER_CUT: "raise max_length",
}
"""Why a row is dropped -> what to do about it."""


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A conversation. The answers to learn are the assistant turns from message number `first` on."""

    messages: list[Message]
    first: int = 0
    arguments: dict[str, Any] = field(default_factory=dict)

    def answers(self) -> list[int]:
        """Numbers of the messages to learn."""
        turns = range(self.first, len(self.messages))
        return [at for at in turns if self.messages[at]["role"] == "assistant"]


@dataclass(frozen=True, slots=True)
class Passage:
    """A text to learn, after a prompt that is only read; the prompt may be empty."""

    prompt: str
    completion: str


def read_row(row: Mapping[str, Any]) -> Dialogue | Passage | str:
    """Bring one row to a `Dialogue` or a `Passage`.

    Args:
        row: the columns of one row; all may be absent or None.

    Returns:
        What is trained on, or the cause for which it cannot be (a key of `DIALOGUE_CAUSES`).
    """
    whole, prompt, completion, text = (row.get(column) for column in DIALOGUE_COLUMNS)
    if whole is not None:
        return _dialogue(whole, [], row)
    if completion is not None:
        if isinstance(prompt, str) and isinstance(completion, str):
            return Passage(prompt, completion) if completion.strip() else EMPTY_ANSWER
        return MISSING if prompt is None else _dialogue(completion, prompt, row)
    if text is None or text == "":
        return MISSING
    return Passage("", text) if isinstance(text, str) else MALFORMED


def _dialogue(turns: Any, prompt: Any, row: Mapping[str, Any]) -> Dialogue | str:
    before, after = read_messages(prompt), read_messages(turns)
    if isinstance(before, str) or isinstance(after, str):
        return MALFORMED
    messages = [*before, *after]
    if any(message["role"] not in ROLES for message in messages):
        return UNKNOWN_ROLE
    dialogue = Dialogue(messages, len(before))
    if not dialogue.answers():
        return NO_ANSWER
    if not roles_in_order(messages):
        return ROLE_ORDER
    answers = [messages[at] for at in dialogue.answers()]
    if not all(answer.get("content", "").strip() or "tool_calls" in answer for answer in answers):
        return EMPTY_ANSWER
    try:
        return Dialogue(messages, len(before), template_arguments(*(row.get(column) for column in TEMPLATE_COLUMNS)))
    except ValueError:
        return MALFORMED_TOOLS


def load_dialogues(settings: DataConfig, seed: int = 42, num_proc: int | None = None) -> Loaded:
    """Read, mix and split supervised rows as `load_mix` does pairs.

    Raises:
        ConfigError: settings contradict each other.
        DataError: a source, split or column is missing, or a file cannot be read.
    """
    return load_mix(settings, seed, num_proc, RowKind(take_dialogue_columns, dialogue_keys))


def take_dialogue_columns(data: Dataset, where: str, names: Mapping[str, str] | None = None) -> Dataset:
    """The columns that make a supervised row, by our names; all others are left behind.

    Args:
        data: rows of one source.
        where: its name for messages.
        names: own column -> the source's, for those that differ.

    Raises:
        DataError: there are no rows, or a column is missing or of a wrong type.
    """
    if not len(data):
        raise DataError(f"{where}: holds no rows")
    data = rename_columns(data, where, names or {})
    wanted = _format_of(data.features, where)
    data = data.select_columns([column for column in (*wanted, *TEMPLATE_COLUMNS) if column in data.features])
    row = invalid_row(data)
    if row is not None:
        raise DataError(f"{where}: row {row}: is no UTF-8 text; write the texts of the source as UTF-8")
    return data


def _format_of(features: Features, where: str) -> tuple[str, ...]:
    formats = (("messages",), ("prompt", "completion"), ("text",))
    wanted = next((columns for columns in formats if set(columns) <= set(features)), None)
    if wanted is None:
        raise DataError(
            f"{where}: no column messages, no prompt with completion, and no text "
            f"(its columns: {', '.join(features)}); rename the conversations' column to messages, "
            "or write dataset_columns: {messages: ITS_NAME}"
        )
    for column in wanted:
        kind = column_kind(features[column])
        if kind == "other" or (kind, column) in (("text", "messages"), ("messages", "text")):
            form = "text" if column == "text" else 'a list of messages {"role": ..., "content": ...}'
            raise DataError(f"{where}: column {column} has type {features[column]!r}; write {form}")
    return wanted


def dialogue_keys(data: Dataset, num_proc: int | None = None) -> RowKeys:
    """Hashes [N] of what stands before a row's first answer, and of the whole row; 0 for rows that cannot be read."""
    return compared(data, _keys, num_proc, "dialogues.py")


def _keys(values: Mapping[str, Any]) -> tuple[int, int]:
    row = read_row(values)
    if isinstance(row, str):
        return 0, 0
    if isinstance(row, Passage):  # a plain text has no prompt: it is one itself
        return hash_of(row.prompt or row.completion), hash_of([row.prompt, row.completion])
    return hash_of(row.messages[: row.answers()[0]]), hash_of([row.messages, row.first, row.arguments])
