"""What every annotator takes and gives, and how texts of different lengths are batched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt with its responses.

    Args:
        id, row: as the generations have them, for messages.
        prompt: messages, or a text.
        responses: texts, in their order.
        arguments: what the chat template is given beside messages: `tools` and such.
        columns: of the prompt's row, as `keep_columns` names them.
    """

    id: str
    row: int
    prompt: Any
    responses: Sequence[str]
    arguments: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, Any] = field(default_factory=dict)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The prompt as messages; a text is one user turn."""
        return [{"role": "user", "content": self.prompt}] if isinstance(self.prompt, str) else list(self.prompt)

    @property
    def transcript(self) -> str:
        """The prompt as one text: a lone user turn as it stands, else every turn with its role before it."""
        if isinstance(self.prompt, str):
            return self.prompt
        turns = [(str(message["role"]), str(message.get("content") or "")) for message in self.prompt]
        if [role for role, _ in turns] == ["user"]:
            return turns[0][1]
        return "\n\n".join(f"{role.upper()}: {text}" for role, text in turns)


@dataclass(slots=True)
class Scored:
    """What an annotator says of one item.

    Args:
        scores: one per response, higher is better; None where there is none.
        problems: why there is none, for people.
    """

    scores: list[float | None]
    problems: list[str] = field(default_factory=list)


class Annotator(Protocol):
    """Scores the responses of prompts."""

    def score(self, items: Sequence[Item]) -> list[Scored]:
        """One result per item. What it raises stops none of the others: the items are then tried one by one."""


def batches_by_length(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of similar lengths, the longest first, so that what does not fit into memory shows at once.

    A padded batch has at most `max_tokens` tokens, or one row.
    """
    batch: list[int] = []
    width = 0
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if batch and width * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        width = width if batch else lengths[index]
        batch.append(index)
    if batch:
        yield batch
