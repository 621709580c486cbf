"""Heat maps of reconstruction errors on images, videos, audio, points and texts.

Legend: C channels, T frames, H W rows and columns, S samples, P points, L bytes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.collections import LineCollection
from numpy.typing import NDArray

from perceivers.errors import InputError
from perceivers.report import style
from perceivers.report.drawings import drawing_of
from perceivers.report.figures.canvases import TextCanvas
from perceivers.report.style import Page, tidy

HEAT = "YlOrRd"
MAX_FRAMES = 6
_SIDE, _GAP, _BAR_ROOM = 2.6, 0.12, 0.75
# Opacity of the strongest colour.
_COVER = 0.8
_WAVE_HEIGHT, _AXES_LEFT, _AXES_BELOW = 1.5, 0.62, 0.55
# More segments than the figure has pixel columns would only cost time.
_SEGMENTS = 1200


@dataclass(frozen=True)
class Heat:
    """A sample and its reconstruction errors.

    Attributes:
        kind: ``image``, ``video``, ``audio``, ``points``, ``bytes``, or anything else.
        signal: Raw input without a batch axis: ``[C, H, W]``, ``[C, T, H, W]``, ``[C, S]``,
            ``[P, C]`` or ids ``[L]``; images and frames in 0..1.
        errors: One per element: ``[H, W]``, ``[T, H, W]``, ``[S]``, ``[P]`` or ``[L]``; NaN where
            unknown. Videos may have errors for every n-th frame only.
        rate: Frames or samples per second; 0 labels axes with indices instead of seconds.
    """

    kind: str
    signal: NDArray[Any]
    errors: NDArray[Any]
    rate: float = 0.0


def draw_heat(path: Path, heat: Heat, *, limit: float, unit: str, title: str, note: str) -> Path:
    """Draw a sample next to a heat map of its errors, with a colour bar.

    Args:
        path: PNG file to write.
        heat: Sample and errors.
        limit: Error that gets the strongest colour; above 0.
        unit: Unit of the errors, named in the note.
        title: Title of the figure.
        note: Explanation under the title.

    Returns:
        The path.

    Raises:
        InputError: If signal and errors do not have the same grid, or the limit is not above 0.
    """
    if not limit > 0.0:
        raise InputError(f"the strongest colour stands for {limit}; it must be above 0")
    note = f"{note} Colours: {unit}."
    return drawing_of(heat.kind).heat(heat, limit, title, note).save(path)


def overlay(picture: NDArray[Any], errors: NDArray[Any], limit: float) -> NDArray[np.float64]:
    """Overlay an image with heat, more opaque where it is stronger.

    Args:
        picture: ``[C, H, W]`` in 0..1.
        errors: ``[H, W]``; NaN leaves the image unchanged.
        limit: Error that gets the strongest colour.

    Returns:
        ``[H, W, 3]`` in 0..1.
    """
    grey = _grey(picture)
    share = np.nan_to_num(np.asarray(errors, np.float64) / limit).clip(0.0, 1.0)
    colours = mpl.colormaps[HEAT](share)[..., :3]
    weight = _COVER * share[..., None]
    return (1 - weight) * grey[..., None] + weight * colours


def _grey(picture: NDArray[Any]) -> NDArray[np.float64]:
    # Grey, so that heat is not confused with the colours of the image.
    values = np.nan_to_num(np.asarray(picture, np.float64)).clip(0.0, 1.0)
    return values[:3].mean(0) if len(values) >= 3 else values[0]


def heat_of_picture(heat: Heat, limit: float, title: str, note: str) -> Page:
    """Draw an image beside the same image under its errors."""
    _check(heat, heat.signal.shape[1:])
    height, width = _fit(heat.signal.shape[1:], _SIDE)
    page = Page(max(2 * width + _GAP + _BAR_ROOM, 5.0), height, title=title, note=note)
    page.picture(0, 0, width, height, _colour(heat.signal))
    page.picture(width + _GAP, 0, width, height, overlay(heat.signal, heat.errors, limit))
    _bar(page, 2 * (width + _GAP), 0, height, limit)
    return page


def heat_of_clip(heat: Heat, limit: float, title: str, note: str) -> Page:
    """Draw a few frames under their errors, and the mean error over time."""
    step = heat.signal.shape[1] // max(len(heat.errors), 1)
    signal = heat.signal[:, :: max(step, 1)][:, : len(heat.errors)]
    _check(Heat(heat.kind, signal, heat.errors), signal.shape[1:])
    count = min(len(heat.errors), MAX_FRAMES)
    chosen = np.linspace(0, len(heat.errors) - 1, count).round().astype(int)
    room = (style.WIDTH - _BAR_ROOM - (count - 1) * _GAP) / count
    height, width = _fit(signal.shape[2:], min(room, _SIDE))
    top, second = style.line_height(style.SMALL_SIZE) + 0.03, 0.0
    curve = top + 2 * height + 2 * _GAP
    page = Page(style.WIDTH, curve + _WAVE_HEIGHT + _AXES_BELOW, title=title, note=note)
    seconds = np.arange(len(heat.errors)) * max(step, 1) / (heat.rate or 1.0)
    for place, frame in enumerate(chosen):
        x = place * (width + _GAP)
        word = f"{seconds[frame]:.2f} s" if heat.rate else f"frame {seconds[frame]:.0f}"
        page.lines(x, 0, [word], size=style.SMALL_SIZE, color=style.MUTED)
        page.picture(x, top, width, height, _colour(signal[:, frame]))
        second = top + height + _GAP
        hot = overlay(signal[:, frame], heat.errors[frame], limit)
        page.picture(x, second, width, height, hot)
    _bar(page, count * (width + _GAP), second, height, limit)
    means = np.nanmean(heat.errors.reshape(len(heat.errors), -1), 1)
    _curve(page, curve, seconds, means, "mean error", "seconds" if heat.rate else "frame")
    return page


def heat_of_wave(heat: Heat, limit: float, title: str, note: str) -> Page:
    """Draw a waveform in the colours of its errors, and their mean over time."""
    _check(heat, heat.signal.shape[1:])
    seconds = np.arange(len(heat.errors)) / (heat.rate or 1.0)
    size = -(-len(seconds) // _SEGMENTS)
    ends = np.arange(0, len(seconds), size)
    means = np.array([_mean(heat.errors[end : end + size]) for end in ends])
    page = Page(style.WIDTH, 2 * (_WAVE_HEIGHT + _AXES_BELOW), title=title, note=note)
    width = style.WIDTH - _AXES_LEFT - _BAR_ROOM
    axes = page.axes(_AXES_LEFT, 0, width, _WAVE_HEIGHT)
    lows, highs = (
        np.array([part(heat.signal[0, end : end + size]) for end in ends])
        for part in (np.min, np.max)
    )
    # A segment of one sample has height 0; widen it to a visible hundredth of the range.
    thin = 0.005 * max(float(highs.max() - lows.min()), 1e-6)
    bars = np.stack(
        [np.stack([seconds[ends], lows - thin], 1), np.stack([seconds[ends], highs + thin], 1)], 1
    )
    lines = LineCollection(list(bars), cmap=HEAT, linewidths=1.2)
    lines.set_array(np.nan_to_num(means))
    lines.set_clim(-0.25 * limit, limit)
    axes.add_collection(lines)
    axes.set_xlim(seconds[0], seconds[-1] or 1.0)
    axes.set_ylim(lows.min() - 2 * thin, highs.max() + 2 * thin)
    tidy(axes)
    _bar(page, _AXES_LEFT + width + _GAP, 0, _WAVE_HEIGHT, limit)
    below = "seconds" if heat.rate else "sample"
    _curve(page, _WAVE_HEIGHT + _AXES_BELOW, seconds[ends], means, "mean error", below)
    return page


def heat_of_points(heat: Heat, limit: float, title: str, note: str) -> Page:
    """Draw points from above, in the colours of their errors."""
    _check(heat, heat.signal.shape[:1])
    page = Page(5.0, 4.2 + _AXES_BELOW, title=title, note=note)
    axes = page.axes(_AXES_LEFT, 0, 5.0 - _AXES_LEFT - _BAR_ROOM, 4.2)
    real = np.isfinite(heat.signal).all(1) & np.isfinite(heat.errors)
    points, errors = heat.signal[real], heat.errors[real]
    order = np.argsort(errors)
    second = points[order, min(1, points.shape[1] - 1)]
    axes.scatter(
        points[order, 0], second, c=errors[order], cmap=HEAT, vmin=-0.25 * limit, vmax=limit, s=14
    )
    tidy(axes)
    _bar(page, 5.0 - _BAR_ROOM + _GAP, 0, 4.2, limit)
    return page


def heat_of_text(heat: Heat, limit: float, title: str, note: str) -> Page:
    """Draw a text with coloured bytes, and the error of each."""
    _check(heat, heat.signal.shape)
    canvas = TextCanvas(heat.signal)
    top = canvas.height(style.WIDTH) + _GAP
    page = Page(style.WIDTH, top + _WAVE_HEIGHT + _AXES_BELOW, title=title, note=note)
    share = np.nan_to_num(np.asarray(heat.errors, np.float64) / limit).clip(0.0, 1.0)
    canvas.paint(page, 0, 0, style.WIDTH, share, ())
    name = f"error (colours end at {limit:.3g})"
    _curve(page, top, np.arange(len(heat.errors)), heat.errors, name, "byte")
    return page


def heat_of_values(heat: Heat, limit: float, title: str, note: str) -> Page:
    """Plot errors in element order, for kinds without a natural image."""
    page = Page(style.WIDTH, _WAVE_HEIGHT + _AXES_BELOW, title=title, note=note)
    errors = heat.errors.reshape(-1)
    _curve(page, 0, np.arange(len(errors)), errors, f"error (colours end at {limit:.3g})", "index")
    return page


def _curve(
    page: Page, y: float, x: NDArray[Any], values: NDArray[Any], name: str, below: str
) -> None:
    page.lines(_AXES_LEFT, y, [name], size=style.SMALL_SIZE, color=style.MUTED)
    step = style.line_height(style.SMALL_SIZE)
    width = style.WIDTH - _AXES_LEFT - _BAR_ROOM
    axes = page.axes(_AXES_LEFT, y + step, width, _WAVE_HEIGHT - step)
    axes.plot(x, values, color=style.VERMILION, linewidth=1.1)
    axes.set_ylim(bottom=0.0)
    if len(x) > 1:
        axes.set_xlim(float(x[0]), float(x[-1]))
    tidy(axes)
    words = {"size": style.SMALL_SIZE, "color": style.MUTED}
    page.lines(_AXES_LEFT + width / 2, y + _WAVE_HEIGHT + 0.24, [below], align="center", **words)


def _bar(page: Page, x: float, y: float, height: float, limit: float) -> None:
    labels = [(0.0, "0"), (limit, style.number(limit, 2))]
    page.colour_bar(x, y, height, colours=HEAT, limits=(0.0, limit), labels=labels)


def _colour(picture: NDArray[Any]) -> NDArray[np.float64]:
    values = np.nan_to_num(np.asarray(picture, np.float64)).clip(0.0, 1.0)
    values = values[:3] if len(values) >= 3 else values[:1].repeat(3, 0)
    return np.moveaxis(values, 0, -1)


def _fit(shape: tuple[int, ...], room: float) -> tuple[float, float]:
    height, width = shape
    longest = max(height, width)
    return room * height / longest, room * width / longest


def _mean(values: NDArray[Any]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else 0.0


def _check(heat: Heat, grid: tuple[int, ...]) -> None:
    if heat.errors.shape != grid:
        raise InputError(
            f"errors of shape {heat.errors.shape} for a {heat.kind} of grid {grid}; there must be "
            f"one error per element"
        )
