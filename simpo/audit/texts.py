"""What the texts of every pair say: which prompts are the same, and what must not stand in an answer."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from datasets import Dataset

from simpo.data.schema import RAW_COLUMNS, TOKEN_COLUMNS, Message, Pair, normalise
from simpo.data.tokenize import is_tokenized

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from simpo.audit.overlap import OverlapSearch

_BATCH = 1_000

# Turn markers of widespread chat formats. `<s>` and `</s>` are not among them: in HTML they strike text through.
FOREIGN_MARKERS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|eot_id|>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "[INST]",
    "[/INST]",
    "<<SYS>>",
    "### Instruction:",
    "### Response:",
    "### Human:",
    "### Assistant:",
    "\n\nHuman:",
    "\n\nAssistant:",
)


class Texts(NamedTuple):
    """One pair as text.

    Fields:
        prompt: all turns of the prompt with their roles, a line between them.
        question: the last user turn.
        chosen, rejected: the answers.
    """

    prompt: str
    question: str
    chosen: str
    rejected: str


class TextFacts(NamedTuple):
    """One entry a pair [N], and the pairs in which a marker was found.

    Fields:
        prompt: a number that equal prompts share; equal without regard to case, white space and Unicode form.
        pair, swapped: the same of prompt and both answers, and of these with the answers in the other order.
        alike: whether both answers are equal in that sense.
        markers: marker -> positions of pairs with an answer that holds it.
    """

    prompt: np.ndarray
    pair: np.ndarray
    swapped: np.ndarray
    alike: np.ndarray
    markers: dict[str, list[int]]

    def of(self, mask: np.ndarray) -> TextFacts:
        """Those of some pairs, by a mask [N]; positions of markers stay."""
        return self._replace(
            prompt=self.prompt[mask], pair=self.pair[mask], swapped=self.swapped[mask], alike=self.alike[mask]
        )


def read_texts(raw: Dataset, rows: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> Iterator[list[Texts]]:
    """The texts of pairs in batches; token ids are decoded.

    Args:
        raw: the rows that were tokenised, or token ids.
        rows: [N] which of them became pairs.
        tokenizer: decodes token ids.
    """
    picked = raw.select(rows)
    if is_tokenized(raw):
        for batch in picked.iter(_BATCH):
            columns = [tokenizer.batch_decode(batch[column], skip_special_tokens=True) for column in TOKEN_COLUMNS]
            yield [Texts(prompt, prompt, chosen, rejected) for prompt, chosen, rejected in zip(*columns, strict=True)]
        return
    picked = picked.select_columns([column for column in RAW_COLUMNS if column in raw.column_names])
    for batch in picked.iter(_BATCH):
        values = zip(*batch.values(), strict=True)
        pairs = [normalise(dict(zip(batch, row, strict=True)), unpaired=True) for row in values]
        yield [_texts_of(pair) for pair in pairs if isinstance(pair, Pair)]


def _texts_of(pair: Pair) -> Texts:
    """Texts of a pair; of a row of one response the other side is empty."""
    texts = _whole_texts_of(pair)
    if pair.only is None:
        return texts
    return texts._replace(rejected="") if pair.only == "chosen" else texts._replace(chosen="")


def _whole_texts_of(pair: Pair) -> Texts:
    if pair.is_text:
        prompt, chosen, rejected = pair.texts()
        return Texts(prompt, prompt, chosen, rejected)
    turns, chosen_turns, rejected_turns = pair.messages()
    prompt = "\n".join(f"{turn['role']}: {_content(turn)}" for turn in turns)
    question = next((_content(turn) for turn in reversed(turns) if turn["role"] == "user"), "")
    return Texts(prompt, question, *(_content(answer[0]) for answer in (chosen_turns, rejected_turns)))


def _content(message: Message) -> str:
    """Text of a message; of parts or calls their JSON."""
    content = message.get("content") or message.get("tool_calls") or ""
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str)


def text_facts(batches: Iterable[list[Texts]], opening: str = "", searches: Sequence[OverlapSearch] = ()) -> TextFacts:
    """Read all texts once.

    Args:
        batches: from `read_texts`.
        opening: what the template in use writes before an answer: it must not stand within one.
        searches: for evaluation prompts; they are shown every batch.
    """
    markers = _markers(opening)
    found: dict[str, list[int]] = {}
    numbers: list[tuple[int, int, int, bool]] = []
    for batch in batches:
        for search in searches:
            search.add(batch)
        for texts in batch:
            for marker in markers:
                if marker in texts.chosen or marker in texts.rejected:
                    found.setdefault(marker, []).append(len(numbers))
            prompt, chosen, rejected = (same_text(part) for part in (texts.prompt, texts.chosen, texts.rejected))
            numbers.append(
                (hash(prompt), hash((prompt, chosen, rejected)), hash((prompt, rejected, chosen)), chosen == rejected)
            )
    columns: list[Any] = list(zip(*numbers, strict=True)) if numbers else [()] * 4
    firsts, pairs, swapped = (np.array(column, dtype=np.int64) for column in columns[:3])
    return TextFacts(firsts, pairs, swapped, np.array(columns[3], dtype=bool), found)


def same_text(text: str) -> str:
    """What equal texts share: without case, runs of white space, and ways to write a character."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _markers(opening: str) -> list[str]:
    """Foreign markers, and that of the template in use where it is one: more than a word."""
    own = opening.strip()
    return [*FOREIGN_MARKERS, *([own] if len(own) > 3 and not own.isalnum() and own not in FOREIGN_MARKERS else [])]
