"""Locks of builds that were killed."""

import os
import time
from pathlib import Path

import pytest
from torch.utils.file_baton import FileBaton

from simpo.run.builds import remove_stale_locks


@pytest.fixture
def lock(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    (tmp_path / "deepspeed_shm_comm").mkdir()
    return tmp_path / "deepspeed_shm_comm" / "lock"


def test_an_old_one_is_removed(lock: Path, capsys) -> None:
    lock.touch()
    os.utime(lock, (time.time() - 400,) * 2)
    remove_stale_locks()
    assert not lock.exists() and f"{lock}: removed" in capsys.readouterr().out


def test_that_of_a_build_that_goes_on_is_left_alone(lock: Path, capsys) -> None:
    baton = FileBaton(str(lock))  # torch's own
    assert baton.try_acquire()
    os.utime(lock, (time.time() - 400,) * 2)
    remove_stale_locks()
    assert lock.exists() and not capsys.readouterr().out
    baton.release()


def test_a_new_one_may_be_that_of_another_machine(lock: Path, capsys) -> None:
    lock.touch()
    began = time.monotonic()
    remove_stale_locks(patience=1.0)
    assert 0.8 < time.monotonic() - began < 5 and not lock.exists()
    assert "no process here holds it" in capsys.readouterr().out


def test_nothing_was_ever_built(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "absent"))
    remove_stale_locks()
