"""Sheets of samples as model inputs: one box per sample, with its modalities above a caption.

Legend: C channels, H W rows and columns, T frames, S samples, P points.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceivers.errors import InputError
from perceivers.report import style
from perceivers.report.drawings import drawing_of
from perceivers.report.figures.canvases import (
    NOTHING,
    choose_side,
    envelope,
    look_down,
    shade_heights,
)
from perceivers.report.figures.reconstruction import to_pictures
from perceivers.report.figures.scores import IGNORED, class_colours
from perceivers.report.style import Page

COLUMNS = 4
FRAMES_SHOWN = 4
# Maximum lines of a text; rows and columns of a waveform in pixels.
TEXT_LINES = 9
WAVE_SIZE = (90, 360)

_GAP = 0.15
_BOX = (style.WIDTH - (COLUMNS - 1) * _GAP) / COLUMNS
_HIGHEST = 2.4
_WAVE = (0, 114, 178)


@dataclass(frozen=True)
class SampleBox:
    """Contents of the box of one sample.

    Attributes:
        arrays: Model inputs by modality, without a batch axis.
        kinds: Kind of each modality, such as ``image``; a mask belongs to the image or points.
        caption: Labels or targets.
        name: Name of the sample.
    """

    arrays: Mapping[str, NDArray[Any]]
    kinds: Mapping[str, str]
    caption: str
    name: str


def draw_samples(
    path: Path,
    boxes: Sequence[SampleBox],
    *,
    classes: Sequence[str] = (),
    title: str,
    note: str,
) -> Path:
    """Draw boxes of samples in rows of four.

    Args:
        path: PNG file to write.
        boxes: At least one sample.
        classes: Names of the classes in masks, for the legend.
        title: Title of the figure.
        note: Explanation under the title.

    Raises:
        InputError: If there is no sample.
    """
    if not boxes:
        raise InputError("no samples to draw")
    drawn = [draw_parts(box, len(classes)) for box in boxes]
    step = style.line_height(style.SMALL_SIZE)
    heights = [sum(_height(part) + 0.04 for part in parts) + 2 * step + 0.04 for parts in drawn]
    rows = [range(i, min(i + COLUMNS, len(boxes))) for i in range(0, len(boxes), COLUMNS)]
    body = sum(max(heights[i] for i in row) + _GAP for row in rows)
    key = step + 0.06 if classes else 0.0
    page = Page(style.WIDTH, body + key, title=title, note=note)
    y = 0.0
    for row in rows:
        for column, index in enumerate(row):
            _draw_box(page, column * (_BOX + _GAP), y, boxes[index], drawn[index])
        y += max(heights[i] for i in row) + _GAP
    x, table = 0.0, class_colours(max(len(classes), 1))
    for number, name in enumerate(classes):
        words = style.shorten(name, 1.2, style.SMALL_SIZE)
        width = style.text_width(words, style.SMALL_SIZE) + 0.3
        if x + width > style.WIDTH:
            break
        page.picture(x, y + 0.02, 0.12, 0.12, table[number][None, None])
        page.lines(x + 0.16, y, [words], size=style.SMALL_SIZE, color=style.MUTED)
        x += width
    return page.save(path)


def draw_parts(box: SampleBox, num_classes: int) -> list[NDArray[Any] | str]:
    """Return the drawn parts of a sample: RGB images ``[H, W, 3]`` and texts."""
    parts: list[NDArray[Any] | str] = []
    mask = next((box.arrays[n] for n, kind in box.kinds.items() if "mask" in kind), None)
    for name, kind in box.kinds.items():
        parts += drawing_of(kind).draw(box, name, mask, num_classes)
    return parts


def show_picture(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Convert an image ``[C, H, W]`` to RGB ``[H, W, 3]``, from one channel or the first three."""
    values = array.astype(np.float64)
    if np.issubdtype(array.dtype, np.integer):
        values = values / np.iinfo(array.dtype).max
    return (to_pictures(values[None])[0] * 255).round().astype(np.uint8)


def show_frames(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Convert a few frames of a video ``[C, T, H, W]`` to one image, side by side."""
    places = np.linspace(0, array.shape[1] - 1, min(FRAMES_SHOWN, array.shape[1]))
    return np.concatenate([show_picture(array[:, int(place)]) for place in places.round()], axis=1)


def show_wave(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Draw the first channel of a waveform ``[C, S]`` as an image; its height covers -1..1."""
    height, width = WAVE_SIZE
    wave = array[0].astype(np.float64)
    if np.issubdtype(array.dtype, np.integer):
        wave = wave / np.iinfo(array.dtype).max
    low, high = envelope(np.nan_to_num(wave).clip(-1, 1), width)
    rows = np.linspace(1, -1, height)[:, None]
    # Widen by half a row on both sides, so that every column has at least one pixel.
    half = 1.0 / (height - 1)
    inside = (rows >= low - half) & (rows <= high + half)
    canvas = np.full((height, len(low), 3), 255, np.uint8)
    canvas[inside] = _WAVE
    return canvas


def show_points(
    cloud: NDArray[Any],
    ids: NDArray[np.uint8] | None,
    num_classes: int,
    frame: NDArray[Any] | None = None,
) -> NDArray[np.uint8]:
    """Draw points ``[P, C]`` from above, in grey by height or in the colours of their classes.

    ``frame`` is a cloud that defines extent and heights instead, to compare the two.
    """
    cloud = _widen(cloud)
    frame = cloud if frame is None else _widen(frame)
    seen = look_down(cloud, choose_side(int(np.isfinite(frame).all(axis=1).sum())), frame)
    if ids is None:
        shades = shade_heights(cloud, seen, frame)
        return (np.moveaxis(shades.repeat(3, 0), 0, -1) * 255).astype(np.uint8)
    return class_colours(num_classes)[np.where(seen == NOTHING, IGNORED, ids[seen])]


def _widen(cloud: NDArray[Any]) -> NDArray[np.float64]:
    """Return points with at least two values; a single value is drawn over the point index."""
    cloud = cloud.astype(np.float64)
    if cloud.shape[1] < 2:
        return np.column_stack([np.arange(len(cloud), dtype=np.float64), cloud[:, 0]])
    return cloud


def show_array(name: str, array: NDArray[Any]) -> NDArray[Any] | str:
    """Convert a 2-D array to a grey image; describe any other array by type and shape."""
    if array.ndim != 2 or not array.size:
        return f"{name}: {array.dtype} {'x'.join(map(str, array.shape))}"
    values = np.nan_to_num(array.astype(np.float64))
    low, high = values.min(), values.max()
    return show_picture(((values - low) / max(high - low, 1e-12))[None])


def _height(part: NDArray[Any] | str) -> float:
    if isinstance(part, str):
        return len(_lines(part)) * style.line_height(style.SMALL_SIZE)
    return min(_BOX * part.shape[0] / part.shape[1], _HIGHEST)


def _lines(text: str) -> Sequence[str]:
    lines = style.wrap(text, _BOX, style.SMALL_SIZE)
    return lines if len(lines) <= TEXT_LINES else [*lines[: TEXT_LINES - 1], "..."]


def _draw_box(
    page: Page, x: float, y: float, box: SampleBox, parts: Sequence[NDArray[Any] | str]
) -> None:
    for part in parts:
        height = _height(part)
        if isinstance(part, str):
            page.lines(x, y, _lines(part), size=style.SMALL_SIZE)
        else:
            width = min(_BOX, height * part.shape[1] / part.shape[0])
            page.picture(x, y, width, height, part)
        y += height + 0.04
    caption = style.shorten(box.caption, _BOX, style.SMALL_SIZE)
    name = style.shorten(box.name, _BOX, style.SMALL_SIZE)
    page.lines(x, y, [caption], size=style.SMALL_SIZE)
    below = y + style.line_height(style.SMALL_SIZE) if box.caption else y
    page.lines(x, below, [name], size=style.SMALL_SIZE, color=style.MUTED)
