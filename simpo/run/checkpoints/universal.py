"""ZeRO checkpoints on another number of processes, through DeepSpeed's universal checkpoints.

ZeRO writes the optimizer's state in as many parts as there are processes, and loads that many only. DeepSpeed can
rewrite the parts into one file for each parameter, which any number of processes loads.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from simpo.errors import ModelError

_LATEST = "latest_universal"  # names the converted folder, where DeepSpeed looks for it


def load_on_any_number(trainer: Trainer, checkpoint: Path) -> str | None:
    """Let a ZeRO run load a checkpoint that another number of processes wrote; every process must call it.

    It is converted into a folder inside the checkpoint, which needs its size once more and is removed after loading.

    Args:
        trainer: before `train`.
        checkpoint: whole.

    Returns:
        What is done, for people; None where nothing has to be.

    Raises:
        ModelError: DeepSpeed could not convert it.
    """
    plugin = getattr(trainer.args, "deepspeed_plugin", None)
    parts = list(checkpoint.glob("global_step*/*_optim_states.pt"))
    processes = PartialState().num_processes
    if plugin is None or not parts or len(parts) == processes:
        return None
    source = parts[0].parent
    target = source.with_name(f"{source.name}_universal")
    if PartialState().is_main_process:
        _convert(source, target)
    PartialState().wait_for_everyone()
    plugin = trainer.accelerator.state.deepspeed_plugin
    plugin.deepspeed_config.setdefault("checkpoint", {})["load_universal"] = True
    trainer.add_callback(_AfterLoading(trainer, target))
    return f"{checkpoint.name} was written by {len(parts)} processes and is converted for {processes}"


def _convert(source: Path, target: Path) -> None:
    from deepspeed.checkpoint import ds_to_universal

    part = target.with_name(target.name + ".part")
    for old in (target, part):
        shutil.rmtree(old, ignore_errors=True)
    options = argparse.Namespace(
        input_folder=str(source), output_folder=str(part), num_extract_workers=1, num_merge_workers=1,
        keep_temp_folder=False, strict=True, inject_missing_state=True,
    )  # fmt: skip
    try:
        ds_to_universal.main(options)
    except (AssertionError, KeyError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"DeepSpeed cannot convert {source} for another number of processes: {error}; start as many as wrote it"
        ) from error
    part.rename(target)
    (source.parent / _LATEST).write_text(target.name)


class _AfterLoading(TrainerCallback):
    """Puts right what DeepSpeed's loading leaves wrong, and removes the converted files."""

    def __init__(self, trainer: Trainer, converted: Path) -> None:
        self.trainer = trainer
        self.converted: Path | None = converted

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called by transformers once the checkpoint is loaded."""
        if self.converted is None:
            return
        optimizer: Any = self.trainer.optimizer
        while hasattr(optimizer, "optimizer"):  # accelerate's and DeepSpeed's around torch's
            optimizer = optimizer.optimizer
        separate_steps(optimizer)
        restore_weight_decay(optimizer, args.weight_decay)
        PartialState().wait_for_everyone()
        if PartialState().is_main_process:
            (self.converted.parent / _LATEST).unlink(missing_ok=True)
            shutil.rmtree(self.converted, ignore_errors=True)
        self.converted = None


def separate_steps(optimizer: Any) -> None:
    """Give each parameter of an optimizer its own count of steps.

    DeepSpeed's loading leaves one tensor for all, which every parameter's update then raises by one: Adam's correction
    of its averages would run ahead.
    """
    for state in optimizer.state.values():
        if hasattr(state.get("step"), "clone"):
            state["step"] = state["step"].clone()


def restore_weight_decay(optimizer: Any, weight_decay: float) -> None:
    """Give the groups of transformers' optimizers their decay: the first decays, the second (biases, norms) does not.

    DeepSpeed's loading copies the first group's settings to all.
    """
    for number, group in enumerate(optimizer.param_groups):
        group["weight_decay"] = weight_decay if number == 0 else 0.0
