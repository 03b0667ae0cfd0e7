"""What tokenizer and template put around every answer, found out with one pair whose answers are known."""

from __future__ import annotations

import dataclasses
import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simpo.data.chat import own_template, render_rows
from simpo.data.encode import Encoder
from simpo.data.schema import Message, Pair
from simpo.data.tokenize import TokenizeOptions
from simpo.data.truncate import TokenPair
from simpo.errors import SimPOError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Texts whose first and last tokens differ: what their answers share was written by the template.
_QUESTION, _ANSWERS = "Which one?", ("Apple", "Zigzag")
_CONVERSATION: list[Message] = [  # also looked at without its system turn, which a template may write by itself
    {"role": "system", "content": "SYSTEM"},
    {"role": "user", "content": "QUESTION"},
    {"role": "assistant", "content": "ANSWER"},
    {"role": "user", "content": "AGAIN"},
]
_TURN_MARKER = re.compile(r"<\|[^<>|\s]+\|>|<[a-z_]+_of_[a-z_]+>|\[/?INST\]")


@dataclass(frozen=True)
class Frame:
    """What stands around every answer.

    Args:
        bos: id of the BOS token; None where the tokenizer has none.
        starts_with_bos: whether a prompt begins with it.
        ends: ids that can end a response.
        header, tail: how many scored tokens the template writes before and after every answer.
        header_text: the scored tokens before an answer, as text.
        opening: what the template writes before an answer that is to be generated, as text; "" for plain texts.
        opening_ids: its tokens, without white space around it.
        special: [V] which ids are special tokens.
        unknown: id of the token for what the vocabulary cannot say; None where there is none.
    """

    bos: int | None
    starts_with_bos: bool
    ends: frozenset[int]
    header: int
    tail: int
    header_text: str
    opening: str
    special: np.ndarray
    unknown: int | None
    opening_ids: tuple[int, ...] = ()


def find_frame(tokenizer: PreTrainedTokenizerBase, options: TokenizeOptions, *, messages: bool) -> Frame:
    """Tokenise a short pair as training would, and see what its two answers have in common.

    Args:
        tokenizer: with the template in use.
        options: mode of tokenisation; its bounds do not matter.
        messages: whether the pairs are messages, or plain texts.
    """
    probe = _tokenised_probe(tokenizer, options, messages)
    eos = {tokenizer.eos_token_id} - {None}
    bos = tokenizer.bos_token_id
    special, opening = _special_mask(tokenizer), _opening(tokenizer) if messages else ""
    opening_ids = tuple(tokenizer(opening.strip(), add_special_tokens=False)["input_ids"])
    if probe is None:
        return Frame(bos, False, frozenset(eos), 0, 1, "", opening, special, tokenizer.unk_token_id, opening_ids)
    header = _shared(probe.chosen, probe.rejected)
    tail = _shared(probe.chosen[::-1], probe.rejected[::-1])
    return Frame(
        bos=bos,
        starts_with_bos=bos is not None and probe.prompt[:1] == [bos],
        ends=frozenset(eos | {probe.chosen[-1]}),
        header=header,
        tail=tail,
        header_text=str(tokenizer.decode(probe.chosen[:header], skip_special_tokens=False)),
        opening=opening,
        special=special,
        unknown=tokenizer.unk_token_id,
        opening_ids=opening_ids,
    )


def _tokenised_probe(tokenizer: PreTrainedTokenizerBase, options: TokenizeOptions, messages: bool) -> TokenPair | None:
    options = dataclasses.replace(options, max_length=100_000, max_prompt_length=50_000)
    pair = Pair(_QUESTION, *_ANSWERS)
    if messages:
        chosen, rejected = ([{"role": "assistant", "content": answer}] for answer in _ANSWERS)
        pair = Pair([{"role": "user", "content": _QUESTION}], chosen, rejected)
    try:
        (result,) = Encoder(tokenizer, options)([pair])
    except SimPOError:  # data of token ids need neither a template nor an EOS
        return None
    return result if isinstance(result, TokenPair) else None


def _opening(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the generation prompt adds to a user turn."""
    turn = [[{"role": "user", "content": _QUESTION}]]
    try:
        template = own_template(tokenizer)
    except SimPOError:
        return ""
    (bare, _), (whole, failure) = (
        render_rows(tokenizer, template, turn, add_generation_prompt=generate)[0] for generate in (False, True)
    )
    return whole[len(bare) :] if failure is None and whole.startswith(bare) else ""


def _shared(left: list[int], right: list[int]) -> int:
    """How many leading ids two lists share."""
    different = (at for at, (a, b) in enumerate(zip(left, right, strict=False)) if a != b)
    return next(different, min(len(left), len(right)))


def _special_mask(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Special tokens only: added ones that are not special, such as <think>, belong into answers."""
    entries: dict[int, Any] = tokenizer.added_tokens_decoder
    special = {token for token, entry in entries.items() if entry.special} | set(tokenizer.all_special_ids)
    special.discard(tokenizer.unk_token_id)  # type: ignore[arg-type]
    mask = np.zeros(max([len(tokenizer), *(token + 1 for token in special)]), dtype=bool)
    mask[sorted(special)] = True
    return mask


@dataclass(frozen=True)
class TemplateComparison:
    """The template in use against the model's own.

    Args:
        state: `same`, `none` (the model has none, and none is set), `added` (the model has none), `alike` (another text
            that renders the same) or `different`.
        difference: lines of a diff of the same conversation under both; empty unless different.
        split_markers: turn markers that the template writes and this tokenizer takes apart, with their tokens.
    """

    state: str
    difference: list[str]
    split_markers: dict[str, int]


def compare_templates(tokenizer: PreTrainedTokenizerBase, own: Any) -> TemplateComparison:
    """Render a conversation, with and without a system turn, by the template in use and by the model's own.

    Args:
        tokenizer: with the template in use.
        own: the model's own chat template, or several by name, as they were loaded.
    """
    used = tokenizer.chat_template
    if used is None or used == own:
        return TemplateComparison("none" if used is None else "same", [], {})
    ours = _rendered(tokenizer, own_template(tokenizer))
    split = {marker: _tokens_of(tokenizer, marker) for marker in sorted(set(_TURN_MARKER.findall("".join(ours))))}
    split = {marker: count for marker, count in split.items() if count > 1}
    own = own.get("default") if isinstance(own, dict) else own
    if own is None:
        return TemplateComparison("added", [], split)
    theirs = _rendered(tokenizer, own)
    different = [(old, new) for old, new in zip(theirs, ours, strict=True) if old != new]
    if not different:
        return TemplateComparison("alike", [], split)
    shown = next((texts for texts in different if all(texts)), different[0])  # rather than what one of them refuses
    old, new = (text.splitlines() or ["(refuses a system turn)"] for text in shown)
    lines = difflib.unified_diff(old, new, "the model's own", "in use", n=1, lineterm="")
    return TemplateComparison("different", [line for line in lines if not line.startswith("@@")], split)


def _tokens_of(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _rendered(tokenizer: PreTrainedTokenizerBase, template: str) -> list[str]:
    """The conversation with and without its system turn as text; "" where the template refuses it."""
    both = [_CONVERSATION, _CONVERSATION[1:]]
    rendered = render_rows(tokenizer, template, both, add_generation_prompt=True)
    return [text if failure is None else "" for text, failure in rendered]
