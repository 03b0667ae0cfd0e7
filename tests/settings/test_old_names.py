"""Old names: what they become, which mean nothing today, which cannot be kept."""

from collections.abc import Callable
from typing import Any

import pytest

from simpo.settings.fieldtypes import field_types
from simpo.settings.oldnames import ALIASES, OLD_NAMES, RENAMED
from tests.settings.conftest import Read


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
