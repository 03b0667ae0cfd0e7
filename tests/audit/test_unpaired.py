"""The audit of rows of one response."""

import json
from pathlib import Path

import numpy as np

from simpo import cli
from simpo.audit.statistics import length_bias


def test_healthy_rows_have_no_findings(golden, tiny_dir, tmp_path: Path) -> None:
    rows = []
    for number, row in enumerate(golden["rows"]):
        side = "chosen" if number % 2 else "rejected"
        rows.append({"prompt": row[side][:-1], "completion": row[side][-1:], "label": side == "chosen"})
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = tmp_path / "report.json"
    words = [
        "--model",
        tiny_dir,
        "--data",
        str(data),
        "--objective=kto",
        "--output_dir",
        str(tmp_path),
        "--json",
        str(report),
    ]
    assert cli.main(["inspect", *words, "--html", str(tmp_path / "page.html"), "--strict"]) == 0
    found = json.loads(report.read_text())
    assert [finding["check"] for finding in found["findings"] if finding["level"] != "note"] == []
    assert "NaN" not in report.read_text()


def test_length_bias_is_that_of_pairs() -> None:
    bias = length_bias(np.array([5, 9, 0]), np.array([3, 0, 4]))
    assert (bias.chosen_longer, bias.mean_difference) == (1.0, 2.0)
    alone = length_bias(np.array([5, 0]), np.array([0, 4]))
    assert (alone.chosen_longer, alone.mean_difference, alone.correlation) == (0.0, 0.0, 0.0)
