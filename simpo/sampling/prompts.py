"""Prompts rendered for the policy and tokenised: exactly one BOS, and the model's turn next."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from simpo.data.chat import inspect_template, own_template, render_rows, resolve_chat_template
from simpo.data.ids import TextEncoder
from simpo.data.schema import TURN_LOST, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
        columns: of its row, kept for those who score the responses.
    """

    key: str
    row: int
    content: str | list[Message]
    arguments: dict[str, Any] = field(default_factory=dict)
    ids: list[int] = field(default_factory=list)
    text: str = ""
    error: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """What is kept of it beside the responses."""
        kept: dict[str, Any] = {"id": self.key, "row": self.row, "prompt": self.content}
        if self.columns:
            kept["columns"] = self.columns
        if "tools" in self.arguments:
            kept["tools"] = self.arguments["tools"]
        keywords = {key: value for key, value in self.arguments.items() if key != "tools"}
        return kept | ({"chat_template_kwargs": keywords} if keywords else {})


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
            prompts: not rendered yet; those with an error are passed over.
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
