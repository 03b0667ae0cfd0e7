"""MT-Bench's judges: prompts by category and turn, ratings, official files, and judgments that are none."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from simpo.errors import ConfigError, DataError
from simpo.evals.judges.mt_bench import PROMPTS, MTBenchSettings, judge_mt_bench, read_rating
from tests.engines.serving import Handler, Server
from tests.evals.judges import say, scripted, server, write

CATEGORIES = ("writing", "math", "coding", "stem")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def settings_of(folder: Path, url: str, **options: Any) -> MTBenchSettings:
    """Questions 81 to 84, one of each category; math and coding have references."""
    questions = [
        {"question_id": 81 + at, "category": category, "turns": [f"{category} one?", f"{category} two?"]}
        for at, category in enumerate(CATEGORIES)
    ]

    def answers(said: str) -> list[dict[str, Any]]:
        return [
            {
                "question_id": row["question_id"],
                "model_id": "mine",
                "choices": [{"index": 0, "turns": [f"{said} {turn}" for turn in row["turns"]]}],
            }
            for row in questions
        ]

    for judge in ("gpt-4", "gpt-4-1106-preview"):
        write(folder / "reference_answer" / f"{judge}.jsonl", answers(f"{judge} knows")[1:3])
    given = {"judges": ("gpt-4",), "server": server(url, **options.pop("server", {})), "rounds": 100} | options
    return MTBenchSettings(
        questions=write(folder / "question.jsonl", questions),
        answers=write(folder / "mine.jsonl", answers("said of")),
        references=str(folder / "reference_answer"),
        output_dir=str(folder / "out"),
        **given,
    )


def place(messages: list[dict[str, str]]) -> tuple[str, int]:
    """Category and turn that a prompt is about."""
    text = messages[1]["content"]
    found = re.search(r"(writing|math|coding|stem) one\?", text)
    assert found
    return found[1], 2 if " two?" in text else 1


def test_the_prompts_are_the_official_ones() -> None:
    """Not a character may change: written back as JSON the four lines ended judge_prompts.jsonl to the character."""
    prompts = yaml.safe_load(PROMPTS.read_text(encoding="utf-8"))
    text = "".join(prompt["system"] + prompt["user"] for prompt in prompts.values())
    assert hashlib.blake2b(text.encode(), digest_size=8).hexdigest() == "664083a5b452314c"


def test_what_each_judge_is_asked_and_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Server(scripted(lambda messages: "Well. Rating: [[7]]")) as one:
        results = judge_mt_bench(settings_of(tmp_path, one.url, judges=("gpt-4", "gpt-4-1106-preview")))
        bodies = [body for _, body, _ in one.seen]
    assert [result.judge for result in results] == ["gpt-4", "gpt-4-1106-preview"]
    assert len(bodies) == 16 and {(body["temperature"], body["max_tokens"]) for body in bodies} == {(0.0, 2048)}
    own = {place(body["messages"]): body["messages"] for body in bodies if body["model"] == "gpt-4-1106-preview"}
    assert own["writing", 1][0]["content"] == own["math", 1][0]["content"] == "You are a helpful assistant."
    assert own["writing", 1][1]["content"].endswith(
        "[Question]\nwriting one?\n\n[The Start of Assistant's Answer]\nsaid of writing one?\n"
        "[The End of Assistant's Answer]"
    )
    assert (
        "[The Start of Reference Answer]\ngpt-4-1106-preview knows math one?\n[The End of Reference Answer]"
        in own["math", 1][1]["content"]
    )
    assert "second user question" in own["stem", 2][0]["content"] and "reference" not in own["stem", 2][0]["content"]
    assert own["coding", 2][1]["content"].startswith(
        "<|The Start of Reference Answer|>\n\n### User:\ncoding one?\n\n### Reference answer:\n"
        "gpt-4-1106-preview knows coding one?\n\n### User:\ncoding two?\n\n### Reference answer:\n"
        "gpt-4-1106-preview knows coding two?\n\n<|The End"
    )
    assert "### Assistant A:\nsaid of coding one?\n\n### User:\ncoding two?" in own["coding", 2][1]["content"]
    lines = [json.loads(line) for line in (tmp_path / "out/model_judgment/gpt-4_single.jsonl").read_text().splitlines()]
    assert [(line["question_id"], line["turn"], line["judge"]) for line in lines[:4]] == [
        (81, 1, ["gpt-4", "single-v1"]),
        (81, 2, ["gpt-4", "single-v1-multi-turn"]),
        (82, 1, ["gpt-4", "single-math-v1"]),
        (82, 2, ["gpt-4", "single-math-v1-multi-turn"]),
    ]
    assert list(lines[0]) == ["question_id", "model", "judge", "user_prompt", "judgment", "score", "turn", "tstamp"]
    assert (lines[0]["model"], lines[0]["judgment"], lines[0]["score"]) == ("mine", "Well. Rating: [[7]]", 7)
    printed = capsys.readouterr().out.splitlines()
    assert printed[1] == "spent: gpt-4: 8 calls, 800 tokens asked and 56 answered, $0.03 (prices of 2024-12-27)"


def test_scores_by_hand(tmp_path: Path) -> None:
    """Turn 1: 8 7 6 9; turn 2: 4 none 5 none. The score is the mean over all six."""
    given = {("writing", 1): 8, ("math", 1): 7, ("coding", 1): 6, ("stem", 1): 9, ("writing", 2): 4, ("coding", 2): 5}

    def script(handler: Handler, body: dict[str, Any]) -> None:
        at = place(body["messages"])
        if at in given:
            say(handler, f"Rating: [[{given[at]}]]")
        elif at[0] == "math":
            say(handler, "Rating: [[70]]")
        else:
            say(handler, "I would rather not.")

    with Server(script) as one:
        (result,) = judge_mt_bench(settings_of(tmp_path, one.url))
    values = {name: metric.value for name, metric in result.metrics.items()}
    assert values == {"score": pytest.approx(6.5), "turn_1": pytest.approx(7.5), "turn_2": pytest.approx(4.5)}
    low, high = result.metrics["turn_1"].low, result.metrics["turn_1"].high
    assert low is not None and high is not None and 6 <= low < 7.5 < high <= 9
    assert result.counts == {
        "questions": 4, "judgments": 8, "ratings": 6, "no_rating": 1, "out_of_range": 1, "refused": 0, "failed": 0,
    }  # fmt: skip
    assert "25.0% of 8 judgments are left out" in result.warnings[0]


def test_faults_are_no_ratings_and_a_restart_asks_them_only_when_told(tmp_path: Path) -> None:
    def script(handler: Handler, body: dict[str, Any]) -> None:
        if well or place(body["messages"]) not in (("math", 1), ("stem", 2)):
            say(handler, "[[5]]")
        elif place(body["messages"]) == ("math", 1):
            handler.send(500, "oops")
        else:
            say(handler, None, message={"content": None, "refusal": "I cannot"})

    well = False
    with Server(script) as one:
        (result,) = judge_mt_bench(settings_of(tmp_path, one.url))
        lines = (tmp_path / "out/model_judgment/gpt-4_single.jsonl").read_text().splitlines()
        assert [json.loads(line)["score"] for line in lines] == [5, 5, -1, 5, 5, 5, 5, -1]
        assert json.loads(lines[2])["judgment"] == "$ERROR$"
        assert (result.counts["failed"], result.counts["refused"], result.metrics["score"].value) == (1, 1, 5)
        well, before = True, len(one.seen)
        assert judge_mt_bench(settings_of(tmp_path, one.url)) == [result] and len(one.seen) == before
        (result,) = judge_mt_bench(settings_of(tmp_path, one.url, server={"retry_errors": True}))
        assert len(one.seen) == before + 2 and result.counts["ratings"] == 8 and not result.warnings


@pytest.mark.parametrize(
    "text, rating",
    [
        ("Rating: [[10]]", (10, "rating")),
        ("[1] is wrong. Rating: [[2.5]]", (2.5, "rating")),
        ("as in [3], it is good", (3, "rating")),
        ("a[0] = 1", (-1, "out_of_range")),
        ("Rating: 8", (-1, "no_rating")),
    ],
)
def test_ratings(text: str, rating: tuple[float, str]) -> None:
    """Double brackets first, then single ones, as the official program reads them."""
    assert read_rating(text) == rating


def test_what_is_missing_is_said_before_anything_is_asked(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "http://127.0.0.1:9/v1", judges=("gpt-4", "other"))
    with pytest.raises(DataError, match=r"reference_answer/other.jsonl: there is no such file; .*FastChat"):
        judge_mt_bench(settings)
    path = tmp_path / "reference_answer/gpt-4.jsonl"
    path.write_text(path.read_text().split("\n")[0])
    with pytest.raises(DataError, match=r"gpt-4.jsonl: lacks 1 answers, the first to question 83"):
        judge_mt_bench(settings)
    settings = settings_of(tmp_path, "http://127.0.0.1:9/v1")
    answers = Path(settings.answers)
    answers.write_text(answers.read_text().replace(', "said of writing two?"', ""))
    with pytest.raises(DataError, match="question 81 has 2 turns, and its answer 1"):
        judge_mt_bench(settings)
    with pytest.raises(ConfigError, match="must be a list of different names"):
        settings_of(tmp_path, "http://x/v1", judges=("gpt-4", "gpt-4"))
