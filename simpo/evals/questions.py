"""The questions of a benchmark, from its official file on the hub or from a file of the same form."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from simpo.errors import DataError
from simpo.evals.decoding import ALPACA_EVAL, ARENA_HARD, MT_BENCH
from simpo.evals.layouts import Row, read_lines, read_list, turns_of


class HubFile(NamedTuple):
    """A file on the hub."""

    repo: str
    repo_type: str
    path: str


QUESTIONS = {
    ALPACA_EVAL: HubFile("tatsu-lab/alpaca_eval", "dataset", "alpaca_eval.json"),
    ARENA_HARD: HubFile("lmarena-ai/arena-hard-auto", "dataset", "data/arena-hard-v0.1/question.jsonl"),
    MT_BENCH: HubFile("lmsys/mt-bench", "space", "data/mt_bench/question.jsonl"),
}
# alpaca_eval fetches its own
BASELINES = {
    ARENA_HARD: HubFile("lmarena-ai/arena-hard-auto", "dataset", "data/arena-hard-v0.1/model_answer/gpt-4-0314.jsonl"),
}
REFERENCES = {MT_BENCH: HubFile("lmsys/mt-bench", "space", "data/mt_bench/reference_answer/gpt-4.jsonl")}
SIZES = {ALPACA_EVAL: 805, ARENA_HARD: 500, MT_BENCH: 80}
"""Questions of the official files."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question.

    Args:
        key: unlike that of any other question.
        row: its place in the file, from 0.
        turns: what the user says; the second turn is said after the first answer.
        category: of MT-Bench; None elsewhere.
        fields: the line of the file.
    """

    key: str
    row: int
    turns: tuple[str, ...]
    category: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)


def official_file(where: HubFile, setting: str) -> Path:
    """A file from the hub or its cache.

    Args:
        where: on the hub.
        setting: by which a user can name a local copy, for messages.

    Raises:
        DataError: it is not in the cache and cannot be fetched; the message says what to do.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(where.repo, where.path, repo_type=where.repo_type))
    except Exception as error:  # of the hub's client, of the network, of the disk
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        kind = {"dataset": "datasets/", "space": "spaces/"}.get(where.repo_type, "")
        raise DataError(
            f"cannot get {where.path} of https://huggingface.co/{kind}{where.repo} ({reason}); fetch the file "
            f"where there is a network, and name it as --{setting}=FILE"
        ) from error


def read_questions(benchmark: str, file: str | None, most: int | None = None) -> list[Question]:
    """The questions of a benchmark.

    Args:
        benchmark: alpaca_eval, arena_hard or mt_bench.
        file: a local copy; None: the official one, from the hub.
        most: at most so many, from the first on; None: all.

    Raises:
        DataError: there is no such file, or a row is not of the benchmark's form.
    """
    path = Path(file).expanduser() if file is not None else official_file(QUESTIONS[benchmark], "questions")
    alpaca = benchmark == ALPACA_EVAL
    rows = read_list(path) if alpaca else read_lines(path)
    questions = [(_alpaca_question if alpaca else _turns_question)(row, value, path) for row, value in enumerate(rows)]
    if not questions:
        raise DataError(f"{path}: holds no questions")
    seen: dict[str, int] = {}
    for question in questions:
        if question.key in seen:
            raise DataError(f"{path}: rows {seen[question.key]} and {question.row} are the same question")
        seen[question.key] = question.row
    return questions[:most]


def _alpaca_question(row: int, value: Row, path: Path) -> Question:
    instruction = value.get("instruction")
    if not isinstance(instruction, str) or not instruction.strip():
        raise DataError(f"{path}: row {row}: has no text `instruction`, as alpaca_eval.json has")
    # the instruction is what the official package joins answers by
    return Question(instruction, row, (instruction,), fields=value)


def _turns_question(row: int, value: Row, path: Path) -> Question:
    if value.get("question_id") is None:
        raise DataError(f"{path}: row {row}: has no `question_id`")
    turns = tuple(turns_of(value, path))
    if not all(turn.strip() for turn in turns):
        raise DataError(f"{path}: row {row}: question {value['question_id']} has an empty turn")
    return Question(str(value["question_id"]), row, turns, value.get("category"), value)
