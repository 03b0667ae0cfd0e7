"""What a check says, and from where on it says it louder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")
_EXAMPLES = 5


@dataclass(frozen=True)
class Finding:
    """What one check found in one set.

    Args:
        level: `error` stops a run, `warning` stops it with --strict, `note` is to be known.
        check: name of the check, one of `CHECKS`.
        dataset: train, eval, or "" where it concerns the run.
        text: what was found.
        todo: what to do about it; "" where there is nothing to do.
        count, of: how many of how many; 0 and 0 where nothing is counted.
        rows: the first rows concerned, by their number in the set.
        origins: source and row number there of each of `rows`; empty where the set is one source, whole.
        detail: further lines to show as they stand.
    """

    level: Level
    check: str
    dataset: str
    text: str
    todo: str = ""
    count: int = 0
    of: int = 0
    rows: tuple[int, ...] = ()
    detail: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.check not in CHECKS:
            raise ValueError(f"{self.check} is missing from CHECKS")

    @property
    def where(self) -> str:
        """Check and set, as shown before the text."""
        return f"{self.check} ({self.dataset})" if self.dataset else self.check

    @property
    def where_rows(self) -> str:
        """The rows, as shown behind the text; "" without any."""
        more = ", ..." if self.count > len(self.rows) else ""
        one = "" if self.count == 1 else "s"
        first = f"; {self.rows[0]} is {self.origins[0]}" if self.origins else ""
        return f"(row{one} {', '.join(map(str, self.rows))}{more}{first})" if self.rows else ""


class Limit(NamedTuple):
    """Shares from which on a finding is a warning or an error; below both it is a note. None: never.

    `why` gives the reason for the numbers.
    """

    warning: float | None
    error: float | None
    why: str

    def level(self, share: float) -> Level:
        """The level of a share above 0."""
        if self.error is not None and share >= self.error:
            return "error"
        return "warning" if self.warning is not None and share >= self.warning else "note"


ANY = 0.0
LIMITS: dict[str, Limit] = {
    "dropped": Limit(0.01, 0.5, "a few bad rows are usual; more than half is the wrong format or template"),
    "truncated": Limit(0.10, None, "beyond a tenth the lengths of answers are no longer the data's own"),
    "vocabulary": Limit(None, ANY, "one such id is read outside the embedding, or is another word than was meant"),
    "bos_double": Limit(None, ANY, "no model was trained on two, and one is never there by intention"),
    "bos_missing": Limit(ANY, 0.5, "some: truncation took it; most: the ids were made for another tokenizer"),
    "bos_inside": Limit(0.001, None, "one in a thousand is more than talk about tokens"),
    "end_missing": Limit(0.05, 0.5, "a model that sees most answers without an end does not learn to stop"),
    "cut_short": Limit(0.01, None, "a mean over the first words compares openings; rare ones do no harm"),
    "scored_header": Limit(0.001, 0.5, "a turn before every answer dilutes the mean log-probability of both"),
    "special_inside": Limit(0.001, None, "one in a thousand is more than talk about tokens"),
    "turn_markers": Limit(0.001, None, "one in a thousand is more than talk about chat formats"),
    "unknown_tokens": Limit(0.01, None, "in one pair of a hundred the model cannot read what is meant"),
    "answers_alike": Limit(0.01, None, "they say nothing about content; below one in a hundred they do no harm"),
    "duplicate_pairs": Limit(0.01, None, "each copy weighs as one more epoch of its pair"),
    "contradictions": Limit(0.01, None, "their gradients cancel"),
    "leakage": Limit(ANY, None, "what the model has seen says nothing about what it has not"),
    "eval_overlap": Limit(ANY, None, "what the model has seen says nothing about what it has not"),
}
"""Check -> limits."""

CHECKS = frozenset(LIMITS) | {"length_bias", "duplicate_prompts", "template_differs", "template_markers"}
"""All checks. The last four do not go by a share of the pairs: see where they are made, in `checks`."""


def counted(
    check: str, dataset: str, mask: np.ndarray, row: np.ndarray, text: str, todo: str, detail: Sequence[str] = ()
) -> list[Finding]:
    """A finding about the pairs of a mask [N], at the level that `LIMITS` gives to their share; none without any.

    Args:
        row: [N] numbers of the pairs' rows in their set.
        text: with `{pairs}` for how many of how many.
    """
    count = int(np.count_nonzero(mask))
    if not count:
        return []
    share = count / len(mask)
    said = text.format(pairs=f"{count:,} of {len(mask):,} pairs ({show_share(share)})")
    rows = tuple(row[np.flatnonzero(mask)[:_EXAMPLES]].tolist())
    return [Finding(LIMITS[check].level(share), check, dataset, said, todo, count, len(mask), rows, tuple(detail))]


def show_share(share: float) -> str:
    """A share for people.

    >>> show_share(0.25), show_share(0.0004), show_share(0.999999)
    ('25 %', '0.04 %', '100 %')
    """
    return f"{100 * share:.2g} %" if share < 0.0995 else f"{100 * share:.0f} %"
