"""From figures of matplotlib to pictures of a page."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from io import BytesIO
from typing import Any

from simpo.analysis.report.blocks import Picture, Text

NO_PICTURES = Text("Pictures need matplotlib: pip install 'simpo[plots]', then make this page again.", "note")


def can_draw() -> bool:
    """Whether matplotlib is there."""
    return importlib.util.find_spec("matplotlib") is not None


def picture(draw: Callable[[], Any], name: str, caption: str = "") -> Picture:
    """What a function draws, under the title that the figure has.

    Args:
        draw: gives a matplotlib figure.
        name: of its file.
        caption: how to read it.
    """
    figure, file = draw(), BytesIO()
    figure.savefig(file, format="png")
    title = " ".join(figure.get_suptitle().split())
    return Picture(file.getvalue(), title, caption, name)
