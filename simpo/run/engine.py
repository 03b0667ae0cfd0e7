"""What drives a run: its name for people, and the engines that would leave no model behind."""

import os

from accelerate.utils import DistributedType
from transformers import Trainer, TrainingArguments

from simpo.errors import ConfigError
from simpo.run.builds import remove_stale_locks
from simpo.run.checkpoints.engines import check_writer
from simpo.run.parallelism import check_parallelism


def check_engine(args: TrainingArguments) -> None:
    """Refuse an engine that would leave no model behind, or that cuts sequences; every process must call it.

    What would let DeepSpeed wait for ever is put right.

    Raises:
        ConfigError: ZeRO-3 does not gather its weights at saving; one sequence is split over devices; checkpoints would
            be written while the training goes on.
    """
    check_parallelism(args)
    check_writer(args)
    plugin = getattr(args, "deepspeed_plugin", None)
    if plugin is not None:
        remove_stale_locks()
    if plugin is None or plugin.zero_stage != 3:
        return
    gather = plugin.deepspeed_config.get("zero_optimization", {}).get("stage3_gather_16bit_weights_on_model_save")
    if gather in (False, None):
        raise ConfigError(
            "ZeRO-3 without gathering leaves no model behind: set zero3_save_16bit_model: true in the accelerate "
            "config (stage3_gather_16bit_weights_on_model_save in a DeepSpeed config)"
        )


def engine_name(args: TrainingArguments, trainer: Trainer | None = None) -> str:
    """What drives the run: one process, DDP, DeepSpeed with its stage, or FSDP, on how many processes."""
    plugin = getattr(args, "deepspeed_plugin", None)
    if plugin is not None:
        return f"DeepSpeed ZeRO-{plugin.zero_stage} on {args.world_size} processes"
    launched = os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")  # before there is an accelerator
    if launched if trainer is None else trainer.accelerator.distributed_type == DistributedType.FSDP:
        return f"FSDP on {args.world_size} processes"
    return "one process" if args.world_size == 1 else f"DDP on {args.world_size} processes"
