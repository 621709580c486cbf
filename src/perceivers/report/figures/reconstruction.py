"""Figures of reconstructed images, audio and modalities next to the originals."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from numpy.typing import NDArray

from perceivers.errors import InputError
from perceivers.report import style
from perceivers.report.style import Page, tidy

# -- Images: masked reconstructions, and classification errors -----------------------------------
#
# Legend: n images, C channels, H W rows and columns.


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
    """Draw originals, visible pixels and reconstructions in rows, with one column per image.

    Args:
        path: PNG file to write.
        original: Images ``[n, C, H, W]``, clipped to 0..1. The first 12 are drawn, with one channel
            or the first three.
        visible: Booleans ``[n, 1, H, W]``, True for visible pixels; hidden pixels are drawn grey.
        reconstructed: Reconstructions, like ``original``.
        masked_only: Adds a fourth row with these images at hidden pixels and the original at
            visible ones.
        names: Name above each column.
        title: Title of the figure.
        note: Explanation under the title.

    Returns:
        The path.

    Raises:
        InputError: If the shapes of the arrays do not match.
    """
    given = {"visible": visible, "reconstructed": reconstructed, "masked_only": masked_only}
    for name, array in given.items():
        wanted = (original.shape[0], *original.shape[2:])
        if array is not None and (array.shape[0], *array.shape[2:]) != wanted:
            raise InputError(
                f"{name} has shape {array.shape} for originals of shape {original.shape}; the "
                f"number of images, rows and columns must agree"
            )
    truth = to_pictures(original[:MAX_COLUMNS])
    keep = np.moveaxis(np.asarray(visible[:MAX_COLUMNS], dtype=bool)[:, :1], 1, -1)
    rows = [
        ("original", "", truth),
        (
            "visible to the model",
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
    """Draw misclassified images with their true class, predicted class and probability.

    Args:
        path: PNG file to write.
        images: Images ``[n, C, H, W]`` in 0..1, in drawing order; the first 40 are drawn.
        truth: The n true class names.
        predicted: The n predicted class names.
        confidence: The n probabilities of the predicted classes, 0..1.
        title: Title of the figure.

    Returns:
        The path; without mistakes the figure has only a note.

    Raises:
        InputError: If the lengths differ.
    """
    total = len(images)
    if not total == len(truth) == len(predicted) == len(confidence):
        raise InputError(
            f"{total} images, {len(truth)} true classes, {len(predicted)} predictions and "
            f"{len(confidence)} confidences; there must be one of each per image"
        )
    if total == 0:
        return Page(5.0, 0.0, title=title, note="No mistakes: all predictions right.").save(path)
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
        words = (f"true: {truth[index]}", f"predicted: {predicted[index]}")
        sure = f"{style.percent(float(confidence[index]), digits=0)} confidence"
        for line, (text, color) in enumerate(
            [(words[0], style.INK), (words[1], style.VERMILION), (sure, style.MUTED)]
        ):
            text = style.shorten(text, pitch - 0.08, style.SMALL_SIZE)
            at = y + height + 0.05 + line * step
            page.lines(x, at, [text], size=style.SMALL_SIZE, color=color)
    return page.save(path)


def to_pictures(images: NDArray[Any]) -> NDArray[np.float64]:
    """Convert ``[n, C, H, W]`` to RGB ``[n, H, W, 3]`` in 0..1.

    One or two channels give a grey image of the first; channels after the third are ignored. NaN
    becomes 0.
    """
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise InputError(f"images have shape {images.shape}; it must be [n, C, H, W]")
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
    room = _LABEL_WIDTH - 0.12
    lines = style.wrap(label, room, style.TEXT_SIZE)
    details = style.wrap(detail, room, style.SMALL_SIZE)
    first = len(lines) * style.line_height(style.TEXT_SIZE)
    tall = first + len(details) * style.line_height(style.SMALL_SIZE)
    start = y + max(height - tall, 0.0) / 2
    page.lines(0, start, lines)
    page.lines(0, start + first, details, size=style.SMALL_SIZE, color=style.MUTED)


def _fit(shape: Sequence[int], room: float) -> tuple[float, float]:
    """Return width and height of an H by W image whose longer side is ``room`` inches.

    Extremely long images are drawn thicker than they are, to be visible.
    """
    height, width = shape
    longest = max(height, width)
    thinnest = min(_THINNEST, room)
    return max(room * width / longest, thinnest), max(room * height / longest, thinnest)


# -- Audio: a close-up of the waveforms, and spectrograms ----------------------------------------
#
# Legend: S samples, K frequencies, T frames of a spectrogram.


# A spectrogram window covers a few periods of a voice, a close-up several more.
WINDOW_SECONDS, CLOSE_UP_SECONDS = 0.032, 0.04
# Range of the colours below the loudest part of the original; anything softer is black.
RANGE_DECIBELS = 60.0
COLOURS = "magma"

_SOUND_GAP = 0.25
_WAVE_WIDTH = 4.3
# Room for the numbers beside a close-up.
_LABELS = 0.5
_SOUND_BOX = (style.WIDTH - _WAVE_WIDTH - 2 * _SOUND_GAP) / 2
_HEIGHT = 1.15


@dataclass(frozen=True)
class SoundRow:
    """First channel of a recording and its reconstruction.

    Attributes:
        name: Name of the recording.
        original: Original waveform.
        reconstructed: Reconstructed waveform.
        visible: True for samples that are visible to the model.
        rate: Samples per second.
    """

    name: str
    original: Float[NDArray[np.float64], " S"]
    reconstructed: Float[NDArray[np.float64], " S"]
    visible: Bool[NDArray[np.bool_], " S"]
    rate: float


def draw_sounds(path: Path, rows: Sequence[SoundRow], *, title: str, note: str) -> Path:
    """Draw one row per recording: 40 ms around its loudest sample, and two spectrograms.

    Args:
        path: PNG file to write.
        rows: At least one recording.
        title: Title of the figure.
        note: Explanation under the title.

    Raises:
        InputError: If there is no row.
    """
    if not rows:
        raise InputError("nothing to draw; give at least one row")
    line = style.line_height(style.SMALL_SIZE)
    step = line + 0.05 + _HEIGHT + 2 * line + 0.1
    page = Page(style.WIDTH, line + len(rows) * step, title=title, note=note)
    heads = ("original", "reconstructed")
    lefts = (_WAVE_WIDTH + _SOUND_GAP, _WAVE_WIDTH + 2 * _SOUND_GAP + _SOUND_BOX)
    for left, head in zip(lefts, heads, strict=True):
        page.lines(left, 0, [head], size=style.SMALL_SIZE, color=style.MUTED)
    _draw_key(page)
    for index, row in enumerate(rows):
        y = line + index * step
        name = style.shorten(row.name, style.WIDTH, style.SMALL_SIZE)
        page.lines(0, y, [name], size=style.SMALL_SIZE, color=style.MUTED)
        y += line + 0.05
        _draw_close_up(page.axes(_LABELS, y, _WAVE_WIDTH - _LABELS, _HEIGHT), row)
        levels = [decibels(wave, row.rate) for wave in (row.original, row.reconstructed)]
        top = float(levels[0].max())
        for left, level in zip(lefts, levels, strict=True):
            limits = (top - RANGE_DECIBELS, top)
            page.picture(left, y, _SOUND_BOX, _HEIGHT, level[::-1], colours=COLOURS, limits=limits)
        seconds, top_kilohertz = len(row.original) / row.rate, row.rate / 2000
        words = f"{style.number(seconds)} s, 0 to {style.number(top_kilohertz)} kHz"
        page.lines(lefts[0], y + _HEIGHT + 0.04, [words], size=style.SMALL_SIZE, color=style.MUTED)
    return page.save(path)


def decibels(wave: Float[NDArray[np.float64], " S"], rate: float) -> Float[np.ndarray, "K T"]:
    """Return the spectrogram of a waveform in decibels, low frequencies first."""
    size = int(min(max(2 ** round(np.log2(WINDOW_SECONDS * rate)), 32), max(len(wave), 2)))
    padded = np.pad(wave, size // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[:: max(size // 4, 1)]
    power = np.abs(np.fft.rfft(frames * np.hanning(size))) ** 2
    return 10 * np.log10(np.maximum(power.T, 1e-12))


def close_up(wave: Float[NDArray[np.float64], " S"], rate: float) -> slice:
    """Return a slice of 40 ms around the loudest sample, shifted to lie inside the waveform."""
    length = min(max(round(CLOSE_UP_SECONDS * rate), 2), len(wave))
    start = int(np.abs(wave).argmax()) - length // 2
    start = min(max(start, 0), len(wave) - length)
    return slice(start, start + length)


def _draw_close_up(axes: Axes, row: SoundRow) -> None:
    part = close_up(row.original, row.rate)
    time = np.arange(part.start, part.stop) * 1000 / row.rate
    axes.plot(time, row.original[part], color=style.MUTED, linewidth=0.9)
    axes.plot(time, row.reconstructed[part], color=style.BLUE, linewidth=1.2)
    seen = row.visible[part]
    if not seen.all():
        axes.plot(time[seen], row.original[part][seen], "o", markersize=2.6, color=style.INK)
    tidy(axes)
    axes.set_xlim(float(time[0]), float(time[-1]) + 1000 / row.rate)
    axes.set_xlabel(
        "milliseconds",
        fontproperties=style.font(style.SMALL_SIZE),
        color=style.MUTED,
        labelpad=1,
    )


def _draw_key(page: Page) -> None:
    x = _LABELS
    for words, colour in (
        ("original", style.MUTED),
        ("reconstructed", style.BLUE),
        ("• visible", style.INK),
    ):
        page.lines(x, 0, [words], size=style.SMALL_SIZE, color=colour)
        x += style.text_width(words, style.SMALL_SIZE) + 0.2


# -- Filled-in modalities next to the given ones and the original --------------------------------


COLUMNS = ("given", "filled in", "original")
TEXT_LINES = 6

_FILLED_GAP = 0.2
_FILLED_BOX = (style.WIDTH - (len(COLUMNS) - 1) * _FILLED_GAP) / len(COLUMNS)
_HIGHEST = 1.9
_PART_GAP = 0.05


@dataclass(frozen=True)
class FilledRow:
    """One sample with one filled-in modality.

    Attributes:
        name: Name of the sample and the modality.
        given: Visible modalities: RGB images ``[H, W, 3]`` uint8, or texts.
        filled: Reconstruction of the hidden modality.
        original: Original of the hidden modality; empty if unknown.
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
    """Draw one row per sample: given, filled in, original.

    Args:
        path: PNG file to write.
        rows: At least one sample.
        columns: Headings of the three columns; the third is dropped if no original is known.
        title: Title of the figure.
        note: Explanation under the title.

    Raises:
        InputError: If there is no row.
    """
    if not rows:
        raise InputError("nothing to draw; give at least one row")
    step = style.line_height(style.SMALL_SIZE)
    columns = columns if any(row.original for row in rows) else columns[:2]
    cells = [[row.given, row.filled, row.original][: len(columns)] for row in rows]
    heights = [max(sum(_height(p) + _PART_GAP for p in cell) for cell in row) for row in cells]
    body = step + sum(height + step + _FILLED_GAP for height in heights)
    page = Page(style.WIDTH, body, title=title, note=note)
    for column, words in enumerate(columns):
        page.lines(
            column * (_FILLED_BOX + _FILLED_GAP),
            0,
            [words],
            size=style.SMALL_SIZE,
            color=style.MUTED,
        )
    y = step + 0.03
    for row, cell_row, height in zip(rows, cells, heights, strict=True):
        for column, cell in enumerate(cell_row):
            _draw_cell(page, column * (_FILLED_BOX + _FILLED_GAP), y, cell)
        name = style.shorten(row.name, style.WIDTH, style.SMALL_SIZE)
        page.lines(0, y + height, [name], size=style.SMALL_SIZE, color=style.MUTED)
        y += height + step + _FILLED_GAP
    return page.save(path)


def _draw_cell(page: Page, x: float, y: float, parts: Sequence[NDArray[Any] | str]) -> None:
    for part in parts:
        height = _height(part)
        if isinstance(part, str):
            page.lines(x, y, _lines(part), size=style.SMALL_SIZE)
        else:
            width = min(_FILLED_BOX, height * part.shape[1] / part.shape[0])
            page.picture(x, y, width, height, np.asarray(part))
        y += height + _PART_GAP


def _height(part: NDArray[Any] | str) -> float:
    if isinstance(part, str):
        return len(_lines(part)) * style.line_height(style.SMALL_SIZE)
    return min(_FILLED_BOX * part.shape[0] / part.shape[1], _HIGHEST)


def _lines(text: str) -> Sequence[str]:
    lines = style.wrap(text, _FILLED_BOX, style.SMALL_SIZE)
    return lines if len(lines) <= TEXT_LINES else [*lines[: TEXT_LINES - 1], "..."]
