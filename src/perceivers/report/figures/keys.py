"""The key above a figure of several lines: a stroke and a name for each, in as many rows as needed.

Lines are told apart by colour, and by dashes where there are more lines than colours.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from perceivers.report import style
from perceivers.report.page import Page

# The common palette and the rest of Okabe and Ito's.
_COLOURS = (*style.CYCLE, "#e69f00", "#56b4e9", style.INK)
_DASHES = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)))
_STROKE = 0.28
_GAP = 0.3


class Key(NamedTuple):
    """A name in the key, its row, and inches from the left."""

    name: str
    row: int
    x: float


def place_keys(names: Sequence[str]) -> list[Key]:
    """Lay a key out."""
    placed: list[Key] = []
    row, x = 0, 0.0
    for name in names:
        name = style.shorten(name, style.WIDTH - _STROKE - 0.1, style.TEXT_SIZE)
        width = _STROKE + 0.08 + style.text_width(name, style.TEXT_SIZE)
        if x and x + width > style.WIDTH:
            row, x = row + 1, 0.0
        placed.append(Key(name, row, x))
        x += width + _GAP
    return placed


def keys_height(keys: Sequence[Key]) -> float:
    """Return the height of a key, in inches."""
    return (1 + max((key.row for key in keys), default=0)) * style.line_height(style.TEXT_SIZE)


def draw_keys(page: Page, keys: Sequence[Key]) -> None:
    """Draw a stroke and a name per line, from the top of a page."""
    step = style.line_height(style.TEXT_SIZE)
    for index, (name, row, x) in enumerate(keys):
        axes = page.axes(x, row * step, _STROKE, step)
        axes.set_axis_off()
        axes.set_ylim(0, 1)
        axes.plot([0, 1], [0.5, 0.5], linewidth=2.0, **line_look(index))
        page.lines(x + _STROKE + 0.08, row * step, [name])


def line_look(index: int) -> dict[str, Any]:
    """Return the colour and the dashes of a line, as matplotlib's keywords."""
    turn, colour = divmod(index, len(_COLOURS))
    return {"color": _COLOURS[colour], "linestyle": _DASHES[turn % len(_DASHES)]}
