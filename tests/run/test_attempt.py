"""What every kind of run does around its training."""

import json

from accelerate import Accelerator, PartialState

from simpo.run import attempt, run_training
from simpo.run.checkpoints import callback
from simpo.settings import read_settings
from simpo.trainer import PreferenceTrainer


def test_an_upload_keeps_nobody_waiting(make_config, tmp_path, monkeypatch) -> None:
    """It may take hours, and a collective that waits for so long ends the run; by then all is written."""
    done = []

    def push(trainer, folder, message) -> None:
        done.append(json.loads((tmp_path / "out" / "run_manifest.json").read_text())["status"])

    monkeypatch.setattr(PreferenceTrainer, "init_hf_repo", lambda *_, **__: None)
    monkeypatch.setattr(PartialState, "wait_for_everyone", lambda self: done.append("wait"))
    monkeypatch.setattr(Accelerator, "end_training", lambda self: done.append("connections are closed"))
    monkeypatch.setattr(attempt, "push_folder", push)
    run_training(read_settings(make_config(push_to_hub=True, hub_model_id="me/model", max_steps=1)))
    assert done[-3:] == ["wait", "connections are closed", "finished"]


def test_all_wait_where_old_checkpoints_are_removed(make_config, monkeypatch) -> None:
    """In the next step their waiting would be taken for a hang of the process that still removes."""
    done = []
    on_save, remove = callback.CheckpointCallback.on_save, callback.remove_checkpoint

    def saved(self, *args, **named) -> None:
        on_save(self, *args, **named)
        done.append("next")

    monkeypatch.setattr(callback, "remove_checkpoint", lambda path: (done.append("remove"), remove(path)))
    monkeypatch.setattr(callback.CheckpointCallback, "on_save", saved)
    monkeypatch.setattr(PartialState, "wait_for_everyone", lambda self: done.append("wait"))
    every = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    run_training(read_settings(make_config(max_steps=2, **every)))
    assert done.count("next") == 2 and done.count("remove") == 1
    assert all(done[at - 1] == "wait" for at, what in enumerate(done) if what == "next")
