"""A run that was killed after its last step is finished, and not trained further."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from simpo.run import run_training
from simpo.run.folder import MANIFEST
from simpo.settings import read_settings


@pytest.mark.parametrize("given", [{"max_steps": 2}, {"num_train_epochs": 0.5}])
def test_the_last_step_is_the_last(make_config, tmp_path: Path, given) -> None:
    """Within an epoch of three steps, at a learning rate that does not fall to 0."""
    config = make_config(save_strategy="steps", save_steps=1, lr_scheduler_type="constant", warmup_steps=0, **given)
    run_training(read_settings(config))
    out = tmp_path / "out"
    whole = load_file(out / "model.safetensors")
    manifest = json.loads((out / MANIFEST).read_text())
    (out / MANIFEST).write_text(json.dumps(manifest | {"status": "running"}))  # as a kill in the evaluation leaves it
    run_training(read_settings(config))
    again = load_file(out / "model.safetensors")
    assert json.loads((out / "trainer_state.json").read_text())["global_step"] == 2
    assert all(torch.equal(again[name], whole[name]) for name in whole)
