"""A run goes on with another number of processes, on the same trajectory."""

import argparse
import errno
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from simpo.errors import Interrupted, ModelError, StoreError
from simpo.run.checkpoints import faults as faults_of
from simpo.run.checkpoints.universal import _convert, load_on_any_number, restore_weight_decay, separate_steps
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


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        (
            OSError(errno.ENOSPC, "No space left"),
            StoreError,
            "checkpoint-3: the disk is full .*needs 2.44 KiB of room.*start as many processes as",
        ),
        (RuntimeError("unexpected pos 64 vs 0"), StoreError, "checkpoint-3: the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied"), StoreError, "checkpoint-3: .*Permission denied while"),
        (
            KeyError("param_slice_mappings"),
            ModelError,
            "cannot convert .*global_step3 for another number .*param_slice_mappings.*start as many",
        ),
        (Interrupted("stopped by SIGTERM"), Interrupted, "stopped by SIGTERM"),
        (KeyboardInterrupt(), KeyboardInterrupt, ""),
    ],
)
def test_a_conversion_that_fails_leaves_the_checkpoint_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException, error: type[BaseException], words: str
) -> None:
    pytest.importorskip("deepspeed")
    from deepspeed.checkpoint import ds_to_universal

    source = tmp_path / "checkpoint-3" / "global_step3"
    source.mkdir(parents=True)
    for name, size in (("zero_pp_rank_0_mp_rank_00_optim_states.pt", 1000), ("mp_rank_00_model_states.pt", 500)):
        (source / name).write_bytes(bytes(size))
    target, faults = source.with_name("global_step3_universal"), [fault]

    def main(options: argparse.Namespace) -> None:
        assert options.num_extract_workers == options.num_merge_workers == 1
        (Path(options.output_folder) / "tmp").mkdir(parents=True)
        (Path(options.output_folder) / "tmp" / "fp32.00").write_bytes(b"x")
        (source.parent / "latest_universal").write_text("of DeepSpeed")
        for one in faults:
            raise one

    monkeypatch.setattr(ds_to_universal, "main", main)
    monkeypatch.setattr(faults_of.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    with pytest.raises(error, match=f"(?s){words}"):
        _convert(source, target)
    assert [path.name for path in source.parent.iterdir()] == ["global_step3"]
    faults.clear()
    _convert(source, target)
    assert (target / "tmp" / "fp32.00").is_file()
    assert (source.parent / "latest_universal").read_text() == "global_step3_universal"


def test_what_an_attempt_that_was_killed_left_goes(tmp_path: Path) -> None:
    """Also where nothing is to be converted now: it has twice the size of the checkpoint."""
    (tmp_path / "global_step3").mkdir()
    (tmp_path / "global_step3" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").touch()
    trainer: Any = SimpleNamespace(args=SimpleNamespace(deepspeed_plugin=object()))
    for name in ("global_step3_universal", "global_step3_universal.part"):
        (tmp_path / name / "zero").mkdir(parents=True)
    assert load_on_any_number(trainer, tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["global_step3"]


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
