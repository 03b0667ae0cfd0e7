"""Disks that are full or cannot be written."""

import os
import subprocess
from pathlib import Path

import pytest

from simpo.errors import ConfigError, StoreError
from simpo.run import run_training
from simpo.run.checkpoints.faults import check_writable, saving_into
from simpo.run.checkpoints.seal import IDENTITY, damages
from simpo.run.folder import checkpoints
from simpo.settings import read_settings


@pytest.fixture
def small_disk(tmp_path: Path):
    """small_disk(size) -> a file system of its own, of so many MiB."""
    folders = []

    def make(size: int) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("needs the right to mount a tmpfs")
        folders.append(folder)
        return folder

    yield make
    for folder in folders:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_named_and_costs_no_whole_checkpoint(make_config, small_disk) -> None:
    """A checkpoint of the tiny model has 4.4 MB: one fits, the second does not."""
    disk = small_disk(8)
    config = make_config(output_dir=str(disk / "run"), save_strategy="steps", save_steps=1, num_train_epochs=2)
    with pytest.raises(
        StoreError, match=r"the disk is full .* after checkpoint-2 with .* was removed.*checkpoint-1 is"
    ):
        run_training(read_settings(config))
    (left,) = checkpoints(disk / "run")
    assert left.name == "checkpoint-1" and damages(left) == []
    assert not (disk / "run" / "checkpoint-2").exists()
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)  # room is made
    run_training(read_settings(config))
    assert (disk / "run" / "model.safetensors").is_file()


def test_an_output_that_cannot_be_written_stops_before_training(make_config, small_disk) -> None:
    disk = small_disk(8)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    config = make_config(output_dir=str(disk / "run"), max_steps=1)
    with pytest.raises(ConfigError, match=r"output_dir: .*/disk/run cannot be written: Read-only file system"):
        run_training(read_settings(config))


def test_an_output_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot be written"):
        check_writable(tmp_path / "file" / "run")


@pytest.mark.parametrize(
    "error", [OSError(28, os.strerror(28)), RuntimeError("x: No space left on device (os error 28)")]
)
def test_who_says_it_does_not_matter(tmp_path: Path, error: Exception) -> None:
    begun = tmp_path / "checkpoint-10"
    begun.mkdir()
    with (
        pytest.raises(StoreError, match=r"the disk is full.*checkpoint-10 with 0 bytes was removed.*no checkpoint yet"),
        saving_into(tmp_path),
    ):
        raise error
    assert not begun.exists()


def test_what_a_run_goes_on_from_stays_without_a_mark(tmp_path: Path) -> None:
    """As transformers alone writes it."""
    given = tmp_path / "checkpoint-10"
    given.mkdir()
    with pytest.raises(StoreError, match="the disk is full"), saving_into(tmp_path, keep=given):
        raise OSError(28, "No space left on device")
    assert given.is_dir()


def test_other_errors_pass_and_whole_checkpoints_stay(tmp_path: Path) -> None:
    whole = tmp_path / "checkpoint-10"
    whole.mkdir()
    for name in (IDENTITY, "trainer_state.json"):
        (whole / name).write_text("{}")
    with pytest.raises(RuntimeError, match="another matter"), saving_into(tmp_path):
        raise RuntimeError("another matter")
    with pytest.raises(StoreError, match="checkpoint-10 is whole"), saving_into(tmp_path):
        raise OSError(28, "No space left on device")
    assert whole.is_dir()
