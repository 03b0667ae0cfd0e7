"""All that an inspection found, and the same as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from simpo.audit.checks import SetAudit, by_level
from simpo.audit.findings import LEVELS, Finding
from simpo.audit.tokens import ShownPair

FORMAT = 1  # of the JSON; raised when a name in it changes its meaning


@dataclass(frozen=True)
class Inspection:
    """What `simpo inspect` shows, in the terminal and on the page.

    Args:
        about: what was looked at: model, template, data, lengths; name -> text.
        sets: training set first.
        findings: the gravest first.
        samples: set -> pairs to show as tokens.
    """

    about: dict[str, str]
    sets: tuple[SetAudit, ...]
    findings: tuple[Finding, ...]
    samples: dict[str, list[ShownPair]]

    def levels(self) -> dict[str, int]:
        """How many findings there are at each level, the gravest first."""
        counts = by_level(self.findings)
        return {level: counts[level] for level in LEVELS}


class SetCounts(NamedTuple):
    """What was counted in one set.

    Fields:
        rows, pairs: rows looked at, and pairs that they became.
        dropped, truncated: cause -> rows, or pairs.
        bos: pairs with 0, 1, and 2 or more BOS tokens at their start.
        without_end: responses without an end token, by side.
        special_inside: pairs with special tokens inside an answer.
        turn_markers: marker -> pairs with it in an answer.
        distinct_prompts: prompts that differ by more than case and white space.
    """

    rows: int
    pairs: int
    dropped: dict[str, int]
    truncated: dict[str, int]
    bos: dict[str, int]
    without_end: dict[str, int]
    special_inside: int
    turn_markers: dict[str, int]
    distinct_prompts: int


def set_counts(audit: SetAudit) -> SetCounts:
    """The counts of one set."""
    facts, report = audit.tokens, audit.report
    bos = np.bincount(facts.leading_bos, minlength=3).tolist()
    return SetCounts(
        rows=report.total if report else len(facts.row),
        pairs=len(facts.row),
        dropped=dict(report.dropped) if report else {},
        truncated=dict(report.truncated) if report else {},
        bos=dict(zip(("0", "1", "2+"), bos, strict=True)),
        without_end={
            "chosen": int((~facts.chosen_ended).sum()),
            "rejected": int((~facts.rejected_ended).sum()),
        },
        special_inside=int(((facts.chosen_special + facts.rejected_special) > 0).sum()),
        turn_markers={marker: len(pairs) for marker, pairs in audit.texts.markers.items()},
        distinct_prompts=len(np.unique(audit.texts.prompt)),
    )


def as_json(inspection: Inspection) -> dict[str, Any]:
    """Numbers and findings; no texts of the data but the few words of an overlap."""
    return {
        "format": FORMAT,
        "about": inspection.about,
        "levels": inspection.levels(),
        "findings": [asdict(finding) for finding in inspection.findings],
        "sets": {
            audit.name: {
                "counts": set_counts(audit)._asdict(),
                "statistics": asdict(audit.statistics),
                "overlaps": [overlap._asdict() for overlap in audit.overlaps],
            }
            for audit in inspection.sets
        },
    }
