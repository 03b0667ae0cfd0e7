"""Texts to token ids: in batches, without special tokens that nobody wrote, a prompt and its answers apart."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from simpo.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextEncoder:
    """A tokenizer's ids of texts, and its habits: BOS, EOS, what it puts before a text.

    Args:
        tokenizer: any tokenizer of transformers.

    Raises:
        DataError: it has no EOS (when one is first needed).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.bos: int | None = tokenizer.bos_token_id

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
    def prefix(self) -> list[int]:
        """The special tokens that the tokenizer itself puts before a text: BOS, or nothing."""
        bare = self.encode(["a"])[0]
        full: list[int] = self.tokenizer("a", verbose=False)["input_ids"]
        starts = (at for at in range(len(full)) if full[at : at + len(bare)] == bare)
        return full[: next(starts, 0)]

    def with_prefix(self, ids: list[int]) -> list[int]:
        """Exactly one BOS, whoever writes it: the tokenizer, the template, or both."""
        while self.bos is not None and ids[:2] == [self.bos, self.bos]:
            ids = ids[1:]
        return ids if ids[: len(self.prefix)] == self.prefix else self.prefix + ids

    def with_eos(self, ids: list[int]) -> list[int]:
        return ids if ids and ids[-1] == self.eos else [*ids, self.eos]

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

    def encode_columns(self, rows: Sequence[tuple[str, ...]]) -> list[tuple[list[int], ...]]:
        """Ids of the texts of each row; one call, since fast tokenizers work through a batch in parallel."""
        texts = list(dict.fromkeys(itertools.chain.from_iterable(rows)))
        ids = dict(zip(texts, self.encode(texts), strict=True))
        return [tuple(ids[text] for text in row) for row in rows]

    def encode_from_barrier(self, rows: Sequence[tuple[str, str, str]], barrier: str) -> list[tuple[list[int], ...]]:
        """Ids of prompts; then of what follows the prompt's last barrier, in the prompt and in both whole texts."""
        parts = []
        for prompt, *wholes in rows:
            start = max(prompt.rfind(barrier), 0) if barrier else 0
            parts.append((prompt, prompt[start:], *(whole[start:] for whole in wholes)))
        return self.encode_columns(parts)

    def encode_sides(self, rows: Sequence[tuple[str, str, str]], barrier: str = "") -> list[tuple[list[int], ...]]:
        """Ids of prompt, chosen and rejected, from the prompt and both whole texts: one prompt by construction.

        Args:
            rows: a prompt's text, and that text with each answer behind it.
            barrier: text of a token behind which a text can be tokenised alone (`chat.barrier_token`), or "".
        """
        if not rows:
            return []
        prompts, contexts, *wholes = zip(*self.encode_from_barrier(rows, barrier), strict=True)
        sides: list[list[list[int]]] = []
        for side, column in enumerate(wholes, start=1):
            responses = [full[len(context) :] for context, full in zip(contexts, column, strict=True)]
            # where tokens merge across the boundary both parts are tokenised alone, as the prompt is when generating
            merged = [at for at, full in enumerate(column) if full[: len(contexts[at])] != contexts[at]]
            alone = self.encode_continuations([rows[at][side][len(rows[at][0]) :] for at in merged])
            for at, ids in zip(merged, alone, strict=True):
                responses[at] = ids
            sides.append(responses)
        return list(zip(prompts, *sides, strict=True))

    def encode_continuations(self, texts: list[str]) -> list[list[int]]:
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
