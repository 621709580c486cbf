"""Rows of pictures: what a masked auto-encoder fills in, and what a classifier gets wrong.

Legend: n pictures, C channels, H W rows and columns.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceivers.errors import InputError
from perceivers.report import style
from perceivers.report.page import Page

MAX_COLUMNS = 12
MISTAKE_COLUMNS = 8
MAX_MISTAKES = 40

_GAP = 0.07
_THINNEST = 0.15
_LABEL_WIDTH = 1.62


def draw_reconstructions(
    path: Path,
    *,
    original: NDArray[Any],
    visible: NDArray[Any],
    reconstructed: NDArray[Any],
    masked_only: NDArray[Any] | None = None,
    names: Sequence[str] | None = None,
    title: str,
    note: str,
) -> Path:
    """Draw originals, what the model saw of them, and what it made of that, one column each.

    Args:
        path: Where the PNG goes.
        original: Pictures ``[n, C, H, W]`` in 0..1; clipped. The first 12 are drawn; one channel or
            the first three.
        visible: Booleans ``[n, 1, H, W]``, True where the model saw the pixel; the rest is grey.
        reconstructed: The model's pictures, like ``original``.
        masked_only: Adds a fourth row: these pictures where the model saw nothing, and the original
            where it did.
        names: A word above each column.
        title: Heading of the figure.
        note: How to read it, under the heading.

    Returns:
        The path.

    Raises:
        InputError: If the arrays do not have the same pictures.
    """
    given = {"visible": visible, "reconstructed": reconstructed, "masked_only": masked_only}
    for name, array in given.items():
        wanted = (original.shape[0], *original.shape[2:])
        if array is not None and (array.shape[0], *array.shape[2:]) != wanted:
            raise InputError(
                f"{name} has shape {array.shape} for originals of shape {original.shape}; the "
                f"number of pictures, rows and columns must agree"
            )
    truth = to_pictures(original[:MAX_COLUMNS])
    keep = np.moveaxis(np.asarray(visible[:MAX_COLUMNS], dtype=bool)[:, :1], 1, -1)
    rows = [
        ("original", "", truth),
        (
            "what the model saw",
            f"{style.percent(float(keep.mean()) if keep.size else 0.0, digits=0)} of the pixels",
            np.where(keep, truth, np.asarray(style.HIDDEN)),
        ),
        ("reconstructed", "", to_pictures(reconstructed[:MAX_COLUMNS])),
    ]
    if masked_only is not None:
        filled = np.where(keep, truth, to_pictures(masked_only[:MAX_COLUMNS]))
        rows.append(("reconstructed", "visible pixels pasted in", filled))
    return _draw_rows(path, rows, names=names, title=title, note=note)


def draw_mistakes(
    path: Path,
    *,
    images: NDArray[Any],
    truth: Sequence[str],
    predicted: Sequence[str],
    confidence: Sequence[float],
    title: str,
) -> Path:
    """Draw wrongly classified pictures with their true class, the answer and how sure it was.

    Args:
        path: Where the PNG goes.
        images: Pictures ``[n, C, H, W]`` in 0..1, in the order to show; the first 40 are drawn.
        truth: The n true class names.
        predicted: The n answers.
        confidence: The n probabilities of these answers, 0..1.
        title: Heading of the figure.

    Returns:
        The path; without any mistake the figure says so.

    Raises:
        InputError: If there are not n of each.
    """
    total = len(images)
    if not total == len(truth) == len(predicted) == len(confidence):
        raise InputError(
            f"{total} images, {len(truth)} true classes, {len(predicted)} predictions and "
            f"{len(confidence)} confidences; there must be one of each per image"
        )
    if total == 0:
        return Page(5.0, 0.0, title=title, note="No mistakes: every answer is right.").save(path)
    shown = min(total, MAX_MISTAKES)
    pictures = to_pictures(images[:shown])
    columns = min(shown, MISTAKE_COLUMNS)
    pitch = style.WIDTH / MISTAKE_COLUMNS
    width, height = _fit(pictures.shape[1:3], pitch - 0.14)
    step = style.line_height(style.SMALL_SIZE)
    row_height = height + 0.05 + 3 * step + 0.14
    page = Page(
        max(columns * pitch, 5.0),
        -(-shown // columns) * row_height - 0.14,
        title=title,
        note=f"The first {shown} of {total}." if shown < total else "",
    )
    for index in range(shown):
        x, y = index % columns * pitch, index // columns * row_height
        page.picture(x, y, width, height, pictures[index])
        words = (f"true: {truth[index]}", f"said: {predicted[index]}")
        sure = f"{style.percent(float(confidence[index]), digits=0)} sure"
        for line, (text, color) in enumerate(
            [(words[0], style.INK), (words[1], style.VERMILION), (sure, style.MUTED)]
        ):
            text = style.shorten(text, pitch - 0.08, style.SMALL_SIZE)
            at = y + height + 0.05 + line * step
            page.lines(x, at, [text], size=style.SMALL_SIZE, color=color)
    return page.save(path)


def to_pictures(images: NDArray[Any]) -> NDArray[np.float64]:
    """Turn ``[n, C, H, W]`` into RGB ``[n, H, W, 3]`` in 0..1.

    One or two channels give a grey picture of the first; those past the third are left out.
    Values that are not numbers become 0.
    """
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise InputError(f"pictures have shape {images.shape}; it must be [n, C, H, W]")
    values = np.nan_to_num(np.asarray(images, dtype=np.float64), nan=0.0).clip(0.0, 1.0)
    values = values[:, :3] if values.shape[1] >= 3 else values[:, :1].repeat(3, axis=1)
    return np.moveaxis(values, 1, -1)


def _draw_rows(
    path: Path,
    rows: Sequence[tuple[str, str, NDArray[Any]]],
    *,
    names: Sequence[str] | None,
    title: str,
    note: str,
) -> Path:
    """Draw labelled rows of pictures on one grid."""
    count = len(rows[0][2])
    room = (style.WIDTH - _LABEL_WIDTH) / max(count, 1) - _GAP
    width, height = _fit(rows[0][2].shape[1:3], min(room, 1.5))
    step = style.line_height(style.SMALL_SIZE)
    top = step + 0.03 if names else 0.0
    pitch = max(height, 3.2 * style.line_height(style.TEXT_SIZE)) + _GAP
    body = (_LABEL_WIDTH + count * (width + _GAP) - _GAP, top + len(rows) * pitch - _GAP)
    page = Page(max(body[0], 5.5), body[1], title=title, note=note)
    for column in range(count if names else 0):
        assert names is not None
        x = _LABEL_WIDTH + column * (width + _GAP) + width / 2
        text = style.shorten(names[column], width, style.SMALL_SIZE)
        page.lines(x, 0, [text], size=style.SMALL_SIZE, color=style.MUTED, align="center")
    for row, (label, detail, pictures) in enumerate(rows):
        y = top + row * pitch
        _draw_label(page, y, height, label, detail)
        for column, picture in enumerate(pictures):
            page.picture(_LABEL_WIDTH + column * (width + _GAP), y, width, height, picture)
    return page.save(path)


def _draw_label(page: Page, y: float, height: float, label: str, detail: str) -> None:
    """Write a row's label beside the middle of its pictures."""
    room = _LABEL_WIDTH - 0.12
    lines = style.wrap(label, room, style.TEXT_SIZE)
    details = style.wrap(detail, room, style.SMALL_SIZE)
    first = len(lines) * style.line_height(style.TEXT_SIZE)
    tall = first + len(details) * style.line_height(style.SMALL_SIZE)
    start = y + max(height - tall, 0.0) / 2
    page.lines(0, start, lines)
    page.lines(0, start + first, details, size=style.SMALL_SIZE, color=style.MUTED)


def _fit(shape: Sequence[int], room: float) -> tuple[float, float]:
    """Return width and height of a picture of H by W pixels whose longer side fills the room.

    Extremely long pictures are drawn thicker than they are, so that there is something to see.
    """
    height, width = shape
    longest = max(height, width)
    thinnest = min(_THINNEST, room)
    return max(room * width / longest, thinnest), max(room * height / longest, thinnest)
