"""Text from data in files that other programs interpret: cells of CSV tables, and Markdown.

Nobody else writes CSV or puts a name from the data into Markdown.
"""

import csv
import re
from collections.abc import Iterable, Sequence
from typing import TextIO

from perceivers.text_names import show_name

# A spreadsheet takes a cell that begins so for a formula, which may run programs.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
_MARKUP = re.compile(r"[\\`*\[\]<>|~&$]|(?<![^\W_])_|_(?![^\W_])")


def write_csv(file: TextIO, rows: Iterable[Sequence[object]]) -> None:
    """Write rows; a text that a spreadsheet would take for a formula gets an apostrophe in front.

    Args:
        file: Opened with ``newline=""``.
        rows: Of texts and numbers; numbers, also those written as text, stay as they are.
    """
    csv.writer(file).writerows([csv_cell(cell) for cell in row] for row in rows)


def csv_cell(value: object) -> str:
    """Return one cell that no spreadsheet takes for a formula."""
    text = show_name(str(value))
    if not text.startswith(FORMULA_STARTS) or all(map(_is_number, text.split("; "))):
        return text
    return f"'{text}"


def markdown_text(value: object) -> str:
    """Return text that Markdown and the HTML made from it show as it is, in one line."""
    text = " ".join(str(value).split())
    return _MARKUP.sub(lambda match: f"\\{match[0]}", text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
