"""Writes a report as one HTML page of text, tiles, figures, tables and commands.

Images and styles are embedded, so the file needs no server and can be sent by mail.
"""

import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from struct import unpack

from jinja2 import Environment, StrictUndefined

from perceivers.errors import RunError
from perceivers.files import write_atomic
from perceivers.reading import read_file
from perceivers.report.style import DENSITY

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_NUMERIC = re.compile(r"[-+\u2212]?[\d.,]+(e[-+]?\d+)?( ?%)?|-|")


@dataclass(frozen=True)
class HtmlTable:
    """Table of text cells with a header; ``note`` is a line below it."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Section:
    """One section of a report, in the order tiles, text, figures, tables, code.

    Args:
        title: Heading, and entry in the table of contents.
        text: Plain text; blank lines separate paragraphs.
        figures: PNG files with captions, which are also the alternative texts.
        tables: Tables; columns of numbers are right-aligned.
        code: Commands or YAML, shown verbatim with a copy button.
        facts: Pairs of a value and its label, shown as tiles.
    """

    title: str
    text: str = ""
    figures: Sequence[tuple[Path, str]] = ()
    tables: Sequence[HtmlTable] = ()
    code: str = ""
    facts: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class _Figure:
    """Figure for the template; sizes are CSS pixels."""

    source: str
    caption: str
    width: int
    height: int


def write_html(
    path: Path, *, title: str, subtitle: str, sections: Sequence[Section], footer: str = ""
) -> Path:
    """Write a report atomically: a reader sees the old file or the new one, never a part.

    Args:
        path: File to write.
        title: Heading of the page.
        subtitle: One line under it.
        sections: Sections in order.
        footer: Last line, such as version and date.

    Returns:
        The path.

    Raises:
        RunError: If a figure is missing or is not a PNG.
    """
    template = _environment().from_string(
        files("perceivers.report").joinpath("template.html").read_text(encoding="utf-8")
    )
    page = template.render(
        title=title,
        subtitle=subtitle,
        footer=footer,
        parts=[
            {
                "id": f"section-{index}",
                "section": section,
                "paragraphs": paragraphs(section.text),
                "figures": [_load_figure(png, caption) for png, caption in section.figures],
                "tables": [(table, _numeric_columns(table)) for table in section.tables],
            }
            for index, section in enumerate(sections, start=1)
        ],
    )
    write_atomic(path, page)
    return path


def paragraphs(text: str) -> list[str]:
    """Split plain text into paragraphs at blank lines."""
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]


def _environment() -> Environment:
    return Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _load_figure(path: Path, caption: str) -> _Figure:
    content = read_file(path, error=RunError)
    if not content.startswith(_PNG_SIGNATURE) or len(content) < 24:
        raise RunError(f"the figure {path} is not a PNG file; regenerate the report of the run")
    width, height = unpack(">II", content[16:24])  # from the IHDR chunk
    return _Figure(
        source="data:image/png;base64," + b64encode(content).decode("ascii"),
        caption=caption,
        width=max(width // DENSITY, 1),
        height=max(height // DENSITY, 1),
    )


def _numeric_columns(table: HtmlTable) -> list[bool]:
    """Mark the columns with numbers only; the first column has the row names."""
    return [
        index > 0
        and bool(table.rows)
        and all(_NUMERIC.fullmatch(row[index].strip()) for row in table.rows if index < len(row))
        for index in range(len(table.header))
    ]
