"""What is sent to a model: the published template's ids with one BOS, the published numbers, and every stop token."""

from __future__ import annotations

import json
import shutil

import pytest
from transformers import LlamaConfig

from simpo.evals import asking
from simpo.evals.answers import write_answers
from simpo.evals.decoding import SETTINGS, decoding_of, find_setting
from simpo.evals.settings import EvalSettings
from simpo.store import read_records
from tests.data.families import byte_level, sentence_pieces
from tests.data.families.models import library_ids
from tests.engines.serving import Server, echo
from tests.evals.conftest import ALPACA, write_rows

FAMILIES = {family.name: family for family in [*byte_level.FAMILIES, *sentence_pieces.FAMILIES]}

# setting -> tokenizer, and the published prompt: BOS, template, {} for the question
PROMPTS = {
    "llama3-instruct": (
        "Llama 3",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "mistral-instruct": ("Mistral 0.2, published", "<s>[INST] {} [/INST]"),
    "gemma": (
        "Gemma 2, published",
        "<bos><start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n",
    ),
    "mistral-base": ("Zephyr", "<s><|system|>\n</s>\n<|user|>\n{}</s>\n<|assistant|>\n"),
}


@pytest.mark.parametrize("setting", PROMPTS)
def test_the_published_template_with_one_bos(tmp_path, setting) -> None:
    name, published = PROMPTS[setting]
    tokenizer = FAMILIES[name].tokenizer
    model = tmp_path / "model"
    tokenizer.save_pretrained(model)
    LlamaConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id).save_pretrained(model)
    with Server(echo) as server:
        settings = EvalSettings(
            benchmark="alpaca_eval", model_name_or_path=str(model), setting=setting, engine="server",
            server_urls=[server.url], output_dir=str(tmp_path / "out"),
            questions=write_rows(tmp_path / "q.json", ALPACA),
        )  # fmt: skip
        write_answers(settings)
    sent = {tuple(body["prompt"]): body for _, body, _ in server.seen}
    texts = [row["instruction"] for row in ALPACA]
    assert set(sent) == {tuple(library_ids(tokenizer, published.format(text))) for text in texts}
    for ids, body in sent.items():
        assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id
        published_temperature = SETTINGS[setting].alpaca_temperature
        assert (body["temperature"], body["max_tokens"]) == (published_temperature, 2048 - len(ids))
        assert set(SETTINGS[setting].stop_token_ids) | {tokenizer.eos_token_id} <= set(body["stop_token_ids"])


def test_published_numbers() -> None:
    alpaca = {name: decoding_of("alpaca_eval", name) for name in SETTINGS}
    assert {name: (found.temperature, found.top_p, found.max_new_tokens) for name, found in alpaca.items()} == {
        "mistral-base": (0.7, 1.0, 2048),
        "mistral-instruct": (0.5, 1.0, 2048),
        "llama3-base": (0.9, 1.0, 4096),
        "llama3-instruct": (0.9, 1.0, 4096),
        "gemma": (0.5, 1.0, 4096),
    }
    assert {(d.temperature, d.max_new_tokens) for d in (decoding_of("arena_hard", name) for name in SETTINGS)} == {
        (0.0, 4096)
    }
    by_category = decoding_of("mt_bench", None)
    assert [by_category.temperature_of(name) for name in ("writing", "math", "humanities", None)] == [0.7, 0, 0.1, 0.7]
    assert by_category.max_new_tokens == 1024


@pytest.mark.parametrize(
    ("models", "setting"),
    [
        (["google/gemma-2-9b-it"], "gemma"),
        (["outputs/mine", "meta-llama/Meta-Llama-3-8B-Instruct"], "llama3-instruct"),
        (["princeton-nlp/Llama-3-Instruct-8B-SimPO-v0.2"], "llama3-instruct"),
        (["princeton-nlp/Llama-3-Base-8B-SFT"], "llama3-base"),
        (["princeton-nlp/Mistral-7B-Base-SFT-SimPO", None], "mistral-base"),
        (["outputs/mine", None], None),
    ],
)
def test_the_setting_of_a_model(models, setting) -> None:
    assert find_setting(*models) == setting


def test_the_setting_of_a_run_is_that_of_its_initial_model(make_eval, tiny_dir, tmp_path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_dir, model)
    (model / "run_manifest.json").write_text(json.dumps({"settings": {"model_name_or_path": "google/gemma-2-9b-it"}}))
    found = write_answers(make_eval("alpaca_eval", model_name_or_path=str(model)))
    assert (found.decoding["setting"], found.decoding["temperature"]) == ("gemma", 0.5)
    assert {1, 107} <= set(found.decoding["stop_ids"])


def test_a_model_with_two_end_tokens_stops_at_both(make_eval, tiny_dir, tmp_path, monkeypatch) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_dir, model)
    sampled: dict[int, list[int]] = {}
    record_of = asking._record

    def spy(prompt, outcomes):
        sampled[prompt.row] = outcomes[0].token_ids
        return record_of(prompt, outcomes)

    monkeypatch.setattr(asking, "_record", spy)
    settings = {"model_name_or_path": str(model), "max_new_tokens": 24}
    write_answers(make_eval("alpaca_eval", output_dir=str(tmp_path / "free"), **settings))
    first, second = sampled[0], sampled[1]
    # a token of the first answer and one of the second become end tokens of the model
    ends = [first[4], next(token for token in second[3:] if token not in first)]
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    write_answers(make_eval("alpaca_eval", output_dir=str(tmp_path / "ended"), **settings))
    for row, (free, end) in enumerate(zip((first, second), ends, strict=True)):
        assert sampled[row] == free[: free.index(end) + 1]
    reasons = [record["finish_reason"] for record in read_records(tmp_path / "ended" / "answers" / "turn-1")]
    assert reasons[:2] == ["stop", "stop"]
