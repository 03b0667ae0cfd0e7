"""One run at a time in a folder, and no rank that trains on alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from simpo.errors import ConfigError
from simpo.run import run_training
from simpo.run.owner import Owner, owner_of
from simpo.settings import read_settings
from tests.launching import environment


def holder(folder: Path, seconds: float) -> int:
    """A process that holds a folder."""
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        owner = Owner(folder)
        owner.take()
        os.write(told, b"x")
        time.sleep(seconds)
        os._exit(0)
    os.read(ready, 1)
    return pid


def test_a_folder_has_one_owner(tmp_path: Path, capsys) -> None:
    pid = holder(tmp_path, 60)
    with (
        pytest.raises(ConfigError, match=rf"is in use by another run \(process {pid}\): wait for its end, stop it"),
        owner_of(tmp_path) as owner,
    ):
        owner.take(wait=0.2)
    assert "waiting 0 s for it" in capsys.readouterr().out
    os.kill(pid, signal.SIGKILL)  # the system lets go of it
    os.waitpid(pid, 0)
    with owner_of(tmp_path) as owner:
        owner.take(wait=0)
    with owner_of(tmp_path) as owner:  # given back
        owner.take(wait=0)
    assert list(tmp_path.iterdir()) == []


def test_workers_that_outlive_a_run_do_not_hold_its_folder(tmp_path: Path) -> None:
    """Those that tokenise go on to the end of their part when their parent was killed."""
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        owner = Owner(tmp_path)
        owner.take()
        worker = os.fork()
        if worker == 0:
            time.sleep(60)
            os._exit(0)
        os.write(told, str(worker).encode())
        time.sleep(60)
        os._exit(0)
    worker = int(os.read(ready, 20))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    try:
        with owner_of(tmp_path) as owner:
            owner.take(wait=0)
    finally:
        os.kill(worker, signal.SIGKILL)


def test_an_earlier_run_that_ends_is_waited_for(tmp_path: Path) -> None:
    pid = holder(tmp_path, 0.5)
    with owner_of(tmp_path) as owner:
        owner.take(wait=20)
    os.waitpid(pid, 0)


def test_a_folder_that_is_not_there_has_one_owner_too(tmp_path: Path) -> None:
    """Before its processes leave their signs in it: two runs that start at once would remove each other's."""
    out = tmp_path / "runs" / "out"
    with owner_of(out) as first, owner_of(out) as second:
        first.take()
        with pytest.raises(ConfigError, match="is in use by another run"):
            second.take(wait=0)
        second._made = [out]  # neither was there when both looked
        second.release()
        assert out.is_dir()
    assert list(tmp_path.iterdir()) == []  # nothing was written
    with owner_of(out) as owner:
        owner.take(wait=0)
        (out / "file").touch()
    assert (out / "file").is_file()


def test_a_folder_that_its_owner_removes_is_made_anew(tmp_path: Path) -> None:
    """Who waited for it would else hold what is no longer there, and a third run could begin beside it."""
    out = tmp_path / "out"
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        with owner_of(out) as owner:
            owner.take()
            os.write(told, b"x")
            time.sleep(0.5)
        os._exit(0)
    os.read(ready, 1)
    with owner_of(out) as owner, owner_of(out) as third:
        owner.take(wait=20)
        assert out.is_dir()
        with pytest.raises(ConfigError, match="is in use"):
            third.take(wait=0)
    os.waitpid(pid, 0)


def test_a_run_that_began_meanwhile_where_nothing_is_locked(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("simpo.run.owner.fcntl", None)
    with owner_of(tmp_path / "out") as owner:
        owner.take()
        owner.check_alone()
        (tmp_path / "out" / "run_manifest.json").write_text("{}")
        with pytest.raises(ConfigError, match=r"out now holds run_manifest\.json: another run began in it meanwhile"):
            owner.check_alone()
    with owner_of(tmp_path / "out") as owner:
        owner.take()
        owner.check_alone()  # it goes on with what was there


def test_a_run_does_not_start_in_the_folder_of_another(make_config, tmp_path: Path, monkeypatch) -> None:
    config = make_config(max_steps=1)
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Owner.take, "__defaults__", (0.0,))
    pid = holder(tmp_path / "out", 60)
    with pytest.raises(ConfigError, match="is in use by another run"):
        run_training(read_settings(config))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    run_training(read_settings(config))
    run_training(read_settings(config), overwrite=True)  # the first let go of it


@pytest.mark.multiprocess
@pytest.mark.slow
def test_ranks_whose_launcher_was_killed_save_and_stop(make_config, tmp_path: Path) -> None:
    """And the same command, given at once, waits for them and goes on from what they saved."""
    config = make_config(num_train_epochs=40)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launcher, "-m", "simpo.cli", "train", str(config)]
    log = tmp_path / "out" / "log.jsonl"
    first = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not log.exists() or len(log.read_text().splitlines()) < 3:
        assert first.poll() is None
        time.sleep(0.02)
    ranks = psutil.Process(first.pid).children()
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    second = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert second.returncode == 0, second.stderr[-2000:]
    assert len(ranks) == 2 and not any(rank.is_running() for rank in ranks)
    step = int(second.stdout.partition("Going on from ")[2].split()[0].rpartition("checkpoint-")[2])
    assert 3 <= step < 120
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines() if '"grad_norm"' in line]
    assert steps == list(range(1, 121))
