"""Answers as a table in the experiment trackers of a run; none is imported unless the run reports to it."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

TABLE = "monitor/generations"
COLUMNS = ("step", "prompt", "response", "tokens", "stopped", "repeated", "entropy")


def log_table(rows: Sequence[Mapping[str, Any]], report_to: Iterable[str], callbacks: Iterable[Any]) -> None:
    """Log answers to wandb, trackio and tensorboard, whichever of them the run reports to.

    Args:
        rows: with `COLUMNS`; all of one step.
        report_to: names of trackers, as in TrainingArguments.
        callbacks: of the trainer; tensorboard's holds its writer.
    """
    if not rows:
        return
    step, names = rows[0]["step"], set(report_to)
    cells = [[row[column] for column in COLUMNS] for row in rows]
    if "wandb" in names and find_spec("wandb"):
        wandb = importlib.import_module("wandb")
        if wandb.run is not None:  # its callback may be switched off by environment
            table = wandb.Table(columns=list(COLUMNS), data=cells)
            wandb.log({TABLE: table, "train/global_step": step})
    if "trackio" in names and find_spec("trackio"):
        import pandas as pd  # type: ignore[import-untyped]

        trackio = importlib.import_module("trackio")
        trackio.log({TABLE: trackio.Table(dataframe=pd.DataFrame(cells, columns=list(COLUMNS)))})
    if "tensorboard" in names:
        for callback in callbacks:
            writer = getattr(callback, "tb_writer", None)
            if writer is not None:
                writer.add_text(TABLE, markdown(rows), step)


def markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table; line breaks and bars of texts are escaped.

    >>> print(markdown([dict(step=5, prompt="a|b", response="c", tokens=1, stopped=True, repeated=0.0, entropy=0.25)]))
    | step | prompt | response | tokens | stopped | repeated | entropy |
    | --- | --- | --- | --- | --- | --- | --- |
    | 5 | a&#124;b | c | 1 | True | 0 | 0.25 |
    """
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(_cell(row[column]) for column in COLUMNS)} |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value).replace("|", "&#124;").replace("\n", "<br>")
