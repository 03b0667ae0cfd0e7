"""A run goes on with another number of processes, on the same trajectory."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from simpo.run.checkpoints.universal import restore_weight_decay, separate_steps
from tests.launching import run

SCRIPT = Path(__file__).parents[3] / "scripts" / "run_simpo.py"


def launch(folder: Path, stage: int, processes: int, config: Path, output: Path) -> str:
    """A run under ZeRO, or under DDP for stage 0."""
    words = [str(SCRIPT), str(config), f"--output_dir={output}"]
    if stage == 0:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        return run([sys.executable, *torchrun, *words])
    launcher = folder / f"zero{stage}-{processes}.yaml"
    zero: dict[str, Any] = {"zero_stage": stage, "gradient_accumulation_steps": 1, "zero3_init_flag": False}
    launcher.write_text(
        yaml.safe_dump(
            {
                "compute_environment": "LOCAL_MACHINE", "distributed_type": "DEEPSPEED", "use_cpu": True,
                "num_processes": processes, "num_machines": 1, "machine_rank": 0, "mixed_precision": "no",
                "deepspeed_config": zero | {"zero3_save_16bit_model": True},
            }
        )
    )  # fmt: skip
    accelerate = ["-m", "accelerate.commands.launch", "--config_file", str(launcher), "--main_process_port", "0"]
    return run([sys.executable, *accelerate, *words])


@pytest.mark.multiprocess
@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_another_number_of_processes(make_config, tmp_path, stage: int, before: int, after: int) -> None:
    config = make_config(num_train_epochs=2, save_strategy="steps", save_steps=3, weight_decay=0.1)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    launch(tmp_path, stage, before, config, whole)
    resumed.mkdir()
    shutil.copytree(whole / "checkpoint-3", resumed / "checkpoint-3")
    for name in ("run_manifest.json", "settings.yaml"):
        shutil.copy(whole / name, resumed)
    manifest = json.loads((resumed / "run_manifest.json").read_text())
    (resumed / "run_manifest.json").write_text(json.dumps(manifest | {"status": "running"}))
    printed = launch(tmp_path, stage, after, config, resumed)
    assert "Going on from" in printed and ("is converted for" in printed) == (stage > 0)
    assert not list((resumed / "checkpoint-3").glob("*universal*"))
    theirs, ours = (load_file(folder / "model.safetensors") for folder in (whole, resumed))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=1e-6, rtol=0)


def test_what_loading_leaves_wrong_is_put_right() -> None:
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    groups = [{"params": parameters[:1], "weight_decay": 0.1}, {"params": parameters[1:], "weight_decay": 0.1}]
    optimizer = torch.optim.AdamW(groups)
    shared = torch.tensor(4.0)
    for parameter in parameters:
        optimizer.state[parameter]["step"] = shared
    separate_steps(optimizer)
    restore_weight_decay(optimizer, 0.1)
    optimizer.state[parameters[0]]["step"] += 1
    assert float(optimizer.state[parameters[1]]["step"]) == 4
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
