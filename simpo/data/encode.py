"""Pairs to token ids, in the two named ways.

standard    the prompt is rendered with the generation prompt, a response is what the model itself would write after it:
            the answer and its end-of-turn token.
paper       the published implementation: the assistant's header counts as response, an EOS follows the end of turn.
"""

from __future__ import annotations

import itertools
import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from simpo.data.chat import (
    QUESTION,
    ChatFormat,
    barrier_token,
    check_one_template,
    head_text,
    inspect_template,
    own_template,
    render_rows,
    with_empty_system,
)
from simpo.data.ids import TextEncoder
from simpo.data.schema import (
    EMPTY_RESPONSE,
    PROMPT_DIFFERS,
    PROMPT_REWRITTEN,
    SYSTEM_ROLES,
    TOO_LONG,
    TURN_LOST,
    Message,
    Pair,
)
from simpo.data.truncate import (
    SYSTEM_CUT,
    TEXT_AFTER_END,
    TURNS_CUT,
    TokenPair,
    cut_prompt,
    truncate_paper,
    truncate_standard,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from simpo.data.tokenize import TokenizeOptions


class Rendered(NamedTuple):
    """Texts of one pair: the prompt, and the prompt with each answer behind it. With a cause, it is dropped."""

    prompt: str
    chosen: str
    rejected: str
    cause: str | None


class Encoder:
    """Turns batches of pairs into token ids; holds what was found out about the tokenizer and its template.

    Args:
        tokenizer: its chat template is used for messages.
        options: mode and bounds.

    Raises:
        DataError: the tokenizer has no EOS, or messages meet no template or one that fails (on first use).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: TokenizeOptions) -> None:
        self.tokenizer = tokenizer
        self.options = options
        self.texts = TextEncoder(tokenizer)
        self._heads: dict[str, list[int]] = {}

    @cached_property
    def chat(self) -> ChatFormat:
        return inspect_template(self.tokenizer, own_template(self.tokenizer))

    @cached_property
    def barrier(self) -> str:
        """A special token between prompt and answer behind which a text can be tokenised alone; "" without one."""
        if not self.texts.is_plain or self.tokenizer.split_special_tokens:
            return ""
        generating = self.options.tokenization == "standard"
        return barrier_token(self.tokenizer, self.chat.template, add_generation_prompt=generating)

    def __call__(self, pairs: Sequence[Pair]) -> list[TokenPair | str]:
        """Token ids of each pair, truncated, or the cause for which it is dropped."""
        check_one_template(self.tokenizer, pairs)
        if self.options.tokenization == "paper":
            encode_texts, encode_chats = self._paper_texts, self._paper_chats
        else:
            encode_texts, encode_chats = self._standard_texts, self._standard_chats
        results: dict[int, TokenPair | str] = {}
        texts, chats = [], []
        for index, pair in enumerate(pairs):
            if pair.is_text:
                texts.append(index)
            elif lost := self._lost_turns(pair):
                results[index] = f"{TURN_LOST}: {lost}"
            else:
                chats.append(index)
        for at, encode in ((texts, encode_texts), (chats, encode_chats)):
            if at:
                results.update(zip(at, encode([pairs[index] for index in at]), strict=True))
        return [self._finish(pair, results[index]) for index, pair in enumerate(pairs)]

    def _lost_turns(self, pair: Pair) -> str:
        """Kinds of turns of this pair that its template would leave out without a word."""
        if not self.chat.loses:
            return ""
        prompt, chosen, rejected = pair.messages()
        messages = [*prompt, *chosen, *rejected]
        kinds = {message["role"] for message in messages if message.get("content", "").strip()}
        kinds |= {"tool_calls" for message in messages if "tool_calls" in message}
        return ", ".join(sorted(kinds & self.chat.loses))

    def _finish(self, pair: Pair, result: TokenPair | str) -> TokenPair | str:
        if isinstance(result, str):
            return result
        result.only = pair.only
        limits = self.options.max_length, self.options.max_prompt_length
        if self.options.truncation == "drop":
            return result.drop_cause() or (TOO_LONG if result.length > self.options.max_length else result)
        if self.options.tokenization == "paper":
            truncate_paper(result, *limits)
        else:
            truncate_standard(result, *limits, lambda tokens, room: self._shorten(pair, tokens, room))
        return result.drop_cause() or result

    # standard

    def _standard_texts(self, pairs: Sequence[Pair]) -> list[TokenPair | str]:
        texts = [pair.texts() for pair in pairs]
        sides = self.texts.encode_sides([(prompt, prompt + a, prompt + b) for prompt, a, b in texts])
        return [self._end_pair(prompt, responses, self.texts.eos) for prompt, *responses in sides]

    def _standard_chats(self, pairs: Sequence[Pair]) -> list[TokenPair | str]:
        rows = self._whole_texts([self._prompt_messages(pair) for pair in pairs], pairs)
        rewritten = [at for at, row in enumerate(rows) if row.cause == PROMPT_REWRITTEN]
        plain = self._whole_texts([QUESTION] * len(rewritten), [pairs[at] for at in rewritten])
        for at, row in zip(rewritten, plain, strict=True):
            rows[at] = _with_answers_of(rows[at], row)
        ended = [
            ("", "", "") if row.cause else (row.prompt, self._answer_end(row.chosen), self._answer_end(row.rejected))
            for row in rows
        ]
        sides = self.texts.encode_sides(ended, self.barrier)
        end = self.texts.eos if self.chat.end_of_turn is None else self.chat.end_of_turn
        return [
            row.cause or self._end_pair(prompt, responses, end, self.chat.trailing_ids)
            for row, (prompt, *responses) in zip(rows, sides, strict=True)
        ]

    def _whole_texts(self, prompts: Sequence[list[Message]], pairs: Sequence[Pair]) -> list[Rendered]:
        """Each prompt as it is when generating, and with the pair's answers behind it."""
        arguments = [pair.arguments for pair in pairs]
        columns = [self._render(prompts, arguments, add_generation_prompt=True)]
        for side in (1, 2):
            whole = [[*prompt, *pair.messages()[side]] for prompt, pair in zip(prompts, pairs, strict=True)]
            columns.append(self._render(whole, arguments))
        rows = []
        for (prompt, failure), chosen, rejected in zip(*columns, strict=True):
            cause = failure or chosen[1] or rejected[1]
            if cause is None and not (chosen[0].startswith(prompt) and rejected[0].startswith(prompt)):
                cause = PROMPT_REWRITTEN
            rows.append(Rendered(prompt, chosen[0], rejected[0], cause))
        return rows

    def _answer_end(self, text: str) -> str:
        """Without an end-of-turn token there is only white space to take off: EOS is the end."""
        if self.chat.end_of_turn is None and text.endswith(self.chat.after_answer):
            return text.removesuffix(self.chat.after_answer) + self.chat.after_answer.rstrip()
        return text

    def _end_pair(
        self, prompt: list[int], responses: list[list[int]], end: int, trailing_ids: int = 0
    ) -> TokenPair | str:
        """A pair whose responses end right after their first `end`, or with EOS where there is none.

        `trailing_ids` is how many tokens the template itself writes behind the end.
        """
        ended, cut = [], False
        for response in responses:
            if end in response:
                kept = response[: response.index(end) + 1]
                cut |= len(response) - len(kept) > trailing_ids
            else:
                kept = self.texts.with_eos(response)
            if len(kept) == 1:
                return EMPTY_RESPONSE
            ended.append(kept)
        pair = TokenPair(self.texts.with_prefix(prompt), *ended)
        if cut:
            pair.cuts.append(TEXT_AFTER_END)
        return pair

    # standard: prompts that are too long

    def _shorten(self, pair: Pair, tokens: TokenPair, room: int) -> None:
        """Leave out the oldest turns; what still does not fit loses tokens on its left, behind BOS and system turn."""
        bos = int(tokens.prompt[:1] == [self.texts.bos])
        if pair.is_text:
            cut_prompt(tokens, room, bos)
            return
        messages = self._prompt_messages(pair)
        first = int(messages[0]["role"] in SYSTEM_ROLES)
        system, turns = messages[:first], messages[first:]
        last = self._leave_turns_out(tokens, room, system, turns, pair.arguments)
        if len(tokens.prompt) <= room:
            return
        # a system turn that leaves no room for the question is worth less than the question
        most = max(bos, room // 2)
        head = self._head_length(tokens.prompt, system, pair.arguments)
        if head > most:
            tokens.cuts.append(SYSTEM_CUT)
            if system:
                tokens.prompt = self._prompt_ids(last, pair.arguments) or tokens.prompt
                head = self._head_length(tokens.prompt, [], pair.arguments)
        cut_prompt(tokens, room, head if head <= most else bos)

    def _leave_turns_out(
        self, tokens: TokenPair, room: int, system: list[Message], turns: list[Message], arguments: Mapping[str, Any]
    ) -> list[Message]:
        """Take as few of the oldest turns away as make the prompt fit, or all but the last, which is returned.

        A turn is a user message and what follows it up to the next one.
        """
        starts = [at for at, message in enumerate(turns) if message["role"] == "user"]

        @cache
        def without(number: int) -> list[int]:
            return self._prompt_ids([*system, *turns[starts[number] :]], arguments) or tokens.prompt

        if len(starts) > 1:
            fits = bisect_left(range(1, len(starts) - 1), True, key=lambda number: len(without(number)) <= room)
            shorter = without(1 + fits)
            if len(shorter) < len(tokens.prompt):
                tokens.prompt = shorter
                tokens.cuts.append(TURNS_CUT)
        return turns[starts[-1] :]

    def _prompt_ids(self, messages: list[Message], arguments: Mapping[str, Any]) -> list[int]:
        """Ids of a prompt; none where the template refuses it."""
        text, cause = self._render([messages], [arguments], add_generation_prompt=True)[0]
        return [] if cause else self.texts.with_prefix(self.texts.encode([text])[0])

    def _head_length(self, prompt: list[int], system: list[Message], arguments: Mapping[str, Any]) -> int:
        """Tokens of BOS, system turn and tools at the start of a prompt."""
        key = json.dumps([system, arguments], default=str)
        if key not in self._heads:
            text = head_text(self.tokenizer, self.chat, system, arguments)
            self._heads[key] = self.texts.with_prefix(self.texts.encode([text])[0])
        same = itertools.takewhile(lambda both: both[0] == both[1], zip(self._heads[key], prompt, strict=False))
        return max(int(prompt[:1] == [self.texts.bos]), sum(1 for _ in same))

    # paper

    def _paper_texts(self, pairs: Sequence[Pair]) -> list[TokenPair | str]:
        return self._paper_ids([pair.texts() for pair in pairs], barrier="")

    def _paper_chats(self, pairs: Sequence[Pair]) -> list[TokenPair | str]:
        arguments = [pair.arguments for pair in pairs]
        prompts = self._render([self._prompt_messages(pair) for pair in pairs], arguments)
        # tools belong to the prompt: before an answer alone, templates would write them once more
        rest = [{key: value for key, value in given.items() if key != "tools"} for given in arguments]
        sides = [self._render([pair.messages()[side] for pair in pairs], rest) for side in (1, 2)]
        bos = str(self.tokenizer.bos_token or "")
        columns = list(zip(prompts, *sides, strict=True))
        texts = [
            (prompt[0], chosen[0].removeprefix(bos), rejected[0].removeprefix(bos))
            for prompt, chosen, rejected in columns
        ]
        causes = [prompt[1] or chosen[1] or rejected[1] for prompt, chosen, rejected in columns]
        return [cause or result for cause, result in zip(causes, self._paper_ids(texts, self.barrier), strict=True)]

    def _paper_ids(self, texts: Sequence[tuple[str, str, str]], barrier: str) -> list[TokenPair | str]:
        whole = [(prompt, prompt + chosen, prompt + rejected) for prompt, chosen, rejected in texts]
        return [self._paper_pair(*ids) for ids in self.texts.encode_from_barrier(whole, barrier)]

    def _paper_pair(
        self, prompt: list[int], context: list[int], chosen: list[int], rejected: list[int]
    ) -> TokenPair | str:
        prompts, responses = [], []
        for full in (chosen, rejected):
            start = len(context) if full[: len(context)] == context else len(context) - 1
            if len(full) < len(context) or start < 0:
                return PROMPT_DIFFERS
            side = prompt[: len(prompt) - len(context)] + full[:start]
            # the published code puts BOS wherever it is missing, and fails on tokenizers without one
            bos = self.texts.bos
            prompts.append(side if bos is None or side[:1] == [bos] else [bos, *side])
            responses.append(self.texts.with_eos(full[start:]))
        # the published code lets one side keep a token that merged on the other: that is no shared prompt
        return TokenPair(prompts[0], *responses) if prompts[0] == prompts[1] else PROMPT_DIFFERS

    # both

    def _prompt_messages(self, pair: Pair) -> list[Message]:
        messages = pair.messages()[0]
        return with_empty_system(messages, self.chat) if self.options.add_empty_system else messages

    def _render(
        self,
        conversations: Sequence[list[Message]],
        arguments: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = False,
    ) -> list[tuple[str, str | None]]:
        return render_rows(
            self.tokenizer,
            self.chat.template,
            list(conversations),
            arguments,
            add_generation_prompt=add_generation_prompt,
        )


def _with_answers_of(row: Rendered, plain: Rendered) -> Rendered:
    """A row whose prompt the template writes otherwise once an answer follows, with that answer behind the prompt.

    Such templates put the system turn into the last user turn, or leave tools out before an earlier one. What the model
    is given is the prompt as it is when generating; an answer is taken as it stands behind a plain question, provided
    that it stands so in its own conversation too.
    """
    if plain.cause:
        return row
    chosen, rejected = plain.chosen[len(plain.prompt) :], plain.rejected[len(plain.prompt) :]
    if not (row.chosen.endswith(chosen) and row.rejected.endswith(rejected)):
        return row
    return Rendered(row.prompt, row.prompt + chosen, row.prompt + rejected, None)
