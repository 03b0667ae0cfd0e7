"""Tokens, keys and passwords stand in no file that a run leaves, nor in what it prints."""

import json
import logging
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from simpo import SimPOConfig, cli
from simpo.errors import ConfigError
from simpo.evals.results import Result, write_result
from simpo.onpolicy.annotators.kinds import JudgeSettings
from simpo.redact import redact, redact_command, redact_text, without_secrets
from simpo.run.manifest import settings_text
from simpo.run.sft.settings import read_sft_settings
from simpo.sampling.settings import PolicySettings
from simpo.settings import read_settings

HUB = "hf_" + "Q7" * 16
ODD = "my-own-words-9-8-7"  # a secret that looks like none
ENVIRONMENT = "correct-horse-battery"


def holding(folder: Path, *secrets: str) -> list[str]:
    """Files that hold a secret, as text or within a pickle of torch's."""
    return [
        f"{path.relative_to(folder)}: {secret}"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        for secret in secrets
        if secret.encode() in path.read_bytes()
    ]


# How a token is given: lines of YAML, and words of the command line.
GIVEN: dict[str, tuple[dict[str, Any], list[str]]] = {
    "setting": ({"hub_token": ODD}, []),
    "old name": ({"push_to_hub_token": ODD}, []),
    "override": ({}, [f"--hub_token={ODD}"]),
    "two words": ({}, ["--hub-token", ODD]),
    "url": ({"run_name": f"https://me:{ODD}@host/x?token={ODD}"}, [f"--hub_model_id=https://{ODD}@host/{HUB}"]),
    "environment": ({"run_name": f"run of {ENVIRONMENT}"}, [f"--hub_model_id=x/{ENVIRONMENT}"]),
}


@pytest.mark.parametrize("way", GIVEN)
def test_a_run_leaves_no_secret(way: str, make_config, tmp_path: Path, monkeypatch, capsys, caplog) -> None:
    monkeypatch.setenv("SOME_API_KEY", ENVIRONMENT)
    settings, words = GIVEN[way]
    path = make_config(save_strategy="steps", save_steps=2, eval_dataset_mixer=None, max_steps=2, **settings)
    words = ["train", str(path), "--no-audit", *words]
    monkeypatch.setattr(sys, "argv", ["simpo", *words])
    with caplog.at_level(logging.DEBUG):
        assert cli.main(words) == 0
    out = tmp_path / "out"
    assert (out / "checkpoint-2" / "optimizer.pt").is_file() and (out / "README.md").is_file()
    assert holding(out, ODD, HUB, ENVIRONMENT) == []
    printed = capsys.readouterr()
    for text in (printed.out, printed.err, caplog.text):
        assert not any(secret in text for secret in (ODD, HUB))
    manifest = json.loads((out / "run_manifest.json").read_text())
    assert manifest["command"][:3] == ["simpo", "train", str(path)]
    read_settings(out / "settings.yaml")  # what is left repeats the run


def test_a_supervised_run_leaves_no_secret(make_config, tmp_path: Path, golden, monkeypatch) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"Why {n}?"}, {"role": "assistant", "content": "So it is."}]}
        for n in range(8)
    ]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = yaml.safe_load(make_config().read_text())
    kept = ("model_name_or_path", "output_dir", "learning_rate", "max_length", "use_cpu", "bf16", "disable_tqdm")
    path = tmp_path / "sft.yaml"
    more = {"dataset_mixer": {str(tmp_path / "talks.jsonl"): 1.0}, "chat_template": "chatml", "packing": False}
    steps = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "hub_token": ODD}
    path.write_text(yaml.safe_dump({key: settings[key] for key in kept} | more | steps))
    monkeypatch.setattr(sys, "argv", ["simpo", "sft", str(path), "--hub_token", ODD])
    assert cli.main(["sft", str(path), "--hub_token", ODD]) == 0
    assert (tmp_path / "out" / "checkpoint-1" / "optimizer.pt").is_file()
    assert holding(tmp_path / "out", ODD) == [] and not list((tmp_path / "out").rglob("training_args.bin"))


def test_the_token_is_still_there_for_the_hub(make_config) -> None:
    assert read_settings(make_config(hub_token=ODD)).training.hub_token == ODD


def test_trackers_and_pickles_of_the_arguments_hold_none(tmp_path: Path) -> None:
    import copy

    args = SimPOConfig(output_dir="x", use_cpu=True, bf16=False, hub_token=ODD, model_init_kwargs={"token": ODD})
    for text in (args.to_json_string(), str(args.to_dict()), str(args.to_sanitized_dict())):
        assert ODD not in text
    torch.save(args, tmp_path / "training_args.bin")
    assert holding(tmp_path, ODD) == []
    assert pickle.loads(pickle.dumps(args)).hub_token is None
    assert copy.copy(args).hub_token == ODD and vars(copy.copy(args)) == vars(args)


WRONG: dict[str, tuple[str, list[str]]] = {
    "of the wrong type": (f"hub_token: [{ODD}]\n", []),
    "given twice": (f"hub_token: {ODD}\npush_to_hub_token: {ODD}x\n", []),
    "no override": ("", [HUB]),
    "in nested settings": (f"model_init_kwargs: {{token: {ODD}}}\n", []),
    "in nested settings as JSON": (f'model_init_kwargs: \'{{"token": "{ODD}"}}\'\n', []),
    "in the name of data": (f"eval_dataset_mixer: {{'https://me:{ODD}@host/x.jsonl': 1.0}}\n", []),
}


@pytest.mark.parametrize("verb", ["train", "sft"])
@pytest.mark.parametrize("kind", WRONG)
def test_an_error_shows_no_secret(kind: str, verb: str, tmp_path: Path, tiny_dir: str, capsys) -> None:
    lines, words = WRONG[kind]
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "Why?", "chosen": "So.", "rejected": "No."}\n' * 2)
    path = tmp_path / "run.yaml"
    head = f"model_name_or_path: {tiny_dir}\ndataset_mixer: {{{tmp_path}/pairs.jsonl: 1.0}}\n"
    path.write_text(f"{head}output_dir: {tmp_path}/out\nuse_cpu: true\nbf16: false\n{lines}")
    assert cli.main([verb, str(path), *words]) == 2
    said = capsys.readouterr().err
    assert "error: " in said and ODD not in said and HUB not in said


@pytest.mark.parametrize("reader", [read_settings, read_sft_settings])
def test_nested_secrets_are_refused_with_where_they_belong(reader: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"model_name_or_path: m\ndataset_mixer: {{d: 1.0}}\nmodel_init_kwargs: {{token: {ODD}}}\n")
    with pytest.raises(ConfigError, match=r"run\.yaml:3: model_init_kwargs: token is a secret.*HF_TOKEN is the hub's"):
        reader(path)


def test_requests_take_keys_from_the_environment_only() -> None:
    for extra in ({"api_key": ODD}, {"headers": {"Authorization": f"Bearer {ODD}"}}, {"deep": [{"password": ODD}]}):
        with pytest.raises(ConfigError, match=r"^server_extra: \w+ is a secret.*api_key_env") as caught:
            PolicySettings(model_name_or_path="m", engine="server", server_urls=["http://host/v1"], server_extra=extra)
        assert ODD not in str(caught.value)
        with pytest.raises(ConfigError, match=r"^extra: \w+ is a secret"):
            JudgeSettings("m", "http://host/v1", extra=extra)
    for url in (f"http://me:{ODD}@host/v1", f"https://{ODD}@host/v1"):
        with pytest.raises(ConfigError) as caught:
            PolicySettings(model_name_or_path="m", engine="server", server_urls=[url])
        assert "password" in str(caught.value) and ODD not in str(caught.value)


def test_results_hold_no_secret(tmp_path: Path) -> None:
    settings = {"server_extra": {"api_key": ODD, "top_k": 5}, "url": f"https://me:{ODD}@host"}
    write_result(tmp_path, Result("pairs", "m", {}, settings=settings))
    assert holding(tmp_path, ODD) == [] and '"top_k": 5' in next(tmp_path.iterdir()).read_text()


@pytest.mark.parametrize(
    "secret",
    [
        HUB, "sk-proj-" + "a1" * 20, "ghp_" + "a1" * 18, "github_pat_" + "a1" * 20, "AKIA" + "A1" * 8,
        "xoxb-" + "12345-" * 3, "AIza" + "b2" * 18, "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    ],
)  # fmt: skip
def test_secrets_are_known_by_their_looks(secret: str) -> None:
    for text in (secret, f"--x={secret}", f"https://host/?q={secret}&a=1", f"['{secret}']", f"Bearer {secret}"):
        assert secret not in redact_text(text) and "***" in redact_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "meta-llama/Meta-Llama-3-8B-Instruct", "outputs/llama-3-8b-instruct-simpo-v2", "http://localhost:8000/v1",
        "{% for message in messages %}{{ message['role'] }}{% endfor %}", "task-specific-and-quite-long-name",
        "--max_new_tokens=4096", "a@b.c", "https://huggingface.co/datasets/x?row=3", "key: value",
    ],
)  # fmt: skip
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert redact_text(text) == text and redact_command(["train", text]) == ["train", text]


def test_settings_that_are_no_secrets_stay() -> None:
    plain = {"eos_token": "</s>", "max_new_tokens": 5, "stop_token_ids": [1], "api_key_env": "KEY", "token": True,
             "push_to_hub": True, "hub_token": None, "options": [{"beta": 2.0}]}  # fmt: skip
    assert redact(plain) == plain and without_secrets(plain) == plain
    assert redact({"a": [{"api-key": "x"}]}) == {"a": [{"api-key": "<API-KEY>"}]}
    nested = {"token": "<TOKEN>", "dtype": "float32"}
    text = settings_text({"hub_token": "<HUB_TOKEN>", "model_init_kwargs": nested})
    assert (
        yaml.safe_load(text) == {"model_init_kwargs": {"dtype": "float32"}} and "# hub_token is not kept here" in text
    )
