"""What a model fills in of a modality, beside what it was given and, if known, the original."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceivers.errors import InputError
from perceivers.report import style
from perceivers.report.page import Page

COLUMNS = ("given", "filled in", "original")
TEXT_LINES = 6

_GAP = 0.2
_BOX = (style.WIDTH - (len(COLUMNS) - 1) * _GAP) / len(COLUMNS)
_HIGHEST = 1.5
_PART_GAP = 0.05


@dataclass(frozen=True)
class FilledRow:
    """One sample, of which one modality was filled in.

    Attributes:
        name: Of the sample and the modality.
        given: What the model was given: RGB images ``[H, W, 3]`` uint8, or texts.
        filled: What it filled in.
        original: The modality itself, which the model was not shown; empty where unknown.
    """

    name: str
    given: Sequence[NDArray[Any] | str]
    filled: Sequence[NDArray[Any] | str]
    original: Sequence[NDArray[Any] | str]


def draw_filled(
    path: Path,
    rows: Sequence[FilledRow],
    *,
    columns: Sequence[str] = COLUMNS,
    title: str,
    note: str,
) -> Path:
    """Draw a row per sample: given, filled in, original.

    Args:
        path: Where the PNG goes.
        rows: At least one.
        columns: What stands above the three columns.
        title: Heading of the figure.
        note: How to read it.

    Raises:
        InputError: There is no row.
    """
    if not rows:
        raise InputError("nothing to draw; give at least one row")
    step = style.line_height(style.SMALL_SIZE)
    columns = columns if any(row.original for row in rows) else columns[:2]
    cells = [[row.given, row.filled, row.original][: len(columns)] for row in rows]
    heights = [max(sum(_height(p) + _PART_GAP for p in cell) for cell in row) for row in cells]
    body = step + sum(height + step + _GAP for height in heights)
    page = Page(style.WIDTH, body, title=title, note=note)
    for column, words in enumerate(columns):
        page.lines(column * (_BOX + _GAP), 0, [words], size=style.SMALL_SIZE, color=style.MUTED)
    y = step + 0.03
    for row, cell_row, height in zip(rows, cells, heights, strict=True):
        for column, cell in enumerate(cell_row):
            _draw_cell(page, column * (_BOX + _GAP), y, cell)
        name = style.shorten(row.name, style.WIDTH, style.SMALL_SIZE)
        page.lines(0, y + height, [name], size=style.SMALL_SIZE, color=style.MUTED)
        y += height + step + _GAP
    return page.save(path)


def _draw_cell(page: Page, x: float, y: float, parts: Sequence[NDArray[Any] | str]) -> None:
    """Draw the parts of a cell from a corner down."""
    for part in parts:
        height = _height(part)
        if isinstance(part, str):
            page.lines(x, y, _lines(part), size=style.SMALL_SIZE)
        else:
            width = min(_BOX, height * part.shape[1] / part.shape[0])
            page.picture(x, y, width, height, np.asarray(part))
        y += height + _PART_GAP


def _height(part: NDArray[Any] | str) -> float:
    """Return how high a part is drawn, in inches."""
    if isinstance(part, str):
        return len(_lines(part)) * style.line_height(style.SMALL_SIZE)
    return min(_BOX * part.shape[0] / part.shape[1], _HIGHEST)


def _lines(text: str) -> Sequence[str]:
    lines = style.wrap(text, _BOX, style.SMALL_SIZE)
    return lines if len(lines) <= TEXT_LINES else [*lines[: TEXT_LINES - 1], "..."]
