"""Questions of one or several turns to a policy: one record a question and turn, kept as they are finished."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simpo.data.schema import Message
from simpo.engines.base import Engine, Failure, Request
from simpo.evals.decoding import Decoding
from simpo.evals.questions import Question
from simpo.evals.settings import EvalSettings
from simpo.sampling.loop import Outcomes, Processes, Work, group_by_length, sample_into
from simpo.sampling.policy import Policy, weights_fingerprint
from simpo.sampling.prompts import Prompt
from simpo.store import Record, Store, read_records


@dataclass
class Asking:
    """Questions to one policy, turn by turn; each turn is a store of its own.

    Args:
        settings: which model, where it runs, and where records go.
        policy: renders and bounds the prompts.
        decoding: how answers are sampled.
        processes: of this run.
        open_engine: the policy's engine; called only where something is left to ask.
    """

    settings: EvalSettings
    policy: Policy
    decoding: Decoding
    processes: Processes
    open_engine: Callable[[], AbstractContextManager[Engine]]

    def ask_all(self, questions: Sequence[Question]) -> list[dict[str, Record]]:
        """Records by key, for each turn; a second question is asked when all first ones are answered.

        Raises:
            DataError, ModelError, EngineError, StoreError: with what to do about it. What was done stays.
        """
        answers: list[dict[str, Record]] = []
        first = ""
        for turn in range(max(len(question.turns) for question in questions)):
            asked = [question for question in questions if len(question.turns) > turn]
            prompts = [self._prompt(question, answers) for question in asked]
            self.policy.prepare(prompts)
            first = first or _digest(prompts)
            categories = {question.key: question.category for question in asked}
            answers.append(self._ask(prompts, categories, f"turn-{turn + 1}", first))
        return answers

    def _prompt(self, question: Question, answers: Sequence[dict[str, Record]]) -> Prompt:
        system = self.decoding.system_message
        messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        error = None
        for text, turn in zip(question.turns, answers, strict=False):
            record = turn[question.key]
            error = error or (f"turn before: {record['error']}" if record["error"] else None)
            messages += [{"role": "user", "content": text}, {"role": "assistant", "content": record["text"]}]
        messages.append({"role": "user", "content": question.turns[len(answers)]})
        return Prompt(question.key, question.row, messages, error=error)

    def _ask(
        self, prompts: list[Prompt], categories: dict[str, str | None], turn: str, first: str
    ) -> dict[str, Record]:
        stop_ids = self.policy.stop_ids

        def requests_of(prompt: Prompt) -> list[Request]:
            return [self._request(prompt, categories[prompt.key], stop_ids)]

        of = {prompt.key: _digest([prompt]) for prompt in prompts}

        def again(record: Record) -> bool:  # the turn before may have another answer than when this was asked
            return record["of"] != of[record["id"]] or (self.settings.retry_errors and record["error"] is not None)

        identity = self._identity() | {
            "questions": len(prompts),
            "prompts": first,
            "stop_ids": list(stop_ids),
            "context": self.policy.context,
        }
        folder = Path(str(self.settings.output_dir), "answers", turn)
        store = Store(folder, identity, rank=self.processes.rank, again=again)
        work = Work(
            group_by_length(prompts, self.settings.batch_size),
            requests_of,
            lambda prompt, outcomes: _record(prompt, outcomes) | {"of": of[prompt.key]},
        )
        sample_into(store, work, self.open_engine, self.processes, finish=_count)
        return {record["id"]: record for record in read_records(folder)}

    def _request(self, prompt: Prompt, category: str | None, stop_ids: tuple[int, ...]) -> Request:
        temperature = self.decoding.temperature_of(category)
        return Request(
            prompt.ids,
            max_new_tokens=self.policy.room(prompt, self.decoding.max_new_tokens),
            temperature=temperature,
            top_p=self.decoding.top_p if temperature > 0 else 1.0,
            seed=self.settings.seed,
            stop_ids=stop_ids,
            text=prompt.text,
            messages=prompt.content if isinstance(prompt.content, list) else None,
        )

    def _identity(self) -> dict[str, Any]:
        names = ("model_name_or_path", "model_revision", "dtype", "seed", "engine", "server_api", "server_model",
                 "server_extra")  # fmt: skip
        known = {name: getattr(self.settings, name) for name in names}
        served = self.settings.engine == "server"
        weights = None if served else weights_fingerprint(self.settings.model_name_or_path)
        return {**known, "weights": weights, "decoding": plain(self.decoding)}


def _digest(prompts: Sequence[Prompt]) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for prompt in prompts:
        digest.update(json.dumps([prompt.key, prompt.row, prompt.ids, prompt.error is None]).encode())
    return digest.hexdigest()


def plain(decoding: Decoding) -> dict[str, Any]:
    """A decoding as JSON, without the stop tokens, which the policy adds to."""
    return {name: getattr(decoding, name) for name in Decoding.__slots__ if name != "stop_token_ids"}


def _record(prompt: Prompt, outcomes: Outcomes) -> Record:
    known: Record = {"id": prompt.key, "row": prompt.row, "prompt_tokens": len(prompt.ids)}
    empty: Record = {"text": "", "finish_reason": None, "tokens": -1, "finished": time.time()}
    if prompt.error is not None:
        return {**known, **empty, "error": prompt.error}
    found = outcomes[0]
    if isinstance(found, Failure):
        return {**known, **empty, "error": found.error}
    said: Record = {"text": found.text, "finish_reason": found.finish_reason, "tokens": found.tokens}
    return {**known, **empty, **said, "error": None}


def _count(store: Store) -> dict[str, Any]:
    records = list(store.records())
    return {"answers": len(records), "errors": sum(record["error"] is not None for record in records)}
