"""Pairs to token ids, in the two named ways.

standard    the prompt is rendered with the generation prompt, a response is what the model itself would write after it:
            the answer and its end-of-turn token.
paper       the published implementation: the assistant's header counts as response, an EOS follows the end of turn.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from simpo.data.chat import (
    ChatFormat,
    barrier_token,
    head_text,
    inspect_template,
    own_template,
    render_rows,
    with_empty_system,
)
from simpo.data.schema import EMPTY_RESPONSE, PROMPT_DIFFERS, PROMPT_REWRITTEN, Message, Pair
from simpo.data.truncate import TEXT_AFTER_END, TokenPair, truncate_paper, truncate_standard
from simpo.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from simpo.data.tokenize import TokenizeOptions


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
        self.bos: int | None = tokenizer.bos_token_id
        self._heads: dict[str, list[int]] = {}

    @cached_property
    def chat(self) -> ChatFormat:
        return inspect_template(self.tokenizer, own_template(self.tokenizer))

    @cached_property
    def eos(self) -> int:
        if self.tokenizer.eos_token_id is None:
            raise DataError(
                f"the tokenizer {self.tokenizer.name_or_path!r} has no EOS token, so an answer would have no end; "
                "set its eos_token"
            )
        return int(self.tokenizer.eos_token_id)

    @cached_property
    def is_plain(self) -> bool:
        """Whether a call of the tokenizer is its Rust library's and nothing else."""
        from transformers import PreTrainedTokenizerFast

        own, base = type(self.tokenizer), PreTrainedTokenizerFast
        return issubclass(own, base) and own.__call__ is base.__call__ and own._encode_plus is base._encode_plus

    @cached_property
    def barrier(self) -> str:
        """A special token between prompt and answer behind which a text can be tokenised alone; "" without one."""
        if not self.is_plain or self.tokenizer.split_special_tokens:
            return ""
        generating = self.options.tokenization == "standard"
        return barrier_token(self.tokenizer, self.chat.template, add_generation_prompt=generating)

    @cached_property
    def prefix(self) -> list[int]:
        """The special tokens that the tokenizer itself puts before a text: BOS, or nothing."""
        bare = self.encode(["a"])[0]
        full: list[int] = self.tokenizer("a", verbose=False)["input_ids"]
        starts = (at for at in range(len(full)) if full[at : at + len(bare)] == bare)
        return full[: next(starts, 0)]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts, without special tokens that the texts do not hold."""
        if not texts:
            return []
        if not self.is_plain:
            # verbose=False: texts longer than the model's maximum are expected here, truncation follows
            ids: list[list[int]] = self.tokenizer(
                list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
            )["input_ids"]
            return ids
        # what that call does, without offsets and masks, which take a quarter of its time
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = self.tokenizer.split_special_tokens
        return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def __call__(self, pairs: Sequence[Pair]) -> list[TokenPair | str]:
        """Token ids of each pair, truncated, or the cause for which it is dropped."""
        paper = self.options.tokenization == "paper"
        texts = [index for index, pair in enumerate(pairs) if pair.is_text]
        chats = [index for index, pair in enumerate(pairs) if not pair.is_text]
        results: dict[int, TokenPair | str] = {}
        encode_texts = self._paper_texts if paper else self._standard_texts
        encode_chats = self._paper_chats if paper else self._standard_chats
        results.update(zip(texts, encode_texts([pairs[index] for index in texts]), strict=True))
        results.update(zip(chats, encode_chats([pairs[index] for index in chats]), strict=True))
        return [self._finish(pairs[index], results[index]) for index in range(len(pairs))]

    def _finish(self, pair: Pair, result: TokenPair | str) -> TokenPair | str:
        if isinstance(result, str):
            return result
        limits = self.options.max_length, self.options.max_prompt_length
        if self.options.tokenization == "paper":
            truncate_paper(result, *limits)
        else:
            truncate_standard(result, *limits, lambda tokens: self._head_length(pair, tokens))
        return result.drop_cause() or result

    # standard

    def _standard_texts(self, pairs: Sequence[Pair]) -> Iterable[TokenPair | str]:
        for prompt, chosen, rejected in self._encode_columns([pair.texts() for pair in pairs]):
            yield TokenPair(self._with_prefix(prompt), self._with_eos(chosen), self._with_eos(rejected))

    def _standard_chats(self, pairs: Sequence[Pair]) -> list[TokenPair | str]:
        if not pairs:
            return []
        prompts = [self._prompt_messages(pair) for pair in pairs]
        full = [
            [*prompt, *answer] for prompt, pair in zip(prompts, pairs, strict=True) for answer in pair.messages()[1:]
        ]
        prompt_texts = self._render(prompts, add_generation_prompt=True)
        full_texts = self._render(full)
        causes: list[str | None] = []
        whole: list[tuple[str, str, str]] = []
        for (prompt, failure), chosen, rejected in zip(prompt_texts, full_texts[::2], full_texts[1::2], strict=True):
            cause = failure or chosen[1] or rejected[1]
            if cause is None and not (chosen[0].startswith(prompt) and rejected[0].startswith(prompt)):
                cause = PROMPT_REWRITTEN
            causes.append(cause)
            ends = self._answer_end(chosen[0]), self._answer_end(rejected[0])
            whole.append(("", "", "") if cause else (prompt, *ends))
        sides = zip(causes, *self._encode_sides(whole), strict=True)
        return [cause or self._end_pair(prompt, responses) for cause, prompt, *responses in sides]

    def _answer_end(self, text: str) -> str:
        """Without an end-of-turn token there is only white space to take off: EOS is the end."""
        if self.chat.end_of_turn is None and text.endswith(self.chat.after_answer):
            return text.removesuffix(self.chat.after_answer) + self.chat.after_answer.rstrip()
        return text

    def _encode_sides(self, texts: Sequence[tuple[str, str, str]]) -> tuple[list[list[int]], ...]:
        """Ids of prompts, and of what both whole texts add to them: one prompt for both sides by construction."""
        prompts, contexts, *wholes = zip(*self._encode_from_barrier(texts, self.barrier), strict=True)
        sides: list[list[list[int]]] = []
        for side, column in enumerate(wholes, start=1):
            responses = [full[len(context) :] for context, full in zip(contexts, column, strict=True)]
            # where tokens merge across the boundary both parts are tokenised alone, as the prompt is when generating
            merged = [at for at, full in enumerate(column) if full[: len(contexts[at])] != contexts[at]]
            alone = self._encode_continuations([texts[at][side][len(texts[at][0]) :] for at in merged])
            for at, ids in zip(merged, alone, strict=True):
                responses[at] = ids
            sides.append(responses)
        return (list(prompts), *sides)

    def _encode_continuations(self, texts: list[str]) -> list[list[int]]:
        """Ids of texts that stand behind something else.

        Tokenizers of the SentencePiece kind put a space before a text's first word. Behind an anchor they do not; an
        anchor serves where it does not merge with the text.
        """
        results: dict[int, list[int]] = {}
        for anchor in ("\n", ":", self.tokenizer.eos_token or "."):
            rest = [at for at in range(len(texts)) if at not in results]
            head, *anchored = self.encode([anchor, *(anchor + texts[at] for at in rest)])
            results.update(
                (at, ids[len(head) :]) for at, ids in zip(rest, anchored, strict=True) if ids[: len(head)] == head
            )
        rest = [at for at in range(len(texts)) if at not in results]
        results.update(zip(rest, self.encode([texts[at] for at in rest]), strict=True))
        return [results[at] for at in range(len(texts))]

    def _end_pair(self, prompt: list[int], responses: list[list[int]]) -> TokenPair | str:
        """A pair whose responses end right after their first end-of-turn token, or with EOS where there is none."""
        ended, cut = [], False
        for response in responses:
            end = self._end_of_answer(response)
            if end is None:
                response = self._with_eos(response)
            else:
                cut |= len(response) - end - 1 > self.chat.trailing_ids
                response = response[: end + 1]
            if len(response) == 1:
                return EMPTY_RESPONSE
            ended.append(response)
        pair = TokenPair(self._with_prefix(prompt), *ended)
        if cut:
            pair.cuts.append(TEXT_AFTER_END)
        return pair

    def _end_of_answer(self, response: list[int]) -> int | None:
        end = self.chat.end_of_turn
        return response.index(end) if end is not None and end in response else None

    def _with_prefix(self, ids: list[int]) -> list[int]:
        """Exactly one BOS, whoever writes it: the tokenizer, the template, or both."""
        while self.bos is not None and ids[:2] == [self.bos, self.bos]:
            ids = ids[1:]
        return ids if ids[: len(self.prefix)] == self.prefix else self.prefix + ids

    def _head_length(self, pair: Pair, tokens: TokenPair) -> tuple[int, int]:
        """Tokens of BOS, and of BOS and system turn, at the start of a prompt."""
        bos = int(tokens.prompt[:1] == [self.bos])
        if pair.is_text:
            return bos, bos
        system = [message for message in self._prompt_messages(pair)[:1] if message["role"] in ("system", "developer")]
        key = json.dumps(system, sort_keys=True, default=str)
        if key not in self._heads:
            self._heads[key] = self._with_prefix(self.encode([head_text(self.tokenizer, self.chat, system)])[0])
        same = itertools.takewhile(lambda both: both[0] == both[1], zip(self._heads[key], tokens.prompt, strict=False))
        return bos, max(bos, sum(1 for _ in same))

    # paper

    def _paper_texts(self, pairs: Sequence[Pair]) -> list[TokenPair | str]:
        return self._paper_ids([pair.texts() for pair in pairs], barrier="")

    def _paper_chats(self, pairs: Sequence[Pair]) -> list[TokenPair | str]:
        if not pairs:
            return []
        prompts = self._render([self._prompt_messages(pair) for pair in pairs])
        sides = [self._render([pair.messages()[side] for pair in pairs]) for side in (1, 2)]
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
        return [self._paper_pair(*ids) for ids in self._encode_from_barrier(whole, barrier)]

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
            prompts.append(side if self.bos is None or side[:1] == [self.bos] else [self.bos, *side])
            responses.append(self._with_eos(full[start:]))
        # the published code lets one side keep a token that merged on the other: that is no shared prompt
        return TokenPair(prompts[0], *responses) if prompts[0] == prompts[1] else PROMPT_DIFFERS

    # both

    def _with_eos(self, ids: list[int]) -> list[int]:
        return ids if ids and ids[-1] == self.eos else [*ids, self.eos]

    def _prompt_messages(self, pair: Pair) -> list[Message]:
        messages = pair.messages()[0]
        return with_empty_system(messages, self.chat.template) if self.options.add_empty_system else messages

    def _render(
        self, conversations: list[list[Message]], *, add_generation_prompt: bool = False
    ) -> list[tuple[str, str | None]]:
        return render_rows(
            self.tokenizer, self.chat.template, conversations, add_generation_prompt=add_generation_prompt
        )

    def _encode_from_barrier(self, rows: Sequence[tuple[str, str, str]], barrier: str) -> list[tuple[list[int], ...]]:
        """Ids of prompts; then of what follows the prompt's last barrier, in the prompt and in both whole texts."""
        parts = []
        for prompt, *wholes in rows:
            start = max(prompt.rfind(barrier), 0) if barrier else 0
            parts.append((prompt, prompt[start:], *(whole[start:] for whole in wholes)))
        return self._encode_columns(parts)

    def _encode_columns(self, rows: Sequence[tuple[str, ...]]) -> list[tuple[list[int], ...]]:
        """Ids of the texts of each row; one call, since fast tokenizers work through a batch in parallel."""
        texts = list(dict.fromkeys(itertools.chain.from_iterable(rows)))
        ids = dict(zip(texts, self.encode(texts), strict=True))
        return [tuple(ids[text] for text in row) for row in rows]
