"""The example of docs/analysis.md runs as it stands."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simpo.analysis.pairs import COLUMNS
from tests.analysis.made import population

pytest.importorskip("matplotlib")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "analysis.md"


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "scores").mkdir()
    for name, margin in (("sft", 0.0), ("simpo", 0.3)):
        pairs = population(300, seed=1, margin=margin)
        pq.write_table(
            pa.table({column: getattr(pairs, column) for column in COLUMNS}), f"{tmp_path}/scores/{name}.parquet"
        )
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(PAGE), "exec"), {})
    assert "count=300" in capsys.readouterr().out
    assert {path.name for path in tmp_path.glob("*.png")} == {"margins-by-length.png", "margins.png"}
