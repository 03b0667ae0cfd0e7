"""MT-Bench: a judge gives each answer a rating from 1 to 10, once for each of the two turns.

    turn 1, turn 2    means over questions; the score is the mean over all ratings of both turns
    references        for math, reasoning and coding the judge sees answers of its own, of both turns

Source: lm-sys/FastChat, `fastchat/llm_judge`: `gen_judgment.py` (mode `single`), `common.py`, `show_result.py`.
A rating that cannot be read counts for nothing, as there (-1). One outside 1 to 10 is none either; there it counts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from simpo.errors import ConfigError, DataError
from simpo.evals.judges.bootstrap import check_rounds, interval_of_mean
from simpo.evals.judges.judging import API_ERROR, Call, Judge, JudgeServer, excluded_warning
from simpo.evals.layouts import (
    Row,
    by_question,
    check_answered,
    file_name,
    model_of,
    turns_of,
    write_lines,
)
from simpo.evals.results import Metric, Result
from simpo.store import Record

JUDGES = ("gpt-4", "gpt-4-1106-preview")
"""Both judges of the published numbers."""
PROMPTS = Path(__file__).with_name("prompts") / "mt_bench_single.yaml"
WITH_REFERENCE = ("math", "reasoning", "coding", "arena-hard-200")
MAX_TOKENS, TYPICAL_TOKENS = 2048, 200
_REFERENCES_AT = {
    "gpt-4": "github.com/lm-sys/FastChat, fastchat/llm_judge/data/mt_bench/reference_answer/gpt-4.jsonl",
    "gpt-4-1106-preview": "github.com/princeton-nlp/SimPO, eval/mt-bench/gpt-4-1106-preview.jsonl",
}
EXCLUDED = ("no_rating", "out_of_range", "refused", "failed")
"""Why a judgment counts for nothing."""

_RATINGS = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))


@dataclass(frozen=True)
class MTBenchSettings:
    """What is judged, and by whom.

    Args:
        questions: `question.jsonl` of mt_bench.
        answers: the model's answers, `model_answer/MODEL.jsonl`.
        references: folder with JUDGE.jsonl, the reference answers by each judge: `reference_answer` of FastChat.
        output_dir: `model_judgment/JUDGE_single.jsonl` goes here, and the judges' single answers into `calls/`.
        judges: names of the judges on their servers.
        server: where they answer.
        rounds: of the bootstrap over questions.
        seed: of its draws.

    Raises:
        ConfigError: a setting is missing or out of bounds.
    """

    questions: str
    answers: str
    references: str
    output_dir: str
    judges: Sequence[str] = JUDGES
    server: JudgeServer = field(default_factory=JudgeServer)
    rounds: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("questions", "answers", "references", "output_dir", "judges"):
            if not getattr(self, key):
                raise ConfigError(f"{key}: must not be empty")
        if isinstance(self.judges, str) or len(set(self.judges)) < len(self.judges):
            raise ConfigError(f"judges: {self.judges!r} must be a list of different names, e.g. {list(JUDGES)}")
        check_rounds(self.rounds)


class Judgment(NamedTuple):
    """One judgment.

    Args:
        cause: `rating`, or one of `EXCLUDED`.
        score: the rating, -1 where there is none.
        text: what the judge said.
    """

    cause: str
    score: float
    text: str


class _Task(NamedTuple):
    """One question, one turn: what is asked, and how the official file names it."""

    question: str
    turn: int
    prompt: str
    call: Call


def judge_mt_bench(settings: MTBenchSettings) -> list[Result]:
    """Judge by every judge what has no judgment yet, write the official files, and say the scores.

    Raises:
        DataError: a file is missing or wrong, answers are missing, or a judge gave no rating at all.
        EngineError: no server answers for long, or they refuse the key or the model; what was judged stays.
        StoreError: the folder holds judgments of other answers, or cannot be written.
    """
    questions, answers = by_question(settings.questions), by_question(settings.answers)
    check_answered(questions, answers, settings.answers)
    model = model_of(answers, settings.answers)
    tasks = {judge: _tasks(settings, judge, questions, answers) for judge in settings.judges}  # all, before any costs
    return [_judged_by(settings, judge, model, questions, tasks[judge]) for judge in settings.judges]


def read_rating(text: str) -> tuple[float, str]:
    """The rating of a judgment and `rating`, or -1 and why there is none.

    >>> read_rating("A fine answer. Rating: [[8.5]]")
    (8.5, 'rating')
    >>> read_rating("Rating: [7]")
    (7.0, 'rating')
    >>> read_rating("Rating: [[85]]")
    (-1.0, 'out_of_range')
    """
    for pattern in _RATINGS:
        found = pattern.search(text)
        if found:
            rating = float(found[1])
            return (rating, "rating") if 1 <= rating <= 10 else (-1.0, "out_of_range")
    return -1.0, "no_rating"


def read_judgment(reply: Record) -> Judgment:
    """How an answer of the judge is to be read."""
    if reply["error"] is not None:
        return Judgment("refused" if reply["refused"] else "failed", -1.0, API_ERROR)
    score, cause = read_rating(reply["text"])
    return Judgment(cause, score, reply["text"])


def _tasks(
    settings: MTBenchSettings, judge: str, questions: Mapping[str, Row], answers: Mapping[str, Row]
) -> list[_Task]:
    prompts = yaml.safe_load(PROMPTS.read_text(encoding="utf-8"))
    needing = [key for key, row in questions.items() if row.get("category") in WITH_REFERENCE]
    references = _references(reference_file(settings.references, judge), needing) if needing else {}
    tasks = []
    for key, row in questions.items():
        asked, answered = turns_of(row, settings.questions), turns_of(answers[key], settings.answers)
        if len(answered) < len(asked):
            raise DataError(
                f"{settings.answers}: question {key} has {len(asked)} turns, and its answer {len(answered)}"
            )
        words = {f"ref_answer_{n}": text for n, text in enumerate(references.get(key, []), start=1)}
        words |= {"question": asked[0], "answer": answered[0], "question_1": asked[0], "answer_1": answered[0]}
        for turn in (1, 2) if len(asked) == 2 else (1,):
            name = ("single-math-v1" if key in references else "single-v1") + ("-multi-turn" if turn == 2 else "")
            if turn == 2:
                words |= {"question_2": asked[1], "answer_2": answered[1]}
            messages = [
                {"role": "system", "content": prompts[name]["system"]},
                {"role": "user", "content": prompts[name]["user"].format(**words)},
            ]
            tasks.append(_Task(key, turn, name, Call(f"{key}/{turn}", messages, MAX_TOKENS)))
    return tasks


def reference_file(folder: str | Path, judge: str) -> Path:
    """The file of a judge's reference answers.

    Raises:
        DataError: there is none; the message says where to get it.
    """
    file = Path(folder) / f"{file_name(judge)}.jsonl"
    if not file.exists():
        raise DataError(
            f"{file}: there is no such file; it holds the reference answers by {judge} to questions of "
            f"{', '.join(WITH_REFERENCE[:3])}. Put one file for each judge into a folder and name it as "
            f"--references=FOLDER ({'; '.join(f'{name}: {place}' for name, place in _REFERENCES_AT.items())}), or "
            "take one judge whose file you have: --judge=gpt-4"
        )
    return file


def _references(file: Path, needing: list[str]) -> dict[str, list[str]]:
    """Both turns of the reference answers to questions that need one."""
    rows = by_question(file)
    check_answered(needing, rows, file)
    found = {key: turns_of(rows[key], file) for key in needing}
    for key, turns in found.items():
        if len(turns) < 2:
            raise DataError(f"{file}: question {key} has a reference for one turn only; two are needed")
    return found


def _judged_by(
    settings: MTBenchSettings, judge_name: str, model: str, questions: Mapping[str, Row], tasks: list[_Task]
) -> Result:
    calls = [task.call for task in tasks]
    made_with = {"benchmark": "mt_bench single", "model": model}
    folder = Path(settings.output_dir) / "calls" / file_name(judge_name) / file_name(model)
    with Judge(judge_name, settings.server, folder, made_with, calls) as judge:
        price = settings.server.price(judge_name)
        print("estimate: " + judge.estimate(calls, TYPICAL_TOKENS).line(judge_name, price))
        judge.ask(calls)
        print("spent: " + judge.spent.line(judge_name, price))
        replies = judge.replies
    judgments = {task.call.key: read_judgment(replies[task.call.key]) for task in tasks}
    rows = [
        {
            "question_id": questions[task.question]["question_id"],
            "model": model,
            "judge": [judge_name, task.prompt],
            "user_prompt": task.call.messages[1]["content"],
            "judgment": judgments[task.call.key].text,
            "score": judgments[task.call.key].score,
            "turn": task.turn,
            "tstamp": replies[task.call.key]["tstamp"],
        }
        for task in tasks
    ]
    write_lines(Path(settings.output_dir) / "model_judgment" / f"{file_name(judge_name)}_single.jsonl", rows)
    return _result(settings, judge_name, model, tasks, judgments)


def _result(
    settings: MTBenchSettings, judge: str, model: str, tasks: list[_Task], judgments: Mapping[str, Judgment]
) -> Result:
    causes = Counter(judgment.cause for judgment in judgments.values())
    places = {key: place for place, key in enumerate(dict.fromkeys(task.question for task in tasks))}
    sums, ratings = np.zeros((len(places), 3)), np.zeros((len(places), 3))  # columns: turn 1, turn 2, both
    for task in tasks:
        judgment = judgments[task.call.key]
        if judgment.cause == "rating":
            for column in (task.turn - 1, 2):
                sums[places[task.question], column] += judgment.score
                ratings[places[task.question], column] += 1
    if not causes["rating"]:
        raise DataError(f"{judge}: none of {len(tasks)} judgments has a rating; see {settings.output_dir}/calls")
    metrics = {}
    for name, column in (("score", 2), ("turn_1", 0), ("turn_2", 1)):
        if ratings[:, column].any():
            mean, low, high = interval_of_mean(
                sums[:, column], ratings[:, column], rounds=settings.rounds, seed=settings.seed
            )
            metrics[name] = Metric(mean, "points", low, high)
    counts = {"questions": len(places), "judgments": len(tasks), "ratings": causes["rating"]}
    counts |= {cause: causes[cause] for cause in EXCLUDED}
    return Result(
        "mt_bench",
        model,
        metrics,
        judge=judge,
        counts=counts,
        settings={
            "mode": "single", "temperature": 0.0, "max_tokens": MAX_TOKENS, "bootstrap": "questions",
            "rounds": settings.rounds, "seed": settings.seed,
        },
        warnings=excluded_warning(counts, EXCLUDED, len(tasks), settings.server.max_excluded),
    )  # fmt: skip
