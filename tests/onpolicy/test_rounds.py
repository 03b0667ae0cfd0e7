"""The numbers of a table over rounds against hand-computed ones, and its files."""

import csv
import json
import math
from pathlib import Path

import pytest

from simpo.errors import DataError
from simpo.onpolicy.rounds import Interval, Measured, RoundRow, mean_interval, measure, row_of, win_interval
from simpo.onpolicy.rounds_report import table_lines, write_rounds
from tests.onpolicy.made import generation, scored, store_in


def test_mean_interval() -> None:
    # 1, 2, 3, 6: mean 3, sum of squares 4 + 1 + 0 + 9 = 14, s = sqrt(14 / 3), s / sqrt(4) = 1.0801234...
    found = mean_interval([1, 2, 3, 6])
    assert found == pytest.approx((3.0, 3 - 1.959963985 * 1.0801234497, 3 + 1.959963985 * 1.0801234497))
    assert mean_interval([2.0]) == (2.0, 2.0, 2.0)


def test_win_interval() -> None:
    # of a: better, b: equal, c: worse, d: better; e and f have no partner: (2 + 1/2) / 4
    ours, theirs = {"a": 2, "b": 1, "c": 0, "d": 5, "e": 9}, {"a": 1, "b": 1, "c": 3, "d": 4, "f": 0}
    found = win_interval(ours, theirs)
    assert found is not None and found.value == 0.625
    # Wilson for p = 0.625, n = 4, z^2 = 3.841458821
    centre = (0.625 + 3.841458821 / 8) / (1 + 3.841458821 / 4)
    half = 1.959963985 / (1 + 3.841458821 / 4) * math.sqrt(0.625 * 0.375 / 4 + 3.841458821 / 64)
    assert found == pytest.approx((0.625, centre - half, centre + half))
    # ten wins of ten: 1 / (1 + 3.841458821 / 10), as in tables of Wilson's interval
    assert win_interval({str(n): 1 for n in range(10)}, {str(n): 0 for n in range(10)}) == pytest.approx(
        (1.0, 0.7224672, 1.0)
    )
    assert win_interval({"a": 1}, {"b": 1}) is None


def test_what_is_measured(tmp_path: Path) -> None:
    make = store_in(tmp_path)
    made = [
        generation(0, ["one two", "three…"]),  # 2 and 1 tokens, one of them cut
        generation(1, ["a b c", "d e f g h"]),
        generation(2, ["lost"]),
        generation(3, [], error="broken"),
    ]
    made[2]["responses"][0]["tokens"] = -1  # a server that does not say
    scores = [scored(made[0], rm=[1, 2], other=[9, 9]), scored(made[1], rm=[None, 5]), scored(made[2], rm=[None])]
    found = measure(make("g", made), make("s", scores), "rm")
    assert found == Measured({"p0": 1.5, "p1": 5.0}, [1.5, 4.0], responses=5, cut=1, prompts=4)
    with pytest.raises(DataError, match="no evaluation prompt has a score of nobody"):
        measure(str(tmp_path / "g"), str(tmp_path / "s"), "nobody")


def test_a_round_and_its_files(tmp_path: Path) -> None:
    first = Measured({"a": 0.0, "b": 1.0}, [10.0, 20.0], 2, 1, 2)
    second = Measured({"a": 1.0, "b": 1.0}, [12.0, 20.0], 2, 0, 2)
    folder = tmp_path / "round-1"
    (folder / "pairs").mkdir(parents=True)
    (folder / "pairs" / "binarize.json").write_text('{"report": {"splits": {"train": 1234, "test": 20}}}')
    (folder / "model").mkdir()
    (folder / "model" / "all_results.json").write_text('{"eval_rewards/accuracies": 0.85}')
    rows = [row_of(0, first, first), row_of(1, second, first, folder)]
    assert rows[0] == RoundRow(0, None, 2, mean_interval([0, 1]), None, mean_interval([10, 20]), 0.5, None)
    assert rows[1].pairs == 1234 and rows[1].accuracy == 0.85 and rows[1].cut == 0.0
    assert rows[1].win_rate is not None and rows[1].win_rate.value == 0.75

    lines = write_rounds(rows, tmp_path, "rm")
    assert lines == table_lines(rows) and len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in lines[3].strip("|").split("|")] == [
        "1", "1,234", "2", "1.000 [1.000, 1.000]", "75.0% [19.8%, 97.3%]", "16.0 [8.2, 23.8]", "0.0%", "85.0%",
    ]  # fmt: skip
    assert (tmp_path / "rounds.md").read_text().splitlines()[:4] == lines
    kept = json.loads((tmp_path / "rounds.json").read_text())
    assert kept["annotator"] == "rm" and kept["rounds"][1]["pairs"] == 1234
    assert Interval(**kept["rounds"][1]["win_rate"]) == rows[1].win_rate and kept["rounds"][0]["win_rate"] is None
    with (tmp_path / "rounds.csv").open() as file:
        table = list(csv.DictReader(file))
    assert float(table[1]["win_rate_low"]) == rows[1].win_rate.low and table[0]["win_rate"] == ""
    assert (tmp_path / "rounds.png").read_bytes().startswith(b"\x89PNG")
