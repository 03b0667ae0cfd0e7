"""AlpacaEval with the official package itself, where it is: from questions to results with a scripted judge."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from simpo.cli import main
from simpo.evals.results import read_result
from tests.engines.serving import Handler, Server

PYTHON = os.environ.get("ALPACA_EVAL_PYTHON") or (sys.executable if importlib.util.find_spec("alpaca_eval") else None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="needs alpaca_eval here, or ALPACA_EVAL_PYTHON, an interpreter with it"),
]
GAMED = ["model", "index", "preference", "std_delta_len", "instruction_difficulty", "not_gamed_baseline"]
TOPICS = [f"subject number {number}" for number in range(60)]


def weighing(handler: Handler, body: dict[str, Any]) -> None:
    """One token with its log-probs, as the weighted annotator asks for: m, M being the two answers."""
    text = body["messages"][-1]["content"]
    share = 0.3 + 0.4 * (len(text) % 7) / 6
    tops = [{"token": token, "logprob": value, "bytes": None} for token, value in _logs(share)]
    choice = {
        "index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": "m"},
        "logprobs": {"content": [{**tops[0], "top_logprobs": tops}], "refusal": None},
    }  # fmt: skip
    usage = {"prompt_tokens": 300, "completion_tokens": 1, "total_tokens": 301}
    known = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"]}
    handler.send(200, json.dumps({**known, "choices": [choice], "usage": usage}))


def _logs(share: float) -> list[tuple[str, float]]:
    return [("m", math.log(share)), ("M", math.log(1 - share))]


def test_from_questions_to_results(tiny_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("MY_KEY", "secret-2")
    rows = [{"instruction": f"Tell me about {topic}.", "dataset": "helpful_base"} for topic in TOPICS]
    baseline = [{**row, "output": "It is " + "so " * (at % 9), "generator": "base"} for at, row in enumerate(rows)]
    (tmp_path / "questions.json").write_text(json.dumps(rows))
    (tmp_path / "base.json").write_text(json.dumps(baseline))
    with open(tmp_path / "df_gamed.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(GAMED)
        for sign in (-1, 1):
            for at in range(60):
                writer.writerow(["base_gamed", at, 0.5 + 0.1 * sign, sign, (at % 5 - 2) / 5, False])
    words = ["eval", "alpaca_eval", "--model", tiny_dir, "--name=mine", "--use_cpu", "--max_new_tokens=8",
             f"--questions={tmp_path / 'questions.json'}", f"--output_dir={tmp_path / 'run'}",
             "--judge_api_key_env=MY_KEY", f"--baseline_answers={tmp_path / 'base.json'}",
             f"--df_gamed={tmp_path / 'df_gamed.csv'}", f"--alpaca_eval_python={PYTHON}"]  # fmt: skip
    with Server(weighing) as server:
        assert main([*words, f"--judge_urls=[{server.url}]"]) == 0, capfd.readouterr().err
        asked = len(server.seen)
        assert main([*words, f"--judge_urls=[{server.url}]"]) == 0
        assert asked == 60 and len(server.seen) == 60  # the second start asks nothing
    result = read_result(tmp_path / "run" / "weighted_alpaca_eval_gpt4_turbo")
    assert result.counts["instructions"] == 60 and result.counts["no_preference"] == 0
    assert 30 < result.metrics["win_rate"].value < 70 and 0 < result.metrics["lc_win_rate"].value < 100
