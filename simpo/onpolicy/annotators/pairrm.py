"""PairRM: reads a prompt with two responses and says by how much the first is better; from that, a score for each.

    m[i, j]  = how much better response i is than response j, with i read first (a logit)
    score(i) = mean over all N responses j of m[i, j] - m[j, i],   m[i, i] = 0

This is how the published SimPO data were ranked (LLM-Blender's `max_logits`). llm-blender itself does not import under
transformers 5; the model in the form of transformers (llm-blender/PairRM-hf) needs only the head below.
Source: LLM-Blender, arXiv 2306.02561. Shapes: B comparisons, T tokens of the longest, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DebertaV2Config, DebertaV2Model
from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2PreTrainedModel

from simpo.errors import ModelError
from simpo.onpolicy.annotators.base import Item, Scored, batches_by_length
from simpo.onpolicy.annotators.kinds import PairRMSettings
from simpo.onpolicy.annotators.loading import load_scorer
from simpo.onpolicy.annotators.reward import pad

MARKS = ("<|source|>", "<|candidate1|>", "<|candidate2|>")


class PairRanker(DebertaV2PreTrainedModel):
    """DeBERTa with a head over the marks of prompt and response; attributes are named as in the checkpoint."""

    def __init__(self, config: DebertaV2Config) -> None:
        super().__init__(config)
        width, tasks = config.hidden_size, getattr(config, "n_tasks", 1)
        drop_out = getattr(config, "drop_out", 0.0)
        self.pretrained_model = DebertaV2Model(config)
        self.head_layer = nn.Sequential(
            nn.Dropout(drop_out), nn.Linear(2 * width, width), nn.Tanh(), nn.Dropout(drop_out), nn.Linear(width, tasks)
        )
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, marks: Tensor) -> Tensor:
        """By how much the first response is better [B], a logit.

        Args:
            input_ids, attention_mask: [B, T].
            marks: where prompt, first and second response begin [B, 3].
        """
        hidden = self.pretrained_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        rows = torch.arange(len(marks), device=hidden.device)
        source, first, second = (hidden[rows, marks[:, n]] for n in range(3))  # each [B, D]
        worth: list[Tensor] = [self.head_layer(torch.cat([source, side], dim=-1)) for side in (first, second)]
        return (worth[0] - worth[1]).float().mean(dim=-1)


class PairRM:
    """Scores the responses of a prompt by comparing every two of them, in both orders.

    Args:
        settings: which model, and how it is run.
        device: where.

    Raises:
        ModelError: the model cannot be loaded, or its tokenizer does not know the marks.
    """

    def __init__(self, settings: PairRMSettings, device: torch.device) -> None:
        self._settings = settings
        self.model, self.tokenizer = load_scorer(
            PairRanker, settings.model, device, settings.dtype, settings.revision, example=PairRMSettings.model
        )
        vocabulary = self.tokenizer.get_vocab()
        unknown = [mark for mark in MARKS if mark not in vocabulary]
        if unknown:
            raise ModelError(f"{settings.model}: the tokenizer has no {', '.join(unknown)}; name llm-blender/PairRM-hf")
        self._mark_ids = [vocabulary[mark] for mark in MARKS]

    def score(self, items: Sequence[Item]) -> list[Scored]:
        """Raises what the model raises. Long prompts and responses lose their ends, as published."""
        better = [torch.zeros(len(item.responses), len(item.responses)) for item in items]
        places = [(at, i, j) for at, item in enumerate(items) for i, j in permutations(range(len(item.responses)), 2)]
        logits = self._run_all(
            [self.encode(items[at].transcript, items[at].responses[i], items[at].responses[j]) for at, i, j in places]
        )
        for (at, i, j), logit in zip(places, logits, strict=True):
            better[at][i, j] = logit
        return [Scored((matrix - matrix.T).mean(dim=1).tolist() if len(matrix) else []) for matrix in better]

    def encode(self, source: str, first: str, second: str) -> tuple[list[int], list[int]]:
        """Token ids of a comparison, cut as published, and where its three parts begin."""
        parts = [self._tokens(MARKS[0] + source, self._settings.max_prompt_length)]
        room = (self._settings.max_total_length - len(parts[0])) // 2
        parts += [self._tokens(mark + text, room) for mark, text in zip(MARKS[1:], (first, second), strict=True)]
        starts = [0, len(parts[0]), len(parts[0]) + len(parts[1])]
        # the first mark of each part: a text may hold one too
        marks = [start + part.index(mark) for start, part, mark in zip(starts, parts, self._mark_ids, strict=True)]
        return [token for part in parts for token in part], marks

    def _tokens(self, text: str, limit: int) -> list[int]:
        ids: Any = self.tokenizer(text, truncation=True, max_length=limit)["input_ids"]
        return list(ids)

    @torch.inference_mode()
    def _run_all(self, rows: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        logits = [0.0] * len(rows)
        token = self.model.config.pad_token_id or 0
        for batch in batches_by_length([len(ids) for ids, _ in rows], self._settings.max_batch_tokens):
            ids, mask = pad([rows[number][0] for number in batch], token, self.model.device)
            marks = torch.tensor([rows[number][1] for number in batch], device=self.model.device)
            for number, logit in zip(batch, self.model(ids, mask, marks).tolist(), strict=True):
                logits[number] = logit
        return logits
