"""The row formats of preference data, and one row brought to one shape: prompt, chosen, rejected.

Formats (those of TRL):
    text              prompt, chosen and rejected are texts; no chat template is applied
    messages          prompt, chosen and rejected are lists of messages {"role": ..., "content": ...}
    conversations     chosen and rejected are whole conversations; the prompt is what they share
    UltraFeedback     conversations with the prompt repeated as a text beside them; the conversations win
Beside messages a row may hold what its chat template is given: `tools` (a list of JSON schemas) and
`chat_template_kwargs` (a mapping), each as it is or as JSON text. Other columns are ignored.
A row of one response (the unpaired format, see `simpo.data.unpaired`) has null on its other side.
A row that cannot be trained on becomes a cause (one of `DROP_CAUSES`), never an error.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from datasets import Features, Json, LargeList, List, Value

from simpo.errors import DataError

Message = dict[str, Any]
Content = str | list[Message]
Side = Literal["chosen", "rejected"]

RAW_COLUMNS = ("prompt", "chosen", "rejected")
TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")
TOKEN_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")

MISSING_FIELD = "chosen or rejected is missing"
NO_PROMPT = "no prompt"
MALFORMED = "malformed messages"
MALFORMED_TOOLS = "malformed tools or chat_template_kwargs"
UNKNOWN_ROLE = "unknown role"
ROLE_ORDER = "roles out of order"
EARLY_SPLIT = "conversations differ before the last turn"
EMPTY_RESPONSE = "empty response"
EQUAL = "chosen equals rejected"
# found while rendering and tokenising
TEMPLATE_FAILS = "template fails"
TURN_LOST = "template leaves a turn out"
PROMPT_REWRITTEN = "template rewrites the prompt"
TOO_LONG = "longer than max_length"
EQUAL_AFTER_CUT = "responses equal once truncated"
PROMPT_DIFFERS = "prompt differs between sides"

DROP_CAUSES: dict[str, str] = {
    MISSING_FIELD: "fill both columns in these rows; rows of one response need objective: kto",
    NO_PROMPT: "give each row a prompt, or whole conversations that start with the same user turn on both sides",
    MALFORMED: 'write every message as {"role": ..., "content": text}, and all three columns of a row in one form',
    MALFORMED_TOOLS: "write tools as a list of JSON schemas and chat_template_kwargs as a mapping, or their JSON text",
    UNKNOWN_ROLE: "rename the roles to system, user, assistant or tool",
    ROLE_ORDER: "system first if at all, then user and assistant in turn; the prompt ends before the assistant's turn",
    EARLY_SPLIT: "keep one answer on each side: both conversations must be the same up to their last message",
    EMPTY_RESPONSE: "remove these rows, or generate their answers again",
    EQUAL: "remove these rows: they carry no preference",
    TEMPLATE_FAILS: "change the rows, or set chat_template to one that accepts them (after the colon: its own message)",
    TURN_LOST: "set chat_template to one that writes such turns, or remove them (after the colon: which)",
    PROMPT_REWRITTEN: (
        "set chat_template to one whose generation prompt is how it begins an answer; where answers hold <think>, "
        "leave enable_thinking: false out of chat_template_kwargs"
    ),
    TOO_LONG: "raise max_length, or set truncation: cut",
    EQUAL_AFTER_CUT: "raise max_length",
    PROMPT_DIFFERS: "use tokenization: standard",
}
"""Why a row is dropped -> what to do about it."""

SYSTEM_ROLES = ("system", "developer")
ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
_NEXT_ROLES = {
    "": {"system", "developer", "user"},
    "system": {"user"},
    "developer": {"user"},
    "user": {"assistant"},
    "assistant": {"user", "tool"},
    "tool": {"tool", "assistant", "user"},
}


CONTENT_KEYS = ("role", "content", "tool_calls", "reasoning_content", "thinking", "reasoning")
"""What makes two messages the same; notes beside them (scores, ids) may differ between the sides."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One preference: either three texts, or a list of messages and two answers of one assistant message each.

    `arguments` is what the chat template is given beside messages: `tools`, and what `chat_template_kwargs` holds.
    `only` names the side of a row that has one response; the other side is the same then.
    """

    prompt: Content
    chosen: Content
    rejected: Content
    arguments: dict[str, Any] = field(default_factory=dict)
    only: Side | None = None

    @property
    def is_text(self) -> bool:
        return isinstance(self.prompt, str)

    def texts(self) -> tuple[str, str, str]:
        """Prompt, chosen and rejected of a pair of texts."""
        return cast(tuple[str, str, str], (self.prompt, self.chosen, self.rejected))

    def messages(self) -> tuple[list[Message], list[Message], list[Message]]:
        """Prompt, chosen and rejected of a pair of messages."""
        return cast(tuple[list[Message], list[Message], list[Message]], (self.prompt, self.chosen, self.rejected))


def normalise(row: Mapping[str, Any], *, unpaired: bool = False) -> Pair | str:
    """Bring one row to a `Pair`.

    Args:
        row: the columns of one row; all but `chosen` and `rejected` may be absent or None.
        unpaired: one of `chosen` and `rejected` may be None too.

    Returns:
        The pair, or the cause for which the row cannot be trained on (a key of `DROP_CAUSES`).
    """
    prompt, chosen, rejected = (row.get(column) for column in RAW_COLUMNS)
    if chosen is None or rejected is None:
        if unpaired and (chosen is not None or rejected is not None):
            return _normalise_unpaired(row, "rejected" if chosen is None else "chosen")
        return MISSING_FIELD
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _normalise_text(prompt, chosen, rejected)
    chosen_messages, rejected_messages = read_messages(chosen), read_messages(rejected)
    if isinstance(chosen_messages, str):
        return chosen_messages
    if isinstance(rejected_messages, str):
        return rejected_messages
    if not chosen_messages or not rejected_messages:
        return EMPTY_RESPONSE
    # answers only, so the prompt column is needed; whole conversations carry their own prompt
    given = read_messages(prompt)
    if prompt and chosen_messages[0]["role"] == "assistant":
        if isinstance(given, str):
            return given
        prompt_messages = given
    else:
        shared = _shared_length(chosen_messages, rejected_messages)
        prompt_messages = chosen_messages[:shared]
        chosen_messages, rejected_messages = chosen_messages[shared:], rejected_messages[shared:]
        if not isinstance(given, str) and not all(_holds(prompt_messages, message) for message in given):
            return MALFORMED  # a turn that stands in the prompt column only, and would be lost
    pair = _check_messages(prompt_messages, chosen_messages, rejected_messages)
    columns = [row.get(column) for column in TEMPLATE_COLUMNS]
    if isinstance(pair, str) or columns == [None, None]:
        return pair
    try:
        return replace(pair, arguments=template_arguments(*columns))
    except (ValueError, RecursionError):
        return MALFORMED_TOOLS


def _normalise_unpaired(row: Mapping[str, Any], side: Side) -> Pair | str:
    """A row of one response: checked as a pair with any other answer, then given its own on both sides."""
    response = row[side]
    if isinstance(response, str):
        other: Any = response + "."
    elif isinstance(response, Sequence) and response and isinstance(response[-1], dict):
        other = [*response[:-1], {"role": "assistant", "content": f"{response[-1].get('content') or ''}."}]
    else:
        return MALFORMED if response else EMPTY_RESPONSE
    sides = {"chosen": response, "rejected": other} if side == "chosen" else {"chosen": other, "rejected": response}
    pair = normalise({**row, **sides})
    if isinstance(pair, str):
        return pair
    answer = getattr(pair, side)
    return replace(pair, chosen=answer, rejected=answer, only=side)


def _normalise_text(prompt: Any, chosen: str, rejected: str) -> Pair | str:
    if prompt is not None and not isinstance(prompt, str):
        return MALFORMED
    if prompt is None or not prompt.strip():
        return NO_PROMPT
    if not chosen.strip() or not rejected.strip():
        return EMPTY_RESPONSE
    return EQUAL if chosen == rejected else Pair(prompt, chosen, rejected)


def read_messages(value: Any) -> list[Message] | str:
    """The messages of a column without null keys (Arrow fills them in), or a drop cause."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return MALFORMED
    messages = []
    for entry in value:
        if not isinstance(entry, dict) or not isinstance(entry.get("role"), str):
            return MALFORMED
        message: Message = _without_nulls(entry)
        if not message.get("tool_calls"):
            message.pop("tool_calls", None)  # templates take an empty list for a call
        elif not _is_json(message["tool_calls"]):
            return MALFORMED
        if not isinstance(message.get("content", "" if "tool_calls" in message else None), str):
            return MALFORMED
        messages.append(message)
    return messages


def _without_nulls(value: Any) -> Any:
    """Mappings without their null keys, at any depth: Arrow gives every row the keys of all rows."""
    if isinstance(value, dict):
        return {k: v if isinstance(v, str) else _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def template_arguments(tools: Any, keywords: Any) -> dict[str, Any]:
    """What the template is given beside messages; JSON text is taken as it stands, with its nulls.

    Raises:
        ValueError: a column holds something else than it should.
    """
    tools, keywords = _from_json(tools), _from_json(keywords)
    if isinstance(tools, list):
        tools = [json.loads(tool) if isinstance(tool, str) else tool for tool in tools]
    if not isinstance(keywords or {}, dict) or not isinstance(tools or [], list):
        raise ValueError("neither a list of tools nor a mapping of keywords")
    if not all(isinstance(tool, dict) for tool in tools or []) or "tools" in (keywords or {}):
        raise ValueError("a tool that is no schema, or tools in two places")
    if not _is_json([tools, keywords]):
        raise ValueError("a value that JSON does not have")
    return {**({"tools": tools} if tools else {}), **(keywords or {})}


def _is_json(value: Any) -> bool:
    """False for what a template would write in a form of Python's own: dates, bytes."""
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def _from_json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) and value.strip() else _without_nulls(value)


def _shared_length(chosen: list[Message], rejected: list[Message]) -> int:
    """How many leading messages both conversations have in common."""
    shared = 0
    for left, right in zip(chosen, rejected, strict=False):
        if not _same(left, right):
            break
        shared += 1
    return shared


def _same(left: Message, right: Message) -> bool:
    return left == right or all(left.get(key) == right.get(key) for key in CONTENT_KEYS)


def _holds(messages: list[Message], message: Message) -> bool:
    return any(_same(other, message) for other in messages)


def _check_messages(prompt: list[Message], chosen: list[Message], rejected: list[Message]) -> Pair | str:
    if not chosen and not rejected:
        return EQUAL
    if not any(message["role"] not in SYSTEM_ROLES for message in prompt):
        return NO_PROMPT
    if any(message["role"] not in ROLES for message in [*prompt, *chosen, *rejected]):
        return UNKNOWN_ROLE
    if len(chosen) != 1 or len(rejected) != 1:
        return EARLY_SPLIT
    for answer in (chosen, rejected):
        if answer[0]["role"] != "assistant" or not roles_in_order([*prompt, *answer]):
            return ROLE_ORDER
    if not all(answer[0].get("content", "").strip() or "tool_calls" in answer[0] for answer in (chosen, rejected)):
        return EMPTY_RESPONSE
    return EQUAL if _same(chosen[0], rejected[0]) else Pair(prompt, chosen, rejected)


def roles_in_order(messages: Sequence[Message]) -> bool:
    """Whether the turns begin and follow one another as in a conversation; all roles are known ones."""
    roles = [message["role"] for message in messages]
    return all(after in _NEXT_ROLES[before] for before, after in zip(["", *roles], roles, strict=False))


def check_columns(features: Features, where: str) -> None:
    """Refuse a source that no row of which can be a pair.

    Args:
        features: the columns of the source and their types.
        where: the source's name for the message.

    Raises:
        DataError: a column is missing or has a type that is neither text nor messages.
    """
    missing = [column for column in ("chosen", "rejected") if column not in features]
    if missing:
        raise DataError(
            f"{where}: no column {' and no column '.join(missing)} (its columns: {', '.join(features) or 'none'}); "
            "rename the preferred answer's column to chosen and the other to rejected"
        )
    kinds = {column: column_kind(features[column]) for column in RAW_COLUMNS if column in features}
    for column, kind in kinds.items():
        if kind == "other" and not (column == "prompt" and kinds["chosen"] == "messages"):
            raise DataError(
                f"{where}: column {column} has type {features[column]!r}; "
                'write text, or a list of messages {"role": ..., "content": ...}'
            )
    if {kinds["chosen"], kinds["rejected"]} == {"text", "messages"}:
        raise DataError(
            f"{where}: column chosen holds {kinds['chosen']} and column rejected {kinds['rejected']}; use one form"
        )
    if kinds["chosen"] == "text" and kinds.get("prompt") in (None, "messages"):
        raise DataError(
            f"{where}: chosen and rejected are texts and there is no text column prompt "
            f"(its columns: {', '.join(features)}); add the prompt, or write whole conversations as messages"
        )


def holds_messages(features: Features) -> bool:
    """Whether every row is made of messages (False also where rows of both forms are mixed)."""
    return column_kind(features["chosen"]) == "messages"


def column_kind(feature: Any) -> Literal["text", "messages", "any", "other"]:
    """What a column holds by its type; `any` may hold both forms."""
    if isinstance(feature, Json):
        return "any"
    if isinstance(feature, Value):
        return "text" if feature.dtype in ("string", "large_string") else "other"
    if isinstance(feature, List | LargeList):
        return "messages" if isinstance(feature.feature, dict | Json) else "other"
    if isinstance(feature, list):  # the older spelling of a list feature
        return "messages" if len(feature) == 1 and isinstance(feature[0], dict) else "other"
    return "other"
