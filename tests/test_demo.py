"""The demo's texts and checker say what they claim to say, and the whole demo wins."""

import itertools
import json
import shlex
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import load_from_disk

from scripts import demo_checker
from scripts.demo_checker import Town, qualities, read_question
from scripts.demo_judge import Answers, Comparison, Estimate, compare, problems_of
from scripts.demo_pairs import (
    FLAWED,
    FLAWS,
    GOOD,
    ITEMS,
    OPENERS,
    VALUES,
    Answer,
    DemoData,
    Question,
    answers,
    make_data,
    share_longer,
    write_jsonl,
)
from scripts.demo_run import CONFIG, FULL, OUTPUT, QUICK, STEPS, Demo, run_demo
from simpo import cli
from simpo.onpolicy.annotate import AnnotateSettings
from simpo.onpolicy.binarize import BinarizeSettings
from simpo.onpolicy.scored import read_scored
from simpo.onpolicy.settings import read_generate_settings
from simpo.run.sft import read_sft_settings
from simpo.settings import read_settings
from simpo.settings.flat import read_flat

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


def town_of(data: DemoData) -> Town:
    return {item: {name: data.world[item, name][0] for name in VALUES} for item in ITEMS}


def test_the_checker_reads_every_question() -> None:
    full = make_data(0, train_pairs=1600, test_pairs=300, answers_per_question=1)
    for question in (*full.train_questions, *full.test_questions):
        assert read_question(question.text) == question
    for text in ("Where is the castle?", "I like the bell.", "Where are the bell and the clock?"):
        with pytest.raises(ValueError, match=r"does not ask about one of|asks for none of"):
            read_question(text)


def test_the_checker_knows_the_answers_by_their_qualities(data: DemoData) -> None:
    town = town_of(data)
    for question in data.test_questions[:20]:
        for values in itertools.product([True, False], repeat=3):
            kind = Answer(*values)
            wanted = kind if kind.on_topic else Answer(kind.friendly, on_topic=False, true=False)
            for text in answers(question, kind, data.world):
                assert qualities(question, text, town) == wanted


def test_the_checker_takes_nothing_for_right_that_is_not(data: DemoData) -> None:
    town, question = town_of(data), Question("bell", ("price", "maker"), "How much is the bell, and who made it?")
    price, maker = town["bell"]["price"], town["bell"]["maker"]
    told = f"The bell costs {price} coins. It was made by {maker}."
    assert qualities(question, f"Of course! {told}", town) == GOOD
    other = next(value for value in VALUES["maker"] if value != maker)
    mixed = qualities(question, f"Of course! The bell costs {price} coins. It was made by {other}.", town)
    assert mixed == Answer(friendly=True, on_topic=True, true=False)
    assert qualities(question, f"Of course! {told} Now go away!", town) == Answer(False, True, True)
    nothing = Answer(False, False, False)
    for text in (
        "",
        told,  # no opener
        f"Of course! {told} {told}",
        f"Of course! The bell costs {price} coins.",  # a half
        f"Of course! The clock costs {price} coins. It was made by {maker}.",  # another item
        f"Of course! {told} Enjoy",
        "Of course! The clock is a long story.",
    ):
        assert qualities(question, text, town) == nothing, text


def test_the_checker_as_an_annotator(data: DemoData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "town.json").write_text(json.dumps(town_of(data)))
    monkeypatch.setenv("DEMO_TOWN", str(tmp_path / "town.json"))
    row = data.test[2]
    assert row["flaw"] == "evasive"
    texts = [row["chosen"][0]["content"], row["rejected"][0]["content"], "Bell bell bell."]
    assert demo_checker.score(row["prompt"], texts) == [3.0, 1.0, 0.0]


def test_too_many_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="there are only 1920 questions"):
        make_data(0, train_pairs=1800, test_pairs=300, answers_per_question=1)


def test_written_rows_load_as_pairs(data: DemoData, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", data.test)
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == data.test


def test_settings_that_the_demo_needs_are_not_overridden(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    assert run_demo(QUICK, tmp_path / "out", 0, ["--output_dir=elsewhere"]) == 2
    assert "output_dir: the demo sets it itself" in capsys.readouterr().err and not (tmp_path / "out").exists()


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


def outcome(found: Comparison, **changes: Estimate) -> list[str]:
    return problems_of(replace(found, **changes))


def made_answers(right: list[list[int]], tokens: list[list[int]]) -> Answers:
    scores = 3.0 * np.array(right)
    seen = np.repeat(np.array(right, dtype=bool)[..., None], 3, axis=2)
    return Answers([f"question {at}" for at in range(len(right))], [], scores, np.array(tokens, dtype=float), seen)


def test_intervals_are_paired_and_over_questions() -> None:
    rng = np.random.default_rng(1)
    easy = (rng.random(400) < 0.5).astype(int)  # all answers to a question are right, or none is
    before = made_answers([[one] * 5 for one in easy], [[10 + 4 * one] * 5 for one in easy])
    after = made_answers([[one] * 5 for one in easy], [[11 + 4 * one] * 5 for one in easy])
    found = compare(before, after)
    share = easy.mean()
    error = np.sqrt(share * (1 - share) / 400)  # of 400 questions, not of 2,000 answers
    assert found.accuracy_before.value == pytest.approx(share)
    assert found.accuracy_before.low == pytest.approx(share - 1.96 * error, abs=0.005)
    assert found.accuracy_before.high == pytest.approx(share + 1.96 * error, abs=0.005)
    assert (found.gain.value, found.gain.low, found.gain.high) == (0, 0, 0)  # the same questions on both sides
    mean = 10 + 4 * share
    assert found.length_change.value == pytest.approx(1 / mean)
    assert found.length_change.low == pytest.approx(1 / (mean + 4 * 1.96 * error), abs=0.001)


def test_what_a_clear_win_is() -> None:
    close = Estimate(0.2, 0.18, 0.22)
    found = Comparison(
        close, Estimate(0.8, 0.78, 0.82), Estimate(0.6, 0.57, 0.63), close, close, Estimate(0.15, 0, 0.2)
    )
    assert outcome(found) == []
    assert "20.0% [18.0, 22.0] to 23.0% [21.0, 25.0]" in outcome(found, accuracy_after=Estimate(0.23, 0.21, 0.25))[0]
    assert len(outcome(found, gain=Estimate(0.6, 0.0, 0.63))) == 1
    for change in (0.16, -0.16):
        assert "the mean length changed by" in outcome(found, length_change=Estimate(change, -0.2, 0.2))[0]


def test_commands_are_bare_where_the_files_say_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("DEMO_TOWN", "")
    asked: list[list[str]] = []
    monkeypatch.setattr(cli, "main", lambda words: asked.append(words) or 0)
    for folder in (OUTPUT, tmp_path / "my demo"):
        demo = Demo(FULL, folder, 0, [])
        demo._simpo("annotate", STEPS / "annotate.yaml", **demo._paths(generations="responses", output_dir="scores"))
        demo._simpo("train", CONFIG, ["--overwrite"], dataset_mixer={str(folder / "pairs"): 1.0}, seed=42)
    shown = [shlex.split(line.strip()[2:]) for line in capsys.readouterr().out.splitlines()]
    assert shown[0] == ["simpo", "annotate", "training_configs/demo/annotate.yaml"]
    assert shown[1] == ["simpo", "train", "training_configs/demo.yaml", "--overwrite"]
    own = tmp_path / "my demo"
    assert shown[2][0] == f"DEMO_TOWN={own / 'town.json'}" and f"--output_dir={own / 'scores'}" in shown[2]
    assert f'--dataset_mixer={{"{own / "pairs"}": 1.0}}' in shown[3]
    assert [words[words.index("simpo") + 1 :] for words in shown] == asked


def test_a_command_that_fails_ends_the_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("DEMO_TOWN", "")
    monkeypatch.setattr(cli, "main", lambda words: 2)
    small = replace(QUICK, train_pairs=30, test_pairs=12, hidden_size=8, layers=1)
    assert run_demo(small, tmp_path, 0, []) == 2


def test_the_settings_files_name_the_files_of_the_default_folder() -> None:
    sft = read_sft_settings(STEPS / "sft.yaml")
    assert (sft.model.model_name_or_path, sft.data.dataset_mixer, sft.training.output_dir) == (
        "outputs/demo/start", {"outputs/demo/dialogues.jsonl": 1.0}, "outputs/demo/sft",
    )  # fmt: skip
    generate = read_generate_settings(STEPS / "generate.yaml")
    assert (generate.model_name_or_path, generate.dataset_name) == ("outputs/demo/sft", "outputs/demo/questions.jsonl")
    assert (generate.temperature, generate.top_p, generate.num_responses) == (0.8, 0.95, 5)
    annotate = read_flat(AnnotateSettings, STEPS / "annotate.yaml")
    assert annotate.generations == generate.output_dir == "outputs/demo/responses"
    binarize = read_flat(BinarizeSettings, STEPS / "binarize.yaml")
    assert (binarize.generations, binarize.scores) == (annotate.generations, annotate.output_dir)
    train = read_settings(CONFIG)
    assert train.data.dataset_mixer == {binarize.output_dir: 1.0}
    assert (train.model.model_name_or_path, train.training.output_dir) == ("outputs/demo/sft", "outputs/demo/simpo")


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("demo")
    for name in ("simpo", "responses"):  # as an earlier demo leaves them
        (folder / name).mkdir()
        (folder / name / "run_manifest.json").write_text('{"status": "finished"}')
    run = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "demo.py"), "--quick", "--output", str(folder)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return folder, run


@pytest.mark.slow
def test_quick_demo_wins(quick: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, run = quick
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "Held-out questions that occur in training: 0 of 120" in run.stdout
    assert "Passed: SimPO's answers are right more often" in run.stdout
    assert "600 sampled answers to 120 held-out questions" in run.stdout and "task accuracy: all three" in run.stdout
    results = json.loads((folder / "results.json").read_text())
    assert results["gain"]["low"] > 0.05 and abs(results["length_change"]["value"]) < 0.15
    assert results["accuracy_after"]["low"] > results["accuracy_before"]["high"] and not results["problems"]
    assert results["seconds"]["all"]["seconds"] > results["seconds"]["simpo"]["seconds"] > 0
    for name in ("town.json", "sft/model.safetensors", "simpo/model.safetensors", "pairs/README.md", "simpo/README.md"):
        assert (folder / name).stat().st_size > 0
    assert (folder / "demo.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_what_the_quick_demo_left_accounts_for_every_question(
    quick: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, _ = quick
    town = json.loads((folder / "town.json").read_text())
    for name, count in (("responses", 480), ("before", 120), ("after", 120)):
        scores = "scores" if name == "responses" else f"{name}-scores"
        prompts = list(read_scored(str(folder / name), str(folder / scores)))
        assert len(prompts) == count and all(len(prompt.responses) == 5 and not prompt.error for prompt in prompts)
        for prompt in prompts:
            question = read_question(prompt.prompt[-1]["content"])  # type: ignore[index]
            judged = [sum(vars(qualities(question, text, town)).values()) for text in prompt.texts]
            assert prompt.scores["checker"] == judged
    report = json.loads((folder / "pairs" / "binarize.json").read_text())["report"]
    assert report["total"] == 480 == report["kept"] + sum(report["dropped"].values())
    pairs = load_from_disk(str(folder / "pairs"))
    assert len(pairs["train"]) + len(pairs["test"]) == report["pairs"]
    assert all(row["chosen_score"] > row["rejected_score"] for row in pairs["train"])
    assert all(max(row["chosen_tokens"] / row["rejected_tokens"], row["rejected_tokens"] / row["chosen_tokens"]) <= 1.25
               for row in pairs["train"])  # fmt: skip


@pytest.mark.slow
def test_the_commands_that_are_shown_can_be_repeated(
    quick: tuple[Path, subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, run = quick
    monkeypatch.chdir(ROOT)
    lines = [shlex.split(line.strip()[2:]) for line in run.stdout.splitlines() if line.strip().startswith("$ ")]
    verbs = [words[words.index("simpo") + 1] for words in lines]
    assert verbs == ["sft", "generate", "annotate", "generate", "annotate", "binarize", "train", "generate", "annotate"]
    records = {path: path.read_bytes() for path in folder.glob("*scores/records*")}
    pairs = load_from_disk(str(folder / "pairs"))["train"].to_list()
    for words, verb in zip(lines, verbs, strict=True):
        if verb in ("generate", "annotate", "binarize"):
            if words[0] != "simpo":
                monkeypatch.setenv(*words[0].split("=", 1))
            assert cli.main(words[words.index("simpo") + 1 :]) == 0
    assert records and all(path.read_bytes() == content for path, content in records.items())
    assert load_from_disk(str(folder / "pairs"))["train"].to_list() == pairs
