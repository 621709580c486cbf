"""Masks as colours: palettes, overlays, and pictures beside their true and found masks.

Legend: n pictures, C channels, H W rows and columns, K classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import hsv_to_rgb
from numpy.typing import NDArray

from perceivers.errors import InputError
from perceivers.report import style
from perceivers.report.figures.reconstruction import to_pictures
from perceivers.report.style import Page

IGNORED = 255
# What has no class.
BLANK = (0, 0, 0)
# Twelve colours that are told apart side by side; further ones are turned around the colour wheel.
COLOURS = (
    *((86, 180, 233), (213, 94, 0), (240, 228, 66), (120, 120, 130)),
    *((204, 121, 167), (0, 130, 80), (0, 60, 160), (170, 110, 40)),
    *((230, 30, 60), (130, 60, 190), (150, 220, 80), (250, 190, 190)),
)
GOLDEN = 0.618033988749895
OVERLAY = 0.5
MAX_SHOWN = 6

_GAP = 0.07
_MAX_PICTURE = 2.4
_SWATCH = 0.13
_KEY_COLUMN = 1.5


def class_colours(num_classes: int) -> NDArray[np.uint8]:
    """Return a colour per id ``[256, 3]``: of K classes, and black for all other ids.

    Args:
        num_classes: Classes K, 1..255.

    Raises:
        InputError: Another number.
    """
    if not 1 <= num_classes <= IGNORED:
        raise InputError(f"{num_classes} classes; masks hold 1..{IGNORED}")
    table = np.full((IGNORED + 1, 3), BLANK, np.uint8)
    for number in range(num_classes):
        if number < len(COLOURS):
            table[number] = COLOURS[number]
            continue
        turn = number * GOLDEN % 1.0
        shade = 0.55 + 0.4 * (number * GOLDEN * GOLDEN % 1.0)
        table[number] = np.rint(255 * hsv_to_rgb((turn, 0.75, shade))).astype(np.uint8)
    return table


def overlay_mask(
    picture: NDArray[np.uint8], ids: NDArray[np.uint8], num_classes: int
) -> NDArray[np.uint8]:
    """Lay the colours of a mask half transparent over its picture, ``[H, W, 3]``.

    Args:
        picture: ``[H, W, 3]`` in 0..255.
        ids: Classes ``[H, W]``; where they are 255 the picture stays as it is.
        num_classes: Classes K.

    Raises:
        InputError: The sizes differ.
    """
    if picture.shape != (*ids.shape, 3):
        raise InputError(
            f"the picture has shape {picture.shape} for a mask of {ids.shape}; it must be [H, W, 3]"
        )
    blend = (1 - OVERLAY) * picture + OVERLAY * class_colours(num_classes)[ids]
    return np.where((ids == IGNORED)[..., None], picture, np.rint(blend)).astype(np.uint8)


def draw_masks(
    path: Path,
    *,
    pictures: NDArray[Any],
    true: NDArray[np.uint8],
    found: NDArray[np.uint8],
    classes: Sequence[str],
    title: str,
    note: str,
) -> Path:
    """Draw pictures, their true masks and the found ones in rows, and a key of the classes.

    Args:
        path: Where the PNG goes.
        pictures: ``[n, C, H, W]`` in 0..1; the first 6 are drawn.
        true: Classes ``[n, H, W]``, 255 where there is none.
        found: Classes ``[n, H, W]``.
        classes: The K class names.
        title: Heading of the figure.
        note: How to read it.

    Raises:
        InputError: The arrays do not belong together.
    """
    wanted = (pictures.shape[0], *pictures.shape[2:])
    for name, ids in (("true", true), ("found", found)):
        if ids.shape != wanted:
            raise InputError(
                f"{name} masks have shape {ids.shape} for pictures of shape {pictures.shape}; "
                f"they must be {wanted}"
            )
    table = class_colours(len(classes))
    shown = to_pictures(pictures[:MAX_SHOWN])
    unknown = np.where(true[:MAX_SHOWN] == IGNORED, IGNORED, found[:MAX_SHOWN])
    columns = {
        "picture": shown,
        "truth": table[true[:MAX_SHOWN]],
        "prediction": table[found[:MAX_SHOWN]],
        "where it is known": table[unknown],
    }
    width = min((style.WIDTH + _GAP) / len(columns) - _GAP, _MAX_PICTURE)
    height = width * wanted[1] / wanted[2]
    heading = style.line_height(style.TEXT_SIZE) + 0.03
    body = heading + len(shown) * (height + _GAP)
    across = int(style.WIDTH // _KEY_COLUMN)
    step = style.line_height(style.SMALL_SIZE) + 0.03
    below = -(-len(classes) // across) * step
    page = Page(style.WIDTH, body + 0.1 + below, title=title, note=note)
    for column, (label, images) in enumerate(columns.items()):
        x = column * (width + _GAP)
        page.lines(x + width / 2, 0, [label.capitalize()], align="center")
        for row, image in enumerate(images):
            page.picture(x, heading + row * (height + _GAP), width, height, image)
    for number, name in enumerate(classes):
        x, y = number % across * _KEY_COLUMN, body + 0.1 + number // across * step
        page.picture(x, y, _SWATCH, _SWATCH, table[number][None, None])
        text = style.shorten(name, _KEY_COLUMN - _SWATCH - 0.15, style.SMALL_SIZE)
        page.lines(x + _SWATCH + 0.07, y - 0.02, [text], size=style.SMALL_SIZE, color=style.MUTED)
    return page.save(path)
