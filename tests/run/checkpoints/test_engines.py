"""A checkpoint is read by the engine that wrote it, or refused."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from accelerate.utils import DistributedType

from simpo.errors import ConfigError, ModelError
from simpo.run import run_training
from simpo.run.checkpoints.engines import check_engine_of, check_writer, engine_that_wrote
from simpo.run.engine import check_engine
from simpo.settings import read_settings
from tests.launching import WORKERS, run

FILES = {
    "ZeRO-3": [f"global_step4/zero_pp_rank_1_mp_rank_00_{kind}_states.pt" for kind in ("model", "optim")],
    "ZeRO-1 or ZeRO-2": [
        f"global_step4/{name}_states.pt" for name in ("mp_rank_00_model", "bf16_zero_pp_rank_0_mp_rank_00_optim")
    ],
    "DeepSpeed without ZeRO": ["global_step4/mp_rank_00_model_states.pt"],
    "FSDP": ["optimizer_0/.metadata", "pytorch_model_fsdp_0/.metadata"],
    "DDP or one process": ["optimizer.pt", "model.safetensors"],
}  # fmt: skip


def trainer_under(engine: str) -> Any:
    stage = {"ZeRO-3": 3, "ZeRO-1 or ZeRO-2": 2, "DeepSpeed without ZeRO": 0}.get(engine)
    plugin = None if stage is None else SimpleNamespace(zero_stage=stage)
    kind = DistributedType.FSDP if engine == "FSDP" else DistributedType.MULTI_CPU
    return SimpleNamespace(
        args=SimpleNamespace(deepspeed_plugin=plugin), accelerator=SimpleNamespace(distributed_type=kind)
    )


@pytest.mark.parametrize("wrote", FILES)
def test_each_engine_goes_on_from_its_own(tmp_path: Path, wrote: str) -> None:
    for name in FILES[wrote]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert engine_that_wrote(tmp_path) == wrote
    for now in FILES:
        if now == wrote:
            check_engine_of(tmp_path, trainer_under(now))
        else:
            with pytest.raises(ModelError, match=f"written under {wrote}, and this run is under {now}"):
                check_engine_of(tmp_path, trainer_under(now))


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"checkpoint": {"writer": {"type": "FAST", "decoupled": True}}}, "checkpoint.writer.decoupled"),
        ({"datastates_ckpt": {"host_cache_size": 16}}, "datastates_ckpt"),
    ],
)
def test_checkpoints_that_are_written_later_are_refused(config: dict[str, Any], key: str) -> None:
    args: Any = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=2, deepspeed_config=config))
    with pytest.raises(ConfigError, match=f"^{key} in the DeepSpeed config: .* cannot be verified"):
        check_engine(args)


@pytest.mark.parametrize("config", [{}, {"checkpoint": None}, {"checkpoint": {"writer": {"type": "FAST"}}}])
def test_other_checkpoints_of_deepspeed_are_not(config: dict[str, Any]) -> None:
    check_writer(cast(Any, SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=2, deepspeed_config=config))))
    check_writer(cast(Any, SimpleNamespace(deepspeed_plugin=None)))


def test_weights_alone_are_not_gone_on_from(make_config, tmp_path: Path) -> None:
    """transformers would start a new optimizer, and nobody would know."""
    config = make_config(save_strategy="steps", save_steps=2, save_only_model=True)
    run_training(read_settings(config))
    checkpoint = tmp_path / "out" / "checkpoint-2"
    kept = sorted(path.name for path in checkpoint.iterdir())
    with pytest.raises(ModelError, match=r"no state of the optimizer \(save_only_model: true leaves it out\)"):
        run_training(read_settings(config), resume_from_checkpoint=str(checkpoint))
    assert sorted(path.name for path in checkpoint.iterdir()) == kept


@pytest.mark.multiprocess
@pytest.mark.slow
def test_real_checkpoints_under_other_engines(tmp_path: Path) -> None:
    printed = run([sys.executable, str(WORKERS / "engines.py"), str(tmp_path)])
    starts = {row["start"]: row for row in map(json.loads, (line for line in printed.splitlines() if line[:2] == '{"'))}
    assert starts["ddp"]["code"] == starts["zero3"]["code"] == 0
    for name, words in (
        ("ddp under zero3", "written under DDP or one process, and this run is under ZeRO-3"),
        ("zero3 under ddp", "written under ZeRO-3, and this run is under DDP or one process"),
        ("zero3 under zero2", "written under ZeRO-3, and this run is under ZeRO-1 or ZeRO-2"),
    ):
        assert starts[name]["code"] == 2 and words in starts[name]["said"][0], starts[name]
    part = starts["zero3 without a part"]
    assert part["code"] == 0 and any("checkpoint-2 is damaged" in line for line in part["said"])
    assert any(line.endswith("/zero3/checkpoint-1") for line in part["said"] if line.startswith("Going on from"))
    assert (tmp_path / "zero3" / "checkpoint-2.damaged").is_dir()
