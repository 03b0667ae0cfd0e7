"""An inspection as one page: everything in one file, nothing read from a network."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from simpo.audit.checks import SetAudit
from simpo.audit.findings import show_share
from simpo.audit.plots import histogram_svg
from simpo.audit.result import Inspection, set_counts
from simpo.audit.statistics import PERCENTILES
from simpo.audit.tokens import visible

_TEMPLATE = Path(__file__).with_name("page.html.jinja")
_SIDES = ("prompt", "chosen", "rejected")


def render_page(inspection: Inspection) -> str:
    """The page as HTML."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"share": show_share, "visible": visible, "thousands": "{:,}".format}
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        version=metadata.version("simpo"),
        about=inspection.about,
        levels=inspection.levels(),
        findings=inspection.findings,
        percentiles=[str(p) for p in PERCENTILES],
        sets=[_set_view(audit) | {"samples": inspection.samples.get(audit.name, [])} for audit in inspection.sets],
    )


def _set_view(audit: SetAudit) -> dict[str, Any]:
    numbers = audit.statistics
    epoch, difference = numbers.epoch, numbers.bias.histogram
    centres = [(low + high) / 2 for low, high in zip(difference.edges, difference.edges[1:], strict=False)]
    kinds = ["rejected" if centre < 0 else "chosen" if centre > 0 else "near" for centre in centres]
    lengths = {side: getattr(numbers, side) for side in _SIDES}
    return {
        "name": audit.name,
        "counts": set_counts(audit),
        "lengths": lengths,
        "bias": numbers.bias,
        "epoch": epoch,
        "layouts": [
            ("padded", f"batches of {epoch.pairs_per_batch} pairs, padded", epoch.padded),
            ("packed", "packed, a prompt for each answer", epoch.packed),
            ("shared", "packed, prompts shared", epoch.shared),
        ],
        "plots": {
            side: Markup(histogram_svg(value.histogram, f"lengths: {side}", [side] * len(value.histogram.counts)))
            for side, value in lengths.items()
        },
        "near": f"{(difference.edges[1] - difference.edges[0]) / 2:g}",
        "difference": Markup(
            histogram_svg(difference, "tokens of chosen minus rejected", kinds, "tokens, chosen minus rejected")
        ),
    }
