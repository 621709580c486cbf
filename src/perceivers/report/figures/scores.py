"""Figures of predictions against targets: confusion matrix and regression."""

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import hsv_to_rgb
from numpy.typing import NDArray

from perceivers.errors import InputError
from perceivers.report import style
from perceivers.report.figures.reconstruction import to_pictures
from perceivers.report.html import check_confusion
from perceivers.report.style import Page, tidy

# -- Confusion matrix: rows are true classes, columns predicted classes --------------------------


MAX_CLASSES_WITH_COUNTS = 20

_MAX_CELL = 0.5
_MAX_SIDE = 6.4
_MAX_NAME = 1.5
_AXIS_LABEL = 0.28


def draw_confusion(path: Path, *, matrix: NDArray[Any], classes: Sequence[str], title: str) -> Path:
    """Draw a confusion matrix as fractions of each true class; up to 20 classes with counts.

    Args:
        path: PNG file to write.
        matrix: Counts ``[K, K]``; rows are true classes, columns predicted classes.
        classes: The K class names; with many classes only some are written.
        title: Title of the figure.

    Returns:
        The path. Rows of classes without samples are empty.

    Raises:
        InputError: If the matrix is not square or does not match the class names.
    """
    counts = check_confusion(matrix, classes)
    size = len(classes)
    support = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, support, out=np.zeros(counts.shape), where=support > 0)
    cell = min(_MAX_CELL, _MAX_SIDE / max(size, 1))
    side = cell * size
    font_size = style.SMALL_SIZE
    names = [style.shorten(name, _MAX_NAME, font_size) for name in classes]
    longest = max((style.text_width(name, font_size) for name in names), default=0.0)
    flat = longest <= cell - 0.04
    left = _AXIS_LABEL + longest + 0.08
    below = (style.line_height(font_size) if flat else longest + 0.08) + _AXIS_LABEL
    right = 0.75
    total, correct = int(counts.sum()), int(np.trace(counts))
    page = Page(
        max(left + side + right, 4.5),
        side + below,
        title=title,
        note=f"Accuracy {style.percent(correct / total)}: {correct:,} of {total:,} samples correct."
        if total
        else "No samples.",
    )
    if size == 0:
        return page.save(path)
    page.picture(left, 0, side, side, shares, colours=style.SEQUENTIAL)
    if size <= MAX_CLASSES_WITH_COUNTS:
        _write_counts(page, counts, shares, left=left, cell=cell)
    _write_names(page, names, left=left, cell=cell, flat=flat)
    page.text(0.08, side / 2, "true class", align="center", vertical="center", rotation=90)
    page.text(left + side / 2, side + below, "predicted class", align="center", vertical="bottom")
    page.colour_bar(
        left + side + 0.2,
        0,
        min(side, 2.0),
        colours=style.SEQUENTIAL,
        limits=(0.0, 1.0),
        labels=[(1.0, "100 %"), (0.5, "50 %"), (0.0, "0 %")] if side > 0.6 else [(1.0, "100 %")],
    )
    return page.save(path)


def _write_counts(
    page: Page, counts: NDArray[Any], shares: NDArray[Any], *, left: float, cell: float
) -> None:
    widest = max(style.text_width(f"{int(count)}", style.TEXT_SIZE) for count in counts.flat)
    font_size = min(style.TEXT_SIZE, style.TEXT_SIZE * (cell - 0.06) / widest)
    for row, column in zip(*counts.nonzero(), strict=True):
        page.text(
            left + (column + 0.5) * cell,
            (row + 0.5) * cell,
            f"{int(counts[row, column])}",
            size=font_size,
            color=style.PAPER if shares[row, column] > 0.55 else style.INK,
            align="center",
            vertical="center",
        )


def _write_names(page: Page, names: Sequence[str], *, left: float, cell: float, flat: bool) -> None:
    stride = ceil(style.line_height(style.SMALL_SIZE) / cell)
    side = cell * len(names)
    for index in range(0, len(names), stride):
        middle = (index + 0.5) * cell
        name = names[index]
        page.text(
            left - 0.08, middle, name, size=style.SMALL_SIZE, align="right", vertical="center"
        )
        page.text(
            left + middle,
            side + 0.07,
            name,
            size=style.SMALL_SIZE,
            align="center",
            rotation=0 if flat else 90,
        )


# -- Regression: predictions over true values, one panel per target ------------------------------
#
# Legend: n samples, T targets.


MAX_PANELS = 6

_SIDE = 2.3
_LEFT = 0.65
_BELOW = 0.55
_PITCH = 3.0


def draw_regression(
    path: Path,
    *,
    true: NDArray[Any],
    predicted: NDArray[Any],
    names: Sequence[str],
    title: str,
    note: str = "",
) -> Path:
    """Draw predictions over true values as points, with the diagonal of perfect predictions.

    Args:
        path: PNG file to write.
        true: True values ``[n, T]``, NaN where unknown.
        predicted: Predictions ``[n, T]``.
        names: Names of the T targets; the first 6 are drawn.
        title: Title of the figure.
        note: Explanation under the title.

    Raises:
        InputError: If the shapes differ, or there is not one column per name.
    """
    if true.ndim != 2 or true.shape != predicted.shape or true.shape[1] != len(names):
        raise InputError(
            f"targets have shape {true.shape} and predictions {predicted.shape} for {len(names)} "
            f"names; both must be [n, {len(names)}]"
        )
    shown = min(len(names), MAX_PANELS)
    across = min(shown, 3)
    rows = -(-shown // across)
    height = rows * (_SIDE + _BELOW + 0.3)
    page = Page(max(across * _PITCH, 5.0), height, title=title, note=note)
    for index in range(shown):
        x = index % across * _PITCH + _LEFT
        y = index // across * (_SIDE + _BELOW + 0.3) + 0.25
        name = style.shorten(names[index], _SIDE, style.TEXT_SIZE)
        page.lines(x, y - 0.25, [name])
        axes = page.axes(x, y, _SIDE, _SIDE)
        tidy(axes)
        known = np.isfinite(true[:, index])
        truth, answer = true[known, index], predicted[known, index]
        if len(truth):
            both = np.concatenate([truth, answer])
            low, high = float(both.min()), float(both.max())
            margin = 0.05 * (high - low or 1.0)
            ends = (low - margin, high + margin)
            axes.plot(ends, ends, color=style.FRAME, linewidth=1.0)
            axes.scatter(truth, answer, s=9, color=style.BLUE, alpha=0.6, linewidths=0)
            axes.set_xlim(*ends)
            axes.set_ylim(*ends)
        font = style.font(style.SMALL_SIZE)
        axes.set_xlabel("true value", fontproperties=font, color=style.MUTED)
        axes.set_ylabel("prediction", fontproperties=font, color=style.MUTED)
    return page.save(path)


# -- Masks beside images -------------------------------------------------------------------------
#
# Legend: n images, C channels, H W rows and columns, K classes.


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
