"""Answers to a benchmark's questions, decoded as published, in the benchmark's own files.

output_dir/answers/turn-1, turn-2     one record a question (simpo.store); what is finished is not asked again
output_dir/decoding.json              everything that the answers depend on
output_dir/...                        configs of the official programs (official.py)
AlpacaEval 2                          model_outputs.json
Arena-Hard, MT-Bench                  data/BENCHMARK/question.jsonl, data/BENCHMARK/model_answer/NAME.jsonl
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from simpo.errors import ConfigError
from simpo.evals.asking import Asking, plain
from simpo.evals.decoding import ALPACA_EVAL, ARENA_HARD, MT_BENCH, Decoding, decoding_of, find_setting
from simpo.evals.layouts import file_name, write_lines, write_text
from simpo.evals.manifest import run_manifest
from simpo.evals.official import write_official_configs
from simpo.evals.questions import Question, read_questions
from simpo.evals.settings import EvalSettings
from simpo.run.folder import MANIFEST
from simpo.run.manifest import package_versions, text_hash, tokenizer_hash
from simpo.sampling.loop import Processes
from simpo.sampling.policy import Policy, build_engine, weights_fingerprint
from simpo.store import Record, write_whole

BENCHMARK_FOLDERS = {ARENA_HARD: "arena-hard-v0.1", MT_BENCH: "mt_bench"}
"""Names of the benchmarks in the official layouts."""

_EXAMPLES = 5


@dataclass(frozen=True)
class Answered:
    """Where the answers are.

    Args:
        questions: what was asked.
        file: answers in the benchmark's own form.
        decoding: what they depend on, as in decoding.json.
        missing: row -> why a question has no answer, or only a first one.
        lengths: mean tokens of an answer; None where a server does not say.
        cut: answers that ended at a bound of length.
    """

    questions: list[Question]
    file: Path
    decoding: dict[str, Any]
    missing: dict[int, str]
    lengths: float | None
    cut: int

    @property
    def question_file(self) -> Path:
        """The questions that are answered, in the official layout; AlpacaEval has none."""
        return self.file.parents[1] / "question.jsonl"


def write_answers(settings: EvalSettings) -> Answered:
    """Answer every question that has no answer yet, and write the benchmark's files. Under a launcher each process
    takes its part, and the first one writes.

    Raises:
        ConfigError, DataError, ModelError, EngineError, StoreError: with what to do about it. What was done stays.
    """
    questions = read_questions(settings.benchmark, settings.questions, settings.max_questions)
    manifest = run_manifest(settings.model_name_or_path)
    decoding, setting = _decoding(settings, manifest)
    settings = replace(settings, stop_token_ids=sorted({*settings.stop_token_ids, *decoding.stop_token_ids}))
    policy = Policy(settings)
    _check_template(settings, policy, manifest)
    processes = Processes(settings)
    with ExitStack() as stack:
        engine = cache(lambda: stack.enter_context(closing(build_engine(settings))))
        asking = Asking(settings, policy, decoding, processes, lambda: nullcontext(engine()))
        answers = asking.ask_all(questions)
    known = _what_answers_depend_on(settings, policy, decoding, setting)
    found = Answered(
        questions,
        _answers_file(settings),
        known,
        _missing(questions, answers),
        _mean_length(answers),
        sum(record["finish_reason"] == "length" for turn in answers for record in turn.values()),
    )
    if processes.rank == 0:
        _write_files(settings, found, answers)
        write_official_configs(settings, policy, decoding)
        _report(settings, found, setting)
    processes.wait()
    return found


def _decoding(settings: EvalSettings, manifest: dict[str, Any]) -> tuple[Decoding, str | None]:
    start = manifest.get("settings", {}).get("model_name_or_path")
    setting = settings.setting or find_setting(settings.model_name_or_path, start)
    published = decoding_of(settings.benchmark, setting)
    own = {name: getattr(settings, name) for name in ("temperature", "top_p", "max_new_tokens", "system_message")}
    return replace(published, **{name: value for name, value in own.items() if value is not None}), setting


def _check_template(settings: EvalSettings, policy: Policy, manifest: dict[str, Any]) -> None:
    trained = manifest.get("chat_template_hash")
    if settings.chat_template is None and trained and trained != text_hash(policy.tokenizer.chat_template):
        raise ConfigError(
            f"{settings.model_name_or_path}: its tokenizer has another chat template than {MANIFEST} says it was "
            "trained with; put that one back, or write chat_template to answer with a template of your own"
        )


def _missing(questions: Sequence[Question], answers: Sequence[dict[str, Record]]) -> dict[int, str]:
    found: dict[int, str] = {}
    for question in questions:
        for turn in answers[: len(question.turns)]:
            if turn[question.key]["error"]:
                found.setdefault(question.row, turn[question.key]["error"])
    return found


def _mean_length(answers: Sequence[dict[str, Record]]) -> float | None:
    tokens = [record["tokens"] for turn in answers for record in turn.values() if record["error"] is None]
    return sum(tokens) / len(tokens) if tokens and min(tokens) >= 0 else None


def _what_answers_depend_on(
    settings: EvalSettings, policy: Policy, decoding: Decoding, setting: str | None
) -> dict[str, Any]:
    names = ("benchmark", "name", "model_name_or_path", "model_revision", "engine", "dtype", "seed", "questions",
             "max_questions", "server_api", "server_model", "server_urls", "server_extra")  # fmt: skip
    template = settings.chat_template or policy.tokenizer.chat_template
    return {
        **{name: getattr(settings, name) for name in names},
        "weights": None if settings.engine == "server" else weights_fingerprint(settings.model_name_or_path),
        "setting": setting,
        **plain(decoding),
        "stop_ids": list(policy.stop_ids),
        "stop_tokens": policy.tokenizer.convert_ids_to_tokens(list(policy.stop_ids)),
        "context": policy.context,
        "chat_template": settings.chat_template or "the tokenizer's",
        "chat_template_hash": text_hash(template),
        "tokenizer_hash": tokenizer_hash(policy.tokenizer),
        "packages": package_versions(),
    }


def _answers_file(settings: EvalSettings) -> Path:
    folder = Path(str(settings.output_dir))
    if settings.benchmark == ALPACA_EVAL:
        return folder / "model_outputs.json"
    return (
        folder
        / "data"
        / BENCHMARK_FOLDERS[settings.benchmark]
        / "model_answer"
        / f"{file_name(str(settings.name))}.jsonl"
    )


def _write_files(settings: EvalSettings, found: Answered, answers: Sequence[dict[str, Record]]) -> None:
    write_whole(Path(str(settings.output_dir)) / "decoding.json", found.decoding)
    whole = [question for question in found.questions if question.row not in found.missing]
    if settings.benchmark == ALPACA_EVAL:
        rows = [_alpaca_row(question, answers[0][question.key]["text"], str(settings.name)) for question in whole]
        write_text(found.file, json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
        return
    write_lines(found.file, [_model_answer(question, answers, settings) for question in whole])
    write_lines(found.question_file, [question.fields for question in whole])


def _alpaca_row(question: Question, text: str, name: str) -> dict[str, Any]:
    kept: dict[str, Any] = {key: question.fields[key] for key in ("dataset", "datasplit") if key in question.fields}
    # stripped, as alpaca_eval does
    return {**kept, "instruction": question.key, "output": text.strip(), "generator": name}


def _model_answer(question: Question, answers: Sequence[dict[str, Record]], settings: EvalSettings) -> dict[str, Any]:
    records = [turn[question.key] for turn in answers[: len(question.turns)]]
    texts = [record["text"] for record in records]
    if settings.benchmark == ARENA_HARD:
        # the official writer counts with another tokenizer; these are tokens of the model itself
        turns: list[Any] = [{"content": record["text"], "token_len": record["tokens"]} for record in records]
    else:
        turns = [text.strip() for text in texts]
    mark = hashlib.blake2b(json.dumps([settings.name, question.key, texts]).encode(), digest_size=11).hexdigest()
    return {
        "question_id": question.fields["question_id"],
        "answer_id": mark,
        "model_id": settings.name,
        "choices": [{"index": 0, "turns": turns}],
        "tstamp": max(record["finished"] for record in records),
    }


def _report(settings: EvalSettings, found: Answered, setting: str | None) -> None:
    answered = len(found.questions) - len(found.missing)
    length = f", {found.lengths:.0f} tokens on average" if found.lengths is not None else ""
    print(f"{answered} of {len(found.questions)} questions answered{length}: {found.file}")
    if found.cut:
        print(f"  {found.cut} answers were cut at max_new_tokens or at the end of the context")
    if setting is None and settings.benchmark == ALPACA_EVAL:
        print("  decoded as Llama 3: the model stems from none of the published settings (--setting names one)")
    for row, cause in list(found.missing.items())[:_EXAMPLES]:
        print(f"  row {row}: {cause}")
    if len(found.missing) > _EXAMPLES:
        print(f"  ... and {len(found.missing) - _EXAMPLES} more; the records in answers/ have the field error")
