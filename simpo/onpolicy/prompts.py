"""Prompts from a data set, rendered for the policy and tokenised: exactly one BOS, and the model's turn next."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from datasets import Dataset, DatasetDict

from simpo.data.chat import inspect_template, own_template, render_rows, resolve_chat_template
from simpo.data.files import invalid_row
from simpo.data.ids import TextEncoder
from simpo.data.schema import (
    MALFORMED,
    NO_PROMPT,
    ROLE_ORDER,
    ROLES,
    SYSTEM_ROLES,
    TEMPLATE_COLUMNS,
    TURN_LOST,
    UNKNOWN_ROLE,
    Message,
    read_messages,
    roles_in_order,
    template_arguments,
)
from simpo.data.sources import open_source, take_split
from simpo.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from simpo.onpolicy.settings import GenerateSettings

_COLUMNS = ("prompt", "messages")
_CHUNK = 1000


@dataclass(slots=True)
class Prompt:
    """One prompt.

    Args:
        key: a hash of what the policy is asked; the same in every data set.
        row: its number in the split, from 0.
        content: a text that is given as it stands, or messages.
        arguments: what the chat template is given beside messages.
        ids: tokens; empty where there is an error.
        text: the rendered prompt, less the BOS that a tokenizer would put before it once more.
        error: why it cannot be asked.
    """

    key: str
    row: int
    content: str | list[Message]
    arguments: dict[str, Any] = field(default_factory=dict)
    ids: list[int] = field(default_factory=list)
    text: str = ""
    error: str | None = None

    def record(self) -> dict[str, Any]:
        """What is kept of it beside the responses."""
        kept: dict[str, Any] = {"id": self.key, "row": self.row, "prompt": self.content}
        if "tools" in self.arguments:
            kept["tools"] = self.arguments["tools"]
        keywords = {key: value for key, value in self.arguments.items() if key != "tools"}
        return kept | ({"chat_template_kwargs": keywords} if keywords else {})


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
    rows = rows.select_columns([column, *(name for name in TEMPLATE_COLUMNS if name in rows.column_names)])
    row = invalid_row(rows)
    if row is not None:
        raise DataError(f"{where}: row {row}: is no UTF-8 text; write the texts of the source as UTF-8")
    prompts: dict[str, Prompt] = {}
    for number, entry in enumerate(rows):
        prompt = _prompt_of(number, entry[column], [entry.get(name) for name in TEMPLATE_COLUMNS], settings)
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


class Renderer:
    """Turns prompts into tokens for one policy.

    Args:
        tokenizer: the policy's.
        chat_template: what the setting says.

    Raises:
        ConfigError: the chat template cannot be read, or does not work.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> None:
        self.tokenizer = tokenizer
        self.texts = TextEncoder(tokenizer)
        self._given = resolve_chat_template(chat_template, tokenizer)

    def prepare(self, prompts: Sequence[Prompt], context: int | None) -> int | None:
        """Fill in ids and text of every prompt, or its error.

        Args:
            prompts: as `read_prompts` gives them.
            context: tokens that prompt and response may have together; None for no bound.

        Returns:
            The token that ends a turn of the chat template; None where no prompt needs it, or it writes none.

        Raises:
            DataError: there are messages and no chat template.
        """
        chats = [prompt for prompt in prompts if not isinstance(prompt.content, str)]
        end = None
        if any(prompt.error is None for prompt in chats):
            template = self._given or own_template(self.tokenizer)
            form = inspect_template(self.tokenizer, template)
            end = form.end_of_turn
            for chunk in _chunks(chats):
                self._render(chunk, template, form.loses)
        for chunk in _chunks(prompts):
            self._encode(chunk, context)
        return end

    def _render(self, prompts: Sequence[Prompt], template: str, loses: frozenset[str]) -> None:
        sound = [prompt for prompt in prompts if prompt.error is None]
        rendered = render_rows(
            self.tokenizer,
            template,
            [prompt.content for prompt in sound if not isinstance(prompt.content, str)],
            [prompt.arguments for prompt in sound],
            add_generation_prompt=True,
        )
        for prompt, (text, cause) in zip(sound, rendered, strict=True):
            assert not isinstance(prompt.content, str)
            lost = {message["role"] for message in prompt.content if message.get("content", "").strip()} & loses
            prompt.text = text
            prompt.error = cause or (f"{TURN_LOST}: {', '.join(sorted(lost))}" if lost else None)

    def _encode(self, prompts: Sequence[Prompt], context: int | None) -> None:
        sound = [prompt for prompt in prompts if prompt.error is None]
        texts = [prompt.content if isinstance(prompt.content, str) else prompt.text for prompt in sound]
        bos = str(self.tokenizer.bos_token or "")
        for prompt, text, ids in zip(sound, texts, self.texts.encode(texts), strict=True):
            prompt.ids = self.texts.with_prefix(ids)
            # a server's tokenizer puts its own prefix before a text
            prompt.text = text.removeprefix(bos) if self.texts.prefix and bos else text
            if context is not None and len(prompt.ids) >= context:
                prompt.error = f"prompt of {len(prompt.ids)} tokens leaves no room in the context of {context}"


def _chunks(prompts: Sequence[Prompt]) -> Iterator[list[Prompt]]:
    left = iter(prompts)
    while chunk := list(itertools.islice(left, _CHUNK)):
        yield chunk
