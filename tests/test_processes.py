"""Children that must not be lost: their exit, a Ctrl-C, a SIGTERM, and what a killed parent left."""

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
from simpo.processes import child_environment, describe_exit, run_child, sole_owner

# A parent that runs a child with a grandchild; the child says that it is there by the file `ready`.
CHILD = (
    "import subprocess, sys, pathlib, time; "
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'], start_new_session=True); "
    "pathlib.Path('ready').touch(); time.sleep(99)"
)
PARENT = f"""
import sys, pathlib
from simpo.processes import run_child, sole_owner
try:
    with sole_owner(pathlib.Path("lock"), "busy"):
        run_child([sys.executable, "-c", {CHILD!r}], pathlib.Path("note.json"))
except KeyboardInterrupt:
    sys.exit(130)
"""


def is_gone(process: psutil.Process) -> bool:
    """Dead, if perhaps not yet collected."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def start_parent(folder: Path) -> tuple[subprocess.Popen[bytes], list[psutil.Process]]:
    """A parent at work, and its child and grandchild."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=folder)
    limit = time.monotonic() + 30
    while not (folder / "ready").exists():
        assert parent.poll() is None and time.monotonic() < limit
        time.sleep(0.01)
    return parent, psutil.Process(parent.pid).children(recursive=True)


def test_the_exit_status_and_the_output_of_a_child_are_those_of_the_command(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    code = "import os, sys; print('out', os.environ.get('RANK')); print('err', file=sys.stderr); sys.exit(7)"
    assert run_child([sys.executable, "-c", code], tmp_path / "note.json") == 7
    assert capfd.readouterr() == ("out None\n", "err\n")
    assert not (tmp_path / "note.json").exists() and "RANK" not in child_environment()
    killed = "import os; os.kill(os.getpid(), 9)"
    assert describe_exit(run_child([sys.executable, "-c", killed], tmp_path / "note.json")) == "killed by SIGKILL"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_whole_tree(tmp_path: Path, number: int) -> None:
    parent, tree = start_parent(tmp_path)
    assert len(tree) == 2
    os.kill(parent.pid, number)
    assert parent.wait(timeout=30) == 130
    assert all(is_gone(process) for process in tree)


def test_what_a_killed_parent_left_is_stopped_by_the_next(tmp_path: Path) -> None:
    parent, tree = start_parent(tmp_path)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert not any(is_gone(process) for process in tree)
    assert json.loads((tmp_path / "note.json").read_text())["pid"] in [process.pid for process in tree]
    with sole_owner(tmp_path / "lock", "busy"):  # the lock died with its holder
        assert run_child([sys.executable, "-c", ""], tmp_path / "note.json") == 0
    assert all(is_gone(process) for process in tree)


def test_a_lock_has_one_owner_and_gives_signals_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with sole_owner(tmp_path / "lock", "busy"):
        assert signal.getsignal(signal.SIGTERM) != before
        with pytest.raises(ConfigError, match=r"^busy$"), sole_owner(tmp_path / "lock", "busy"):
            pass
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
