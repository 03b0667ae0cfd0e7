"""What may be written where, and which checkpoint a run goes on from."""

import json
import shutil

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from simpo.errors import ConfigError, ModelError
from simpo.run import run_training
from simpo.run.checkpoints.callback import CheckpointCallback
from simpo.run.checkpoints.resume import check_identity
from simpo.run.checkpoints.seal import IDENTITY
from simpo.run.folder import (
    MANIFEST,
    REPORT,
    SETTINGS,
    check_kept,
    checkpoints,
    find_checkpoint,
    remove_earlier_run,
)
from simpo.settings import read_settings


def _checkpoint(folder, step: int, *, whole: bool = True):
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "trainer_state.json").write_text("{}")
    if whole:
        (path / IDENTITY).write_text(json.dumps({"beta": 2.0}))
    return path


def test_a_new_or_empty_folder_starts_afresh(tmp_path) -> None:
    assert find_checkpoint(tmp_path / "new", None, overwrite=False) is None
    assert find_checkpoint(tmp_path, None, overwrite=False) is None


def test_an_interrupted_run_goes_on_from_its_last_whole_checkpoint(tmp_path) -> None:
    for step in (5, 10):
        _checkpoint(tmp_path, step)
    _checkpoint(tmp_path, 100, whole=False)  # killed while it was written
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-10"]
    for resume in (None, True):
        assert find_checkpoint(tmp_path, resume, overwrite=False) == tmp_path / "checkpoint-10"


@pytest.mark.parametrize("text", ["", '{"status": "fin', "[]", "\0\0\0\0"])
def test_a_manifest_that_was_cut_short_does_not_keep_a_run_from_going_on(tmp_path, text) -> None:
    """As a machine without power leaves a file."""
    (tmp_path / MANIFEST).write_text(text)
    assert find_checkpoint(tmp_path, None, overwrite=False) is None
    last = _checkpoint(tmp_path, 5)
    assert find_checkpoint(tmp_path, None, overwrite=False) == last


def test_a_run_stopped_before_its_first_checkpoint_starts_again(tmp_path) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps({"status": "running"}))
    (tmp_path / SETTINGS).write_text("beta: 2.0\n")
    (tmp_path / REPORT).write_text("<h1>out</h1>")
    _checkpoint(tmp_path, 5, whole=False)
    assert find_checkpoint(tmp_path, None, overwrite=False) is None
    (tmp_path / "log.part").write_text("{}\n")  # killed between writing a file and its move
    (tmp_path / "run_manifest.part").write_text("{")
    assert find_checkpoint(tmp_path, None, overwrite=False) is None
    (tmp_path / MANIFEST).unlink()  # the part is the first file of all
    assert find_checkpoint(tmp_path, None, overwrite=False) is None
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match="--overwrite"):
        find_checkpoint(tmp_path, None, overwrite=False)


def test_what_monitors_wrote_belongs_to_the_run(tmp_path) -> None:
    """A run that ended before its first checkpoint starts again; an overwritten one keeps nothing of it."""
    (tmp_path / "monitor").mkdir()
    (tmp_path / "monitor" / "warnings.jsonl").write_text("{}")
    (tmp_path / MANIFEST).write_text(json.dumps({"status": "running"}))
    assert find_checkpoint(tmp_path, None, overwrite=False) is None
    remove_earlier_run(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_monitor_that_stops_a_run_deletes_no_checkpoint(tmp_path) -> None:
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    state = TrainerState(global_step=2, is_world_process_zero=True)
    _checkpoint(tmp_path, 1)
    _checkpoint(tmp_path, 2, whole=False)
    CheckpointCallback({"beta": 2.0}, limit=1).on_save(args, state, TrainerControl(), keep_others=True)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-2"]


def test_a_checkpoint_from_elsewhere_does_not_open_a_folder_that_is_in_use(tmp_path) -> None:
    path = _checkpoint(tmp_path / "first", 5)
    assert find_checkpoint(tmp_path / "second", str(path), overwrite=False) == path
    assert find_checkpoint(tmp_path / "first", str(path), overwrite=False) == path
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match="from elsewhere"):
        find_checkpoint(tmp_path / "second", str(path), overwrite=False)


def test_old_checkpoints_go_once_the_new_one_is_whole(tmp_path) -> None:
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    state = TrainerState(
        global_step=3, best_model_checkpoint=str(tmp_path / "checkpoint-1"), is_world_process_zero=True
    )
    for step in (1, 2):
        _checkpoint(tmp_path, step)
    _checkpoint(tmp_path, 3, whole=False)
    CheckpointCallback({"beta": 2.0}, limit=1).on_save(args, state, TrainerControl())
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-3"]


def test_other_files_are_not_overwritten(tmp_path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match="--overwrite"):
        find_checkpoint(tmp_path, None, overwrite=False)
    assert find_checkpoint(tmp_path, None, overwrite=True) is None


def test_a_finished_run_is_not_overwritten(tmp_path) -> None:
    _checkpoint(tmp_path, 5)
    (tmp_path / MANIFEST).write_text(json.dumps({"status": "finished"}))
    with pytest.raises(ConfigError, match="finished run"):
        find_checkpoint(tmp_path, None, overwrite=False)
    assert find_checkpoint(tmp_path, True, overwrite=False) == tmp_path / "checkpoint-5"


def test_what_a_run_starts_from_is_not_overwritten(make_config, tmp_path, tiny_dir) -> None:
    """Training on from a checkpoint's weights, in the folder that holds it."""
    weights = tmp_path / "out" / "checkpoint-5"
    shutil.copytree(tiny_dir, weights, copy_function=shutil.copyfile)
    for name in (weights, weights.parent):
        with pytest.raises(ConfigError, match=r"output_dir: .* holds model_name_or_path: .* choose another output_dir"):
            run_training(read_settings(make_config(model_name_or_path=str(name))), overwrite=True)
    assert (weights / "model.safetensors").is_file()
    check_kept(tmp_path / "out", "someone/model")
    check_kept(tmp_path, str(tmp_path / "out"))  # a folder of another run below, which is left


def test_resume_false_does_not_overwrite_checkpoints(tmp_path) -> None:
    _checkpoint(tmp_path, 5)
    with pytest.raises(ConfigError, match="--overwrite"):
        find_checkpoint(tmp_path, False, overwrite=False)


def test_checkpoints_that_are_not_there(tmp_path) -> None:
    with pytest.raises(ConfigError, match="trainer_state"):
        find_checkpoint(tmp_path, str(tmp_path / "checkpoint-7"), overwrite=False)
    with pytest.raises(ConfigError, match="no complete checkpoint"):
        find_checkpoint(tmp_path, True, overwrite=False)


def test_a_checkpoint_of_another_run_is_refused(tmp_path) -> None:
    path = _checkpoint(tmp_path, 5)
    check_identity(path, {"beta": 2.0})
    with pytest.raises(ModelError, match=r"beta: 2\.0 there, 10\.0 here"):
        check_identity(path, {"beta": 10.0})


def test_clear_removes_what_a_run_left_and_nothing_else(tmp_path) -> None:
    _checkpoint(tmp_path, 5)
    for name in ("model.safetensors", "adapter_config.json", MANIFEST, SETTINGS, REPORT, "train_results.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "notes.txt").write_text("x")
    remove_earlier_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
