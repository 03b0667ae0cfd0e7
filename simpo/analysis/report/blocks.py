"""What a page is made of. Texts are plain: the page escapes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Level = Literal["note", "warn", "stop"]


@dataclass(frozen=True)
class Table:
    """Numbers in rows; the first column names them.

    Args:
        head: names of the columns.
        rows: as many cells each.
        caption: what it shows, with units.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure.

    Args:
        png: the file's bytes.
        title: what is seen in it, for those who cannot see it too.
        caption: how to read it.
        name: of the file, where it is written beside the page: `margins.png`.
    """

    png: bytes
    title: str
    caption: str = ""
    name: str = ""


@dataclass(frozen=True)
class Text:
    """A paragraph; a warning where it has a level."""

    text: str
    level: Level | None = None


@dataclass(frozen=True)
class Samples:
    """What models write, side by side.

    Args:
        rows: a prompt, and the responses by the name of who wrote them.
        caption: how they were made.
    """

    rows: Sequence[tuple[str, Mapping[str, str]]]
    caption: str = ""


@dataclass(frozen=True)
class Files:
    """Links, relative to the page, with what is found there."""

    rows: Sequence[tuple[str, str]]


Block = Table | Picture | Text | Samples | Files


@dataclass(frozen=True)
class Section:
    """A part of the page under its own heading, by which the table of contents leads to it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A whole page.

    Args:
        title: of the page.
        lead: the few numbers that one looks for first, by name.
        sections: in their order; one without blocks is left out.
        about: a line at the foot: versions, when.
    """

    title: str
    lead: Mapping[str, str] = field(default_factory=dict)
    sections: Sequence[Section] = ()
    about: str = ""
