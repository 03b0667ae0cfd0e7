"""What a run logs, as JSON lines that can be read while it trains."""

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

LOG_FILE = "log.jsonl"
_MAXRSS = 1 if sys.platform == "darwin" else 1024  # bytes of getrusage's unit


class LogFile(TrainerCallback):
    """Appends each log entry, with its step and epoch, to `log.jsonl` in the run's folder; the first process writes.

    Besides what is logged a line has `elapsed`, the seconds of training so far, those before a resume included, and
    `memory_gib`: the most that the first process has held so far, allocated on its GPU or resident on a CPU.
    """

    def __init__(self) -> None:
        self._began: float | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop what an earlier attempt logged after the checkpoint that this one begins at; its time goes on."""
        path = Path(str(args.output_dir), LOG_FILE)
        before = 0.0
        if state.is_world_process_zero and path.is_file():
            now = state.global_step
            # of the last step, what was logged before the checkpoint: the end of a run has its step as well
            left = sum(entry.get("step") == now for entry in state.log_history)
            kept = []
            for line in path.read_text().splitlines():
                left -= (step := _step(line)) == now
                if step < now or (step == now and left >= 0):
                    kept.append(line)
            part = path.with_suffix(".part")
            part.write_text("".join(f"{line}\n" for line in kept))
            os.replace(part, path)  # killed in between, the old lines are still there
            before = max((float(json.loads(line).get("elapsed", 0)) for line in kept), default=0.0)
        self._began = time.monotonic() - before

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Called by transformers with the numbers of a log line, an evaluation, or the end of training."""
        if not state.is_world_process_zero or not logs:
            return
        path = Path(str(args.output_dir), LOG_FILE)
        path.parent.mkdir(parents=True, exist_ok=True)
        line = {"step": state.global_step, **logs}
        if self._began is not None:
            line |= {"elapsed": round(time.monotonic() - self._began, 3), "memory_gib": round(_peak_memory(), 4)}
        with path.open("a") as file:  # closed after each line: whoever reads sees whole lines
            file.write(json.dumps(line, default=float) + "\n")


def _peak_memory() -> float:
    """GiB."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS / 2**30


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):  # cut short when the earlier attempt was killed
        return float("inf")
