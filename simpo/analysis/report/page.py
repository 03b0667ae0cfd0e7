"""A page of blocks as one HTML file: no scripts, nothing from a network; what models wrote is shown as text."""

from __future__ import annotations

import os
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from simpo.analysis.report.blocks import Block, Page, Picture, Table
from simpo.errors import ConfigError
from simpo.store import PART

_TEMPLATE = Path(__file__).with_name("page.html.jinja")
_NUMBER = re.compile(r"[-+−±]?[\d.,]+\S*(( \S{1,6}){0,2}| \[\S+ \S+\])|nan|[-+−]?inf|[-–—]?")


def render_page(page: Page) -> str:
    """The page as HTML, pictures included."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"address": quote, "data_uri": _data_uri, "numeric": _numeric_columns}
    environment.tests["kind"] = lambda block, name: type(block).__name__ == name
    sections = [section for section in page.sections if section.blocks]
    names = _anchors(section.title for section in sections)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        page=page,
        sections=[
            {"id": name, "title": section.title, "groups": list(_groups(section.blocks))}
            for name, section in zip(names, sections, strict=True)
        ],
    )


def write_page(page: Page, path: str | Path) -> Path:
    """Write the page in one move: a reader sees the old one or the new one.

    Raises:
        ConfigError: the file cannot be written there.
    """
    path, text = Path(path), render_page(page)
    part = path.with_name(path.name + PART)
    try:
        part.write_bytes(text.encode("utf-8", "replace"))  # halves of characters, which models do write, become "?"
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ConfigError(f"{path}: the page cannot be written: {error.strerror or error}") from error
    return path


def _groups(blocks: Iterable[Block]) -> Iterator[tuple[str, list[Any]]]:
    """Pictures that follow one another stand side by side; every other block stands alone."""
    for pictures, group in groupby(blocks, key=lambda block: isinstance(block, Picture)):
        if pictures:
            yield "pictures", list(group)
        else:
            yield from (("block", [block]) for block in group)


def _anchors(titles: Iterable[str]) -> list[str]:
    """Places that links lead to, all different.

    >>> _anchors(["Before and after", "Data", "Data"])
    ['before-and-after', 'data', 'data-2']
    """
    found: list[str] = []
    for title in titles:
        name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        taken = sum(re.fullmatch(rf"{name}(-\d+)?", one) is not None for one in found)
        found.append(f"{name}-{taken + 1}" if taken else name)
    return found


def _data_uri(picture: Picture) -> str:
    return "data:image/png;base64," + b64encode(picture.png).decode("ascii")


def _numeric_columns(table: Table) -> Sequence[bool]:
    """Which columns hold numbers: they are aligned at the right and never broken into lines."""
    columns = zip(*table.rows, strict=True) if table.rows else [()] * len(table.head)
    return [at > 0 and all(_NUMBER.fullmatch(cell) for cell in column) for at, column in enumerate(columns)]
