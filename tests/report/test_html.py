"""The report is one file that needs nothing else and shows every text as text."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from perceivers.errors import RunError
from perceivers.report.figures import draw_confusion
from perceivers.report.html import HtmlTable, Section, paragraphs, write_html

EVIL = "<script>alert('x')</script>"


class Tags(HTMLParser):
    """Collects tags with their attributes, and checks that they close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the tag."""
        self.seen.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Match the tag with the last open one."""
        assert self.open.pop() == tag


def parse(path: Path) -> tuple[str, Tags]:
    page = path.read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(page)
    tags.close()
    assert tags.open == []
    return page, tags


@pytest.fixture
def report(tmp_path: Path) -> Path:
    figure = draw_confusion(
        tmp_path / "figures" / "confusion.png", matrix=np.eye(2), classes=["a", "b"], title="Title"
    )
    sections = [
        Section(
            "Summary",
            text=f"One.\n\nTwo {EVIL}.",
            facts=[("97.8 %", "accuracy"), ("1.2 M", "parameters")],
        ),
        Section(
            "Results " + EVIL,
            figures=[(figure, 'A "quoted" ' + EVIL)],
            tables=[HtmlTable(("class", "recall"), [(EVIL, "97.8 %"), ("7", "-")], "A note.")],
            code="a: <b> & 'c'",
        ),
    ]
    path = tmp_path / "run" / "report.html"
    return write_html(path, title="T " + EVIL, subtitle="S", sections=sections, footer="F " + EVIL)


def test_the_page_refers_to_nothing_outside_itself(report: Path) -> None:
    page, tags = parse(report)
    assert "http:" not in page
    assert "https:" not in page
    assert not re.search(r"url\(|@import", page)
    images = [attributes for tag, attributes in tags.seen if tag == "img"]
    assert len(images) == 1
    assert str(images[0]["src"]).startswith("data:image/png;base64,iVBOR")
    links = [attributes["href"] for tag, attributes in tags.seen if tag == "a"]
    assert links == ["#section-1", "#section-2"]
    assert not [tag for tag, _ in tags.seen if tag in {"link", "iframe", "object"}]


def test_markup_in_any_text_is_shown_as_text(report: Path) -> None:
    page, tags = parse(report)
    assert EVIL not in page
    assert sum(tag == "script" for tag, _ in tags.seen) == 1
    # Title twice, text, section in contents and heading, alternative text, caption, cell, footer.
    assert page.count("&lt;script&gt;") == 9
    assert "a: &lt;b&gt; &amp; &#39;c&#39;" in page


def test_the_page_is_accessible(report: Path) -> None:
    _, tags = parse(report)
    image = next(attributes for tag, attributes in tags.seen if tag == "img")
    assert image["alt"] == 'A "quoted" ' + EVIL
    assert int(str(image["width"])) < 900
    scopes = [attributes["scope"] for tag, attributes in tags.seen if tag == "th"]
    assert scopes == ["col", "col", "row", "row"]
    names = [tag for tag, _ in tags.seen]
    assert {"nav", "main", "header", "footer", "figure", "figcaption", "dl"} <= set(names)
    assert names.count("h1") == 1


def test_columns_of_numbers_are_flush_right_except_the_first(report: Path) -> None:
    _, tags = parse(report)
    cells = [(tag, attrs.get("class")) for tag, attrs in tags.seen if tag in {"th", "td"}]
    number = "number"
    assert cells == [
        ("th", None), ("th", number), ("th", None), ("td", number), ("th", None), ("td", number),
    ]  # fmt: skip


def test_a_report_replaces_an_older_one_and_leaves_nothing_beside_it(report: Path) -> None:
    write_html(report, title="New", subtitle="", sections=[])
    page, tags = parse(report)
    assert "<h1>New</h1>" in page
    assert not [tag for tag, _ in tags.seen if tag in {"nav", "section", "footer"}]
    assert [path.name for path in report.parent.iterdir()] == ["report.html"]


def test_a_missing_or_broken_figure_is_named_and_the_old_report_kept(
    report: Path, tmp_path: Path
) -> None:
    old = report.read_bytes()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"GIF89a" + bytes(100))
    for path, message in ((tmp_path / "no.png", "cannot be read"), (broken, "not a PNG")):
        with pytest.raises(RunError, match=message) as caught:
            write_html(
                report, title="T", subtitle="", sections=[Section("A", figures=[(path, "c")])]
            )
        assert str(path) in str(caught.value)
    assert report.read_bytes() == old


def test_paragraphs_are_split_at_blank_lines() -> None:
    assert paragraphs("\n one\ntwo\n \n\nthree ") == ["one\ntwo", "three"]
    assert paragraphs("") == []
