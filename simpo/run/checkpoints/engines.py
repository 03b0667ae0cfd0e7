"""Which engine wrote a checkpoint; another one cannot read its optimizer's state, and some would go on without it."""

from pathlib import Path

from accelerate.utils import DistributedType
from transformers import Trainer, TrainingArguments

from simpo.errors import ConfigError, ModelError

_PLAIN = "DDP or one process"
_FSDP = "FSDP"
_ZERO = {0: "DeepSpeed without ZeRO", 1: "ZeRO-1 or ZeRO-2", 2: "ZeRO-1 or ZeRO-2", 3: "ZeRO-3"}


def check_writer(args: TrainingArguments) -> None:
    """Refuse checkpoints that DeepSpeed writes beside the training: a save then returns before its files are whole.

    They could not be hashed and marked as whole. DeepSpeed waits for them before the next update of the weights anyway,
    so that one forward and backward pass is all that could be won.

    Raises:
        ConfigError: which setting asks for it.
    """
    plugin = getattr(args, "deepspeed_plugin", None)
    config = plugin.deepspeed_config if plugin is not None else {}
    writer = (config.get("checkpoint") or {}).get("writer") or {}
    asked = {
        "checkpoint.writer.decoupled": writer.get("decoupled"),
        "datastates_ckpt": config.get("datastates_ckpt"),
    }
    for key, there in asked.items():
        if there:
            raise ConfigError(
                f"{key} in the DeepSpeed config: checkpoints that are written while the training goes on cannot be "
                "verified; leave it out (checkpoint.writer without it is fine), and save less often if that takes long"
            )


def check_engine_of(checkpoint: Path, trainer: Trainer) -> None:
    """Refuse to go on from a checkpoint of another engine.

    Raises:
        ModelError: which engine wrote it, or that there is no optimizer's state at all.
    """
    wrote, now = engine_that_wrote(checkpoint), engine_of(trainer)
    if wrote == now:
        return
    afresh = f"or train on from its weights alone: model_name_or_path: {checkpoint}, and another output_dir"
    if wrote is None:
        raise ModelError(
            f"{checkpoint} holds no state of the optimizer (save_only_model: true leaves it out), so that nothing can "
            f"go on from it as it was; start afresh with --overwrite, {afresh}"
        )
    raise ModelError(
        f"{checkpoint} was written under {wrote}, and this run is under {now}, which cannot read its optimizer's "
        f"state; start it under {wrote} again, {afresh}"
    )


def engine_of(trainer: Trainer) -> str:
    """The engine of a trainer."""
    plugin = getattr(trainer.args, "deepspeed_plugin", None)
    if plugin is not None:
        return _ZERO[int(plugin.zero_stage)]
    return _FSDP if trainer.accelerator.distributed_type == DistributedType.FSDP else _PLAIN


def engine_that_wrote(checkpoint: Path) -> str | None:
    """The engine that a checkpoint's files are of; None where the optimizer's are absent."""
    if any(checkpoint.glob("global_step*/*optim_states.pt")):
        sharded = any(checkpoint.glob("global_step*/zero_pp_rank_*_model_states.pt"))
        return _ZERO[3 if sharded else 2]
    if any(checkpoint.glob("global_step*/*model_states.pt")):
        return _ZERO[0]
    if (checkpoint / "optimizer.bin").is_file() or any(checkpoint.glob("optimizer_*/")):
        return _FSDP
    return _PLAIN if (checkpoint / "optimizer.pt").is_file() else None
