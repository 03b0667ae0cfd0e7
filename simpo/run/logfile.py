"""What a run logs, as JSON lines that can be read while it trains."""

import json
import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

LOG_FILE = "log.jsonl"


class LogFile(TrainerCallback):
    """Appends each log entry, with its step and epoch, to `log.jsonl` in the run's folder; the first process writes."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop what an earlier attempt logged after the checkpoint that this one begins at."""
        path = Path(str(args.output_dir), LOG_FILE)
        if state.is_world_process_zero and path.is_file():
            now = state.global_step
            # of the last step, what was logged before the checkpoint: the end of a run has its step as well
            left = sum(entry.get("step") == now for entry in state.log_history)
            kept = []
            for line in path.read_text().splitlines():
                left -= (step := _step(line)) == now
                if step < now or (step == now and left >= 0):
                    kept.append(f"{line}\n")
            part = path.with_suffix(".part")
            part.write_text("".join(kept))
            os.replace(part, path)  # killed in between, the old lines are still there

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
        with path.open("a") as file:  # closed after each line: whoever reads sees whole lines
            file.write(json.dumps({"step": state.global_step, **logs}, default=float) + "\n")


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):  # cut short when the earlier attempt was killed
        return float("inf")
