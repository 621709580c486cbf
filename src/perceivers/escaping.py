"""Escaping text from data for CSV and Markdown; all other modules use these functions for both."""

import csv
import re
from collections.abc import Iterable, Sequence
from typing import TextIO

from perceivers.text_names import show_name

# Spreadsheets treat cells that start like this as formulas, which may run programs.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
_MARKUP = re.compile(r"[\\`*\[\]<>|~&$]|(?<![^\W_])_|_(?![^\W_])")


def write_csv(file: TextIO, rows: Iterable[Sequence[object]]) -> None:
    """Write rows as CSV, with an apostrophe before text that a spreadsheet would run as a formula.

    Args:
        file: File opened with ``newline=""``.
        rows: Rows of texts and numbers; numbers are unchanged, including those given as text.
    """
    csv.writer(file).writerows([csv_cell(cell) for cell in row] for row in rows)


def csv_cell(value: object) -> str:
    """Return a cell's text, with an apostrophe in front if it looks like a formula."""
    text = show_name(str(value))
    if not text.startswith(FORMULA_STARTS) or all(map(_is_number, text.split("; "))):
        return text
    return f"'{text}"


def markdown_text(value: object) -> str:
    """Escape text so that Markdown and HTML made from it show it unchanged, in one line."""
    text = " ".join(str(value).split())
    return _MARKUP.sub(lambda match: f"\\{match[0]}", text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
