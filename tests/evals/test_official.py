"""Configs of the official programs: what they say is what was done here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from simpo.evals.answers import write_answers
from simpo.evals.judges.arena_hard import PROMPT
from tests.evals.conftest import ALPACA


def test_alpaca_eval(make_eval, tmp_path, tiny_tokenizer) -> None:
    """With an instruction put in, the template gives the ids that were asked, its tokenizer's own BOS included."""
    write_answers(make_eval("alpaca_eval", setting="llama3-instruct"))
    (config,) = yaml.safe_load((tmp_path / "out/alpaca_eval_configs.yaml").read_text()).items()
    known = json.loads((tmp_path / "out/decoding.json").read_text())
    name, entry = config
    assert name == entry["pretty_name"] == "tiny" and entry["fn_completions"] == "vllm_local_completions"
    told = entry["completions_kwargs"]
    assert told["stop_token_ids"] == known["stop_ids"] and {128001, 128009} < set(told["stop_token_ids"])
    assert (told["temperature"], told["top_p"], told["max_new_tokens"], told["seed"]) == (0.9, 1.0, 8, 42)
    template = Path(entry["prompt_template"]).read_text()
    for row in ALPACA:
        messages = [{"role": "user", "content": row["instruction"]}]
        wanted = tiny_tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        assert tiny_tokenizer(template.replace("{instruction}", row["instruction"]))["input_ids"] == wanted["input_ids"]


def test_an_empty_system_turn_is_in_the_template(make_eval, tmp_path) -> None:
    write_answers(make_eval("alpaca_eval", setting="mistral-base", chat_template="zephyr"))
    template = (tmp_path / "out/alpaca_eval_prompt.txt").read_text()
    assert "<|system|>\n" in template and template.count("{instruction}") == 1


def test_arena_hard(make_eval, tmp_path) -> None:
    write_answers(make_eval("arena_hard", judge_urls=["http://judge/v1"], judge="a-judge"))
    found = {path.name: yaml.safe_load(path.read_text()) for path in (tmp_path / "out/config").iterdir()}
    asked, endpoints, judging = (found[f"{name}_config.yaml"] for name in ("gen_answer", "api", "judge"))
    known = json.loads((tmp_path / "out/decoding.json").read_text())
    assert (asked["temperature"], asked["max_tokens"], asked["num_choices"]) == (0.0, 8, 1)
    assert asked["stop_token_ids"] == known["stop_ids"] and asked["model_list"] == judging["model_list"] == ["tiny"]
    assert asked["bench_name"] == judging["bench_name"] == "arena-hard-v0.1"
    assert set(endpoints) == {"tiny", "a-judge"} and judging["judge_model"] == "a-judge"
    assert endpoints["a-judge"]["endpoints"] == [{"api_base": "http://judge/v1", "api_key": "none"}]
    prompt = yaml.safe_load(PROMPT.read_text(encoding="utf-8"))
    assert judging["system_prompt"] == prompt["system"] and judging["prompt_template"] == [prompt["user"]]
    assert judging["regex_pattern"] == r"\[\[([AB<>=]+)\]\]" and judging["number_of_judgment_attempts"] == 2
    assert (judging["baseline_model"], judging["max_tokens"], judging["pairwise"]) == ("gpt-4-0314", 4096, True)


def test_keys_are_not_written(make_eval, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret-1")
    write_answers(make_eval("arena_hard", judge="j", judge_urls=["http://judge/v1"], judge_api_key_env="MY_KEY"))
    assert not any("secret-1" in path.read_text() for path in (tmp_path / "out").rglob("*") if path.is_file())


@pytest.mark.parametrize(("judge", "judges"), [(None, ["gpt-4", "gpt-4-1106-preview"]), ("mine", ["mine"])])
def test_mt_bench(make_eval, tmp_path, tiny_dir, judge: str | None, judges: list[str]) -> None:
    write_answers(make_eval("mt_bench", judge=judge))
    lines = (tmp_path / "out/mt_bench_commands.txt").read_text().splitlines()
    assert f"--model-path {tiny_dir} --model-id tiny --max-new-token 8" in lines[1]
    assert [line.split()[-1] for line in lines[2:] if "gen_judgment" in line] == judges
