"""A real server with the tiny model as the judge: it talks nonsense, and is told so."""

import json
from pathlib import Path

import pytest

from simpo.errors import DataError
from simpo.evals.judges.mt_bench import judge_mt_bench
from simpo.store import read_records
from tests.engines.test_transformers_serve import free_port, serving
from tests.evals.test_mt_bench import settings_of

pytestmark = pytest.mark.slow


def test_nonsense_of_a_real_judge_is_no_rating(
    tiny_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every judgment is on record with the server's own count of tokens; a second start asks nothing."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("simpo.evals.judges.mt_bench.MAX_TOKENS", 24)
    port = free_port()
    settings = settings_of(tmp_path, f"http://127.0.0.1:{port}/v1", judges=(tiny_dir,), server={"timeout": 120.0})
    references = tmp_path / "reference_answer"
    (references / f"{tiny_dir.replace('/', '_')}.jsonl").write_text((references / "gpt-4.jsonl").read_text())
    with serving(tiny_dir, port, tmp_path / "serve.log"), pytest.raises(DataError, match="none of 8 judgments has"):
        judge_mt_bench(settings)
    (folder,) = (tmp_path / "out/calls").glob("*/mine")
    records = list(read_records(folder))
    assert len(records) == 8 and all(record["error"] is None and record["counted"] for record in records)
    spent = capsys.readouterr().out.splitlines()[1]
    assert f" {sum(record['asked'] for record in records):,} tokens asked" in spent
    (path,) = (tmp_path / "out/model_judgment").glob("*_single.jsonl")
    assert [json.loads(line)["score"] for line in path.read_text().splitlines()] == [-1] * 8
    with pytest.raises(DataError, match="none of 8 judgments has"):  # the server is gone
        judge_mt_bench(settings)
