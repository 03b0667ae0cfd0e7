"""Answers in the official files: decoded as published, each question once, whatever interrupts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from simpo.errors import ConfigError, DataError, StoreError
from simpo.evals import asking
from simpo.evals.answers import write_answers
from simpo.store import read_records
from tests.evals.conftest import ALPACA, ARENA, MT


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_alpaca_eval_writes_model_outputs(make_eval, tmp_path) -> None:
    found = write_answers(make_eval("alpaca_eval"))
    rows = json.loads((tmp_path / "out" / "model_outputs.json").read_text())
    assert found.file == tmp_path / "out" / "model_outputs.json"
    assert [row["instruction"] for row in rows] == [row["instruction"] for row in ALPACA]
    assert {row["generator"] for row in rows} == {"tiny"} and all(row["output"] for row in rows)
    said = [record["text"] for record in read_records(tmp_path / "out" / "answers" / "turn-1")]
    assert any(text != text.strip() for text in said)  # as alpaca_eval does, answers are stripped
    assert [row["output"] for row in rows] == [text.strip() for text in said]
    assert {row["dataset"] for row in rows} == {"helpful_base"}
    known = json.loads((tmp_path / "out" / "decoding.json").read_text())
    assert (known["temperature"], known["top_p"], known["max_new_tokens"]) == (0.9, 1.0, 8)


def test_arena_hard_is_greedy_and_in_the_official_layout(make_eval, tmp_path) -> None:
    write_answers(make_eval("arena_hard"))
    folder = tmp_path / "out" / "data" / "arena-hard-v0.1"
    answers = lines_of(folder / "model_answer" / "tiny.jsonl")
    assert [line["question_id"] for line in answers] == [row["question_id"] for row in ARENA]
    assert lines_of(folder / "question.jsonl") == ARENA
    turn = answers[0]["choices"][0]["turns"][0]
    assert set(turn) == {"content", "token_len"} and 0 < turn["token_len"] <= 8
    assert {"answer_id", "model_id", "tstamp"} < set(answers[0]) and answers[0]["model_id"] == "tiny"
    other = make_eval("arena_hard", output_dir=str(tmp_path / "other"), seed=7)
    write_answers(other)
    again = lines_of(tmp_path / "other" / "data" / "arena-hard-v0.1" / "model_answer" / "tiny.jsonl")
    assert [line["choices"] for line in again] == [line["choices"] for line in answers]  # the seed makes no difference


def test_greedy_answers_are_the_models_own(make_eval, tiny_dir, tiny_tokenizer, tmp_path) -> None:
    write_answers(make_eval("arena_hard"))
    model = AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.float32)
    answers = lines_of(tmp_path / "out" / "data" / "arena-hard-v0.1" / "model_answer" / "tiny.jsonl")
    for row, line in zip(ARENA, answers, strict=True):
        messages = [{"role": "user", "content": row["turns"][0]["content"]}]
        ids = tiny_tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt",
                                                 return_dict=True)["input_ids"]  # fmt: skip
        said = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
        assert line["choices"][0]["turns"][0]["content"] == tiny_tokenizer.decode(said, skip_special_tokens=True)


def test_mt_bench_asks_the_second_turn_with_the_first_answer(make_eval, tmp_path, monkeypatch) -> None:
    prompts: list[tuple[str, list[dict[str, str]], float]] = []
    request = asking.Asking._request

    def spy(self, prompt, category, stop_ids):
        made = request(self, prompt, category, stop_ids)
        prompts.append((prompt.key, prompt.content, made.temperature))
        return made

    monkeypatch.setattr(asking.Asking, "_request", spy)
    write_answers(make_eval("mt_bench"))
    answers = lines_of(tmp_path / "out" / "data" / "mt_bench" / "model_answer" / "tiny.jsonl")
    assert [line["question_id"] for line in answers] == [81, 82, 83]
    for row, line in zip(MT, answers, strict=True):
        asked = [(content, temperature) for key, content, temperature in prompts if key == str(row["question_id"])]
        assert {temperature for _, temperature in asked} == {
            {"writing": 0.7, "math": 0.0, "stem": 0.1}[row["category"]]
        }
        second = next(content for content, _ in asked if len(content) == 3)
        assert [turn["content"] for turn in second][::2] == row["turns"]
        assert second[1]["content"].strip() == line["choices"][0]["turns"][0]
        assert len(line["choices"][0]["turns"]) == 2


def test_the_same_command_goes_on(make_eval, tmp_path, monkeypatch) -> None:
    write_answers(make_eval("mt_bench"))
    before = {turn: list(read_records(tmp_path / "out" / "answers" / turn)) for turn in ("turn-1", "turn-2")}

    def never(*_: object) -> None:
        raise AssertionError("nothing is left to do")

    monkeypatch.setattr("simpo.evals.answers.build_engine", never)
    write_answers(make_eval("mt_bench"))
    assert {turn: list(read_records(tmp_path / "out" / "answers" / turn)) for turn in before} == before


def test_a_second_turn_is_asked_again_when_the_first_answer_is_another(make_eval, tmp_path) -> None:
    write_answers(make_eval("mt_bench"))
    file = next((tmp_path / "out" / "answers" / "turn-1").glob("records-*.jsonl"))
    lines = lines_of(file)
    seconds = {record["id"]: record for record in read_records(tmp_path / "out" / "answers" / "turn-2")}
    file.write_text("".join(json.dumps(line) + "\n" for line in lines[1:]))  # the first one is lost ...
    next((tmp_path / "out" / "answers" / "turn-1").glob("index-*")).unlink()
    lost = lines[0]["id"]
    write_answers(make_eval("mt_bench"))
    again = {record["id"]: record for record in read_records(tmp_path / "out" / "answers" / "turn-2")}
    assert {key: record for key, record in again.items() if key != lost} == {
        key: record for key, record in seconds.items() if key != lost
    }
    assert again[lost]["text"] == seconds[lost]["text"]  # ... and came out the same


def test_other_decoding_in_the_same_folder_is_refused(make_eval) -> None:
    write_answers(make_eval("alpaca_eval"))
    with pytest.raises(StoreError, match=r"other settings .*decoding"):
        write_answers(make_eval("alpaca_eval", temperature=0.1))
    with pytest.raises(StoreError, match=r"questions: 4 there, 2 now"):
        write_answers(make_eval("alpaca_eval", max_questions=2))


def test_another_model_in_the_same_folder_is_not_taken_for_the_first(make_eval, tiny_dir, tmp_path) -> None:
    """A run with `overwrite_output_dir` leaves other weights under the same name."""
    model = tmp_path / "model"
    shutil.copytree(tiny_dir, model)
    write_answers(make_eval("arena_hard", model_name_or_path=str(model)))
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-(2**12) :] = bytes(2**12)
    weights.write_bytes(content)
    with pytest.raises(StoreError, match=r"other settings \(weights"):
        write_answers(make_eval("arena_hard", model_name_or_path=str(model)))


def test_a_question_that_does_not_fit_is_reported_and_the_others_stay(make_eval, tmp_path, capsys) -> None:
    rows = [*ARENA[:2], {"question_id": "long", "turns": [{"content": "why " * 400}]}]
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = write_answers(make_eval("arena_hard", questions=str(path), context_length=200))
    assert list(found.missing) == [2] and "leaves no room" in found.missing[2]
    assert len(lines_of(found.file)) == 2
    assert "2 of 3 questions answered" in capsys.readouterr().out


def test_a_template_that_is_not_the_one_of_the_run_is_refused(make_eval, tiny_dir, tmp_path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_dir, model)
    (model / "run_manifest.json").write_text('{"chat_template_hash": "other", "settings": {}}')
    with pytest.raises(ConfigError, match="another chat template"):
        write_answers(make_eval("alpaca_eval", model_name_or_path=str(model)))
    write_answers(make_eval("alpaca_eval", model_name_or_path=str(model), chat_template="llama-3"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("", "holds no questions"),
        ('{"question_id": 1}\n', "turns"),
        ('{"turns": ["a"]}\n', "row 0: has no `question_id`"),
        ('{"question_id": 1, "turns": ["a"]}\n{"question_id": 1, "turns": ["b"]}\n', "rows 0 and 1 are the same"),
        ('{"question_id": 1, "turns": ["a"]}\n{', "2: is not JSON"),
        ("[1]", "not"),
        ("[", "not JSON"),
    ],
)
def test_broken_questions(make_eval, tmp_path, rows, message) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text(rows)
    with pytest.raises(DataError, match=message):
        write_answers(make_eval("arena_hard", questions=str(path)))


def test_questions_that_cannot_be_fetched(make_eval, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match=r"alpaca_eval\.json of .*tatsu-lab/alpaca_eval.*--questions=FILE"):
        write_answers(make_eval("alpaca_eval", questions=None))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"setting": "llama3"}, "setting: 'llama3' is unknown: did you mean"),
        ({"name": "a/b"}, "name"),
        ({"temperature": -1}, "temperature: -1 must be 0 or more"),
        ({"references": "x"}, "references: is not used by alpaca_eval"),
        ({"server_urls": ["http://x/v1"]}, "belongs to engine: server"),
    ],
)
def test_wrong_settings(make_eval, settings, message) -> None:
    with pytest.raises(ConfigError, match=message):
        make_eval("alpaca_eval", **settings)
