"""One trial's processes: outcomes, reports while it runs, stopping, left-overs, and the command line."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from simpo import processes
from simpo.processes import stop_left_over, stop_tree
from simpo.redact import redact_command
from simpo.run.folder import MANIFEST
from simpo.sweep import runs
from simpo.sweep.runs import Launcher, Outcome, TrialRun, last_lines
from simpo.sweep.space import SweepSettings

FINISHES = """
import json, pathlib
pathlib.Path("all_results.json").write_text(json.dumps({"eval_rewards/accuracies": 0.75, "eval_loss": float("nan")}))
pathlib.Path("log.jsonl").write_text('{"step": 1, "loss": 2.0}\\n{"step": 2, "loss": 1.5}\\n')
"""


def settings(**given: Any) -> SweepSettings:
    return SweepSettings(path=Path("space.yaml"), space={}, **given)


@pytest.fixture
def start(tmp_path: Path) -> Any:
    """start(code, **sweep) -> a trial whose run is that Python code, started in its folder."""

    def start(code: str, **given: Any) -> TrialRun:
        folder = tmp_path / "trial-0000"
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-c", f"import os; os.chdir({str(folder)!r})\n{code}"]
        return TrialRun(folder, command, settings(**given), dict(os.environ))

    return start


def is_gone(process: psutil.Process) -> bool:
    """Dead, if perhaps not yet collected."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def ended(trial: TrialRun) -> Outcome:
    limit = time.monotonic() + 60
    while (outcome := trial.poll()) is None:
        assert time.monotonic() < limit
        time.sleep(0.01)
    return outcome


def test_the_metric_of_a_finished_run(start) -> None:
    assert ended(start(FINISHES)) == Outcome(0.75)
    assert ended(start(FINISHES, metric="loss")) == Outcome(1.5)  # logged only: the last one
    assert ended(start(FINISHES, metric="eval_loss")).error == "eval_loss: nan is no result"
    missing = ended(start(FINISHES, metric="eval_accuracy")).error
    assert missing.startswith("metric: the run logged no eval_accuracy; it logged eval_loss, eval_rewards/accuracies")


@pytest.mark.parametrize(
    ("command", "value", "error"),
    [
        ("echo of {output_dir}; basename {output_dir} | tail -c 2; echo; echo", 0.0, ""),
        ("echo 0.5; echo done", None, "command: the last line of its output is no number: 'done'"),
        ("echo oh >&2; exit 3; {output_dir}", None, "command: exit code 3\noh"),
    ],
)
def test_a_command_that_decides(start, command: str, value: float | None, error: str) -> None:
    assert ended(start(FINISHES, command=command)) == Outcome(value, error)


def test_a_failure_shows_the_end_of_its_log(start) -> None:
    outcome = ended(start("print('a\\rb\\n\\nerror: no such model'); raise SystemExit(2)"))
    assert outcome == Outcome(None, "simpo train: exit code 2\nb\nerror: no such model")
    assert ended(start("import os; os.kill(os.getpid(), 9)")).error.startswith("simpo train: killed by SIGKILL")


def test_a_trial_that_a_signal_stopped_goes_on(start) -> None:
    stops_once = "if not os.path.exists('stopped'): open('stopped', 'w'); raise SystemExit(75)\n"
    assert ended(start(stops_once + FINISHES)) == Outcome(0.75)


def test_reports_are_read_while_it_runs(start, tmp_path: Path) -> None:
    trial = start("import time; time.sleep(60)")
    log = tmp_path / "trial-0000" / "log.jsonl"
    key = "eval_rewards/accuracies"
    assert list(trial.reports()) == []
    log.write_text(json.dumps({"step": 1, "loss": 1.0}) + "\n" + json.dumps({"step": 2, key: 0.5}) + '\n{"step": 4, "')
    assert list(trial.reports()) == [(2, 0.5)] and list(trial.reports()) == []
    log.write_text(log.read_text() + f'{key}": 0.6}}\n')
    assert list(trial.reports()) == [(4, 0.6)]
    trial.stop()
    assert trial.poll() is not None


def test_stopping_reaches_workers_in_sessions_of_their_own(
    start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GRACE", 1.0)
    child = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); open('ready', 'w').close(); time.sleep(99)"
    )
    trial = start(f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}], start_new_session=True)")
    while not (tmp_path / "trial-0000" / "ready").exists():
        time.sleep(0.01)
    pid = json.loads((tmp_path / "trial-0000" / "logs" / "process.json").read_text())["pid"]
    tree = psutil.Process(pid).children(recursive=True)
    assert len(tree) == 1
    trial.stop()
    assert trial.poll() is not None and is_gone(tree[0])
    stop_tree(pid)  # there is nothing left, and that is no error


def test_what_a_killed_sweep_left_is_stopped_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "process.json"
    stop_left_over(file)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    started = psutil.Process(process.pid).create_time()
    file.write_text(json.dumps({"pid": process.pid, "started": started - 100}))
    stop_left_over(file)
    assert process.poll() is None
    file.write_text(json.dumps({"pid": process.pid, "started": started}))
    stop_left_over(file)
    assert process.wait(timeout=10) != 0


def test_the_command_line_of_a_trial(tmp_path: Path) -> None:
    config = tmp_path / "zero3.yaml"
    config.write_text("distributed_type: DEEPSPEED\nnum_processes: 8\ngpu_ids: all\n")
    launcher = Launcher(
        settings(), tmp_path / "sweep", ["a.yaml", "b.yaml"], ["--max_steps=3", "--hub_token=secret"], {}, config, False
    )
    folder = tmp_path / "sweep" / "trial-0007"
    command = launcher.command(7, {"beta": 2.5, "truncation": "cut"}, ("4", "5"))
    assert command == [
        *(sys.executable, "-m", "simpo.cli", "train", "a.yaml", "b.yaml", "--no-audit", "--no-report"),
        *(f"--accelerate={folder}/logs/accelerate.yaml", "--save_strategy=no", "--max_steps=3", "--hub_token=secret"),
        *("--beta=2.5", "--truncation=cut", f"--output_dir={folder}", "--run_name=sweep-trial-0007"),
        "--push_to_hub=false",
    ]
    assert yaml.safe_load((folder / "logs" / "accelerate.yaml").read_text()) == {
        "distributed_type": "DEEPSPEED", "main_process_port": 0, "num_processes": 2,
    }  # fmt: skip
    shown = redact_command(command)  # what the folder keeps
    assert not any("secret" in word for word in shown) and "--hub_token=***" in shown
    strict = Launcher(settings(), tmp_path, ["a.yaml"], [], {}, strict=True).command(0, {})
    assert strict[3:6] == ["train", "a.yaml", "--strict"] and "--strict" not in command
    best = Launcher(settings(), tmp_path, ["a.yaml"], [], {"load_best_model_at_end": True, "run_name": "mine"})
    assert "--save_total_limit=1" in best.command(0, {}) and "--run_name=mine-trial-0000" in best.command(0, {})
    assert not any(word.startswith("--save_strategy") for word in best.command(0, {}))


def test_devices_and_what_a_launcher_would_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert runs._environment(("0", "3"))["CUDA_VISIBLE_DEVICES"] == "0,3" and "MASTER_PORT" not in runs._environment(())
    assert (
        runs._environment(None)["CUDA_VISIBLE_DEVICES"] == "7" and runs._environment(())["CUDA_VISIBLE_DEVICES"] == ""
    )


def test_a_run_that_came_to_its_end_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "trial-0000"
    folder.mkdir()
    (folder / MANIFEST).write_text('{"status": "finished"}')
    (folder / "all_results.json").write_text('{"eval_rewards/accuracies": 0.5}')
    launcher = Launcher(settings(), tmp_path, ["none.yaml"], [], {})
    assert launcher.launch(0, {}, None).poll() == Outcome(0.5)
    assert not (folder / "logs" / "train.log").exists()


def test_only_weights_are_discarded(tmp_path: Path) -> None:
    folder = tmp_path / "trial-0003"
    (folder / "checkpoint-4").mkdir(parents=True)
    for name in ("model.safetensors", "adapter_model.safetensors", "log.jsonl", "config.json", "checkpoint-4/x"):
        (folder / name).touch()
    Launcher(settings(), tmp_path, [], [], {}).discard_weights(3)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "log.jsonl"]


def test_last_lines(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("".join(f"{number}\n\n" for number in range(30)))
    assert last_lines(tmp_path / "log", 2) == "28\n29" and last_lines(tmp_path / "none") == ""
