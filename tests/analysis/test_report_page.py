"""A page of blocks: one file, no scripts, nothing from outside; hostile text is text."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from simpo.analysis.report.blocks import Block, Files, Page, Picture, Samples, Section, Table, Text
from simpo.analysis.report.page import render_page, write_page
from simpo.errors import ConfigError

HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)> "quoted" &amp; </pre></table>'
PNG = b"\x89PNG\r\n\x1a\nnot a real one"


class Tags(HTMLParser):
    """Every tag with its attributes, and the text of the page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def page_of(*blocks: Block, title: str = "Run", **more: object) -> Page:
    return Page(title, sections=[Section("First", blocks)], **more)  # type: ignore[arg-type]


def test_hostile_text_stays_text_wherever_it_stands() -> None:
    blocks = (
        Table((HOSTILE, HOSTILE), [(HOSTILE, HOSTILE)], HOSTILE),
        Picture(PNG, HOSTILE, HOSTILE),
        Text(HOSTILE),
        Text(HOSTILE, "warn"),
        Samples([(HOSTILE, {HOSTILE: HOSTILE})], HOSTILE),
        Files([("javascript:alert(1)", HOSTILE)]),
    )
    page = Page(HOSTILE, {HOSTILE: HOSTILE}, [Section(HOSTILE, blocks)] * 2, HOSTILE)
    found = Tags(render_page(page))
    assert found.named("script") == [] and len(found.named("img")) == 2
    assert not [attributes for _, attributes in found.tags if any(name.startswith("on") for name in attributes)]
    assert found.text.count(HOSTILE) > 20
    assert [link["href"] for link in found.named("a")][2] == "javascript%3Aalert%281%29"  # a file of that name


def test_nothing_comes_from_outside() -> None:
    html = render_page(
        page_of(Picture(PNG, "a figure"), Files([("log.jsonl", "numbers")]), Text("https://example.com"))
    )
    found = Tags(html)
    sources = [value for _, attributes in found.tags for name, value in attributes.items() if name in ("src", "href")]
    assert len(sources) == 2 and sources[0] == "data:image/png;base64,iVBORw0KGgpub3QgYSByZWFsIG9uZQ=="
    assert sources[1] == "log.jsonl"
    assert found.named("link") == [] and "@import" not in html and "url(" not in html
    (policy,) = [meta for meta in found.named("meta") if meta.get("http-equiv")]
    assert str(policy["content"]).startswith("default-src 'none'")


def test_those_who_cannot_see_find_their_way() -> None:
    page = Page("Run", {"loss": "0.5"}, [Section("One", [Picture(PNG, "falls")]), Section("Two", [Text("x")])])
    found = Tags(render_page(page))
    assert found.named("html") == [{"lang": "en"}] and len(found.named("h1")) == 1
    assert [image["alt"] for image in found.named("img")] == ["falls"]
    places = {attributes["id"] for _, attributes in found.tags if "id" in attributes}
    assert [link["href"] for link in found.named("a")] == ["#one", "#two"] and places == {"one", "two"}


def test_tables_scroll_in_a_box_of_their_own_and_numbers_stand_right() -> None:
    rows = [("beta", "2.5", "2 to 10"), ("loss", "−1.25e-3", "low"), ("tokens", "1,024 tok/s", "")]
    html = render_page(page_of(Table(("name", "value", "note"), rows, "settings")))
    assert re.search(r'<div class="scroll" tabindex="0" role="region" aria-label="settings"><table>', html)
    assert html.count('<td class="number">') == 3 and '<th scope="row">beta' in html


def test_empty_sections_and_leads_are_left_out() -> None:
    found = Tags(render_page(Page("Run", sections=[Section("Nothing", []), Section("One", [Text("x")])])))
    assert "Nothing" not in found.text
    assert found.named("nav") == [] and found.named("dl") == [] and found.named("footer") == []


def test_a_response_begins_with_the_line_break_that_it_has() -> None:
    """HTML drops one line break at the start of <pre>."""
    html = render_page(page_of(Samples([("p", {"after": "\nfirst"})])))
    assert '<pre dir="auto" tabindex="0">\n\nfirst</pre>' in html


def test_the_file_is_written_in_one_move(tmp_path: Path) -> None:
    path = write_page(page_of(Text("half a character: \ud83d")), tmp_path / "report.html")
    assert "half a character: ?" in path.read_text(encoding="utf-8")
    assert [one.name for one in tmp_path.iterdir()] == ["report.html"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing/report.html: the page cannot be written: No such file"):
        write_page(page_of(Text("x")), tmp_path / "missing" / "report.html")
