"""Reward models of the sequence-classification kind: one number for a prompt with one response.

Shapes: B texts of a batch, T tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from simpo.data.chat import own_template, render, resolve_chat_template
from simpo.errors import ModelError
from simpo.onpolicy.annotators.base import Item, Scored, batches_by_length
from simpo.onpolicy.annotators.kinds import RewardModelSettings
from simpo.onpolicy.annotators.loading import load_scorer


class RewardModel:
    """Scores each response with its prompt, rendered by the reward model's own chat template.

    A model with a field `score` in its output (ArmoRM) is read there, any other one at its single logit.

    Args:
        settings: which model, and how it is run.
        device: where.

    Raises:
        ModelError: the model cannot be loaded, or has several logits.
        DataError: there is no chat template.
    """

    def __init__(self, settings: RewardModelSettings, device: torch.device) -> None:
        self._settings = settings
        self.model, self.tokenizer = load_scorer(
            AutoModelForSequenceClassification,
            settings.model,
            device,
            settings.dtype,
            settings.revision,
            example="RLHFlow/ArmoRM-Llama3-8B-v0.1",
            trust_remote_code=settings.trust_remote_code,
        )
        self._template = resolve_chat_template(settings.chat_template, self.tokenizer) or own_template(self.tokenizer)
        limits = (settings.max_length, getattr(self.model.config, "max_position_embeddings", None))
        self._max_length = min([limit for limit in limits if limit] + [self.tokenizer.model_max_length])
        self._adds_bos = self._ids(["a"], add_special_tokens=True)[0][:1] == [self.tokenizer.bos_token_id]
        self._pad: int | None = getattr(self.model.config, "pad_token_id", None)

    def score(self, items: Sequence[Item]) -> list[Scored]:
        """Raises what the template raises, and what the model does."""
        found = [Scored([None] * len(item.responses)) for item in items]
        places: list[tuple[int, int]] = []
        rows: list[list[int]] = []
        for at, item in enumerate(items):
            for index, ids in enumerate(self.encode(item)):
                if len(ids) > self._max_length:
                    found[at].problems.append(
                        f"response {index}: {len(ids)} tokens with its prompt, above max_length {self._max_length}"
                    )
                    continue
                places.append((at, index))
                rows.append(ids)
        for batch in batches_by_length([len(ids) for ids in rows], self._settings.max_batch_tokens):
            scores = self._run([rows[number] for number in batch])
            for number, score in zip(batch, scores.tolist(), strict=True):
                at, index = places[number]
                found[at].scores[index] = score
        return found

    def encode(self, item: Item) -> list[list[int]]:
        """Token ids of each response with its prompt, with one BOS where the tokenizer writes one."""
        conversations = [[*item.messages, {"role": "assistant", "content": text}] for text in item.responses]
        if not conversations:
            return []
        texts = render(self.tokenizer, self._template, conversations, item.arguments)
        return [self._with_one_bos(row) for row in self._ids(texts, add_special_tokens=False)]

    def _ids(self, texts: list[str], *, add_special_tokens: bool) -> list[list[int]]:
        ids: Any = self.tokenizer(texts, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
        return list(ids)

    def _with_one_bos(self, ids: list[int]) -> list[int]:
        bos = self.tokenizer.bos_token_id
        if bos is None:
            return ids
        written = next((at for at, token in enumerate(ids) if token != bos), len(ids))
        return [bos] * (written > 0 or self._adds_bos) + ids[written:]

    @torch.inference_mode()
    def _run(self, rows: Sequence[list[int]]) -> Tensor:
        """Scores [B], float32."""
        ids, mask = pad(rows, self._pad_for(rows), self.model.device)
        output: Any = self.model(input_ids=ids, attention_mask=mask)
        score = getattr(output, "score", None)
        score = output.logits if score is None else score
        if score.numel() != len(rows):
            raise ModelError(
                f"{self._settings.model}: gives {score.numel() // len(rows)} numbers for a text, a reward model one"
            )
        return score.reshape(-1).float()

    def _pad_for(self, rows: Sequence[list[int]]) -> int:
        """The id to pad with. Models find a text's last token by it, so it must be the one that the model knows; where
        it knows none, any id that none of these texts holds, which it is told."""
        if self._pad is not None:
            return self._pad
        there = set().union(*rows)
        free = next(token for token in range(self.model.config.vocab_size) if token not in there)
        self.model.config.pad_token_id = free
        return free


def pad(rows: Sequence[list[int]], token: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, T], padded on the right: ArmoRM's head looks for the end of a text from its left."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[token] * (width - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return ids, mask
