"""The six published files run unchanged: the keys and values of their users."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from simpo.settings import read_settings
from tests.settings.conftest import TEMPLATE

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
