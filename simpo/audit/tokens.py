"""Token ids of a pair as pieces of text, one a token, for people to look at."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from datasets import Dataset

from simpo.data.schema import TOKEN_COLUMNS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
_CONTEXT = 4  # pieces before a token that its text may depend on: spaces between words of SentencePiece
_MOST_BYTES = 4  # of a character in UTF-8: so many tokens can share one


class Piece(NamedTuple):
    """What one token says; several tokens where only together they make a character."""

    text: str
    ids: tuple[int, ...]
    special: bool


class ShownPair(NamedTuple):
    """A pair, and its row in the source. The prompt is read, both responses are scored."""

    row: int
    prompt: list[Piece]
    chosen: list[Piece]
    rejected: list[Piece]

    def parts(self) -> list[tuple[str, list[Piece]]]:
        """Names and pieces in the order in which they stand."""
        return [("prompt", self.prompt), ("chosen", self.chosen), ("rejected", self.rejected)]


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], special: np.ndarray) -> list[Piece]:
    """Text of each token, with the spaces that it has where it stands.

    Args:
        ids: of one prompt or response.
        special: [V] which ids are special tokens.
    """
    found: list[Piece] = []
    held: list[int] = []
    for token in ids:
        held.append(token)
        context = [before for piece in found[-_CONTEXT:] for before in piece.ids]
        text = _decode(tokenizer, [*context, *held])[len(_decode(tokenizer, context)) :]
        if text.endswith("\ufffd") and len(held) < _MOST_BYTES:
            continue  # a part of a character
        found.append(Piece(text or _name(tokenizer, token), tuple(held), _is_special(held, special)))
        held = []
    if held:  # cut within a character
        found.append(Piece("\ufffd", tuple(held), False))
    return found


def _name(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """Of a token that decodes to nothing: the space that SentencePiece puts first, or an id that there is not."""
    name = tokenizer.convert_ids_to_tokens(token) if token < len(tokenizer) else None
    return str(name).replace("▁", " ") if name else f"<{token}>"


def _is_special(ids: list[int], special: np.ndarray) -> bool:
    return len(ids) == 1 and 0 <= ids[0] < len(special) and bool(special[ids[0]])


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def shown_pairs(
    pairs: Dataset, row: np.ndarray, positions: Sequence[int], tokenizer: PreTrainedTokenizerBase, special: np.ndarray
) -> list[ShownPair]:
    """Pairs as pieces.

    Args:
        pairs: token ids.
        row: [N] numbers of the pairs in their source.
        positions: which pairs.
    """
    shown = []
    for at in positions:
        pair = pairs[int(at)]
        shown.append(ShownPair(int(row[at]), *(pieces(tokenizer, pair[column], special) for column in TOKEN_COLUMNS)))
    return shown


def visible(text: str) -> str:
    """White space that would be lost, and characters that would command a terminal, as signs.

    >>> visible("a\\n\\n"), visible("\\tb\\x1b[2J")
    ('a↵↵\\n', '⇥b␛[2J')
    """
    lines = text.rstrip("\n")
    text = lines.replace("\n", "↵\n") + ("↵" * (len(text) - len(lines)) + "\n" if text != lines else "")
    text = text.replace("\t", "⇥").replace("\r", "␍")
    return _CONTROL.sub(lambda found: chr(0x2400 + ord(found[0])) if found[0] < " " else "\ufffd", text)
