"""What a run logs, as JSON lines that can be read while it trains."""

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

LOG_FILE = "log.jsonl"


class LogFile(TrainerCallback):
    """Appends each log entry, with its step and epoch, to `log.jsonl` in the run's folder; the first process writes."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop what an earlier attempt logged after the step that this one begins at."""
        path = Path(str(args.output_dir), LOG_FILE)
        if state.is_world_process_zero and path.is_file():
            kept = [line for line in path.read_text().splitlines() if _step(line) <= state.global_step > 0]
            path.write_text("".join(f"{line}\n" for line in kept))

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
