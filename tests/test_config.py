"""SimPOConfig, DataConfig, ModelSettings: defaults, bounds, contradictions, the batch, and round trips."""

import dataclasses
import json
import math
import warnings
from typing import Any

import pytest

from simpo.checks import find_problems
from simpo.config import DataConfig, ModelSettings, SimPOConfig
from simpo.errors import ConfigError


def make(**values: Any) -> SimPOConfig:
    return SimPOConfig(**{"output_dir": "unused", "use_cpu": True, **values})


def test_defaults_are_the_papers() -> None:
    args = make()
    assert (args.beta, args.gamma_beta_ratio, args.gamma) == (2.0, 0.5, 1.0)
    assert (args.sft_weight, args.label_smoothing, args.loss_type) == (0.0, 0.0, "sigmoid")
    assert (args.max_length, args.max_prompt_length, args.tokenization) == (1024, 512, "standard")
    assert (args.learning_rate, args.lr_scheduler_type, args.warmup_steps) == (1e-6, "cosine", 0.1)
    assert args.num_train_epochs == 1
    assert (args.per_device_train_batch_size, args.per_device_eval_batch_size, args.logging_steps) == (2, 4, 5)
    assert args.prefix_sharing and args.disable_dropout and not args.add_empty_system
    assert args.report_to == [] and args.remove_unused_columns is False
    assert args.bf16 is False  # on a CPU


def test_warmup_is_a_part_of_the_steps() -> None:
    assert make().get_warmup_steps(200) == 20


def test_gamma_is_computed() -> None:
    assert make(beta=10, gamma_beta_ratio=0.3).gamma == pytest.approx(3.0)


def test_batch_from_accumulation() -> None:
    args = make(per_device_train_batch_size=2, gradient_accumulation_steps=16)
    assert args.total_train_batch_size == 32
    assert args.micro_batches_per_step == 16
    assert args.gradient_accumulation_steps == 1, "the optimizer step is the unit"


def test_accumulation_from_batch() -> None:
    args = make(per_device_train_batch_size=3, total_train_batch_size=8)
    assert args.micro_batches_per_step == 3
    assert args.gradient_accumulation_steps == 1


def test_batch_that_agrees_is_accepted() -> None:
    args = make(per_device_train_batch_size=2, gradient_accumulation_steps=4, total_train_batch_size=8)
    assert args.micro_batches_per_step == 4


def test_batch_contradiction_names_all_numbers() -> None:
    with pytest.raises(ConfigError) as caught:
        make(per_device_train_batch_size=2, gradient_accumulation_steps=16, total_train_batch_size=128)
    message = str(caught.value)
    for part in ("total_train_batch_size: 128", "2 x", "gradient_accumulation_steps 16", "1 processes = 32", "leave"):
        assert part in message


@pytest.mark.parametrize(
    "values",
    [
        {"gradient_accumulation_steps": 8, "beta": 10, "gamma_beta_ratio": 0.3},
        {"total_train_batch_size": 7, "gradient_checkpointing": True},
        {"model_init_kwargs": {"revision": "x"}, "report_to": ["tensorboard"], "warmup_steps": 0.25},
        {"loss_type": "hinge", "tokenization": "paper", "resume_from_checkpoint": False},
    ],
)
def test_dictionary_round_trip(values: dict[str, Any]) -> None:
    first = make(**values)
    second = SimPOConfig(**json.loads(json.dumps(first.to_dict())))
    assert second.to_dict() == first.to_dict()
    assert second.micro_batches_per_step == first.micro_batches_per_step


def test_replace_keeps_the_batch() -> None:
    args = make(gradient_accumulation_steps=8)
    assert dataclasses.replace(args, beta=3.0).total_train_batch_size == args.total_train_batch_size == 16


@pytest.mark.parametrize("name", ["gradient_checkpointing", "activation_checkpointing"])
@pytest.mark.parametrize("value", [True, False])
def test_both_checkpointing_names_without_a_warning(name: str, value: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        args = make(**{name: value, f"{name}_kwargs": {"use_reentrant": False}})
    assert args.gradient_checkpointing is value and args.activation_checkpointing is value
    assert args.gradient_checkpointing_kwargs == args.activation_checkpointing_kwargs == {"use_reentrant": False}


def test_checkpointing_is_off_by_default() -> None:
    args = make()
    assert args.gradient_checkpointing is False and args.activation_checkpointing is False
    assert args.gradient_checkpointing_kwargs is None


def test_json_text_for_mappings() -> None:
    args = make(model_init_kwargs='{"revision": "x"}', activation_checkpointing_kwargs='{"use_reentrant": false}')
    assert args.model_init_kwargs == {"revision": "x"}
    assert args.gradient_checkpointing_kwargs == {"use_reentrant": False}
    with pytest.raises(ConfigError, match=r"model_init_kwargs.*not a mapping"):
        make(model_init_kwargs="revision")


def test_no_tracker_by_null() -> None:
    assert make(report_to=None).report_to == []


def test_tokens_are_not_printed() -> None:
    assert "hf_secret" not in repr(make(hub_token="hf_secret"))


def test_accelerate_environment_means_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    args = SimPOConfig(output_dir="unused", bf16=True)
    assert args.use_cpu and args.bf16


def test_bf16_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simpo.config.is_torch_bf16_gpu_available", lambda: False)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    with pytest.raises(ConfigError, match=r"bf16: true.*write bf16: false, or use_cpu: true"):
        SimPOConfig(output_dir="unused", bf16=True)
    assert SimPOConfig(output_dir="unused").bf16 is False


def test_bf16_default_on_a_device_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simpo.config.is_torch_bf16_gpu_available", lambda: True)
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    assert SimPOConfig(output_dir="unused").bf16 is True
    assert SimPOConfig(output_dir="unused", fp16=True).bf16 is False
    assert make().bf16 is False, "use_cpu"


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"beta": 0}, ["beta: 0", "above 0"]),
        ({"beta": math.nan}, ["beta: nan"]),
        ({"beta": "2"}, ["beta: '2'"]),
        ({"beta": True}, ["beta: True"]),
        ({"learning_rate": None}, ["learning_rate: None"]),
        ({"gamma_beta_ratio": -0.1}, ["gamma_beta_ratio: -0.1", "0 or more"]),
        ({"sft_weight": -1}, ["sft_weight: -1"]),
        ({"label_smoothing": 0.5}, ["label_smoothing: 0.5", "below 0.5"]),
        ({"max_length": 0}, ["max_length: 0"]),
        ({"max_length": 512, "max_prompt_length": 512}, ["max_prompt_length: 512", "max_length: 512", "below"]),
        ({"loss_type": "ipo"}, ["loss_type: 'ipo'", "sigmoid or hinge"]),
        ({"tokenization": "papers"}, ["tokenization: 'papers'", "standard or paper"]),
        ({"loss_type": "hinge", "label_smoothing": 0.1}, ["label_smoothing", "hinge"]),
        ({"bf16": True, "fp16": True}, ["bf16 and fp16"]),
        ({"learning_rate": -1e-6}, ["learning_rate"]),
        ({"warmup_steps": -1}, ["warmup_steps: -1"]),
        ({"per_device_train_batch_size": 0}, ["per_device_train_batch_size: 0", "at least 1"]),
        ({"gradient_accumulation_steps": 0}, ["gradient_accumulation_steps: 0"]),
        ({"total_train_batch_size": 0}, ["total_train_batch_size: 0"]),
        ({"dataset_num_proc": 0}, ["dataset_num_proc: 0"]),
        ({"include_num_input_tokens_seen": True}, ["include_num_input_tokens_seen", "leave it out"]),
        ({"train_sampling_strategy": "group_by_length"}, ["train_sampling_strategy", "leave it out"]),
        ({"auto_find_batch_size": True}, ["auto_find_batch_size", "per_device_train_batch_size"]),
        ({"label_smoothing_factor": 0.1}, ["label_smoothing_factor", "write label_smoothing"]),
        ({"deepspeed": {"gradient_accumulation_steps": 16}}, ["gradient_accumulation_steps 16", "auto"]),
        ({"accelerator_config": {"split_batches": True}}, ["accelerator_config", "split_batches"]),
    ],
)
def test_out_of_bounds(values: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        make(**values)
    for part in parts:
        assert part in str(caught.value)


def test_all_problems_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        make(beta=-1, max_length=0)
    assert "beta: -1" in str(caught.value) and "max_length: 0" in str(caught.value)


def test_checks_need_no_object() -> None:
    assert find_problems({"beta": 2.0}) == []
    assert find_problems({"beta": -1.0})[0].keys == ("beta",)


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"dataset_mixer": {}}, "dataset_mixer is empty"),
        ({"dataset_mixer": {"a": 0.0}}, "a: 0.0 must be a fraction"),
        ({"dataset_mixer": {"a": 1.5}}, "at most 1"),
        ({"eval_dataset_mixer": {"a": -1}}, "eval_dataset_mixer"),
        ({"dataset_mixer": {"a": 1.0}, "dataset_name": "b"}, "both set"),
        ({"dataset_splits": []}, "dataset_splits is empty"),
        ({"dataset_mixer": {"a": 1.0}, "dataset_configs": ["x", None]}, "2 entries for 1 sources"),
        ({"dataset_weights": {"a": 0.5}, "dataset_mixer": {"a": 1.0}}, "a: 0.5 must be 1 or more"),
        ({"deduplicate": "fuzzy"}, "off, exact or near"),
        ({"test_size": -1}, "test_size: -1"),
        ({"test_size": 1.5}, "test_size: 1.5"),
        ({"test_size": 0.1, "eval_dataset_mixer": {"a": 1.0}}, "test_size is not used"),
        ({"max_train_samples": 0}, "max_train_samples: 0"),
    ],
)
def test_data_settings(values: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match=part.replace(".", r"\.")):
        DataConfig(**values)


def test_data_defaults() -> None:
    data = DataConfig(dataset_name="pairs.jsonl")
    assert data.dataset_mixer == {"pairs.jsonl": 1.0}
    assert data.dataset_splits == ["train", "test"]
    assert DataConfig(**dataclasses.asdict(data)) == data


def test_model_settings() -> None:
    assert ModelSettings().dtype is None
    assert ModelSettings().peft_config() is None
    assert ModelSettings().quantization_config() is None
    adapter = ModelSettings(use_peft=True, lora_r=4, lora_target_modules="all-linear").peft_config()
    assert (adapter.r, adapter.target_modules) == (4, "all-linear")
    assert ModelSettings(use_peft=True, lora_target_modules=["q_proj", "v_proj"]).peft_config().r == 16
    with pytest.raises(ConfigError, match="write use_peft: true"):
        ModelSettings(load_in_4bit=True)
    with pytest.raises(ConfigError, match="keep one"):
        ModelSettings(load_in_4bit=True, load_in_8bit=True, use_peft=True)


@pytest.mark.parametrize(("dtype", "name"), [(None, "bfloat16"), ("auto", "bfloat16"), ("float16", "float16")])
def test_quantised_weights_compute_in_16_bits(monkeypatch: pytest.MonkeyPatch, dtype: str | None, name: str) -> None:
    seen = []
    monkeypatch.setattr("trl.get_quantization_config", seen.append)
    settings = ModelSettings(use_peft=True, load_in_4bit=True, dtype=dtype)
    settings.quantization_config()
    assert seen[0].dtype == name and settings.dtype == dtype
