"""What is refused, and how it is said: file and line, what is wrong, what to write."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simpo.errors import ConfigError
from simpo.run.sft.settings import sft_field_types
from simpo.settings import check_settings, read_settings
from simpo.settings.fieldtypes import field_types
from simpo.settings.oldnames import SFT_ONLY, SWEEP_ONLY
from simpo.sweep.space import _KEYS as sweep_keys


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
    with pytest.raises(ConfigError, match="it is a folder; name a YAML file in it"):
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
