"""From figures of matplotlib to pictures of a page."""

from __future__ import annotations

import importlib.util
from io import BytesIO
from typing import TYPE_CHECKING

from simpo.analysis.report.blocks import Picture, Text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NO_PICTURES = Text("Pictures need matplotlib: pip install 'simpo[plots]', then make this page again.", "note")


def can_draw() -> bool:
    """Whether matplotlib is there."""
    return importlib.util.find_spec("matplotlib") is not None


def picture(figure: Figure, name: str, caption: str = "") -> Picture:
    """A figure under its own title.

    Args:
        figure: of matplotlib.
        name: of its file.
        caption: how to read it.
    """
    file = BytesIO()
    figure.savefig(file, format="png")
    title = " ".join(figure.get_suptitle().split())
    return Picture(file.getvalue(), title, caption, name)
