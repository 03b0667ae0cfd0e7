"""A whole sweep through the command line: real runs of the tiny model, one that fails, killed and resumed."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from simpo import cli
from tests.launching import environment
from tests.sweep.test_runs import is_gone


@pytest.fixture
def config(golden: dict[str, Any], tiny_dir: str, tmp_path: Path) -> Path:
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in golden["rows"]))
    path = tmp_path / "run.yaml"
    settings = {
        "model_name_or_path": tiny_dir, "output_dir": str(tmp_path / "sweep"),
        "dataset_mixer": {str(tmp_path / "train.jsonl"): 1.0},
        "eval_dataset_mixer": {str(tmp_path / "test.jsonl"): 1.0},
        "total_train_batch_size": 4, "max_steps": 2, "learning_rate": 1e-3, "max_length": 512, "max_prompt_length": 400,
        "eval_strategy": "steps", "eval_steps": 1, "use_cpu": True, "bf16": False, "disable_tqdm": True,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("PYTHONPATH", "OMP_NUM_THREADS", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(key, environment()[key])
    space, output = tmp_path / "space.yaml", tmp_path / "sweep"
    # the second template is found to be broken by the run only
    space.write_text("sampler: grid\npruner: median\nmetric: eval_loss\ndirection: minimize\n"
                     "space:\n  chat_template: [chatml, '{% if %}', zephyr]\n")  # fmt: skip
    words = ["sweep", str(config), str(space), "--no-audit"]
    first = subprocess.Popen([sys.executable, "-m", "simpo.cli", *words], env=environment(), stdout=subprocess.DEVNULL)
    process = output / "trial-0000" / "logs" / "process.json"
    while not process.exists():
        assert first.poll() is None
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    left = psutil.Process(json.loads(process.read_text())["pid"])
    assert left.is_running()

    assert cli.main(words) == 0
    assert is_gone(left)
    printed = capsys.readouterr().out
    assert "trial-0000 resumed: chat_template chatml" in printed and "3 trials by eval_loss" in printed
    rows = list(csv.DictReader((output / "sweep.csv").open()))
    assert [row["state"] for row in rows] == ["complete", "failed", "complete"]
    assert rows[1]["error"].startswith("error: ") and "template" in rows[1]["error"]
    assert "Traceback" not in printed
    best = min((row for row in rows if row["eval_loss"]), key=lambda row: float(row["eval_loss"]))
    kept = [folder.name for folder in sorted(output.glob("trial-*")) if (folder / "model.safetensors").exists()]
    assert kept == [best["folder"]]
    results = json.loads((output / best["folder"] / "all_results.json").read_text())
    assert float(best["eval_loss"]) == results["eval_loss"]
    logged = [json.loads(line) for line in (output / "trial-0002" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in logged if "eval_loss" in entry] == [1, 2, 2]
    assert yaml.safe_load((output / "best.yaml").read_text()) == {"chat_template": best["chat_template"]}
    assert (output / "sweep.png").exists()

    assert cli.main([*words, "--learning_rate=1e-4"]) == 2  # another sweep
    assert "learning_rate: 0.001 there, 0.0001 here" in capsys.readouterr().err


def test_a_sweep_in_which_nothing_succeeds_says_so(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    (tmp_path / "space.yaml").write_text("trials: 2\nspace: {beta: [2, 3, 4]}\n")
    assert cli.main(["sweep", str(config), str(tmp_path / "space.yaml")]) == 2
    streams = capsys.readouterr()
    assert "error: all 2 trials failed; the last one: simpo train: exit code 1" in streams.err
    assert "2 trials by eval_rewards/accuracies" in streams.out and (tmp_path / "sweep" / "sweep.csv").exists()


def test_a_dry_run_writes_nothing(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "space.yaml").write_text("sampler: staged\nspace: {learning_rate: [1e-4, 1e-3], beta: [2, 4]}\n")
    assert cli.main(["sweep", str(config), str(tmp_path / "space.yaml"), "--dry-run"]) == 0
    assert "3 trials at most" in capsys.readouterr().out and not (tmp_path / "sweep").exists()
