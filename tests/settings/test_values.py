"""From files and overrides to values: what wins, how text becomes a type."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simpo.errors import ConfigError
from simpo.settings import read_settings
from simpo.settings.entries import read_overrides
from simpo.settings.fieldtypes import field_types
from tests.settings.conftest import TEMPLATE, Read


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


def test_every_setting_has_a_type() -> None:
    for name, kind in field_types().items():
        default = next(item for item in dataclasses.fields(kind.owner) if item.name == name).default
        if default is not dataclasses.MISSING and not name.startswith("dataloader_multiprocessing"):
            kind.fit(getattr(default, "value", default), None)
