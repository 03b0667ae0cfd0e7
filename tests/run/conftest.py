"""A small run in a folder of its own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.fixture
def make_config(golden, tiny_dir, tmp_path) -> Callable[..., Path]:
    """make_config(**settings) -> path of a YAML for a run of the tiny model on 24 pairs in `tmp_path`."""

    def make(**settings: Any) -> Path:
        for name, numbers in (("train", range(3)), ("test", range(1))):
            with open(tmp_path / f"{name}.jsonl", "w") as file:
                for number in numbers:
                    for row in golden["rows"]:
                        text = json.dumps(row).replace("?", f" ({number})?")  # prompts that differ between copies
                        file.write(text + "\n")
        config = {
            "model_name_or_path": tiny_dir,
            "dataset_mixer": {str(tmp_path / "train.jsonl"): 1.0},
            "eval_dataset_mixer": {str(tmp_path / "test.jsonl"): 1.0},
            "output_dir": str(tmp_path / "out"),
            "total_train_batch_size": 8,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "max_length": 512,
            "max_prompt_length": 400,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "bf16": False,
            "disable_tqdm": True,
            "monitor": "off",
        }
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in (config | settings).items() if value is not None}))
        return path

    return make
