"""Runs from a YAML file: what they leave, what they refuse, and that a killed one loses nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from simpo.errors import ConfigError, DataError, ModelError
from simpo.run import run_training
from simpo.settings import read_settings
from tests.launching import deepspeed, environment, torchrun

CLI = [sys.executable, "-m", "simpo.cli", "train"]
HH = Path(__file__).parents[3] / "shared" / "data"


def _files(folder) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def test_a_run_leaves_everything(make_config, tmp_path, capsys) -> None:
    run_training(read_settings(make_config(), ["--chat_template=chatml", "--gamma_beta_ratio=0.3"]))
    out = tmp_path / "out"
    assert _files(out) == {
        "README.md", "all_results.json", "chat_template.jinja", "config.json", "eval_results.json",
        "generation_config.json", "log.jsonl", "model.safetensors", "run_manifest.json", "settings.yaml",
        "tokenizer.json", "tokenizer_config.json", "train_results.json", "trainer_state.json",
    }  # fmt: skip
    manifest = json.loads((out / "run_manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["gamma"] == pytest.approx(0.6)
    batch = manifest["effective_batch"]
    assert (batch["pairs_per_step"], batch["devices"], batch["micro_batches_per_device"]) == (8, 1, 2)
    assert manifest["packages"]["torch"] == torch.__version__
    assert manifest["recommended"]["gamma_beta_ratio"] == {"chosen": 0.3, "recommended": "0 to 1, starting at 0.5"}
    assert "small_model" in [advice["name"] for advice in manifest["advice"]] and manifest["data_warnings"] is not None
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    times = [line["elapsed"] for line in lines]
    assert times == sorted(times) and times[0] > 0 and all(0 < line["memory_gib"] < 1000 for line in lines)
    assert "<|im_start|>" in manifest["rendered_example"]
    assert manifest["first_pairs"][0]["chosen_ids"] and manifest["data"]["train"]["kept"] == 24
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert "im_start" in tokenizer.chat_template  # the template that was used, not the model's own
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.generate(torch.tensor([[0, 2, 420]]), max_new_tokens=3).shape == (1, 6)
    card = (out / "README.md").read_text()
    assert "| gamma_beta_ratio | 0.3 |" in card and "eval_rewards/accuracies" in card and "2405.14734" in card
    printed = capsys.readouterr().out
    assert "1 device x up to 2 micro-batches x about 4 pairs = 8 pairs a step" in printed
    with pytest.raises(ConfigError, match="finished run"):
        run_training(read_settings(make_config()))


def test_a_run_is_watched(make_config, tmp_path) -> None:
    """The monitors' numbers are in the log beside the others, from the start on; rows are named by their source."""
    settings = read_settings(make_config(monitor=None), ["--monitor_max_new_tokens=4", "--eval_strategy=epoch"])
    assert settings.training.monitor == "warn"
    run_training(settings)
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "monitor/chosen_drop" in line] == [0, 3]
    assert {path.name for path in (tmp_path / "out" / "monitor").iterdir()} >= {
        "generations.jsonl", "probe-000000.parquet", "probe-000003.parquet",
    }  # fmt: skip


def test_a_row_is_named_by_its_source(make_config, tmp_path) -> None:
    from simpo.run.train import _build_trainer, _read_inputs

    settings = read_settings(make_config())
    trainer = _build_trainer(settings, _read_inputs(settings, audit=False))
    assert trainer.name_row(5) == f"{tmp_path / 'train.jsonl'} row 5"


def test_overwrite_leaves_nothing_of_the_earlier_run(make_config, tmp_path) -> None:
    run_training(read_settings(make_config(save_strategy="steps", save_steps=1, save_total_limit=2)))
    assert {name for name in _files(tmp_path / "out") if "checkpoint" in name} == {"checkpoint-2", "checkpoint-3"}
    lora = make_config(use_peft=True, lora_r=4, lora_target_modules="all-linear")
    run_training(read_settings(lora), overwrite=True)
    left = _files(tmp_path / "out")
    assert "adapter_model.safetensors" in left
    assert not {name for name in left if "checkpoint" in name or name == "model.safetensors"}


def test_the_kept_settings_repeat_a_run(make_config, tmp_path, capsys) -> None:
    (tmp_path / "ipo.yaml").write_text("objective: ipo\ntau: 0.5\n")
    config = make_config(max_steps=2)
    overrides = [f"--reference_cache={tmp_path / 'cache'}", "--hub_token=secret", "--chat_template=chatml"]
    run_training(read_settings([config, tmp_path / "ipo.yaml"], overrides))
    first = tmp_path / "out-ipo"
    kept = (first / "settings.yaml").read_text()
    printed = capsys.readouterr().out
    shown = printed.partition("Settings, all files and overrides together\n")[2].splitlines()
    assert [line.removeprefix("  ") for line in shown[: kept.count("\n")]] == kept.splitlines()
    assert "objective: ipo\ntau: 0.5\n" in kept and "secret" not in printed + kept
    assert kept.endswith("# hub_token is not kept here\n")

    run_training(read_settings([first / "settings.yaml"], [f"--output_dir={tmp_path / 'again'}"]))
    losses = [
        [
            entry["loss"]
            for entry in json.loads((folder / "trainer_state.json").read_text())["log_history"]
            if "loss" in entry
        ]
        for folder in (first, tmp_path / "again")
    ]
    assert len(losses[0]) == 2 and losses[0] == losses[1]


def test_settings_of_one_file_are_kept_and_not_shown(make_config, tmp_path, capsys) -> None:
    run_training(read_settings(make_config(max_steps=1)))
    assert "Settings, all" not in capsys.readouterr().out
    assert (
        read_settings(tmp_path / "out" / "settings.yaml").resolved == read_settings(make_config(max_steps=1)).resolved
    )


def test_a_generation_config_that_contradicts_itself(make_config, tmp_path, tiny_dir) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_dir, model, copy_function=shutil.copyfile)
    (model / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.7}')
    run_training(read_settings(make_config(model_name_or_path=str(model), max_steps=1)))
    assert "model.safetensors" in _files(tmp_path / "out")


def test_dry_run_writes_nothing(make_config, tmp_path, capsys) -> None:
    run_training(read_settings(make_config()), dry_run=True)
    printed = capsys.readouterr().out
    for words in ("24 to train", "3 optimizer steps", "float32 master weights", "(gamma 1)", "recommended"):
        assert words in printed
    assert not (tmp_path / "out").exists()


def test_lora_run_leaves_an_adapter(make_config, tmp_path) -> None:
    run_training(read_settings(make_config(use_peft=True, lora_r=4, lora_target_modules="all-linear", bf16=True)))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"].endswith("tiny")
    assert "model.safetensors" not in _files(tmp_path / "out")


def test_16_bit_runs_leave_16_bit_weights(make_config, tmp_path) -> None:
    run_training(read_settings(make_config(bf16=True, max_steps=1)))
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in weights  # tied: stored once
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


@pytest.mark.parametrize(
    "settings,error,words",
    [
        ({"dataset_mixer": {"missing.jsonl": 1.0}}, DataError, "missing.jsonl"),
        ({"model_name_or_path": "no/such-model"}, ModelError, "no/such-model.*no directory of that name here"),
        ({"model_name_or_path": "./no-such-model"}, ModelError, "no such directory .looked for /.*/no-such-model"),
        ({"model_name_or_path": "not/on/the-hub"}, ModelError, "no such directory"),
        ({"chat_template": "{% if %}"}, ConfigError, "template"),
    ],
)
def test_bad_input_stops_before_anything_is_written(make_config, tmp_path, settings, error, words) -> None:
    with pytest.raises(error, match=words):
        run_training(read_settings(make_config(**settings)))
    assert not (tmp_path / "out").exists()


def test_data_without_one_usable_pair(make_config, tmp_path) -> None:
    config = make_config()
    row = {"prompt": [{"role": "user", "content": "Hi"}]} | {
        side: [{"role": "assistant", "content": "the same"}] for side in ("chosen", "rejected")
    }
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=r"none of the 1 rows(.|\n)*equal"):
        run_training(read_settings(config))
    assert not (tmp_path / "out").exists()


@pytest.mark.multiprocess
def test_a_killed_run_goes_on_where_it_was(make_config, tmp_path) -> None:
    settings = {"num_train_epochs": 6, "save_strategy": "steps", "save_steps": 4}
    config = make_config(**settings, output_dir=str(tmp_path / "whole"))
    subprocess.run([*CLI, str(config)], env=environment(), check=True, capture_output=True, timeout=300)
    config = make_config(**settings)
    first = subprocess.Popen(
        [*CLI, str(config)], env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    marker = tmp_path / "out" / "checkpoint-4" / "run_identity.json"
    while not marker.exists():
        assert first.poll() is None
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert not (tmp_path / "out" / "model.safetensors").exists()
    other = subprocess.run(
        [*CLI, str(config), "--beta=3"], env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert other.returncode == 2 and "beta: 2.0 there, 3.0 here" in other.stderr and "Traceback" not in other.stderr
    second = subprocess.run(
        [*CLI, str(config)], env=environment(), check=True, capture_output=True, text=True, timeout=300
    )
    assert "Going on from" in second.stdout
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "whole"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.multiprocess
def test_zero3_leaves_one_model(make_config, tmp_path) -> None:
    config = make_config(max_steps=2, output_dir=str(tmp_path / "zero3"))
    script = Path(__file__).parents[2] / "scripts" / "run_simpo.py"
    deepspeed(3, tmp_path, script, str(config))
    assert "ZeRO-3 on 2" in json.loads((tmp_path / "zero3" / "run_manifest.json").read_text())["engine"]
    run_training(read_settings(make_config(max_steps=2)))
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("zero3", "out"))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=1e-4, rtol=0)


@pytest.mark.multiprocess
def test_ddp_leaves_one_model(make_config, tmp_path) -> None:
    config = make_config(max_steps=2)
    torchrun(Path(__file__).parents[2] / "scripts" / "run_simpo.py", str(config))
    manifest = json.loads((tmp_path / "out" / "run_manifest.json").read_text())
    assert manifest["engine"] == "DDP on 2 processes" and manifest["effective_batch"]["micro_batches_per_device"] == 1
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.mark.slow
def test_real_conversations(make_config, tmp_path) -> None:
    if not HH.exists():
        pytest.skip("the real pairs lie beside the project, in ../shared/data, and are not there")
    mixers = {
        f"{prefix}dataset_mixer": {str(HH / f"hh_harmless_{name}.jsonl.gz"): 1.0}
        for prefix, name in (("", "train"), ("eval_", "test"))
    }
    config = make_config(**mixers, total_train_batch_size=128, max_train_samples=512, max_length=1024)
    run_training(read_settings(config))
    manifest = json.loads((tmp_path / "out" / "run_manifest.json").read_text())
    assert manifest["metrics"]["eval_pairs"] > 290
    assert manifest["metrics"]["eval_rewards/accuracies"] > 0.5
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
