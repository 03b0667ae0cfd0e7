"""Arena-Hard v0.1: a judge compares each answer with the baseline's, twice, in both orders.

    games of a question   0: A is the baseline, B the model; 1: A is the model, B the baseline
    verdicts              A>>B, A>B, A=B, B>A, B>>A; the clear ones count three times
    win rate              Bradley-Terry against the baseline: wins and half the ties, weighted, of all

Source: lmarena/arena-hard-auto v0.1, `gen_judgment.py`, `show_result.py`, `utils_math.py`, `config/judge_config.yaml`.
A game without one of the five verdicts counts for nothing, and the other game of its question stays; so there.
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
from simpo.evals.judges.bootstrap import check_rounds
from simpo.evals.judges.bradley_terry import Battle, count_wins, rate
from simpo.evals.judges.judging import AGAIN, API_ERROR, Call, Judge, JudgeServer, excluded_warning
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

JUDGE, BASELINE = "gpt-4-1106-preview", "gpt-4-0314"
PROMPT = Path(__file__).with_name("prompts") / "arena_hard_v0.1.yaml"
MAX_TOKENS, ATTEMPTS, TYPICAL_TOKENS = 4096, 2, 700
EXCLUDED = ("no_verdict", "several_verdicts", "unknown_verdict", "refused", "failed")
"""Why a game counts for nothing."""

VERDICT = re.compile(r"\[\[([AB<>=]+)\]\]")
_POINTS = {"A>>B": (1.0, 3.0), "A>B": (1.0, 1.0), "A=B": (0.5, 1.0), "B>A": (0.0, 1.0), "B>>A": (0.0, 3.0)}
_WORDS = {
    (1.0, 3.0): "clear_wins",
    (1.0, 1.0): "wins",
    (0.5, 1.0): "ties",
    (0.0, 1.0): "losses",
    (0.0, 3.0): "clear_losses",
}


@dataclass(frozen=True)
class ArenaHardSettings:
    """What is judged, and by whom.

    Args:
        questions: `question.jsonl` of arena-hard-v0.1.
        answers: the model's answers, `model_answer/MODEL.jsonl`.
        baseline_answers: those of the baseline, `model_answer/gpt-4-0314.jsonl`.
        output_dir: `model_judgment/JUDGE/MODEL.jsonl` goes here, and the judge's single answers into `calls/`.
        judge: name of the judge on its servers.
        server: where it answers.
        rounds: of the bootstrap over questions.
        seed: of its draws.

    Raises:
        ConfigError: a setting is missing or out of bounds.
    """

    questions: str
    answers: str
    baseline_answers: str
    output_dir: str
    judge: str = JUDGE
    server: JudgeServer = field(default_factory=JudgeServer)
    rounds: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("questions", "answers", "baseline_answers", "output_dir", "judge"):
            if not getattr(self, key):
                raise ConfigError(f"{key}: must not be empty")
        check_rounds(self.rounds)


class Game(NamedTuple):
    """How one game ended.

    Args:
        cause: `verdict`, or one of `EXCLUDED`.
        score: the verdict, or None.
        judgment: all that the judge said, as the official program joins it.
    """

    cause: str
    score: str | None
    judgment: str


def judge_arena_hard(settings: ArenaHardSettings) -> Result:
    """Judge every question that has no judgment yet, write the official file, and say the win rate.

    Raises:
        DataError: a file is missing or wrong, answers are missing, or no game has a verdict.
        EngineError: no server answers for long, or they refuse the key or the model; what was judged stays.
        StoreError: the folder holds judgments of other answers, or cannot be written.
    """
    questions, answers = by_question(settings.questions), by_question(settings.answers)
    baseline = by_question(settings.baseline_answers)
    check_answered(questions, answers, settings.answers)
    check_answered(questions, baseline, settings.baseline_answers)
    model = model_of(answers, settings.answers)
    calls = _first_calls(settings, questions, answers, baseline)
    made_with = {
        "benchmark": "arena_hard v0.1",
        "model": model,
        "baseline": model_of(baseline, settings.baseline_answers),
    }
    folder = Path(settings.output_dir) / "calls" / file_name(settings.judge) / file_name(model)
    with Judge(settings.judge, settings.server, folder, made_with, calls) as judge:
        price = settings.server.price(settings.judge)
        print("estimate: " + judge.estimate(calls, TYPICAL_TOKENS).line(settings.judge, price))
        judge.ask(calls)
        judge.ask(_second_calls(calls, judge.replies))
        print("spent: " + judge.spent.line(settings.judge, price))
        games = {call.key: read_game(_replies(judge.replies, call.key)) for call in calls}
    asked = {call.key: call.messages[1]["content"] for call in calls}
    rows = [_official(key, row, model, settings.judge, asked, games) for key, row in questions.items()]
    judgments = Path(settings.output_dir) / "model_judgment" / file_name(settings.judge)
    write_lines(judgments / f"{file_name(model)}.jsonl", rows)
    return _result(settings, made_with, questions, answers, games)


def verdict_of(judgment: str) -> tuple[str | None, str]:
    """The verdict of a judgment and `verdict`, or None and why there is none.

    >>> verdict_of("... My final verdict is: [[B>>A]]")
    ('B>>A', 'verdict')
    >>> verdict_of("[[A>B]] or rather [[A=B]]")
    (None, 'several_verdicts')
    """
    found = set(VERDICT.findall(judgment))
    if len(found) != 1:
        return None, "several_verdicts" if found else "no_verdict"
    verdict = found.pop()
    return (verdict, "verdict") if verdict in _POINTS else (None, "unknown_verdict")


def read_game(replies: Sequence[Record]) -> Game:
    """How the judge's answers to one game, at most two, are to be read."""
    judgment = "".join("\n" + (API_ERROR if reply["text"] is None else reply["text"]) for reply in replies)
    last = replies[-1]
    if last["error"] is not None:
        return Game("refused" if last["refused"] else "failed", None, judgment)
    score, cause = verdict_of(judgment)
    return Game(cause, score, judgment)


def battles_of(games: Mapping[str, Game], questions: Sequence[str]) -> list[Battle]:
    """Games with a verdict as battles between the model, number 0, and the baseline, number 1; by question."""
    battles = []
    for unit, question in enumerate(questions):
        for number in (0, 1):
            score = games[f"{question}/{number}"].score
            if score is not None:
                outcome, weight = _points_of_model(score, number)
                battles.append(Battle(unit, 0, 1, outcome, weight))
    return battles


def _points_of_model(score: str, number: int) -> tuple[float, float]:
    """Outcome for the model and weight; in game 0 it is B."""
    outcome, weight = _POINTS[score]
    return (outcome if number == 1 else 1 - outcome), weight


def _first_calls(
    settings: ArenaHardSettings, questions: Mapping[str, Row], answers: Mapping[str, Row], baseline: Mapping[str, Row]
) -> list[Call]:
    prompt = _prompt()
    calls = []
    for key, row in questions.items():
        asked = turns_of(row, settings.questions)[0]
        pair = turns_of(baseline[key], settings.baseline_answers)[0], turns_of(answers[key], settings.answers)[0]
        for number, (a, b) in enumerate((pair, pair[::-1])):
            text = prompt["user"].format(question_1=asked, answer_1=a, answer_2=b)
            messages = [{"role": "system", "content": prompt["system"]}, {"role": "user", "content": text}]
            calls.append(Call(f"{key}/{number}", messages, MAX_TOKENS))
    return calls


def _second_calls(calls: Sequence[Call], replies: Mapping[str, Record]) -> list[Call]:
    """Where there was an answer without any label: the judge is told to go on, once."""
    more = []
    for call in calls:
        text = replies[call.key]["text"]
        if text is not None and not VERDICT.search(text):
            turns = [{"role": "assistant", "content": text}, {"role": "user", "content": _prompt()["again"]}]
            more.append(Call(call.key + AGAIN, [*call.messages, *turns], MAX_TOKENS))
    return more


def _replies(replies: Mapping[str, Record], key: str) -> list[Record]:
    return [replies[name] for name in (key, key + AGAIN) if name in replies]


def _official(key: str, row: Row, model: str, judge: str, asked: Mapping[str, str], games: Mapping[str, Game]) -> Row:
    """One line of `model_judgment/JUDGE/MODEL.jsonl`."""
    listed = [
        {"user_prompt": asked[name], "judgment": games[name].judgment, "score": games[name].score}
        for name in (f"{key}/0", f"{key}/1")
    ]
    return {"question_id": row["question_id"], "model": model, "judge": judge, "games": listed}


def _result(
    settings: ArenaHardSettings,
    made_with: Mapping[str, str],
    questions: Mapping[str, Row],
    answers: Mapping[str, Row],
    games: Mapping[str, Game],
) -> Result:
    causes = Counter(game.cause for game in games.values())
    if not causes["verdict"]:
        raise DataError(f"{settings.judge}: none of {len(games)} games has a verdict; see {settings.output_dir}/calls")
    ends = Counter(
        _WORDS[_points_of_model(game.score, int(key.rpartition("/")[2]))] for key, game in games.items() if game.score
    )
    counts = {"questions": len(questions), "games": len(games), "verdicts": causes["verdict"]}
    counts |= {word: ends[word] for word in _WORDS.values()} | {cause: causes[cause] for cause in EXCLUDED}
    wins = count_wins(battles_of(games, list(questions)), 2)
    found = rate(wins[wins.sum((1, 2)) > 0], 1, rounds=settings.rounds, seed=settings.seed)
    texts = [turns_of(answers[key], settings.answers)[0] for key in questions]
    baseline = made_with["baseline"]
    warnings = excluded_warning(counts, EXCLUDED, len(games), settings.server.max_excluded)
    if baseline != BASELINE:
        warnings.append(f"the baseline is {baseline}: published win rates are against {BASELINE}")
    return Result(
        "arena_hard",
        made_with["model"],
        {
            "win_rate": Metric(float(found.win_rate[0]), "%", float(found.win_low[0]), float(found.win_high[0])),
            "rating": Metric(float(found.rating[0]), "points", float(found.low[0]), float(found.high[0])),
            "length": Metric(float(np.mean([len(text) for text in texts])), "characters"),
        },
        judge=settings.judge,
        counts=counts,
        settings={
            "version": "v0.1", "baseline": baseline, "temperature": 0.0, "max_tokens": MAX_TOKENS,
            "clear_verdicts_count": 3, "bootstrap": "questions", "rounds": settings.rounds, "seed": settings.seed,
        },
        warnings=warnings,
    )  # fmt: skip


def _prompt() -> dict[str, str]:
    prompt: dict[str, str] = yaml.safe_load(PROMPT.read_text(encoding="utf-8"))
    return prompt
