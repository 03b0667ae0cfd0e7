"""Which point comes next, where that follows from the records alone: grids and stages. Pure functions."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from simpo.sweep.record import Direction, Params, Record, best_of

Values = Mapping[str, Sequence[Any]]


class Proposal(NamedTuple):
    """The next trial. Without params there is none: now, if `wait`, since it depends on running ones; else ever."""

    params: Params | None
    stage: str = ""
    wait: bool = False


def grid_points(values: Values) -> list[Params]:
    """Every combination; the last key changes fastest.

    >>> grid_points({"a": [1, 2], "b": [3]})
    [{'a': 1, 'b': 3}, {'a': 2, 'b': 3}]
    """
    return [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]


def next_in_grid(values: Values, records: Sequence[Record]) -> Proposal:
    """The first combination that no trial has."""
    tried = [record.params for record in records]
    return Proposal(next((point for point in grid_points(values) if point not in tried), None))


def next_in_stages(values: Values, start: Params, records: Sequence[Record], direction: Direction) -> Proposal:
    """One setting after another: each stage tries the values of its setting beside the best trial of the former stages.

    A point that an earlier stage has run is not run again. Only trials of a stage and of those before it decide what
    the next one holds, so the answer is the same however often a sweep was interrupted.

    Args:
        values: the stages in their order: setting -> values.
        start: values of all these settings before the first stage.
        records: trials so far.
        direction: what is better.
    """
    held, seen = start, list[Record]()
    for key, candidates in values.items():
        points = [held | {key: value} for value in candidates]
        here = [record for record in records if record.params in points]
        missing = [point for point in points if all(point != record.params for record in here)]
        if missing:
            return Proposal(missing[0], stage=key)
        if any(record.state == "running" for record in here):
            return Proposal(None, wait=True)
        seen += [record for record in here if record not in seen]
        best = best_of(seen, direction)
        if best is None:  # nothing to hold: all of them failed
            return Proposal(None)
        held = best.params
    return Proposal(None)


def most_trials(values: Values, start: Params | None) -> int:
    """Trials of a grid, or with `start` the most that stages can take."""
    if start is None:
        return len(grid_points(values))
    count, keys = 0, list(values)
    for at, key in enumerate(keys):
        # from the second stage on the held value of this stage's setting has been run already
        known = at > 0 and start[key] in values[key]
        count += len(values[key]) - known
    return count
