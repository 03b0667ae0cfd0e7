"""One benchmark as a whole: what a judge needs is looked for first, and what failed once joins what is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from simpo.errors import ConfigError, DataError, EngineError, SimPOError
from simpo.evals import run
from simpo.evals.run import run_eval
from tests.engines.serving import Handler, Server
from tests.evals.conftest import ARENA, write_rows
from tests.evals.judges import scripted


def answers_of(rows: list[dict[str, Any]], model: str) -> list[dict[str, Any]]:
    return [
        {"question_id": row["question_id"], "model_id": model, "choices": [{"index": 0, "turns": ["So."] * 2}]}
        for row in rows
    ]


@pytest.mark.parametrize(
    ("benchmark", "settings", "error", "message"),
    [
        ("mt_bench", {"references": "."}, DataError, r"gpt-4\.jsonl: there is no such file.*SimPO, eval/mt-bench"),
        ("arena_hard", {"baseline_answers": "none"}, ConfigError, "baseline_answers: there is no file none"),
        ("alpaca_eval", {"df_gamed": "none"}, ConfigError, "df_gamed: there is no file none"),
        ("alpaca_eval", {"alpaca_eval_python": "none"}, ConfigError, "alpaca_eval_python: there is no file none"),
        ("alpaca_eval", {"alpaca_eval_python": "/bin/false"}, EngineError, r"/bin/false has no alpaca_eval; pip"),
        ("alpaca_eval", {"judge_urls": ["http://a/v1", "http://b/v1"]}, ConfigError, "judge_urls: alpaca_eval asks"),
        ("arena_hard", {"judge_urls": ["http://me:secret@a/v1"]}, ConfigError, "^judge_urls: holds a password; put"),
        ("arena_hard", {"judge_timeout": 0.0}, ConfigError, "^judge_timeout: 0.0 must be above 0"),
    ],
)
def test_what_the_judge_needs_is_looked_for_before_anything_is_answered(
    make_eval, tmp_path, monkeypatch, benchmark: str, settings: dict[str, Any], error: type[SimPOError], message: str
) -> None:
    monkeypatch.chdir(tmp_path)

    def never(*_: object) -> None:
        raise AssertionError("answers were asked for")

    monkeypatch.setattr(run, "write_answers", never)
    with pytest.raises(error, match=message):
        run_eval(make_eval(benchmark, **{"judge_urls": ["http://127.0.0.1:9/v1"]} | settings))


def test_a_question_that_failed_once_joins_the_judgments(make_eval, tmp_path: Path, monkeypatch) -> None:
    """Judged without it first; then it is answered, and the judge is asked for its two games only."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    broken = True

    def policy(handler: Handler, body: dict[str, Any]) -> None:
        if broken and "Prove it." in str(body):
            handler.send(400, "no")
        else:
            handler.complete("An answer.")

    baseline = write_rows(tmp_path / "base.jsonl", answers_of(ARENA, "gpt-4-0314"))
    with Server(policy) as one, Server(scripted(lambda _: "[[A=B]]")) as judge:
        given: dict[str, Any] = {
            "engine": "server", "server_api": "chat", "server_urls": [one.url], "server_retries": 0, "use_cpu": False,
            "judge": "j", "judge_urls": [judge.url], "baseline_answers": baseline,
        }  # fmt: skip
        (result,) = run_eval(make_eval("arena_hard", **given))
        assert result.counts["questions"] == 3 and "1 questions have no answer and are left out" in result.warnings
        broken, before = False, len(judge.seen)
        (result,) = run_eval(make_eval("arena_hard", **given, retry_errors=True))
    assert result.counts["questions"] == 4 and len(judge.seen) == before + 2
    folder = tmp_path / "out/data/arena-hard-v0.1"  # as show_result.py wants it
    assert len((folder / "model_judgment/j/tiny.jsonl").read_text().splitlines()) == 4
