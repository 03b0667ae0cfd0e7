"""From YAML text and overrides to settings: conversion of old names, types, and what a user is told."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from simpo.errors import ConfigError
from simpo.run.sft.settings import sft_field_types
from simpo.settings import RunSettings, check_settings, lint, read_settings, recommendations
from simpo.settings.entries import read_overrides
from simpo.settings.fieldtypes import field_types
from simpo.settings.oldnames import ALIASES, OLD_NAMES, RENAMED, SFT_ONLY, SWEEP_ONLY
from simpo.sweep.space import _KEYS as sweep_keys

BASE = "model_name_or_path: some/model\nuse_cpu: true\ndataset_mixer: {pairs.jsonl: 1.0}\n"
Read = Callable[..., RunSettings]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(text: str, name: str = "run.yaml", base: str = BASE) -> Path:
        path = tmp_path / name
        path.write_text(base + text)
        return path

    return write


@pytest.fixture
def read(write: Callable[..., Path]) -> Read:
    return lambda text="", *overrides: read_settings(write(text), overrides)


@pytest.fixture
def refusal(read: Read) -> Callable[..., str]:
    """The message that a text and overrides are refused with."""

    def refusal(text: str, *overrides: str) -> str:
        with pytest.raises(ConfigError) as caught:
            read(text, *overrides)
        return str(caught.value)

    return refusal


# --- the six published files: the keys and values of their users ------------------------------------------------

COMMON: dict[str, Any] = {
    "torch_dtype": None,
    "preprocessing_num_workers": 12,
    "bf16": True,
    "do_eval": True,
    "evaluation_strategy": "steps",
    "eval_steps": 400,
    "gradient_accumulation_steps": 16,
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "hub_model_id": "simpo-exps",
    "log_level": "info",
    "logging_steps": 5,
    "lr_scheduler_type": "cosine",
    "num_train_epochs": 1,
    "optim": "adamw_torch",
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 4,
    "push_to_hub": False,
    "save_strategy": "steps",
    "save_steps": 1000000,
    "report_to": ["wandb"],
    "save_total_limit": 20,
    "seed": 42,
    "warmup_ratio": 0.1,
}
LLAMA = "meta-llama/Meta-Llama-3-8B-Instruct"
TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
# name: model, dataset, splits, learning rate, lengths, what is written, beta, ratio
PUBLISHED: dict[str, tuple[str, str, list[str], float, tuple[int, int], dict[str, Any], float, float]] = {
    "mistral-7b-base-simpo": (
        "alignment-handbook/zephyr-7b-sft-full",
        "HuggingFaceH4/ultrafeedback_binarized",
        ["train_prefs", "test_prefs"],
        3e-7,
        (1024, 512),
        {"use_flash_attention_2": True, "beta": 2.0, "gamma": 1.6},
        2.0,
        0.8,
    ),
    "mistral-7b-instruct-simpo": (
        "mistralai/Mistral-7B-Instruct-v0.2",
        "princeton-nlp/mistral-instruct-ultrafeedback",
        ["train", "test"],
        5e-7,
        (2048, 1800),
        {"attn_implementation": "flash_attention_2", "beta": 2.5, "simpo_gamma": 0.25},
        2.5,
        0.1,
    ),
    "llama-3-8b-base-simpo": (
        "princeton-nlp/Llama-3-Base-8B-SFT",
        "HuggingFaceH4/ultrafeedback_binarized",
        ["train_prefs", "test_prefs"],
        6e-7,
        (2048, 1800),
        {"use_flash_attention_2": True, "beta": 2.0, "gamma_beta_ratio": 0.5},
        2.0,
        0.5,
    ),
    "llama-3-8b-instruct-simpo": (
        LLAMA,
        "princeton-nlp/llama3-ultrafeedback",
        ["train", "test"],
        1e-6,
        (2048, 1800),
        {"use_flash_attention_2": True, "beta": 2.5, "gamma_beta_ratio": 0.55},
        2.5,
        0.55,
    ),
    "llama-3-8b-instruct-simpo-v2": (
        LLAMA,
        "princeton-nlp/llama3-ultrafeedback-armorm",
        ["train", "test"],
        1e-6,
        (2048, 1800),
        {"attn_implementation": "flash_attention_2", "beta": 10, "gamma_beta_ratio": 0.3},
        10.0,
        0.3,
    ),
    "gemma-2-9b-it-simpo": (
        "google/gemma-2-9b-it",
        "princeton-nlp/gemma2-ultrafeedback-armorm",
        ["train", "test"],
        8e-7,
        (2048, 1800),
        {"attn_implementation": "eager", "beta": 10, "gamma_beta_ratio": 0.5, "chat_template": TEMPLATE},
        10.0,
        0.5,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_run_unchanged(name: str, tmp_path: Path) -> None:
    model, dataset, splits, rate, lengths, written, beta, ratio = PUBLISHED[name]
    values = {
        **COMMON,
        **written,
        "model_name_or_path": model,
        "dataset_mixer": {dataset: 1.0},
        "dataset_splits": splits,
        "learning_rate": rate,
        "max_length": lengths[0],
        "max_prompt_length": lengths[1],
        "output_dir": f"outputs/{name}",
        "run_name": name,
    }
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))

    settings = read_settings(path, ["--use_cpu=true"])

    training = settings.training
    assert settings.model.model_name_or_path == model and settings.model.dtype is None
    assert settings.model.attn_implementation == ("eager" if "gemma" in name else "flash_attention_2")
    assert settings.data.dataset_mixer == {dataset: 1.0} and settings.data.dataset_splits == splits
    assert settings.data.chat_template == (TEMPLATE if "gemma" in name else None)
    assert (training.learning_rate, training.beta) == (rate, beta)
    assert training.gamma_beta_ratio == pytest.approx(ratio, abs=1e-12)
    assert (training.max_length, training.max_prompt_length) == lengths
    assert training.total_train_batch_size == 32, "2 pairs x 16 on one process, 128 on the four of the paper"
    assert training.warmup_steps == 0.1 and training.eval_strategy == "steps" and training.dataset_num_proc == 12
    assert training.activation_checkpointing_kwargs == {"use_reentrant": False} and training.bf16
    for line in (
        "torch_dtype -> dtype",
        "evaluation_strategy -> eval_strategy",
        "preprocessing_num_workers -> dataset_num_proc",
        "warmup_ratio: 0.1 -> warmup_steps: 0.1",
    ):
        assert settings.conversions.count(line) == 1


def test_the_common_facts_with_four_processes() -> None:
    assert COMMON["per_device_train_batch_size"] * COMMON["gradient_accumulation_steps"] * 4 == 128


# --- files and overrides ----------------------------------------------------------------------------------------


def test_later_files_and_overrides_win(write: Callable[..., Path]) -> None:
    first = write("beta: 2.0\nseed: 1\nmax_length: 900\n", "first.yaml")
    second = write("beta: 3.0\nseed: 2\n", "second.yaml", base="")
    settings = read_settings([first, second], ["--seed=3"])
    assert (settings.training.max_length, settings.training.beta, settings.training.seed) == (900, 3.0, 3)
    assert settings.files == [first, second]
    assert settings.resolved["seed"] == 3 and "report_to" not in settings.resolved


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["--learning_rate=3e-7"], "learning_rate", 3e-7),
        (["--learning_rate", "3e-7"], "learning_rate", 3e-7),
        (["--max-length=700"], "max_length", 700),
        (["--max_length=1e3"], "max_length", 1000),
        (["--max_steps", "-1"], "max_steps", -1),
        (["--bf16"], "bf16", True),
        (["--bf16=False"], "bf16", False),
        (["--do_eval=yes"], "do_eval", True),
        (["--save_strategy=no"], "save_strategy", "no"),
        (["--run_name=2024-01-01"], "run_name", "2024-01-01"),
        (["--run_name=12:30"], "run_name", "12:30"),
        (["--model_revision=12e4567"], "model_revision", "12e4567"),
        (["--report_to=none"], "report_to", "none"),
        (["--report_to=[wandb, tensorboard]"], "report_to", ["wandb", "tensorboard"]),
        (["--dataset_splits=[a, b]"], "dataset_splits", ["a", "b"]),
        (["--dataset_mixer={x.jsonl: 0.5}"], "dataset_mixer", {"x.jsonl": 0.5}),
        (["--model_init_kwargs={max_memory: 1e-3}"], "model_init_kwargs", {"max_memory": 1e-3}),
        (["--chat_template=" + TEMPLATE], "chat_template", TEMPLATE),
        (["--chat_template={{ bos_token }}"], "chat_template", "{{ bos_token }}"),
        (["--total_train_batch_size=null"], "total_train_batch_size", None),
        (["--seed=1", "--seed=2"], "seed", 2),
    ],
)
def test_overrides(read: Read, words: list[str], key: str, value: Any) -> None:
    resolved = read("", *words).resolved[key]
    assert resolved == value and type(resolved) is type(value)


@pytest.mark.parametrize("word", ["beta=2", "-beta=2", "--=2", "--a b=2"])
def test_words_that_are_no_override(word: str) -> None:
    with pytest.raises(ConfigError, match="write --key=value"):
        read_overrides([word])


@pytest.mark.parametrize("text", ["3e-7", "3.0e-7", "3E-7", "'3e-7'", "0.0000003"])
def test_numbers_with_an_exponent(read: Read, text: str) -> None:
    assert read(f"learning_rate: {text}\n").training.learning_rate == 3e-7


def test_numbers_inside_mappings(read: Read) -> None:
    settings = read("lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr: 1e-8}\n")
    assert settings.training.lr_scheduler_kwargs == {"min_lr": 1e-8}


@pytest.mark.parametrize("dtype", ["bfloat16", "auto", "null", "float32"])
@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_dtypes(read: Read, name: str, dtype: str) -> None:
    assert read(f"{name}: {dtype}\n").model.dtype == (None if dtype == "null" else dtype)


@pytest.mark.parametrize("name", ["flash_attention_2", "eager", "sdpa"])
def test_attention_is_a_preference(read: Read, name: str) -> None:
    settings = read(f"attn_implementation: {name}\n")
    assert settings.model.attn_implementation == name
    assert (
        len(
            [
                line
                for line in settings.conversions
                if f"attn_implementation: {name} -> simpo's packed attention" in line
            ]
        )
        == 1
    )


def test_hub_token_is_masked(read: Read) -> None:
    settings = read("hub_token: hf_secret\n")
    assert settings.training.hub_token == "hf_secret" and settings.resolved["hub_token"] == "<HUB_TOKEN>"


def test_checkpointing_names_override_each_other(read: Read) -> None:
    settings = read("gradient_checkpointing: true\n", "--activation_checkpointing=false")
    assert settings.training.gradient_checkpointing is False
    assert settings.conversions == []


# --- old names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key", "value", "line"),
    [
        ("evaluation_strategy: epoch", "eval_strategy", "epoch", "evaluation_strategy -> eval_strategy"),
        ("no_cuda: true", "use_cpu", True, "no_cuda -> use_cpu"),
        ("warmup_ratio: 0.05", "warmup_steps", 0.05, "warmup_ratio: 0.05 -> warmup_steps: 0.05"),
        ("auto_insert_empty_system_msg: true", "add_empty_system", True, "-> add_empty_system"),
        (
            "beta: 2.0\ngamma: 1.6",
            "gamma_beta_ratio",
            0.8,
            "gamma: 1.6 -> gamma_beta_ratio: 0.8 (gamma / beta = 1.6 / 2)",
        ),
        ("beta: 10\nsimpo_gamma: 3", "gamma_beta_ratio", 0.3, "simpo_gamma: 3 -> gamma_beta_ratio: 0.3"),
        ("gamma: 1.0", "gamma_beta_ratio", 0.5, "gamma / beta = 1 / 2"),
        ("use_flash_attention_2: true", "attn_implementation", "flash_attention_2", "use_flash_attention_2: true ->"),
    ],
)
def test_old_names(read: Read, text: str, key: str, value: Any, line: str) -> None:
    base = text.startswith("no_cuda")
    settings = read(text + "\n") if not base else read(text + "\n", "--use_cpu=true")
    assert (
        settings.resolved[key] == pytest.approx(value) if isinstance(value, float) else settings.resolved[key] == value
    )
    assert any(line in converted for converted in settings.conversions)


@pytest.mark.parametrize(
    "text",
    [
        "logging_dir: logs",
        "overwrite_output_dir: true",
        "group_by_length: false",
        "use_flash_attention_2: false",
        "truncation_mode: keep_end",
        "label_pad_token_id: -100",
        "save_safetensors: true",
        "max_target_length: null",
    ],
)
def test_old_names_without_a_meaning_today(read: Read, text: str) -> None:
    settings = read(text + "\n")
    key = text.split(":")[0]
    assert key not in settings.resolved
    assert any(line.startswith(f"{key}: ") and "-> nothing; " in line for line in settings.conversions)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("group_by_length: true", ["group_by_length: true is not supported", "leave it out"]),
        ("truncation_mode: keep_start", ["truncation_mode: keep_start"]),
        ("max_target_length: 128", ["max_target_length: 128", "write max_length"]),
        ("cpo_alpha: 1.0", ["cpo_alpha", "sft_weight"]),
        ("warmup_ratio: 1.0", ["warmup_ratio: 1", "write warmup_steps"]),
        ("warmup_ratio: ten", ["warmup_ratio: ten", "write warmup_steps"]),
        ("use_flash_attention_2: 2", ["use_flash_attention_2: 2", "attn_implementation"]),
        ("gamma: much", ["gamma: much has the wrong type", "a number"]),
        ("beta: 0\ngamma: 1", ["beta: 0 must be above 0"]),
        ("gamma: -1", ["gamma_beta_ratio: -0.5"]),
        ("beta: 2\ngamma: 1.6\ngamma_beta_ratio: 0.5", ["gamma: 1.6 with beta: 2 means gamma_beta_ratio: 0.8", "0.5"]),
        ("gamma: 1\nsimpo_gamma: 2", ["simpo_gamma: 2 contradicts gamma: 1"]),
        ("warmup_ratio: 0.1\nwarmup_steps: 100", ["warmup_steps: 100 contradicts warmup_ratio: 0.1"]),
        ("torch_dtype: auto\ndtype: bfloat16", ["dtype: bfloat16 contradicts torch_dtype: auto"]),
        ("use_flash_attention_2: true\nattn_implementation: eager", ["attn_implementation: eager contradicts"]),
    ],
)
def test_old_names_that_cannot_be_kept(refusal: Callable[..., str], text: str, parts: list[str]) -> None:
    message = refusal(text + "\n")
    for part in ["run.yaml:", *parts]:
        assert part in message


def test_agreeing_twins_are_accepted(read: Read) -> None:
    settings = read("beta: 2\ngamma: 1.6\ngamma_beta_ratio: 0.8\nwarmup_ratio: 0.2\nwarmup_steps: 0.2\n")
    assert settings.training.gamma == pytest.approx(1.6) and settings.training.warmup_steps == 0.2


def test_override_beats_the_other_spelling(read: Read) -> None:
    assert read("beta: 2\ngamma: 1.6\n", "--gamma_beta_ratio=0.1").training.gamma_beta_ratio == 0.1
    assert read("beta: 2\ngamma_beta_ratio: 0.1\n", "--gamma=1").training.gamma_beta_ratio == 0.5
    assert read("beta: 2\ngamma: 1\n", "--beta=10").training.gamma == pytest.approx(1.0)
    assert read("warmup_ratio: 0.1\n", "--warmup_steps=50").training.warmup_steps == 50


def test_contradiction_within_the_command_line(refusal: Callable[..., str]) -> None:
    message = refusal("beta: 2\n", "--gamma=1", "--gamma_beta_ratio=0.1")
    assert message.startswith("command line: --gamma: 1 with beta: 2")


def test_names_are_not_ambiguous() -> None:
    known = field_types()  # asserts that no two dataclasses share a name
    assert not set(known) & set(OLD_NAMES)
    assert set(RENAMED.values()) <= set(known) and set(ALIASES) | set(ALIASES.values()) <= set(known)


def test_every_setting_has_a_type() -> None:
    for name, kind in field_types().items():
        default = next(item for item in dataclasses.fields(kind.owner) if item.name == name).default
        if default is not dataclasses.MISSING and not name.startswith("dataloader_multiprocessing"):
            kind.fit(getattr(default, "value", default), None)


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "gama_beta_ratio: 0.5",
            ["run.yaml:4", "unknown setting 'gama_beta_ratio'", "did you mean 'gamma_beta_ratio'?"],
        ),
        ("Beta: 2", ["did you mean 'beta'?"]),
        ("evalution_strategy: steps", ["did you mean 'eval_strategy'?"]),
        ("learning-rate: 1e-6", ["did you mean 'learning_rate'?"]),
        ("qwxyzv: 1", ["unknown setting 'qwxyzv'", "docs/configuration.md"]),
        ("beta: high", ["run.yaml:4: beta: high has the wrong type", "write a number"]),
        ("beta: true", ["beta: true has the wrong type", "write a number"]),
        ("learning_rate:", ["learning_rate: null has the wrong type", "write a number"]),
        ("max_length: 10.5", ["max_length: 10.5", "a whole number"]),
        ("max_length: true", ["max_length: true", "a whole number"]),
        ("bf16: 2", ["bf16: 2", "true or false"]),
        (
            "loss_type: ipo",
            ["loss_type: ipo is unknown: write sigmoid or hinge", "write objective: ipo and no loss_type"],
        ),
        ("loss_type: kto_pair", ["write objective: kto and no loss_type"]),
        ("loss_type: squared", ["loss_type: squared is unknown: write sigmoid or hinge, or null"]),
        ("packing: true", ["unknown setting 'packing'; it belongs to SFT runs (simpo sft)"]),
        ("space: {beta: [2, 3]}", ["run.yaml:4: unknown setting 'space'; it belongs to the file of a search"]),
        ("dry_run: true", ["unknown setting 'dry_run'; it is an option of other verbs"]),
        ("accelerate: zero3", ["unknown setting 'accelerate'; it is an option of simpo train"]),
        ("eval_strategy: step", ["eval_strategy: step", "one of no, steps, epoch"]),
        ("lr_scheduler_type: cosin", ["lr_scheduler_type: cosin", "cosine"]),
        ("optim: adamw", ["optim: adamw is unknown", "adamw_torch"]),
        ("log_level: loud", ["log_level: loud", "info"]),
        ("dtype: half", ["dtype: half", "bfloat16"]),
        ("dataset_splits: train", ["dataset_splits: train", "a list of text"]),
        (
            "eval_dataset_mixer: pairs.jsonl",
            ["has the wrong type: write a mapping of text to a number", "e.g. {pairs.jsonl: 1.0}"],
        ),
        ("eval_dataset_mixer: [a, b]", ["eval_dataset_mixer", "a mapping of text to a number"]),
        ("eval_dataset_mixer: {a: 1.5}", ["run.yaml:4", "eval_dataset_mixer: a: 1.5", "at most 1"]),
        (
            "max_length: 512\nmax_prompt_length: 512",
            ["run.yaml:5: max_prompt_length: 512 must be below max_length: 512"],
        ),
        ("max_prompt_length: 1024", ["max_prompt_length: 1024 must be below max_length: 1024"]),
        ("label_smoothing: 0.6", ["run.yaml:4: label_smoothing: 0.6"]),
        ("loss_type: hinge\nlabel_smoothing: 0.1", ["label_smoothing is not used by loss_type: hinge"]),
        ("load_in_4bit: true", ["run.yaml:4: load_in_4bit: true", "write use_peft: true"]),
        ("lora_r: 8", ["lora_r is set but use_peft is not"]),
        ("model_init_kwargs: word", ["model_init_kwargs: 'word' is not a mapping"]),
        ("dtype: auto\nmodel_init_kwargs: {torch_dtype: bfloat16}", ["torch_dtype: bfloat16 contradicts dtype: auto"]),
        ("report_to: wandbb", ["report_to: 'wandbb' is no tracker"]),
        ("beta: 2\nseed: 1\nbeta: 3", ["run.yaml:6: beta stands twice, first at", "run.yaml:4"]),
        ("model_init_kwargs: {a: 1, a: 2}", ["run.yaml:4: not valid YAML: 'a' stands twice"]),
        ("chat_template: {{ bos_token }}{% for m in x %}", ["run.yaml:4: not valid YAML", "a template, needs quotes"]),
        ("beta: [2", ["run.yaml:", "not valid YAML"]),
        ("\tbeta: 2", ["run.yaml:4: not valid YAML"]),
        ("total_train_batch_size: 9\ngradient_accumulation_steps: 2", ["total_train_batch_size: 9", "leave"]),
    ],
)
def test_refusals(refusal: Callable[..., str], text: str, parts: list[str]) -> None:
    message = refusal(text + "\n")
    for part in parts:
        assert part in message


def test_keys_of_the_other_verbs_are_known() -> None:
    known = set(field_types())
    assert set(SFT_ONLY) == set(sft_field_types()) - known
    assert set(SWEEP_ONLY) == set(sweep_keys) - known - {"accelerate"}


def test_an_override_is_named_as_such(refusal: Callable[..., str]) -> None:
    assert refusal("", "--beta=high") == "command line: --beta: high has the wrong type: write a number, or null"
    assert refusal("", "--bta=2").startswith("command line: unknown setting 'bta'; did you mean 'beta'?")


def test_all_problems_are_told_at_once(refusal: Callable[..., str]) -> None:
    message = refusal("bta: 2\nmax_lenght: 3\n")
    assert message.startswith("2 settings are wrong") and "'bta'" in message and "'max_lenght'" in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("dataset_mixer: {a: 1.0}\n", "model_name_or_path is missing"),
        ("model_name_or_path: m\n", "dataset_mixer is missing"),
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("- a\n- b\n", "`name: value` lines"),
        ("just text\n", "`name: value` lines"),
        ("? [a, b]\n: 1\n", "must be text"),
    ],
)
def test_incomplete_files(write: Callable[..., Path], text: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        read_settings(write(text, base=""))


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml does not exist"):
        read_settings(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_settings(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"run_name: \xff\xfe\n")
    with pytest.raises(ConfigError, match="cannot be read as UTF-8"):
        read_settings(tmp_path / "latin.yaml")
    with pytest.raises(ConfigError, match="no settings file"):
        read_settings([])


def test_refusals_of_transformers_name_the_file(refusal: Callable[..., str]) -> None:
    message = refusal("dataloader_prefetch_factor: 2\n")
    assert "run.yaml: transformers refuses these settings" in message and "prefetch_factor" in message


def test_text_is_checked_before_any_device(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def built(*_: Any, **__: Any) -> None:
        raise AssertionError("SimPOConfig was built")

    monkeypatch.setattr("simpo.settings.resolve.PreferenceConfig.__init__", built)
    check_settings(write("beta: 3\n"))
    for text in ("beta: -1\n", "bta: 1\n", "beta: x\n", "max_prompt_length: 4096\n", "eval_dataset_mixer: {}\n"):
        with pytest.raises(ConfigError):
            read_settings(write(text))


# --- advice -----------------------------------------------------------------------------------------------------


def warned(settings: RunSettings) -> list[str]:
    lines = recommendations(settings, lint(settings.training, settings.model, settings.data))
    return [line.split(":")[0].removeprefix("! ") for line in lines if line.startswith("!")]


def test_recommendations(read: Read) -> None:
    assert warned(read("total_train_batch_size: 128\nlearning_rate: 6e-7\n")) == []
    assert len(recommendations(read(""))) == 4
    everything = read("beta: 0.1\ngamma_beta_ratio: 5\nlearning_rate: 1e-5\ntotal_train_batch_size: 64\n")
    assert warned(everything) == ["learning_rate", "total_train_batch_size", "beta", "gamma_beta_ratio"]
    assert "learning_rate: 1e-05 (recommended 3e-7, 5e-7, 8e-7 or 1e-6)" in recommendations(everything)[0]


def test_recommendations_for_adapters(read: Read) -> None:
    text = "use_peft: true\ntotal_train_batch_size: 128\n"
    assert warned(read(text + "learning_rate: 1e-5\n")) == []
    assert warned(read(text + "learning_rate: 1e-4\n")) == ["learning_rate"]


def test_every_own_setting_is_documented() -> None:
    from transformers import TrainingArguments

    text = (Path(__file__).resolve().parent.parent / "docs" / "configuration.md").read_text()
    inherited = {item.name for item in dataclasses.fields(TrainingArguments)}
    missing = [name for name in [*field_types(), *OLD_NAMES] if name not in inherited and f"`{name}" not in text]
    assert missing == []
