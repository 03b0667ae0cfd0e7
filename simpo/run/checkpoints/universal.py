"""ZeRO checkpoints on another number of processes, through DeepSpeed's universal checkpoints.

ZeRO writes the optimizer's state in as many parts as there are processes, and loads that many only. DeepSpeed can
rewrite the parts into one file for each parameter, which any number of processes loads.
"""

import argparse
import contextlib
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from simpo.errors import ModelError, SimPOError, StoreError
from simpo.main_process import on_main
from simpo.run.checkpoints.faults import size_text, why_unwritten

_LATEST = "latest_universal"  # names the converted folder, where DeepSpeed looks for it
_PATIENCE = timedelta(days=2)  # one process reads and writes the whole state twice, which may be terabytes


def load_on_any_number(trainer: Trainer, checkpoint: Path) -> str | None:
    """Let a ZeRO run load a checkpoint that another number of processes wrote; every process must call it.

    It is converted into a folder inside the checkpoint, which needs about twice its size meanwhile and is removed after
    loading.

    Args:
        trainer: before `train`.
        checkpoint: whole.

    Returns:
        What is done, for people; None where nothing has to be.

    Raises:
        ModelError: DeepSpeed could not convert it.
        StoreError: there was no room, or the checkpoint's folder cannot be written.
    """
    plugin = getattr(trainer.args, "deepspeed_plugin", None)
    if plugin is None:
        return None
    parts, processes = on_main(lambda: _parts(checkpoint)), PartialState().num_processes
    if not parts or len(parts) == processes:
        return None
    source = parts[0].parent
    target = _target_of(source)
    on_main(lambda: _convert(source, target), patience=_PATIENCE)
    plugin = trainer.accelerator.state.deepspeed_plugin
    plugin.deepspeed_config.setdefault("checkpoint", {})["load_universal"] = True
    trainer.add_callback(_AfterLoading(trainer, target))
    return f"{checkpoint.name} was written by {len(parts)} processes and is converted for {processes}"


def _parts(checkpoint: Path) -> list[Path]:
    """The files of an optimizer's state; what an attempt that was killed has left beside them is removed."""
    found = sorted(checkpoint.glob("global_step*/*_optim_states.pt"))
    if found:
        _remove_converted(_target_of(found[0].parent))
    return found


def _convert(source: Path, target: Path) -> None:
    from deepspeed.checkpoint import ds_to_universal

    part = _part_of(target)
    # One worker. DeepSpeed's pool forks this process; a fork has none of the threads of OpenMP, so that it would wait
    # for ever in its first large copy, and each worker would hold one process's part of the state in memory.
    options = argparse.Namespace(
        input_folder=str(source), output_folder=str(part), num_extract_workers=1, num_merge_workers=1,
        keep_temp_folder=False, strict=True, inject_missing_state=True,
    )  # fmt: skip
    try:
        ds_to_universal.main(options)
        part.rename(target)
        (source.parent / _LATEST).write_text(target.name)
    except BaseException as error:
        explained = _explain(error, source)  # before there is room again
        _remove_converted(target)
        if explained is None:
            raise
        raise explained from error


def _explain(error: BaseException, source: Path) -> SimPOError | None:
    if isinstance(error, SimPOError) or not isinstance(error, Exception):  # as a signal's
        return None
    why = why_unwritten(error, source) or (str(error) if isinstance(error, OSError) else None)
    as_many = "start as many processes as wrote it"
    if why is None:
        return ModelError(f"DeepSpeed cannot convert {source} for another number of processes: {error}; {as_many}")
    return StoreError(
        f"{source.parent}: {why} while the checkpoint was converted for another number of processes, for which it "
        f"needs {size_text(_room(source))} of room until it is loaded; make room, or {as_many}"
    )


def _room(source: Path) -> int:
    """Bytes: the optimizer's state as pieces of parameters and as whole ones, and a copy of the model's."""
    sizes = {
        kind: sum(path.stat().st_size for path in source.glob(f"*{kind}_states.pt")) for kind in ("optim", "model")
    }
    return 2 * sizes["optim"] + sizes["model"]


def _target_of(source: Path) -> Path:
    return source.with_name(f"{source.name}_universal")


def _part_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _remove_converted(target: Path) -> None:
    with contextlib.suppress(OSError):  # of a disk that cannot be written, which refuses even where there is none
        (target.parent / _LATEST).unlink(missing_ok=True)
    for folder in (target, _part_of(target)):
        shutil.rmtree(folder, ignore_errors=True)


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
            _remove_converted(self.converted)
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
