"""A process that is killed, stopped or hangs ends the run, with its name; the same command goes on."""

import os
import re
import signal
import socket
import time

import pytest

from simpo.run.folder import SIGNS
from simpo.run.watch.heartbeat import LOST
from tests.watched import TRAIN, close_weights, launcher, started

TIMEOUT = 20  # seconds; this machine may be busy with other things
BEFORE = f"process 1 on {socket.gethostname()} (pid "


def config_of(make_config, **settings):
    short = {"num_train_epochs": 7, "save_strategy": "steps", "save_steps": 4, "save_total_limit": 2}
    return make_config(**short | {"hang_timeout": TIMEOUT} | settings)


@pytest.mark.multiprocess
@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "zero3"])
def test_a_stopped_process_is_named_and_the_run_goes_on_when_started_again(make_config, tmp_path, engine) -> None:
    config = config_of(make_config)
    command = [*launcher(engine, tmp_path), *TRAIN, str(config)]
    out, log = tmp_path / "out", tmp_path / "out" / "log.jsonl"
    with started(command, tmp_path / "printed") as run:
        run.until_step(log, 8)
        worker = run.worker(1)
        begun = time.monotonic()
        os.kill(worker.pid, signal.SIGSTOP)
        assert run.wait(TIMEOUT + 75) != 0
        took = time.monotonic() - begun
        (line,) = {line for line in run.printed.splitlines() if line.startswith("error (process 0 ")}
        assert f"{BEFORE}{worker.pid}) was lost at step " in line and "no sign of life for" in line
        assert "the same command goes on from the last checkpoint" in line
        assert re.search(rf"exitcode *: {LOST}\b", run.printed)
        assert took < TIMEOUT + 75  # of which torchrun waits 30 before it kills the one that was stopped
        assert run.left() == []  # the launcher killed the one that was stopped
    with started(command, tmp_path / "printed") as run:
        assert run.wait(240) == 0, run.printed
        assert "Going on from" in run.printed
    assert not (out / SIGNS).exists()
    if engine == "zero3":  # to which weights it goes on: checkpoints/test_kills.py
        return
    whole = [*command[:-1], str(config), f"--output_dir={tmp_path / 'whole'}"]
    with started(whole, tmp_path / "printed") as run:
        assert run.wait(240) == 0, run.printed
    close_weights(out, tmp_path / "whole")


@pytest.mark.multiprocess
def test_a_killed_process_ends_the_others_at_once(make_config, tmp_path) -> None:
    command = [*launcher("ddp", tmp_path), *TRAIN, str(config_of(make_config, num_train_epochs=60))]
    with started(command, tmp_path / "printed") as run:
        run.until_step(tmp_path / "out" / "log.jsonl", 4)
        worker = run.worker(1)
        begun = time.monotonic()
        worker.kill()
        assert run.wait(60) != 0
        assert time.monotonic() - begun < 30
        assert f"{BEFORE}{worker.pid}) was killed at step" in run.printed
        assert run.left() == []


HANG = """
import sys, time
from simpo.run.logfile import LogFile
from simpo.cli import main
import os

def hang():
    if os.environ["RANK"] == "1":
        time.sleep(1000)

def log(self, args, state, control, **kwargs):
    if state.global_step == 4:
        hang()

LogFile.on_step_end = log
sys.exit(main(["train", *sys.argv[1:]]))
"""


@pytest.mark.multiprocess
def test_a_process_that_hangs_while_it_lives_is_named(make_config, tmp_path) -> None:
    script = tmp_path / "simpo_hangs.py"
    script.write_text(HANG)
    command = [*launcher("ddp", tmp_path), str(script), str(config_of(make_config))]
    with started(command, tmp_path / "printed") as run:
        run.until_step(tmp_path / "out" / "log.jsonl", 2)
        assert run.wait(TIMEOUT + 75) != 0
        assert f"{BEFORE}" in run.printed
        assert re.search(r"hangs at step 4, in \S*simpo_hangs.py:\d+ \(hang\)", run.printed), run.printed
        assert run.left() == []


LOSES = """
import sys
from simpo.errors import Lost
from simpo.run.logfile import LogFile
from simpo.cli import main

def lose(self, args, state, control, **kwargs):
    if state.global_step == 3:
        raise Lost("the loss is nan")

LogFile.on_step_end = lose
sys.exit(main(["train", *sys.argv[1:]]))
"""


@pytest.mark.multiprocess
def test_a_run_that_all_processes_give_up_leaves_its_page(make_config, tmp_path) -> None:
    """The launcher ends all processes once one has left, so that they wait for the one that writes the page."""
    script = tmp_path / "simpo_loses.py"
    script.write_text(LOSES)
    command = [*launcher("ddp", tmp_path), str(script), str(config_of(make_config))]
    with started(command, tmp_path / "printed") as run:
        assert run.wait(180) != 0
        assert "the loss is nan" in run.printed and "was killed" not in run.printed
        assert f"Report: {tmp_path / 'out' / 'report.html'}" in run.printed
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
