"""Greedy answers to prompts of pairs: those of transformers, kept, and ended where the model ends them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from simpo.evals.pairs import greedy
from simpo.evals.pairs.greedy import Answer, kept_answers, spread_prompts
from simpo.evals.pairs.measure import ReadPairs, read_tokens
from simpo.evals.pairs.settings import PairsSettings


@pytest.fixture
def settings(tiny_dir: str, golden: dict[str, Any], tmp_path: Path) -> PairsSettings:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in golden["rows"]))
    return PairsSettings(tiny_dir, str(tmp_path), dataset_name=str(path), use_cpu=True)


def answers(settings: PairsSettings, read: ReadPairs, path: Path, count: int = 3) -> list[Answer]:
    accelerator = Accelerator(cpu=True)
    return kept_answers(path, settings, read, spread_prompts(read, count), accelerator, max_new_tokens=6)


def test_they_are_those_of_transformers(settings, tmp_path: Path, monkeypatch) -> None:
    from transformers import AutoModelForCausalLM

    read = read_tokens(settings, Accelerator(cpu=True))
    found = answers(settings, read, tmp_path / "a.json")
    model = AutoModelForCausalLM.from_pretrained(settings.model_name_or_path, dtype=torch.float32)
    rows = {place: at for at, place in enumerate(read.places())}
    for answer in found:
        ids = torch.tensor([read.data[rows[answer.source, answer.row]]["prompt_ids"]])
        with torch.no_grad():
            expected = model.generate(ids, do_sample=False, max_new_tokens=6, eos_token_id=None, pad_token_id=0)
        assert answer.token_ids == expected[0, ids.shape[1] :].tolist() and not answer.stopped

    monkeypatch.setattr(greedy, "_sample", None)  # what is kept is not sampled again
    assert answers(settings, read, tmp_path / "a.json") == found
    with pytest.raises(TypeError):
        answers(settings, read, tmp_path / "a.json", count=2)  # other prompts


def test_a_response_ends_where_the_model_ends_it(settings, tiny_dir: str, tmp_path: Path) -> None:
    read = read_tokens(settings, Accelerator(cpu=True))
    first = answers(settings, read, tmp_path / "a.json", count=1)[0].token_ids[0]
    shutil.copytree(tiny_dir, tmp_path / "ending")
    (tmp_path / "ending" / "generation_config.json").write_text(json.dumps({"eos_token_id": first}))
    settings.model_name_or_path = str(tmp_path / "ending")
    (answer,) = answers(settings, read, tmp_path / "b.json", count=1)
    assert answer.stopped and answer.token_ids == [first]


def test_prompts_are_different_and_spread(settings) -> None:
    read = read_tokens(settings, Accelerator(cpu=True))
    prompts = {place: tuple(row["prompt_ids"]) for place, row in zip(read.places(), read.data, strict=True)}
    every = spread_prompts(read, 10_000)
    assert len(every) == len({prompts[place] for place in every}) == len(set(prompts.values()))
    assert spread_prompts(read, 2) == [every[0], every[len(every) // 2]]
