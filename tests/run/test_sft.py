"""SFT runs from a YAML file: what is learnt, what is left behind, what is refused, and how SimPO goes on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from simpo import cli
from simpo.errors import ConfigError
from simpo.run.sft import read_sft_settings, run_sft
from simpo.run.sft.settings import sft_field_types
from simpo.settings import read_settings
from tests.launching import deepspeed

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "training_configs" / "sft"


def talk(number: int) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": f"What comes after {number}?"},
        {"role": "assistant", "content": f"After {number} comes {number + 1}."},
        {"role": "user", "content": "Thanks."},
        {"role": "assistant", "content": "You are welcome."},
    ]


@pytest.fixture
def make_sft(tiny_dir, tmp_path) -> Callable[..., Path]:
    """make_sft(rows, **settings) -> path of a YAML for an SFT run of the tiny model in `tmp_path`."""

    def make(rows: list[dict[str, Any]] | None = None, **settings: Any) -> Path:
        rows = [{"messages": talk(number)} for number in range(24)] if rows is None else rows
        (tmp_path / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = {
            "model_name_or_path": tiny_dir,
            "dataset_mixer": {str(tmp_path / "talks.jsonl"): 1.0},
            "output_dir": str(tmp_path / "sft"),
            "total_train_batch_size": 4,
            "per_device_train_batch_size": 2,
            "max_length": 128,
            "max_steps": 2,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "bf16": False,
            "disable_tqdm": True,
        }
        path = tmp_path / "sft.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in (config | settings).items() if value is not None}))
        return path

    return make


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run_manifest.json").read_text())


def test_the_saved_model_starts_a_simpo_run(make_sft, make_config, tmp_path, capsys) -> None:
    rows = [{"prompt": "not read", "messages": talk(number)} for number in range(24)]
    assert cli.main(["sft", str(make_sft(rows, test_size=4)), "--chat_template=chatml"]) == 0
    out = tmp_path / "sft"
    assert {path.name for path in out.iterdir()} == {
        "README.md", "all_results.json", "chat_template.jinja", "config.json", "eval_results.json",
        "generation_config.json", "model.safetensors", "run_manifest.json", "tokenizer.json", "tokenizer_config.json",
        "train_results.json", "trainer_state.json",
    }  # fmt: skip
    manifest = manifest_of(out)
    assert (manifest["stage"], manifest["status"]) == ("sft", "finished")
    assert manifest["effective_batch"] == {"rows_per_step": 4, "devices": 1, "micro_batches_per_device": 2}
    assert manifest["first_row"]["learnt"].startswith("After ") and "user" not in manifest["first_row"]["learnt"]
    assert manifest["metrics"]["eval_loss"] > 0
    # an answer ends with <|im_end|>, so generation must stop there too
    stops = json.loads((out / "generation_config.json").read_text())["eos_token_id"]
    assert manifest["generation_stops_at"] == ["<|end_of_text|>", "<|im_end|>"] and stops == [1, 9]
    plain = (ROOT / "simpo" / "data" / "templates" / "chatml.jinja").read_text()
    assert AutoTokenizer.from_pretrained(out).chat_template == plain  # no marks of training in it
    assert "Supervised" not in (out / "README.md").read_text().splitlines()[0]
    printed = capsys.readouterr().out
    assert "packs of up to 128 tokens to train" in printed and "2 optimizer steps" in printed

    assert cli.main(["train", str(make_config(model_name_or_path=str(out), max_steps=1)), "--no-audit"]) == 0
    tuned = tmp_path / "out"
    assert AutoTokenizer.from_pretrained(tuned).chat_template == plain
    assert manifest_of(tuned)["first_pairs"][0]["prompt_text"].startswith("<|im_start|>user\n")
    assert manifest_of(tuned)["first_pairs"][0]["chosen_text"].endswith("<|im_end|>")
    assert json.loads((tuned / "generation_config.json").read_text())["eos_token_id"] == [1, 9]


def test_what_is_learnt_is_the_loss(make_sft, tmp_path) -> None:
    """The first step's loss is the mean over the answers' tokens, whatever the packs: by hand, row by row."""
    config = make_sft([{"messages": talk(number)} for number in range(3)], max_steps=1, total_train_batch_size=2)
    run_sft(read_sft_settings(config))
    (first,) = (entry for entry in json.loads((tmp_path / "sft" / "trainer_state.json").read_text())["log_history"]
                if "loss" in entry)  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(ROOT / "tests" / "golden" / "tiny", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tests" / "golden" / "tiny")
    total, count = 0.0, 0
    for number in range(3):
        head = "<|begin_of_text|>"
        for turn in talk(number):
            head += f"<|start_header_id|>{turn['role']}<|end_header_id|>\n\n"
            if turn["role"] == "assistant":
                context = tokenizer(head, add_special_tokens=False)["input_ids"]
                answer = tokenizer(turn["content"] + "<|eot_id|>", add_special_tokens=False)["input_ids"]
                logits = model(torch.tensor([context + answer])).logits[0, len(context) - 1 : -1]
                total -= logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum().item()
                count += len(answer)
            head += turn["content"] + "<|eot_id|>"
    # nearly: behind a header this tokenizer merges the newlines of a history otherwise than those of an answer
    assert first["loss"] == pytest.approx(total / count, rel=2e-3)


@pytest.mark.parametrize(
    ("family", "attention"),
    [("llama", "sdpa"), ("llama", "eager"), ("mistral", "sdpa"), ("mistral", "eager"), ("gemma2", "eager")],
)
def test_packed_conversations_do_not_see_one_another(make_model, family, attention) -> None:
    """What keeps them apart without flash-attn is the mask that transformers makes of the positions."""
    model = make_model(family, attn=attention)
    rows = [torch.randint(3, 200, (size,)).tolist() for size in (11, 7, 13)]
    packs = [{"input_ids": rows[0] + rows[1], "seq_lengths": [11, 7]}, {"input_ids": rows[2], "seq_lengths": [13]}]
    batch = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(packs)
    batch.pop("labels")
    together = model(**batch, use_cache=False).logits[0]
    alone = torch.cat([model(torch.tensor([row]), use_cache=False).logits[0] for row in rows])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("packing", [True, False])
def test_an_interrupted_run_goes_on(make_sft, tmp_path, capsys, packing) -> None:
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "packing": packing, "warmup_steps": 0}
    config = make_sft(**settings)
    run_sft(read_sft_settings(config))
    out = tmp_path / "sft"
    whole = load_file(out / "model.safetensors")
    with pytest.raises(ConfigError, match="finished run"):
        run_sft(read_sft_settings(config))
    shutil.rmtree(out / "checkpoint-4")
    for name in ("model.safetensors", "README.md", "train_results.json", "all_results.json", "trainer_state.json"):
        (out / name).unlink()
    (out / "run_manifest.json").write_text(json.dumps({"status": "running"}))
    assert cli.main(["sft", str(config), "--learning_rate=1e-4"]) == 2
    assert "learning_rate: 0.001 there, 0.0001 here" in capsys.readouterr().err
    run_sft(read_sft_settings(config))
    assert "Going on from" in capsys.readouterr().out
    resumed = load_file(out / "model.safetensors")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_a_preference_run_is_not_taken_for_ones_own(make_sft, make_config, tmp_path, capsys) -> None:
    run_sft(read_sft_settings(make_sft(save_strategy="steps", save_steps=1)))
    out = tmp_path / "sft"
    (out / "run_manifest.json").write_text(json.dumps({"status": "running"}))
    assert cli.main(["train", str(make_config(output_dir=str(out))), "--no-audit"]) == 2
    assert "belongs to another run" in capsys.readouterr().err
    run_sft(read_sft_settings(make_sft()), overwrite=True)
    assert manifest_of(out)["status"] == "finished" and not list(out.glob("checkpoint-*"))


def test_dry_run(make_sft, tmp_path, capsys) -> None:
    assert cli.main(["sft", str(make_sft(max_steps=-1)), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    for words in ("about", "24 of 24 rows kept", "float32 master weights", "one process, attention by sdpa"):
        assert words in printed
    assert not (tmp_path / "sft").exists()


@pytest.mark.parametrize(
    "rows",
    [
        [{"prompt": "One and one is", "completion": f" {number}."} for number in range(8)],
        [{"text": f"{number} is a number."} for number in range(8)],
        [{"prompt": talk(number)[:1], "completion": talk(number)[1:2]} for number in range(8)],
    ],
)
def test_other_formats(make_sft, tmp_path, rows) -> None:
    run_sft(read_sft_settings(make_sft(rows, max_steps=1, packing=False)))
    assert manifest_of(tmp_path / "sft")["data"]["train"]["kept"] == 8


def test_an_adapter(make_sft, tmp_path) -> None:
    run_sft(read_sft_settings(make_sft(use_peft=True, lora_r=4, lora_target_modules="all-linear")))
    names = {path.name for path in (tmp_path / "sft").iterdir()}
    assert "adapter_model.safetensors" in names and "model.safetensors" not in names


@pytest.mark.parametrize(
    ("rows", "settings", "words"),
    [
        ([{"talk": talk(1)}], {}, "talks.jsonl: no column messages, no prompt with completion, and no text (its"),
        ([{"messages": talk(1)[:1]}], {}, "none of the 1 rows can be trained on: 1: no assistant turn (rows 0)"),
        (None, {"packin": True}, "sft.yaml:11: unknown setting 'packin'; did you mean 'packing'?"),
        (None, {"beta": 2.0}, "sft.yaml:1: unknown setting 'beta'; it belongs to preference runs (simpo train)"),
        (None, {"packing": "maybe"}, "packing: maybe has the wrong type: write true or false"),
        (None, {"packing_strategy": "wrapped"}, "packing_strategy: 'wrapped' lets conversations see one another"),
        (
            None,
            {"total_train_batch_size": 3},
            "total_train_batch_size: 3 is no multiple of per_device_train_batch_size",
        ),
        (None, {"dataset_mixer": None}, "dataset_mixer is missing"),
        (None, {"model_name_or_path": "no/such-model"}, "no/such-model"),
        (None, {"chat_template": "{{ messages[0]['content'] }}"}, "chat_template"),
    ],
)
def test_bad_input_is_one_line(make_sft, tmp_path, capsys, rows, settings, words) -> None:
    assert cli.main(["sft", str(make_sft(rows, **settings))]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and words in error
    assert not (tmp_path / "sft").exists()


def test_a_base_model(make_sft, tiny_dir, tmp_path, capsys) -> None:
    """Without a template one must be named; without a padding token the EOS becomes it, and stays a label."""
    base = tmp_path / "base"
    shutil.copytree(tiny_dir, base, copy_function=shutil.copyfile)
    for name in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        content = json.loads((base / name).read_text())
        absent = ("chat_template", "pad_token", "pad_token_id")
        (base / name).write_text(json.dumps({key: value for key, value in content.items() if key not in absent}))
    settings = {"model_name_or_path": str(base), "max_steps": 1, "packing": False}
    assert cli.main(["sft", str(make_sft(**settings))]) == 2
    assert "has no chat template; set chat_template (shipped:" in capsys.readouterr().err
    assert cli.main(["sft", str(make_sft(**settings)), "--chat_template=zephyr"]) == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "sft")
    assert tokenizer.pad_token == tokenizer.eos_token and "<|assistant|>" in tokenizer.chat_template
    assert manifest_of(tmp_path / "sft")["first_row"]["learnt"].endswith("<|end_of_text|>")
    assert json.loads((tmp_path / "sft" / "generation_config.json").read_text())["eos_token_id"] in (1, [1])


def test_old_names_are_converted(make_sft) -> None:
    run = read_sft_settings(make_sft(max_length=None, warmup_steps=None), ["--max_seq_length=64", "--warmup_ratio=0.2"])
    assert (run.training.max_length, run.training.warmup_steps) == (64, 0.2)
    assert "max_seq_length -> max_length" in run.conversions
    assert set(run.resolved) <= set(sft_field_types())


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*")), ids=lambda path: path.stem)
def test_recipes_hold_the_published_values(path) -> None:
    run = read_sft_settings(path, ["--use_cpu=true"])
    args = run.training
    assert run.data.dataset_mixer == {"HuggingFaceH4/ultrachat_200k": 1.0}
    assert run.data.dataset_splits == ["train_sft", "test_sft"]
    assert (args.learning_rate, args.total_train_batch_size, args.max_length) == (2e-5, 128, 2048)
    assert (args.num_train_epochs, args.lr_scheduler_type, args.warmup_steps) == (1, "cosine", 0.1)
    assert args.packing and args.assistant_only_loss and args.bf16 and args.gradient_checkpointing
    assert args.gradient_accumulation_steps == 32 and run.conversions == []
    base, template = {
        "llama-3-8b-base-sft": ("meta-llama/Meta-Llama-3-8B", "llama-3"),
        "mistral-7b-base-sft": ("mistralai/Mistral-7B-v0.1", "zephyr"),
    }[path.stem]
    assert (run.model.model_name_or_path, run.data.chat_template) == (base, template)
    # the preference recipe of the same setting goes on from what this one leaves
    after = read_settings(
        ROOT / "training_configs" / f"{path.stem.removesuffix('-sft')}-simpo.yaml", ["--use_cpu=true"]
    )
    assert after.training.add_empty_system == args.add_empty_system
    assert f"--model_name_or_path={args.output_dir}" in path.read_text()


@pytest.mark.multiprocess
def test_zero3_accumulates(make_sft, tmp_path) -> None:
    config = make_sft(output_dir=str(tmp_path / "zero3"), per_device_train_batch_size=1)
    deepspeed(3, tmp_path, ROOT / "scripts" / "run_sft.py", str(config))
    assert manifest_of(tmp_path / "zero3")["effective_batch"]["micro_batches_per_device"] == 2
    run_sft(read_sft_settings(make_sft(per_device_train_batch_size=1)))
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("zero3", "sft"))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=1e-4, rtol=0)


def test_a_data_set_of_dialogues_is_read_once(tmp_path) -> None:
    """Ids depend on code, template and options only, so a second run reads the cache."""
    from simpo.data.dialogue_ids import DialogueOptions, tokenize_dialogues

    data = Dataset.from_list([{"messages": talk(1)}])
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tests" / "golden" / "tiny")
    first, second = (tokenize_dialogues(data, tokenizer, DialogueOptions())[0]._fingerprint for _ in range(2))
    assert first == second
    assert tokenize_dialogues(data, tokenizer, DialogueOptions(max_length=9 * 9))[0]._fingerprint != first


def test_launching(make_sft, monkeypatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr("simpo.cli.supervise.supervise", lambda command, *_: commands.append(command))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    config = str(make_sft())
    assert cli.main(["sft", config, "--accelerate", "zero3", "--overwrite", "--max_steps", "3"]) == 0
    (command,) = commands
    assert command[-6:] == ["-m", "simpo.cli", "sft", config, "--overwrite", "--max_steps=3"]
    assert cli.main(["sft", config, "--accelerate", "zero3", "--packin"]) == 2 and len(commands) == 1
