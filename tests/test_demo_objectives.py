"""The comparison of objectives: its numbers are what they are called, and a small one runs through."""

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.demo_compare import FILES, TRIED, Candidate, candidates
from scripts.demo_compare_report import (
    DPO,
    SIMPO,
    SUMS,
    Trial,
    above,
    findings,
    print_table,
    save_csv,
    save_picture,
    spearman,
)
from simpo.settings import read_settings

ROOT = Path(__file__).resolve().parent.parent
NINE = {"rrhf", "slic-hf", "dpo", "ipo", "cpo", "kto", "orpo", "r-dpo", "simpo"}


def make_trial(title: str, **values: Any) -> Trial:
    """Four pairs: the likelihood has three of them right, the reward two, and both agree on one."""
    trial = Trial(
        title=title,
        setting="beta 1",
        chosen=np.array([-1.0, -1.0, -1.0, -2.0]),
        rejected=np.array([-2.0, -2.0, -2.0, -1.0]),
        chosen_lengths=np.array([4.0, 6.0, 8.0, 10.0]),
        rejected_lengths=np.array([5.0, 5.0, 9.0, 9.0]),
        good=0.5,
        margins=np.array([1.0, -1.0, -1.0, 2.0]),
        cpu_seconds=10.0,
        peak_mb=500.0,
        above_libraries_mb=50.0,
    )
    return replace(trial, **values)


def test_all_nine_and_the_ablation_are_compared() -> None:
    assert set(TRIED) == NINE | {"simpo-no-length-normalization"}
    assert [trial.file for trial in candidates()] == list(TRIED)
    assert [trial.file for trial in candidates(only=["dpo"])] == ["dpo"]
    searched = candidates(search=True)
    assert len({trial.folder for trial in searched}) == len(searched) == sum(len(tried) for _, tried in TRIED.values())
    with pytest.raises(KeyError):
        candidates(only=["ppo"])


@pytest.mark.parametrize("trial", candidates(search=True), ids=lambda trial: trial.folder)
def test_every_setting_that_was_tried_is_one(trial: Candidate) -> None:
    args = read_settings(["training_configs/demo.yaml", FILES / f"{trial.file}.yaml"], trial.overrides).training
    assert trial.file.startswith(args.objective)


def test_columns() -> None:
    trial = make_trial("x")
    assert (trial.likelihood_accuracy, trial.reward_accuracy, trial.disagreement) == (0.75, 0.5, 0.75)
    assert trial.gap(chosen_longer=True) == pytest.approx(0.0) and trial.gap(chosen_longer=False) == pytest.approx(1.0)
    start = make_trial("start", margins=np.array([]))
    assert np.isnan(start.reward_accuracy) and np.isnan(start.disagreement)


def test_spearman() -> None:
    assert spearman(np.array([1.0, 5.0, 7.0]), np.array([2.0, 3.0, 90.0])) == pytest.approx(1.0)
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])) == pytest.approx(-1.0)
    # ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4
    assert spearman(np.array([0.0, 1.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0, 4.0])) == pytest.approx(0.9486833)


def test_shares_that_are_close_decide_nothing() -> None:
    assert above(0.99, 0.90, 300) is True and above(0.90, 0.99, 300) is False
    assert above(0.993, 0.990, 300) is None and above(1.0, 1.0, 300) is None


def test_findings_say_what_was_not_seen() -> None:
    agrees = make_trial(SIMPO, margins=np.array([1.0, 1.0, 1.0, -1.0]))
    trials = [make_trial("start", margins=np.array([])), agrees, make_trial(DPO), make_trial(SUMS)]
    lines = [line.split(maxsplit=2) for line in findings(trials) if line.startswith("  ")]
    seen = [" ".join(words[: 2 if words[0] == "not" else 1]) for words in lines]
    assert seen == ["seen", "seen", "unclear", *["not seen"] * 3, "unclear", "not seen", "seen"]
    slower = [*trials[:2], make_trial(DPO, cpu_seconds=20.0, peak_mb=600.0)]
    last = findings(slower)[-2:]
    assert last[0].startswith("  seen ") and "-50%" in last[0] and last[1].startswith("  not seen ")
    assert "were left out" in findings(trials[:1])[-1]


def test_table_csv_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = [make_trial("start", margins=np.array([])), make_trial(SIMPO), make_trial(DPO)]
    print_table(results, 4)
    printed = capsys.readouterr().out
    assert "75.0%" in printed and "…" not in printed
    rows = list(csv.DictReader(save_csv(results, tmp_path / "x.csv").open()))
    assert [row["objective"] for row in rows] == ["start", SIMPO, DPO]
    assert (rows[0]["reward_accuracy"], rows[1]["reward_accuracy"], rows[1]["peak_MB"]) == ("", "0.5", "500")
    assert save_picture(results, tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def compare(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "demo_objectives.py"), "--output", str(tmp_path), *words],
        cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


def test_an_unknown_objective_stops_at_once(tmp_path: Path) -> None:
    run = compare(tmp_path, "--only", "ppo")
    assert run.returncode == 2 and "'ppo'" in run.stderr and "Traceback" not in run.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_quick_comparison(tmp_path: Path) -> None:
    run = compare(tmp_path, "--quick", "--only", "simpo", "dpo", "--jobs", "1")
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    assert "  seen      SimPO's reward orders pairs as the likelihood does" in run.stdout
    rows = {row["objective"]: row for row in csv.DictReader((tmp_path / "objectives.csv").open())}
    assert list(rows) == ["SFT start", "SimPO", "DPO"]
    assert rows["SimPO"]["reward_accuracy"] == rows["SimPO"]["likelihood_accuracy"]
    for name in ("SimPO", "DPO"):
        assert float(rows[name]["likelihood_accuracy"]) > float(rows["SFT start"]["likelihood_accuracy"])
        assert float(rows[name]["reward_accuracy"]) > 0.6 and float(rows[name]["CPU_seconds"]) > 0
    assert (tmp_path / "objectives.png").stat().st_size > 0
    assert (tmp_path / "dpo-learning_rate-2e-4-beta-0.1" / "settings.yaml").is_file()
