"""Generations and their scores, joined by id: what pairs are made of, and what agreement is measured on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from simpo.data.schema import template_arguments
from simpo.errors import DataError
from simpo.store import read_records

Scores = dict[str, list[float | None]]


@dataclass(frozen=True, slots=True)
class ScoredPrompt:
    """One prompt with its responses and all their scores.

    Args:
        id, row: as the generations have them.
        prompt: messages, or a text.
        responses: as sampled: text, finish_reason, tokens, seed.
        scores: annotator -> one per response; None where there is none. Empty before annotation.
        error: why generation or annotation failed as a whole; None where it did not.
        annotated: whether annotation has come by.
        extra: `tools` and `chat_template_kwargs`, where the generations carry them.
        columns: of the prompt's row, as `keep_columns` of the generations named them.
    """

    id: str
    row: int
    prompt: Any
    responses: list[dict[str, Any]]
    scores: Scores
    error: str | None
    annotated: bool
    extra: dict[str, Any]
    columns: dict[str, Any] = field(default_factory=dict)

    @property
    def texts(self) -> list[str]:
        """The responses' texts."""
        return [str(response.get("text") or "") for response in self.responses]

    @property
    def arguments(self) -> dict[str, Any]:
        """What chat templates are given beside messages."""
        return template_arguments(self.extra.get("tools"), self.extra.get("chat_template_kwargs"))


def read_generations(folder: str) -> Iterator[ScoredPrompt]:
    """The prompts of a generations folder, by row; without scores.

    Raises:
        StoreError: there is no such folder, or it is damaged.
        DataError: a record is not one of a generation.
    """
    for record in read_records(folder):
        name = f"{folder}: record {record.get('id', '?')} (row {record.get('row', '?')})"
        if "id" not in record or "prompt" not in record or not isinstance(record.get("responses"), list | None):
            raise DataError(
                f"{name} is no generation; it needs id, prompt and responses: name a folder of simpo generate"
            )
        extra = {key: record[key] for key in ("tools", "chat_template_kwargs") if record.get(key)}
        row = record["row"] if isinstance(record.get("row"), int) else -1
        responses = [_as_response(response, name) for response in record.get("responses") or []]
        yield ScoredPrompt(
            str(record["id"]), row, record["prompt"], responses, {}, record.get("error"), False, extra,
            record.get("columns") or {},
        )  # fmt: skip


def _as_response(response: Any, name: str) -> dict[str, Any]:
    if not isinstance(response, dict) or not isinstance(response.get("text"), str):
        raise DataError(f"{name}: a response must hold a text; found {response!r:.80}")
    return response


def read_scored(generations: str, scores: str) -> Iterator[ScoredPrompt]:
    """Every prompt of the generations with what annotation says of it.

    Raises:
        StoreError: a folder is missing or damaged.
        DataError: the scores were made of other generations.
    """
    found = {str(record["id"]): record for record in read_records(scores)}
    for prompt in read_generations(generations):
        record = found.pop(prompt.id, None)
        if record is None:
            yield prompt
            continue
        where = f"{scores}: scores of {prompt.id} (row {prompt.row})"
        if record.get("of") not in (None, fingerprint(prompt.texts)):
            raise DataError(f"{where} belong to other responses than those in {generations}; annotate these again")
        lists: Scores = {name: [_finite(score) for score in values] for name, values in record["scores"].items()}
        if any(len(values) != len(prompt.responses) for values in lists.values()):
            raise DataError(f"{where} are not as many as its responses; annotate {generations} again")
        yield ScoredPrompt(
            prompt.id, prompt.row, prompt.prompt, prompt.responses, lists, prompt.error or record.get("error"), True,
            prompt.extra, prompt.columns,
        )  # fmt: skip
    if found:
        first = next(iter(found))
        raise DataError(
            f"{scores}: holds scores of {len(found)} prompts that are not in {generations}, the first is {first}; "
            "name the generations that were annotated"
        )


def fingerprint(texts: Sequence[str]) -> str:
    """What tells lists of responses apart."""
    return sha256(json.dumps(texts).encode()).hexdigest()[:16]


def _finite(score: Any) -> float | None:
    return float(score) if isinstance(score, int | float) and math.isfinite(score) else None


def only_annotator(prompts: Sequence[ScoredPrompt], wanted: str | None, where: str) -> str:
    """The annotator whose scores are used.

    Raises:
        DataError: there is no such one, or there are several and none is named.
    """
    names: Mapping[str, None] = {name: None for prompt in prompts for name in prompt.scores}
    if wanted is None and len(names) == 1:
        return next(iter(names))
    there = ", ".join(names) or "none"
    if wanted is None:
        raise DataError(f"{where}: annotators: {there}; say which one's scores make pairs, e.g. annotator: NAME")
    if wanted not in names:
        raise DataError(f"{where}: no scores of annotator {wanted!r}; annotators there: {there}")
    return wanted
