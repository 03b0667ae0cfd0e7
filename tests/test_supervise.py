"""A launcher as a child: signals, exit codes, and nothing left behind. Small scripts stand for the launcher."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from simpo.cli import supervise
from simpo.cli.launch import launch_run
from tests.launching import environment

# Starts a worker as launchers do, and ends with 1 when the worker failed. The worker says that it runs, and waits.
LAUNCHER = """
import subprocess, sys
worker = subprocess.Popen([sys.executable, *sys.argv[1:]], start_new_session=True)
code = worker.wait()
sys.exit(1 if code else 0)
"""
WORKER = """
import json, os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def save(number, frame):
    (folder / "signals").open("a").write(signal.Signals(number).name + " ")
    time.sleep(0.5)
    (folder / "run_manifest.json").write_text(json.dumps({"status": sys.argv[2]}))
    os._exit(75)
signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGUSR1, save)
(folder / "run_manifest.json").write_text(json.dumps({"status": "running"}))
(folder / "worker").write_text(str(os.getpid()))
time.sleep(100)
"""
PARENT = """
import os, sys
from simpo import cli
from simpo.cli import supervise, train
train.run = lambda args, overrides: supervise.supervise(sys.argv[2:], dict(os.environ), sys.argv[1])
sys.exit(cli.main(["train", "any.yaml"]))
"""


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    for name, text in (("launcher.py", LAUNCHER), ("worker.py", WORKER), ("parent.py", PARENT)):
        (tmp_path / name).write_text(text)
    return tmp_path


def begin(folder: Path, status: str = "interrupted") -> subprocess.Popen[str]:
    """The parent of a launcher with a worker that leaves such a manifest after a signal."""
    words = [str(folder / name) for name in ("launcher.py", "worker.py")]
    command = [sys.executable, str(folder / "parent.py"), str(folder), sys.executable, *words, str(folder), status]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (folder / "worker").exists() or not (folder / "worker").read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return process


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_the_run_once_and_means_start_again(scripts: Path, number: signal.Signals) -> None:
    process = begin(scripts)
    process.send_signal(number)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)  # as schedulers do when the first did not end it
    assert process.wait(timeout=60) == 75
    assert "stopped in order; the same command goes on with it" in process.stderr.read()
    assert (scripts / "signals").read_text().split() == [number.name]
    assert gone(int((scripts / "worker").read_text()))


def test_a_signal_to_the_run_itself_means_start_again_too(scripts: Path) -> None:
    process = begin(scripts)
    os.kill(int((scripts / "worker").read_text()), signal.SIGUSR1)
    assert process.wait(timeout=60) == 75


def test_a_run_that_could_not_stop_in_order_keeps_the_launchers_code(scripts: Path) -> None:
    process = begin(scripts, "running")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=60) == 1


def test_an_earlier_interruption_means_nothing(scripts: Path) -> None:
    """A launcher that fails at once, in the folder of a run that was interrupted before."""
    (scripts / "run_manifest.json").write_text(json.dumps({"status": "interrupted"}))
    command = [sys.executable, str(scripts / "parent.py"), str(scripts), sys.executable, "-c", "exit(3)"]
    assert subprocess.run(command, env=environment(), timeout=60, check=False).returncode == 3


def test_before_training_begins_a_signal_means_start_again(scripts: Path) -> None:
    """The launcher has no process yet, and ends by the signal."""
    command = [sys.executable, str(scripts / "parent.py"), str(scripts), sys.executable, "-c"]
    script = f"import time; open({str(scripts / 'here')!r}, 'w'); time.sleep(100)"
    process = subprocess.Popen([*command, script], env=environment())
    while not (scripts / "here").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75


def test_the_folder_is_the_one_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers writes out the `~` of `--output_dir=~/x`, which no shell does."""
    found: list[str] = []
    monkeypatch.setattr(supervise, "supervise", lambda command, environment, folder: found.append(folder))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in [name for name in os.environ if name == "LOCAL_RANK"]:
        monkeypatch.delenv(name)
    args = argparse.Namespace(accelerate="cpu", configs=["any.yaml"], log_dir=None)
    launch_run("train", args, [], lambda files, overrides: {"output_dir": "~/x"}, [])
    assert found == [str(tmp_path / "x")]


def test_ctrl_c(scripts: Path) -> None:
    process = begin(scripts)
    process.send_signal(signal.SIGINT)  # the worker has a session of its own, and the launcher only forgets it
    assert process.wait(timeout=90) == 130
    assert gone(int((scripts / "worker").read_text()))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel says so on Linux only")
def test_a_launcher_does_not_outlive_a_parent_that_is_killed(scripts: Path) -> None:
    process = begin(scripts)
    (launcher,) = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    assert gone(launcher.pid)
    os.kill(int((scripts / "worker").read_text()), signal.SIGKILL)  # torchrun would have passed the signal on


def test_a_launcher_that_is_killed_leaves_nothing(scripts: Path) -> None:
    process = begin(scripts)
    time.sleep(2.5)  # the parent looks every 2 seconds which processes there are
    (launcher,) = psutil.Process(process.pid).children()
    launcher.kill()
    assert process.wait(timeout=90) in (75, 137)
    assert gone(int((scripts / "worker").read_text()))
