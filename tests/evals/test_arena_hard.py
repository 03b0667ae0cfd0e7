"""Arena-Hard's judge: what it is told, how it is read, and what becomes of each way to fail."""

import hashlib
import json
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from simpo.errors import ConfigError, DataError, EngineError
from simpo.evals.judges.arena_hard import PROMPT, ArenaHardSettings, judge_arena_hard, verdict_of
from simpo.evals.judges.judging import JudgeServer
from tests.engines.serving import Handler, Server
from tests.evals.judges import say, scripted, server, write


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def settings_of(folder: Path, url: str, count: int = 3, model: str = "mine", **options: Any) -> ArenaHardSettings:
    """Questions Q0, Q1, ..., with answers `mine to Q0` and `theirs to Q0`."""
    names = [f"Q{number}" for number in range(count)]

    def answers(said: str, name: str) -> list[dict[str, Any]]:
        turns = [[{"content": f"{said} to {text}", "token_len": 4}] for text in names]
        return [
            {"question_id": f"id{text}", "model_id": name, "choices": [{"index": 0, "turns": turn}]}
            for text, turn in zip(names, turns, strict=True)
        ]

    given = {"server": server(url, **options.pop("server", {})), "rounds": 100} | options
    return ArenaHardSettings(
        questions=write(
            folder / "question.jsonl", [{"question_id": f"id{text}", "turns": [{"content": text}]} for text in names]
        ),
        answers=write(folder / "mine.jsonl", answers("mine", model)),
        baseline_answers=write(folder / "theirs.jsonl", answers("theirs", "gpt-4-0314")),
        output_dir=str(folder / "out"),
        **given,
    )


def asked_about(messages: list[dict[str, str]]) -> tuple[int, int, bool]:
    """Number of the question, number of the game, and whether this is the second attempt."""
    found = re.search(r"Prompt\|>\nQ(\d+)\n\n.*Assistant A's Answer\|>\n(mine|theirs)", messages[1]["content"], re.S)
    assert found
    return int(found[1]), int(found[2] == "mine"), len(messages) > 2


def for_mine(game: int, verdict: str) -> str:
    """`win`, `clear win`, ... of the model as the label of a game."""
    better, worse = "AB" if verdict.endswith("win") == (game == 1) else "BA"
    return f"[[{better}{'>>' if verdict.startswith('clear') else '>'}{worse}]]"


def test_what_is_asked_and_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Server(scripted(lambda messages: "Because. [[A>>B]]")) as one:
        result = judge_arena_hard(settings_of(tmp_path, one.url, 2))
        bodies = [body for path, body, _ in one.seen if path == "/v1/chat/completions"]
    prompt = yaml.safe_load(PROMPT.read_text(encoding="utf-8"))
    assert len(bodies) == 4
    for body in bodies:
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("gpt-4-1106-preview", 0.0, 4096)
        assert body["messages"][0] == {"role": "system", "content": prompt["system"]}
    text = (
        "<|User Prompt|>\nQ1\n\n"
        "<|The Start of Assistant A's Answer|>\n{a} to Q1\n<|The End of Assistant A's Answer|>\n\n"
        "<|The Start of Assistant B's Answer|>\n{b} to Q1\n<|The End of Assistant B's Answer|>"
    )
    prompts = [text.format(a="theirs", b="mine"), text.format(a="mine", b="theirs")]
    assert {body["messages"][1]["content"] for body in bodies if "Q1" in body["messages"][1]["content"]} == set(prompts)
    lines = (tmp_path / "out/model_judgment/gpt-4-1106-preview/mine.jsonl").read_text().splitlines()
    assert json.loads(lines[1]) == {
        "question_id": "idQ1",
        "model": "mine",
        "judge": "gpt-4-1106-preview",
        "games": [{"user_prompt": p, "judgment": "\nBecause. [[A>>B]]", "score": "A>>B"} for p in prompts],
    }
    # who likes a place has no preference: once for each
    assert result.metrics["win_rate"].value == pytest.approx(50) and result.metrics["rating"].value == 1000
    assert result.counts["clear_wins"] == result.counts["clear_losses"] == 2 and not result.warnings
    assert result.metrics["length"].value == len("mine to Q0")
    estimate, spent = capsys.readouterr().out.splitlines()
    assert estimate.startswith("estimate: gpt-4-1106-preview: 4 calls, about ") and "2,800 answered" in estimate
    assert spent == (
        "spent: gpt-4-1106-preview: 4 calls, 400 tokens asked and 28 answered, $0.00 (prices of 2024-12-27)"
    )


def test_the_prompt_is_the_official_one() -> None:
    """Not a character may change: written back into config/judge_config.yaml it gave that file's 2370 characters."""
    prompt = yaml.safe_load(PROMPT.read_text(encoding="utf-8"))
    assert re.findall(r"\[\[(.*?)\]\]", prompt["system"]) == ["A>>B", "A>B", "A=B", "B>A", "B>>A", "A=B"]
    text = prompt["system"] + prompt["user"] + prompt["again"]
    assert hashlib.blake2b(text.encode(), digest_size=8).hexdigest() == "fe2e3d99156dcea2"


@pytest.mark.parametrize(
    "text, verdict",
    [
        ("[[A=B]]", ("A=B", "verdict")),
        ("first [[A>B]], finally [[A>B]]", ("A>B", "verdict")),
        ("[[A>B]] no, [[B>A]]", (None, "several_verdicts")),
        ("[[A]]", (None, "unknown_verdict")),
        ("[[C]] A is better", (None, "no_verdict")),
        ("", (None, "no_verdict")),
    ],
)
def test_verdicts(text: str, verdict: tuple[str | None, str]) -> None:
    assert verdict_of(text) == verdict


def test_win_rate_by_hand(tmp_path: Path) -> None:
    """Q0 wins clearly twice (6), Q1 ties twice (1 of 2), Q2 loses once and ties once (1/2 of 2): 7.5 of 10."""
    plans = {0: ["clear win"] * 2, 2: ["loss", "tie"]}

    def says(messages: list[dict[str, str]]) -> str:
        question, game, _ = asked_about(messages)
        plan = plans.get(question, ["tie", "tie"])[game]
        return "[[A=B]]" if plan == "tie" else for_mine(game, plan)

    with Server(scripted(says)) as one:
        result = judge_arena_hard(settings_of(tmp_path, one.url))
    rate = result.metrics["win_rate"]
    assert rate.value == pytest.approx(75) and rate.low is not None and rate.high is not None
    assert rate.low < 75 < rate.high
    named = ("clear_wins", "wins", "ties", "losses", "clear_losses")
    assert [result.counts[name] for name in named] == [2, 0, 3, 1, 0]


def test_judges_that_fail_are_told_apart_and_left_out(tmp_path: Path) -> None:
    """Q0 to Q5 fail in game 0, each in a way of its own; all other games are wins, and nothing else counts."""
    tries: Counter[int] = Counter()

    def script(handler: Handler, body: dict[str, Any]) -> None:
        question, game, again = asked_about(body["messages"])
        tries[question] += game == 0
        if game == 1 or question >= 6:
            say(handler, for_mine(game, "win"))
        elif question == 0:  # nonsense, also when told to go on
            say(handler, "Bananas.")
        elif question == 1:
            say(handler, "[[A>B]] [[B>A]]")
        elif question == 2:
            say(handler, None, finish_reason="content_filter")
        elif question == 3:
            handler.send(500, "oops")
        elif question == 4:
            time.sleep(1.2)
        else:  # busy, then without a label, then with one
            if tries[5] == 1:
                handler.send(429, "slow down", retry_after="0.01")
            else:
                say(handler, for_mine(game, "loss") if again else "Hm.")

    with Server(script) as one:
        result = judge_arena_hard(settings_of(tmp_path, one.url, 8, server={"timeout": 0.6}))
        seconds = [body["messages"][2:] for _, body, _ in one.seen if len(body["messages"]) > 2]
    go_on = {"role": "user", "content": "continue your judgment and finish by outputting a final verdict label"}
    assert sorted(turns[0]["content"] for turns in seconds) == ["Bananas.", "Hm."]
    assert all(turns[1] == go_on for turns in seconds)
    causes = {name: result.counts[name] for name in ("no_verdict", "several_verdicts", "refused", "failed", "verdicts")}
    assert causes == {"no_verdict": 1, "several_verdicts": 1, "refused": 1, "failed": 2, "verdicts": 11}
    assert (result.counts["wins"], result.counts["losses"], result.counts["ties"]) == (10, 1, 0)
    assert result.metrics["win_rate"].value == pytest.approx(100 * 10 / 11)
    assert result.warnings == [
        "31.2% of 16 judgments are left out (1 no verdict, 1 several verdicts, 1 refused, 2 failed): "
        "the numbers stand on the rest"
    ]
    path = tmp_path / "out/model_judgment/gpt-4-1106-preview/mine.jsonl"
    first = [json.loads(line)["games"][0] for line in path.read_text().splitlines()]
    assert [game["score"] for game in first[:6]] == [None] * 5 + ["A>B"]
    assert first[0]["judgment"] == "\nBananas.\nBananas." and first[3]["judgment"] == "\n$ERROR$"


def test_a_restart_asks_what_is_missing_only(tmp_path: Path) -> None:
    """The first start breaks off midway; faults that are on record are asked again only when told to."""
    asked: Counter[tuple[int, int, bool]] = Counter()
    broken = True

    def script(handler: Handler, body: dict[str, Any]) -> None:
        question, game, again = asked_about(body["messages"])
        if broken and question >= 3:
            handler.send(401, "no credit left")
            return
        asked[question, game, again] += 1
        if broken and (question, game) == (1, 0):
            handler.send(400, "too long")
        else:
            say(handler, for_mine(game, "win"))

    with Server(script) as one:
        settings = settings_of(tmp_path, one.url, 6, server={"max_in_flight": 1})
        with pytest.raises(EngineError, match="no credit left"):
            judge_arena_hard(settings)
        assert not (tmp_path / "out/model_judgment").exists()
        broken = False
        result = judge_arena_hard(settings)
        assert set(asked.values()) == {1} and len(asked) == 12 and result.counts["refused"] == 1
        assert judge_arena_hard(settings) == result and set(asked.values()) == {1}
        result = judge_arena_hard(settings_of(tmp_path, one.url, 6, server={"retry_errors": True}))
    assert asked.pop((1, 0, False)) == 2 and set(asked.values()) == {1}
    assert result.counts["refused"] == 0 and result.counts["wins"] == 12


def test_what_is_judged_is_what_the_files_hold(tmp_path: Path) -> None:
    """Another answer is judged anew with its second call, a question that comes back keeps its judgments, and nothing
    else is asked."""
    asked: list[tuple[int, int, bool]] = []

    def says(messages: list[dict[str, str]]) -> str:
        asked.append(asked_about(messages))
        return "[[A=B]]" if len(messages) > 2 else "Hm."

    with Server(scripted(says)) as one:
        settings = settings_of(tmp_path, one.url)
        first = judge_arena_hard(settings)
        assert len(asked) == 4 * first.counts["questions"]
        path, questions = Path(settings.answers), Path(settings.questions)
        path.write_text(path.read_text().replace("mine to Q1", "mine anew to Q1"))
        whole = questions.read_text()
        asked.clear()
        questions.write_text(whole.partition("\n")[0] + "\n")  # without Q1
        assert judge_arena_hard(settings).counts["questions"] == 1 and not asked
        questions.write_text(whole)
        assert judge_arena_hard(settings).counts["questions"] == first.counts["questions"]
    assert sorted(asked) == [(1, 0, False), (1, 0, True), (1, 1, False), (1, 1, True)]
    text = (tmp_path / "out/model_judgment/gpt-4-1106-preview/mine.jsonl").read_text()
    assert "mine anew to Q1" in text and "mine to Q1" not in text


def test_wrong_files_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(tmp_path, "http://127.0.0.1:9/v1")
    Path(settings.baseline_answers).write_text(Path(settings.baseline_answers).read_text().split("\n")[0])
    with pytest.raises(DataError, match=r"theirs.jsonl: lacks 2 answers, the first to question idQ1"):
        judge_arena_hard(settings)
    Path(settings.answers).write_text('{"question_id": 1}\n[]\n')
    with pytest.raises(DataError, match=r"mine.jsonl:2: must be a JSON object"):
        judge_arena_hard(settings)
    with pytest.raises(ConfigError, match="rounds: 10 must be at least 100"):
        settings_of(tmp_path, "http://x/v1", rounds=10)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="write OPENAI_API_KEY"):
        JudgeServer()
    with pytest.raises(ConfigError, match="OPENAI_API_KEY is not set"):
        JudgeServer(api_key_env="OPENAI_API_KEY")
    with pytest.raises(ConfigError, match="give both"):
        JudgeServer(base_urls=("http://x/v1",), price_in=1.0)
