"""Scores by a Python function, for tasks whose answers a program can check."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from simpo.onpolicy.annotators.base import Item, Scored


class FunctionAnnotator:
    """Calls `function(prompt, responses)` for each item, with `columns=` where the function takes that.

    Args:
        function: returns a sequence of one number, or None, per response; higher is better.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        try:
            self._takes_columns = "columns" in inspect.signature(function).parameters
        except ValueError:  # some that are written in C do not say
            self._takes_columns = False

    def score(self, items: Sequence[Item]) -> list[Scored]:
        """Raises what the function raises, and ValueError where it returns something else than it should."""
        return [Scored(self._call(item)) for item in items]

    def _call(self, item: Item) -> list[float | None]:
        more = {"columns": dict(item.columns)} if self._takes_columns else {}
        returned = self._function(item.prompt, list(item.responses), **more)
        values = list(returned) if hasattr(returned, "__iter__") else [returned]
        if len(values) != len(item.responses):
            raise ValueError(f"the function returned {len(values)} scores for {len(item.responses)} responses")
        return [None if value is None else float(value) for value in values]
