"""The optimizer step is the unit: one trajectory for every cut of the step and every engine."""

import json
import sys
from pathlib import Path

import pytest
import torch

from simpo.objectives import OBJECTIVES
from tests import launching

TRAJECTORY = launching.WORKERS / "trajectory.py"


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> dict:
    """One process, the whole step in one pack."""
    return _plain(tmp_path_factory.mktemp("reference"), "per_device_train_batch_size=8")


def _plain(folder, *settings: str) -> dict:
    launching.run([sys.executable, str(TRAJECTORY), str(folder / "out.json"), *settings])
    report = json.loads((folder / "out.json").read_text())
    assert report["engine"] == "plain x 1"
    return report


def _assert_same_trajectory(report: dict, reference: dict) -> None:
    assert (
        len(report["losses"]) == 12
    )  # 43 pairs, 8 a step: the last step of both epochs holds 3, so a rank may get a filler
    assert max(reference["losses"]) - min(reference["losses"]) > 0.3  # the model did learn something
    for key in ("losses", "margins", "eval", "predicted"):
        assert report[key] == pytest.approx(reference[key], abs=1e-4), key
    assert report["grad_norms"] == pytest.approx(reference["grad_norms"], rel=1e-3)


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "settings",
    [
        ("per_device_train_batch_size=1",),
        ("per_device_train_batch_size=3", "prefix_sharing=false"),
        ("per_device_train_batch_size=1", "total_train_batch_size=null", "gradient_accumulation_steps=8"),
        ("per_device_train_batch_size=4", "gradient_checkpointing=true"),
    ],
    ids=["8 x 1", "unshared", "accumulation", "checkpointing"],
)
def test_one_process(tmp_path, reference, settings) -> None:
    _assert_same_trajectory(_plain(tmp_path, *settings), reference)


@pytest.mark.multiprocess
@pytest.mark.parametrize("setting", ["per_device_train_batch_size=1", "per_device_train_batch_size=4", "as_drawn=true"])
def test_ddp(tmp_path, reference, setting) -> None:
    """Balanced plans of two sizes, and micro-batches of pairs as they were drawn."""
    out = tmp_path / "out.json"
    launching.torchrun(TRAJECTORY, str(out), setting)
    report = json.loads(out.read_text())
    assert report["engine"] == "DDP x 2"
    _assert_same_trajectory(report, reference)


@pytest.mark.multiprocess
def test_ddp_after_an_evaluation(tmp_path, reference) -> None:
    out = tmp_path / "out.json"
    launching.torchrun(TRAJECTORY, str(out), "per_device_train_batch_size=4", "evaluate_first=true")
    report = json.loads(out.read_text())
    assert report["engine"] == "DDP x 2"
    _assert_same_trajectory(report, reference)


@pytest.mark.multiprocess
@pytest.mark.parametrize("stage", [2, 3])
def test_zero(tmp_path, reference, stage) -> None:
    out = tmp_path / "out.json"
    launching.deepspeed(stage, tmp_path, TRAJECTORY, str(out), "per_device_train_batch_size=2")
    report = json.loads(out.read_text())
    assert report["engine"] == f"DeepSpeedEngine stage {stage} x 2"
    _assert_same_trajectory(report, reference)


@pytest.mark.gpu
@pytest.mark.multiprocess
def test_fsdp2_through_accelerate(tmp_path, reference) -> None:
    if not torch.cuda.is_available():
        pytest.skip(
            "accelerate runs FSDP on CUDA devices only (on a CPU it falls back to DDP); set SIMPO_TEST_GPUS=0,1"
        )
    out = tmp_path / "out.json"
    count = torch.cuda.device_count()
    config = Path(__file__).parents[1] / "accelerate_configs" / "fsdp2.yaml"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    options = [f"--num_processes={count}", "--mixed_precision=no", str(TRAJECTORY), str(out), "use_cpu=false"]
    launching.run([*launcher, *options, "per_device_train_batch_size=2"])
    report = json.loads(out.read_text())
    assert report["engine"] == f"FSDP2 x {count}"
    _assert_same_trajectory(report, reference)


@pytest.mark.multiprocess
def test_fsdp2(tmp_path) -> None:
    out = tmp_path / "out.json"
    launching.torchrun(launching.WORKERS / "fsdp2.py", str(out))
    for rank in json.loads(out.read_text()):
        rounded = rank.pop("bf16")
        assert (rounded["dtype"], rounded["gradient_dtype"]) == ("torch.float32", "torch.float32")
        assert rounded["mean_error"] < 2e-3
        assert len(rank) == 6 + len(OBJECTIVES)
        for variant, result in rank.items():
            assert result["sharded"], variant
            assert result["gradient_scale"] > 0.01
            assert result["value"] < 1e-5 and result["gradient"] < 1e-6 * max(1, result["gradient_scale"]), variant
