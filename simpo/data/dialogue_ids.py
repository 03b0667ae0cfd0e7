"""Supervised rows to token ids and labels: what is trained on is what the model itself has to write.

A conversation is rendered and tokenised whole. An answer begins where the prompt before it, rendered with the
generation prompt, ends; and it ends with the first end-of-turn token. So the ids are those of a chat at inference and
of a preference run with `tokenization: standard`: the same template, the same single BOS. (TRL's own masks need a
template with {% generation %} marks, and it puts no BOS before templates that leave it to the tokenizer.)
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc  # type: ignore[import-untyped]
from datasets import Dataset, Features, List, Value

from simpo.data.account import RowReport, cache_name, encode_rows
from simpo.data.chat import ChatFormat, inspect_template, own_template, render_rows, with_empty_system
from simpo.data.dialogues import ANSWER_CUT, DIALOGUE_CAUSES, Dialogue, Passage, read_row
from simpo.data.ids import TextEncoder
from simpo.data.schema import PROMPT_REWRITTEN, TURN_LOST, column_kind
from simpo.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""Label of a token that is read and not learnt, for torch's cross-entropy."""

CUT = "cut to max_length"
TURN_SKIPPED = "an answer is not learnt: the template writes it otherwise once more turns follow"

_SOURCES = ("schema.py", "chat.py", "ids.py", "dialogues.py", "dialogue_ids.py")
_IDS = List(Value("int32"))
_FEATURES = Features(
    {
        "input_ids": _IDS,
        "labels": _IDS,
        "dropped": Value("string"),
        "notes": List(Value("string")),
        "scored": Value("int64"),
    }
)


@dataclass(frozen=True)
class DialogueOptions:
    """How supervised rows become token ids.

    Args:
        max_length: tokens of a row; what is longer loses its end. Above 0.
        assistant_only_loss: learn the answers only; false: every token, except of a prompt with a completion.
        add_empty_system: put an empty system turn before conversations without one, where the template takes them.
    """

    max_length: int = 2048
    assistant_only_loss: bool = True
    add_empty_system: bool = False


@dataclass
class DialogueReport(RowReport):
    """What became of the rows of one data set: a `RowReport`, and more.

    Args:
        dropped: causes are `DIALOGUE_CAUSES`.
        tokens, scored: of the rows kept: all, and those that are learnt.
        longest: of the rows kept, in tokens.
        notes: what happened to rows that are kept -> how many.
    """

    tokens: int = 0
    scored: int = 0
    longest: int = 0
    notes: dict[str, int] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The account for people."""
        head = f"{self.desc}: {self.kept} of {self.total} rows kept, {self.tokens} tokens"
        if self.kept:
            head += f" (longest row {self.longest}), {self.scored / self.tokens:.0%} of them learnt"
        dropped = [f"  dropped {line}" for line in self.causes(self.dropped, DIALOGUE_CAUSES)]
        return [head, *dropped, *(f"  kept {line}" for line in self.causes(self.notes, DIALOGUE_CAUSES))]

    def refusal(self) -> str:
        """One line that says why no row is left."""
        causes = "; ".join(self.causes(self.dropped, DIALOGUE_CAUSES))
        return f"{self.desc}: none of the {self.total} rows can be trained on: {causes}"


@dataclass
class Labelled:
    """Token ids of one row, which of them are learnt, and what happened to it."""

    ids: list[int]
    labels: list[int]
    notes: list[str] = field(default_factory=list)


class DialogueEncoder:
    """Turns supervised rows into token ids and labels.

    Args:
        tokenizer: its chat template is used for messages.
        options: bounds, and what is learnt.

    Raises:
        DataError: the tokenizer has no EOS, or messages meet no template, one that fails, or one that ends an answer
            with no special token (on first use).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: DialogueOptions) -> None:
        self.tokenizer = tokenizer
        self.options = options
        self.texts = TextEncoder(tokenizer)

    @cached_property
    def chat(self) -> ChatFormat:
        chat = inspect_template(self.tokenizer, own_template(self.tokenizer))
        if chat.end_of_turn is None:
            raise DataError(
                f"the chat template writes {chat.after_answer!r} after an answer, which is no special token of the "
                f"tokenizer {self.tokenizer.name_or_path!r}, so a model would never learn to stop; set chat_template "
                "to one that ends turns with a token the tokenizer has (zephyr ends them with its EOS)"
            )
        return chat

    def __call__(self, row: Dialogue | Passage) -> Labelled | str:
        """Ids and labels of one row, cut to max_length, or the cause for which it is dropped."""
        result = self._passage(row) if isinstance(row, Passage) else self._dialogue(row)
        if isinstance(result, str):
            return result
        limit = self.options.max_length
        if len(result.ids) > limit:
            result = Labelled(result.ids[:limit], result.labels[:limit], [*result.notes, CUT])
        # the first token of a row is predicted by nothing
        return result if any(label != IGNORED for label in result.labels[1:]) else ANSWER_CUT

    def _passage(self, row: Passage) -> Labelled:
        if not row.prompt:
            ids = self.texts.with_eos(self.texts.with_prefix(self.texts.encode([row.completion])[0]))
            return Labelled(ids, list(ids))
        whole = row.prompt + row.completion
        prompt, completion, _ = self.texts.encode_sides([(row.prompt, whole, whole)])[0]
        prompt, completion = self.texts.with_prefix(prompt), self.texts.with_eos(completion)
        return Labelled([*prompt, *completion], [IGNORED] * len(prompt) + completion)

    def _dialogue(self, row: Dialogue) -> Labelled | str:
        if lost := self._lost_turns(row):
            return f"{TURN_LOST}: {lost}"
        messages = with_empty_system(row.messages, self.chat) if self.options.add_empty_system else row.messages
        answers = [at + len(messages) - len(row.messages) for at in row.answers()]
        whole = self._render([messages], row, add_generation_prompt=False)
        prompts = self._render([messages[:at] for at in answers], row, add_generation_prompt=True)
        failure = next((cause for _, cause in (*whole, *prompts) if cause), None)
        if failure is not None:
            return failure
        text = whole[0][0]
        kept = [prompt for prompt, _ in prompts if text.startswith(prompt)]
        if not kept:
            return PROMPT_REWRITTEN
        result = self._label(*self._ids(text, kept))
        if len(kept) < len(answers):
            result.notes.append(TURN_SKIPPED)
        return result

    def _ids(self, text: str, prompts: Sequence[str]) -> tuple[list[int], list[int]]:
        """Ids of a conversation, and where the answer behind each prompt begins; all prompts begin the text."""
        whole, *before = [self.texts.with_prefix(ids) for ids in self.texts.encode([text, *prompts])]
        if all(whole[: len(ids)] == ids for ids in before):
            return whole, [len(ids) for ids in before]
        # where tokens merge across a boundary, what follows is tokenised alone, as it is when generating
        ends = [*map(len, prompts), len(text)]
        ids, starts = list(before[0]), []
        for part in self.texts.encode_continuations([text[a:b] for a, b in itertools.pairwise(ends)]):
            starts.append(len(ids))
            ids += part
        return ids, starts

    def _label(self, ids: list[int], starts: Sequence[int]) -> Labelled:
        """Labels of the answers that begin there; the row ends with the last of them."""
        labels, end = [IGNORED] * len(ids), len(ids)
        for start in starts:
            end = next((at + 1 for at in range(start, len(ids)) if ids[at] == self.chat.end_of_turn), len(ids))
            labels[start:end] = ids[start:end]
        ids, labels = ids[:end], labels[:end]
        return Labelled(ids, labels if self.options.assistant_only_loss else list(ids))

    def _lost_turns(self, row: Dialogue) -> str:
        """Kinds of turns of this row that its template would leave out without a word."""
        kinds = {message["role"] for message in row.messages if message.get("content", "").strip()}
        kinds |= {"tool_calls" for message in row.messages if "tool_calls" in message}
        return ", ".join(sorted(kinds & self.chat.loses))

    def _render(
        self, conversations: list[list[dict[str, Any]]], row: Dialogue, *, add_generation_prompt: bool
    ) -> list[tuple[str, str | None]]:
        arguments = [row.arguments] * len(conversations)
        return render_rows(
            self.tokenizer, self.chat.template, conversations, arguments, add_generation_prompt=add_generation_prompt
        )


def tokenize_dialogues(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    options: DialogueOptions,
    *,
    num_proc: int | None = None,
    desc: str = "train",
) -> tuple[Dataset, DialogueReport]:
    """Tokenise a data set of supervised rows.

    Args:
        dataset: rows by `take_dialogue_columns`.
        tokenizer: with the chat template that messages are rendered with.
        options: bounds, and what is learnt.
        num_proc: processes to work in; None for this one.
        desc: name of the data set, for the progress bar, the report and errors.

    Returns:
        The rows that can be trained on: input_ids, and labels: the id of a token that is learnt, -100 for others; and
        the account of all rows. A second call with the same data, tokenizer, template and options reads the cache.

    Raises:
        DataError: the tokenizer has no EOS or no working chat template, or no row is left.
    """
    encoder = DialogueEncoder(tokenizer, options)
    if any(column_kind(feature) == "messages" for name, feature in dataset.features.items() if name != "tools"):
        _ = encoder.chat  # a template that fails is an error here, once, not in every worker
    name = cache_name(dataset, tokenizer, options, _SOURCES)
    mapped = encode_rows(dataset, _encode_batch, encoder, _FEATURES, name=name, num_proc=num_proc, desc=desc)
    report, kept = _account(mapped, desc)
    if not report.kept:
        raise DataError(report.refusal())
    if report.kept < report.total:
        mapped = mapped.select(kept)
    return mapped.select_columns(["input_ids", "labels"]), report


def _encode_batch(batch: Mapping[str, list[Any]], _: list[int], encoder: DialogueEncoder) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {name: [] for name in _FEATURES}
    for values in zip(*batch.values(), strict=True):
        row = read_row(dict(zip(batch, values, strict=True)))
        result = row if isinstance(row, str) else encoder(row)
        dropped = result if isinstance(result, str) else None
        labelled = Labelled([], []) if isinstance(result, str) else result
        columns["input_ids"].append(labelled.ids)
        columns["labels"].append(labelled.labels)
        columns["dropped"].append(dropped)
        columns["notes"].append(labelled.notes)
        columns["scored"].append(sum(label != IGNORED for label in labelled.labels))
    return columns


def _account(mapped: Dataset, desc: str) -> tuple[DialogueReport, np.ndarray]:
    """The report, and the positions of the rows that are kept."""
    report = DialogueReport(desc)
    kept = report.read(mapped, "notes", report.notes)
    lengths = np.asarray(pc.list_value_length(mapped.data["input_ids"]))
    report.tokens, report.longest = int(lengths.sum()), int(lengths.max())
    report.scored = int(pc.sum(mapped.data["scored"]).as_py())
    return report, kept
