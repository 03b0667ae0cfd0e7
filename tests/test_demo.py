"""The demo's pairs say what they claim to say, and the whole demo learns."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from scripts.demo_pairs import (
    FLAWED,
    FLAWS,
    GOOD,
    OPENERS,
    VALUES,
    DemoData,
    Question,
    answers,
    make_data,
    share_longer,
    write_jsonl,
)

ROOT = Path(__file__).resolve().parent.parent
SIZES = {"train_pairs": 240, "test_pairs": 60, "answers_per_question": 2}


@pytest.fixture(scope="module")
def data() -> DemoData:
    return make_data(0, **SIZES)


def prompts(rows: list[dict[str, Any]]) -> list[str]:
    return [row["prompt"][0]["content"] for row in rows]


def test_the_seed_decides(data: DemoData) -> None:
    assert make_data(0, **SIZES) == data
    other = make_data(1, **SIZES)
    assert other.train != data.train and other.world != data.world


def test_prompts_are_split(data: DemoData) -> None:
    train, test = prompts(data.train), prompts(data.test)
    assert (len(train), len(test)) == (240, 60)
    assert len(set(train)) == len(train) and len(set(test)) == len(test)
    assert not set(test) & set(train)
    assert set(prompts(data.dialogues)) == set(train)
    assert len(data.dialogues) == 480
    assert [question.text for question in data.test_questions] == test


def test_every_fact_that_is_asked_occurs_in_training() -> None:
    full = make_data(0, train_pairs=1600, test_pairs=300, answers_per_question=2)
    told = [row["chosen"][0]["content"] for row in full.train]
    for question in full.test_questions:
        for attribute in question.attributes:
            truth = full.world[question.item, attribute][0]
            assert any(f"The {question.item} " in text and truth in text for text in told)


@pytest.mark.parametrize("part", ["train", "test"])
def test_pairs(data: DemoData, part: str) -> None:
    rows = getattr(data, part)
    assert Counter(row["flaw"] for row in rows) == dict.fromkeys(FLAWS, len(rows) // 3)
    for row in rows:
        (prompt,), (chosen,), (rejected,) = row["prompt"], row["chosen"], row["rejected"]
        assert (prompt["role"], chosen["role"], rejected["role"]) == ("user", "assistant", "assistant")
        assert chosen["content"] != rejected["content"]


def test_answers_have_the_qualities_they_claim(data: DemoData) -> None:
    for question, row in zip(data.test_questions, data.test, strict=True):
        chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
        assert chosen in answers(question, GOOD, data.world)
        assert chosen.startswith(OPENERS["friendly"])
        assert rejected in answers(question, FLAWED[row["flaw"]], data.world)
        assert rejected not in answers(question, GOOD, data.world)
        assert rejected.startswith(OPENERS["rude"]) == (row["flaw"] == "rude")
        for attribute in question.attributes:
            truth, rumour = data.world[question.item, attribute]
            assert truth in chosen and rumour not in chosen
            assert (truth in rejected) == (row["flaw"] == "rude")
            assert (rumour in rejected) == (row["flaw"] == "false")


@pytest.mark.parametrize("part", ["train", "test"])
def test_length_does_not_tell_the_answers_apart(data: DemoData, part: str) -> None:
    rows = getattr(data, part)
    for flaw in FLAWS:
        assert share_longer([row for row in rows if row["flaw"] == flaw]) == 0.5
    sizes = [[len(row[side][0]["content"]) for row in rows] for side in ("chosen", "rejected")]
    assert all(max(lengths) > 2 * min(lengths) for lengths in sizes)
    means = [sum(lengths) / len(lengths) for lengths in sizes]
    assert abs(means[0] - means[1]) < 0.1 * means[0]


def test_truth_and_rumour_differ(data: DemoData) -> None:
    for (_, attribute), (truth, rumour) in data.world.items():
        assert truth != rumour
        assert {truth, rumour} <= set(VALUES[attribute])


def test_answers_to_one_question(data: DemoData) -> None:
    question = Question("bell", ("price",), "How much is the bell?")
    texts = answers(question, GOOD, data.world)
    price = data.world["bell", "price"][0]
    assert f"Of course! The bell costs {price} coins." in texts
    assert f"Happy to help. The bell is sold for {price} coins. Enjoy your day!" in texts


def test_too_many_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="there are only 1920 questions"):
        make_data(0, train_pairs=1800, test_pairs=300, answers_per_question=1)


def test_written_rows_load_as_pairs(data: DemoData, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", data.test)
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == data.test


def test_a_wrong_setting_stops_the_demo_at_once(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "demo.py"), "--output", str(tmp_path / "out"), "--bta=3"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 2
    assert "did you mean 'beta'?" in run.stderr and "Traceback" not in run.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_quick_demo_learns(tmp_path: Path) -> None:
    (tmp_path / "simpo").mkdir()
    (tmp_path / "simpo" / "run_manifest.json").write_text('{"status": "finished"}')  # as an earlier demo leaves it
    run = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "demo.py"), "--quick", "--output", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "Held-out prompts that occur in training: 0 of 120" in run.stdout
    assert "Passed: held-out reward accuracy went from" in run.stdout
    history = json.loads((tmp_path / "simpo" / "trainer_state.json").read_text())["log_history"]
    evaluations = [entry for entry in history if "eval_loss" in entry]
    assert evaluations[0]["step"] == 0
    accuracies = [entry["eval_rewards/accuracies"] for entry in (evaluations[0], evaluations[-1])]
    assert accuracies[1] > max(0.75, accuracies[0] + 0.2)
    for name in ("train.jsonl", "test.jsonl", "sft/model.safetensors", "simpo/model.safetensors", "simpo/README.md"):
        assert (tmp_path / name).stat().st_size > 0
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
