"""What is known of one trial: the words that the other files of the sweep share."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

Params = dict[str, Any]
Direction = Literal["maximize", "minimize"]
State = Literal["running", "complete", "pruned", "failed"]


@dataclass(frozen=True)
class Record:
    """One trial.

    Attributes:
        number: counted from 0 in the order of starting; the run's folder is `trial-NNNN`.
        state: `complete` with a value; `pruned`: stopped because others were better at the same step; `failed`.
        params: the values of the searched settings.
        value: the metric at the end; of a pruned trial the last one seen.
        seconds: wall-clock time of its last attempt.
        stage: the setting whose stage it belongs to, in a staged search.
        error: why it failed, one or more lines.
    """

    number: int
    state: State
    params: Params
    value: float | None = None
    seconds: float | None = None
    stage: str = ""
    error: str = ""
    reports: dict[int, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the run's folder inside that of the sweep."""
        return folder_name(self.number)


def folder_name(number: int) -> str:
    """trial-0007 for 7."""
    return f"trial-{number:04d}"


def best_of(records: Iterable[Record], direction: Direction) -> Record | None:
    """The complete trial with the best value; of equal ones the earliest."""
    done = [record for record in records if record.state == "complete" and record.value is not None]
    sign = 1 if direction == "minimize" else -1
    return min(done, key=lambda record: (sign * float(record.value or 0), record.number), default=None)
