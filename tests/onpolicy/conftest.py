"""A small generation in a folder of its own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simpo.onpolicy.settings import GenerateSettings

QUESTIONS = ["Why is the sky blue?", "Name three rivers.", "Say hello.", "What is 2 + 2?", "Tell me a joke.", "Who?"]


@pytest.fixture
def make_generate(tiny_dir: str, tmp_path: Path) -> Callable[..., GenerateSettings]:
    """make_generate(rows, **settings) -> settings of the tiny model's answers to rows in `tmp_path`."""

    def make(rows: list[dict[str, Any]] | None = None, **settings: Any) -> GenerateSettings:
        rows = [{"prompt": text} for text in QUESTIONS] if rows is None else rows
        (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        defaults = {
            "model_name_or_path": tiny_dir, "dataset_name": str(tmp_path / "prompts.jsonl"),
            "output_dir": str(tmp_path / "out"), "max_new_tokens": 12, "batch_size": 10, "use_cpu": True,
        }  # fmt: skip
        return GenerateSettings(**defaults | settings)

    return make
