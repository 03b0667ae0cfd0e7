"""`simpo generate`: what is asked, what is kept, what is said."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from simpo import cli
from simpo.engines.base import Failure, Result, Sample
from simpo.errors import ConfigError, DataError, EngineError, ModelError
from simpo.onpolicy.generate import run_generate
from simpo.onpolicy.prompts import read_prompts
from simpo.onpolicy.settings import GenerateSettings
from simpo.sampling.prompts import Renderer
from simpo.store import read_records, read_settings_of, read_summary
from tests.engines.serving import Server, echo
from tests.onpolicy.conftest import QUESTIONS
from tests.onpolicy.recorder import Recorder, records_of


def test_responses_to_every_prompt(make_generate, capsys) -> None:
    settings = make_generate()
    summary = run_generate(settings)
    records = records_of(settings)
    assert [record["row"] for record in records] == list(range(6)) and len({record["id"] for record in records}) == 6
    for record, question in zip(records, QUESTIONS, strict=True):
        assert set(record) == {"id", "row", "prompt", "responses", "error"}
        assert record["prompt"] == [{"role": "user", "content": question}] and record["error"] is None
        assert [response["seed"] for response in record["responses"]] == [13, 21, 42, 79, 100]
        assert len({response["text"] for response in record["responses"]}) == 5
        for response in record["responses"]:
            assert set(response) == {"text", "finish_reason", "tokens", "seed"} and 1 <= response["tokens"] <= 12
            assert response["finish_reason"] == "stop" or response["tokens"] == 12
    assert summary == read_summary(settings.output_dir) and summary["responses"] == 30 and summary["cut"] > 0
    assert "30 responses to 6 prompts" in capsys.readouterr().out

    again = run_generate(settings)  # nothing is left to do: no model is loaded
    assert again == summary and records_of(settings) == records


def test_prompts_are_token_ids_with_one_bos(make_generate, tiny_dir) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_dir)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
             {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Why?"}]  # fmt: skip
    settings = make_generate([{"messages": turns}, {"messages": [*turns, {"role": "assistant", "content": "So."}]}])
    engine = Recorder()
    summary = run_generate(settings, engine)
    assert summary["prompts"] == 1 and summary["repeated_rows"] == 1  # an answer at the end is what is asked for again
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    for request in engine.requests:
        assert tokenizer.decode(request.prompt_ids) == text and list(request.prompt_ids).count(0) == 1
        assert request.text == text  # this tokenizer writes no BOS of its own, so a server would add none
        assert request.stop_ids == (1, 4)  # EOS of the generation config, and the template's <|eot_id|>
        assert (request.temperature, request.top_p, request.max_new_tokens) == (0.8, 0.95, 12)
    assert [request.seed for request in engine.requests] == [13, 21, 42, 79, 100]


def test_a_server_that_writes_bos_itself_is_given_a_text_without(make_generate, tiny_dir) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_dir)
    bos, ids = str(tokenizer.bos_token), [(str(tokenizer.bos_token), 0)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=ids)
    assert tokenizer("Hi")["input_ids"][0] == 0
    for options in ({}, {"text_prompts": "plain"}):
        prompts, _ = read_prompts(make_generate(**options))
        Renderer(tokenizer, None).prepare(prompts, None)
        for prompt in prompts:
            assert prompt.ids.count(0) == 1 and bos not in prompt.text
            assert tokenizer(prompt.text)["input_ids"] == prompt.ids  # what the server makes of it


def test_plain_texts_and_columns(make_generate, tiny_dir) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_dir)
    rows = [{"question": "Once upon", "prompt": "no"}, {"question": " a time", "prompt": "no"}]
    settings = make_generate(rows, prompt_column="question", text_prompts="plain", seeds=[1], dataset_split="train[1:]",
                             stop_token_ids=[7])  # fmt: skip
    engine = Recorder()
    run_generate(settings, engine)
    (request,) = engine.requests
    bare = tokenizer(" a time", add_special_tokens=False)["input_ids"]
    prefix = tokenizer("a")["input_ids"][: -len(tokenizer("a", add_special_tokens=False)["input_ids"])]
    assert list(request.prompt_ids) == prefix + bare and request.text == " a time" and request.stop_ids == (1, 7)
    assert records_of(settings)[0]["prompt"] == " a time"


def test_rows_that_cannot_be_asked_are_reported_and_the_rest_goes_on(make_generate, capsys) -> None:
    rows = [
        {"prompt": [{"role": "user", "content": "Hi"}], "tools": None},
        {"prompt": [{"role": "user", "content": "long " * 5000}], "tools": None},
        {"prompt": [{"role": "assistant", "content": "I answer nobody."}], "tools": None},
        {"prompt": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "tools": None},
        {"prompt": [{"role": "user", "content": "Fails"}], "tools": None},
        {"prompt": None, "tools": None},
        {"prompt": [{"role": "user", "content": "Hi"}], "tools": '[{"type": "function"}]'},
    ]
    template = (
        "{% for m in messages %}{% if m['content'] == 'Fails' %}{{ raise_exception('no such thing') }}{% endif %}"
        "{{ bos_token if loop.first }}{{ m['role'] }}: {{ m['content'] }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    settings = make_generate(rows, chat_template=template, num_responses=2)
    summary = run_generate(settings)
    errors = {record["row"]: record["error"] for record in records_of(settings)}
    assert errors == {
        0: None, 1: errors[1], 2: "no prompt", 3: "roles out of order", 4: "template fails: no such thing",
        5: "no prompt", 6: None,
    }  # fmt: skip
    assert errors[1].startswith("prompt of ") and errors[1].endswith("leaves no room in the context of 4096")
    assert records_of(settings)[6]["tools"] == [{"type": "function"}]
    printed = capsys.readouterr().out
    assert summary["errors"] == 5 and "rows 2, 5: no prompt" in printed and "row 4: template fails" in printed
    assert all(len(record["responses"]) == (0 if record["error"] else 2) for record in records_of(settings))


def test_responses_end_with_the_context(make_generate) -> None:
    settings = make_generate([{"prompt": "word " * 20}], context_length=40, max_new_tokens=30)
    engine = Recorder()
    run_generate(settings, engine)
    assert {len(request.prompt_ids) + request.max_new_tokens for request in engine.requests} == {40}


def test_nothing_to_ask(make_generate) -> None:
    with pytest.raises(DataError, match="no prompt has a response; row 0: no prompt"):
        run_generate(make_generate([{"prompt": "  "}]))
    with pytest.raises(DataError, match=r"none of the columns prompt and messages \(its columns: x\)"):
        run_generate(make_generate([{"x": "a"}]))
    with pytest.raises(DataError, match="no column 'y'"):
        run_generate(make_generate([{"x": "a"}], prompt_column="y"))
    with pytest.raises(DataError, match="no split 'test'"):
        run_generate(make_generate(dataset_split="test"))
    with pytest.raises(ModelError):
        run_generate(make_generate(model_name_or_path="/nowhere/model"))


def test_failures_of_an_engine_are_recorded_with_their_seed(make_generate) -> None:
    class Failing(Recorder):
        def generate(self, requests):
            for number, request in super().generate(requests):
                fails = self.requests[-1].seed == 42 and number < 5
                yield Result(number, Failure("HTTP 500: oops") if fails else request)

    settings = make_generate()
    summary = run_generate(settings, Failing())
    (failed,) = [record for record in records_of(settings) if record["error"]]
    assert failed["error"] == "seed 42: HTTP 500: oops" and [r["seed"] for r in failed["responses"]] == [
        13,
        21,
        79,
        100,
    ]
    assert summary["errors"] == 1 and summary["responses"] == 29

    settings.retry_errors = True
    engine = Recorder()
    summary = run_generate(settings, engine)
    assert summary["errors"] == 0 and summary["responses"] == 30 and len(engine.requests) == 5


def test_an_adapter_is_a_policy_too(make_generate, tiny_dir, tmp_path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_dir), LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(tiny_dir).save_pretrained(tmp_path / "adapter")
    run_generate(make_generate(output_dir=str(tmp_path / "base")))
    settings = make_generate(model_name_or_path=str(tmp_path / "adapter"))
    run_generate(settings)
    assert read_settings_of(settings.output_dir)["stop_ids"] == [1, 4]
    assert records_of(settings) != list(read_records(tmp_path / "base"))


class OnlyEnds:
    """A policy that says nothing."""

    batch_size = None

    def generate(self, requests):
        for number, _ in enumerate(requests):
            yield Result(number, Sample("", "stop", 1))

    def close(self) -> None: ...


def test_a_model_that_only_ends_is_said_with_its_rows(make_generate, capsys) -> None:
    summary = run_generate(make_generate(num_responses=2), engine=OnlyEnds())
    assert (summary["empty"], summary["all_equal"]) == (12, 6)
    printed = capsys.readouterr().out
    assert "12 responses are empty (rows 0, 1, 2, 3, 4, ...)" in printed
    assert "6 prompts have responses that are all equal (rows 0, 1, 2, 3, 4, ...)" in printed


def test_columns_are_kept_for_those_who_score(make_generate, tmp_path) -> None:
    rows = [{"prompt": "2 + 2?", "answer": 4}, {"prompt": "2 + 2?", "answer": 5}, {"prompt": "2 + 2?", "answer": 4}]
    run_generate(make_generate(rows, keep_columns=["answer"], num_responses=2))
    records = list(read_records(tmp_path / "out"))
    assert [record["columns"] for record in records] == [{"answer": 4}, {"answer": 5}]  # the third repeats the first
    assert records[0]["responses"] == records[1]["responses"]  # asked is the same
    with pytest.raises(DataError, match=r"keep_columns: there is no column 'gold' \(its columns: prompt, answer\)"):
        run_generate(make_generate(rows, keep_columns=["gold"], output_dir=str(tmp_path / "other")))


def test_through_a_server(make_generate, monkeypatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("MY_KEY", "secret-77")
    with Server(echo) as server:
        settings = make_generate(
            engine="server", server_urls=[server.url], server_model="policy", batch_size=40, use_cpu=False,
            api_key_env="MY_KEY",
        )  # fmt: skip
        run_generate(settings)
        assert Counter(body["seed"] for _, body, _ in server.seen) == dict.fromkeys((13, 21, 42, 79, 100), 6)
        assert all(body["prompt"][0] == 0 and body["prompt"].count(0) == 1 for _, body, _ in server.seen)
        assert {key for _, _, key in server.seen} == {"Bearer secret-77"}
    records = records_of(settings)
    assert len(records) == 6 and all(len(record["responses"]) == 5 for record in records)
    kept = "".join(path.read_text() for path in Path(settings.output_dir).iterdir())
    assert "secret-77" not in kept and "secret-77" not in json.dumps(read_settings_of(settings.output_dir))
    monkeypatch.delenv("MY_KEY")
    rows = make_generate([{"prompt": "new"}], **_changed(settings))
    with pytest.raises(ConfigError, match="the environment variable MY_KEY is not set"):
        run_generate(rows)
    rows.api_key_env, rows.server_patience = None, 0.0
    with pytest.raises(EngineError, match="no server answers"):  # it is gone; what was done would stay
        run_generate(rows)


def _changed(settings: GenerateSettings) -> dict[str, Any]:
    return asdict(settings) | {"output_dir": settings.output_dir + "-new"}


def test_the_verb(make_generate, tmp_path, capsys) -> None:
    settings = make_generate()
    given = {key: value for key, value in asdict(settings).items()
             if key in ("model_name_or_path", "dataset_name", "max_new_tokens", "use_cpu")}  # fmt: skip
    (tmp_path / "generate.yaml").write_text(yaml.safe_dump(given))
    command = ["generate", str(tmp_path / "generate.yaml"), f"--output_dir={tmp_path / 'verb'}"]
    assert cli.main([*command, "--num_responses", "2", "--temperature=1e-1"]) == 0
    captured = capsys.readouterr()
    assert "12 responses to 6 prompts" in captured.out and "prompt/s" in captured.err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    assert cli.main([*command, f"--output_dir={tmp_path / 'other'}"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
