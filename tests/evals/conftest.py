"""Small benchmarks in files of the official forms, and settings that ask the tiny model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simpo.evals.settings import EvalSettings

ALPACA = [
    {"dataset": "helpful_base", "instruction": f"Tell me about {what}.", "output": "", "generator": "base"}
    for what in ("rivers", "the moon", "tea", "long roads")
]
ARENA = [
    {"question_id": f"q{n}", "category": "arena-hard-v0.1", "cluster": "c", "turns": [{"content": text}]}
    for n, text in enumerate(["Write a loop.", "Prove it.", "Sort a list, please.", "Why?"])
]
MT = [
    {"question_id": 81 + n, "category": category, "turns": [f"First {category}?", f"And then {category}?"]}
    for n, category in enumerate(["writing", "math", "stem"])
]
ROWS = {"alpaca_eval": ALPACA, "arena_hard": ARENA, "mt_bench": MT}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    """A .json list, or lines."""
    text = json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text)
    return str(path)


@pytest.fixture
def make_eval(tiny_dir: str, tmp_path: Path) -> Callable[..., EvalSettings]:
    """make_eval(benchmark, **settings) -> settings of the tiny model's answers in `tmp_path`/out."""

    def make(benchmark: str, **settings: Any) -> EvalSettings:
        name = "questions.json" if benchmark == "alpaca_eval" else "questions.jsonl"
        given = {
            "benchmark": benchmark, "model_name_or_path": tiny_dir, "output_dir": str(tmp_path / "out"),
            "questions": write_rows(tmp_path / name, ROWS[benchmark]), "max_new_tokens": 8, "use_cpu": True,
            "name": "tiny",
        }  # fmt: skip
        return EvalSettings(**given | settings)

    return make
