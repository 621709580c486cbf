"""Sounds and what a model made of them: a close-up of the waveform beside spectrograms.

Legend: S samples, K frequencies, T frames of a spectrogram.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from numpy.typing import NDArray

from perceivers.errors import InputError
from perceivers.report import style
from perceivers.report.page import Page, tidy

# A window of a spectrogram holds a few periods of a voice; a close-up about ten.
WINDOW_SECONDS, CLOSE_UP_SECONDS = 0.032, 0.04
# What is this much softer than the loudest part of the original is drawn as silence.
RANGE_DECIBELS = 60.0
COLOURS = "magma"

_GAP = 0.25
_WAVE_WIDTH = 4.3
# Room for the numbers beside a close-up.
_LABELS = 0.5
_BOX = (style.WIDTH - _WAVE_WIDTH - 2 * _GAP) / 2
_HEIGHT = 1.15


@dataclass(frozen=True)
class SoundRow:
    """One recording, its first channel.

    Attributes:
        name: Of the recording.
        original: Waveform.
        reconstructed: What the model made of it.
        visible: The samples that the model saw.
        rate: Samples per second.
    """

    name: str
    original: Float[NDArray[np.float64], " S"]
    reconstructed: Float[NDArray[np.float64], " S"]
    visible: Bool[NDArray[np.bool_], " S"]
    rate: float


def draw_sounds(path: Path, rows: Sequence[SoundRow], *, title: str, note: str) -> Path:
    """Draw a row per recording: 40 ms around its loudest sample, and two spectrograms.

    Args:
        path: Where the PNG goes.
        rows: At least one.
        title: Heading of the figure.
        note: How to read it.

    Raises:
        InputError: There is no row.
    """
    if not rows:
        raise InputError("nothing to draw; give at least one row")
    line = style.line_height(style.SMALL_SIZE)
    step = line + 0.05 + _HEIGHT + 2 * line + 0.1
    page = Page(style.WIDTH, line + len(rows) * step, title=title, note=note)
    heads = ("original", "reconstructed")
    lefts = (_WAVE_WIDTH + _GAP, _WAVE_WIDTH + 2 * _GAP + _BOX)
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
            page.picture(left, y, _BOX, _HEIGHT, level[::-1], colours=COLOURS, limits=limits)
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
    """Return 40 ms around the loudest sample, moved inside where they reach beyond an end."""
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
    """Name the lines of the close-ups in their colours."""
    x = _LABELS
    for words, colour in (
        ("original", style.MUTED),
        ("reconstructed", style.BLUE),
        ("• visible", style.INK),
    ):
        page.lines(x, 0, [words], size=style.SMALL_SIZE, color=colour)
        x += style.text_width(words, style.SMALL_SIZE) + 0.2
