"""Segmentation masks: class colours, overlays, and images with true and predicted masks.

Legend: n images, C channels, H W rows and columns, K classes.
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
# Colour of pixels without a class.
BLANK = (0, 0, 0)
# Twelve colours that are easy to distinguish; further ones are spread over the colour wheel.
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
    """Return one colour per id, ``[256, 3]``: K class colours, and black for other ids.

    Args:
        num_classes: Number of classes K, 1..255.

    Raises:
        InputError: If the number of classes is out of range.
    """
    if not 1 <= num_classes <= IGNORED:
        raise InputError(f"{num_classes} classes; masks can have 1..{IGNORED}")
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
    """Blend an image with the class colours of a mask; return ``[H, W, 3]`` uint8.

    Args:
        picture: ``[H, W, 3]`` in 0..255.
        ids: Classes ``[H, W]``; 255 leaves the image unchanged.
        num_classes: Number of classes K.

    Raises:
        InputError: If the sizes differ.
    """
    if picture.shape != (*ids.shape, 3):
        raise InputError(
            f"the image has shape {picture.shape} for a mask of {ids.shape}; it must be [H, W, 3]"
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
    """Draw images with their true and predicted masks in rows, and a legend of the classes.

    Args:
        path: PNG file to write.
        pictures: Images ``[n, C, H, W]`` in 0..1; the first 6 are drawn.
        true: True classes ``[n, H, W]``, 255 where ignored.
        found: Predicted classes ``[n, H, W]``.
        classes: The K class names.
        title: Title of the figure.
        note: Explanation under the title.

    Raises:
        InputError: If the shapes of the arrays do not match.
    """
    wanted = (pictures.shape[0], *pictures.shape[2:])
    for name, ids in (("true", true), ("found", found)):
        if ids.shape != wanted:
            raise InputError(
                f"{name} masks have shape {ids.shape} for images of shape {pictures.shape}; "
                f"they must be {wanted}"
            )
    table = class_colours(len(classes))
    shown = to_pictures(pictures[:MAX_SHOWN])
    unknown = np.where(true[:MAX_SHOWN] == IGNORED, IGNORED, found[:MAX_SHOWN])
    columns = {
        "image": shown,
        "truth": table[true[:MAX_SHOWN]],
        "prediction": table[found[:MAX_SHOWN]],
        "without ignored pixels": table[unknown],
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
