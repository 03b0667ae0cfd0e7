"""Links lead somewhere, and the files and names that the text names exist."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import INVENTED, PAGES, ROOT


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        whole = (page.parent / path) if path else page
        assert whole.exists(), target
        assert not anchor or anchor in anchors(whole), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page: Path) -> None:
    """`simpo/x.py`, `tests/`, `simpo.data.load` and the like in the text; NAME and * stand for something."""
    folders = "simpo|tests|scripts|docs|training_configs|accelerate_configs"
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for name in re.findall(rf"`((?:{folders})/[^`\s]*|[\w-]+\.(?:toml|yml|txt))`", text):
        if "NAME" not in name:
            assert list(ROOT.glob(name.rstrip("/"))) or name in INVENTED, name
    for name in re.findall(r"`(simpo(?:\.\w+)+)`", text):
        assert has_attribute(name), name


def has_attribute(dotted: str) -> bool:
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:length])
        if path.is_dir() or path.with_suffix(".py").is_file():
            module = __import__(".".join(parts[:length]), fromlist=["_"])
            return all(hasattr(module, part) for part in parts[length:][:1])
    return False
