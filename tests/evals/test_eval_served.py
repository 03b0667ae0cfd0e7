"""From questions to results against a real server, `transformers serve`: tiny models as generator and as judges."""

import pytest

from simpo.cli import main
from simpo.evals.results import read_result
from tests.evals.conftest import ARENA, MT, write_rows
from tests.served import NEEDED, free_port, serving, teach_to_say

pytestmark = pytest.mark.slow

for name in NEEDED:
    pytest.importorskip(name, reason="transformers serve needs pip install 'transformers[serving]'")


def answers(rows, text):
    return [
        {
            "question_id": row["question_id"],
            "model_id": "gpt-4-0314",
            "choices": [{"index": 0, "turns": [{"content": text} for _ in row["turns"]]}],
        }
        for row in rows
    ]


def test_arena_hard_and_mt_bench(tiny_dir, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    teach_to_say(tiny_dir, tmp_path / "prefers-b", "Verdict: [[B>A]]")
    teach_to_say(tiny_dir, tmp_path / "rates", "Rating: [[7]]")
    (tmp_path / "references").mkdir()
    write_rows(tmp_path / "references" / "rates.jsonl", answers(MT, "So."))
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1"
    files = {"baseline": answers(ARENA, "?"), "arena": ARENA, "mt": MT}
    written = {name: write_rows(tmp_path / f"{name}.jsonl", rows) for name, rows in files.items()}
    own = {
        "arena_hard": f"--judge=prefers-b --baseline_answers={written['baseline']} --questions={written['arena']}",
        "mt_bench": f"--judge=rates --references=references --questions={written['mt']}",
    }
    engine = f"--engine=server --server_urls=[{url}] --server_api=text --judge_urls=[{url}]"
    with serving(None, port, tmp_path / "serve.log"):
        for benchmark, more in own.items():
            words = f"eval {benchmark} --model {tiny_dir} --name=tiny --output_dir={benchmark} --max_new_tokens=8"
            assert main([*words.split(), *engine.split(), *more.split()]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    arena = read_result(tmp_path / "arena_hard" / "prefers-b")
    assert arena.counts["questions"] == 4 and arena.counts["games"] == 8
    # it names B whoever that is: both win once in each question
    assert arena.counts["wins"] == arena.counts["losses"] == arena.counts["verdicts"] / 2
    assert arena.metrics["win_rate"].value == pytest.approx(50, abs=1e-6)
    marks = read_result(tmp_path / "mt_bench" / "rates")
    assert marks.counts["judgments"] == 6 and marks.metrics["score"].value == 7
    assert "arena_hard: tiny, judged by prefers-b" in printed and "mt_bench: tiny, judged by rates" in printed
    print(printed)
