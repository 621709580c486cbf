"""Optical flow as colours, and frame pairs with their true and predicted flow.

Middlebury colours (Baker et al. 2011, "A Database and Evaluation Methodology for Optical Flow"):
hue is direction, white is no motion, full colour is the largest motion of the figure. The original
program maps a full turn to 54 of its 55 colours, which leaves a seam in the direction to the right;
here the wheel is closed.

Legend: n pairs, H W rows and columns. Flow is in pixels, channel 0 = u (right), 1 = v (down).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray

from perceivers.errors import InputError
from perceivers.report import style
from perceivers.report.style import Page

# Steps from one colour to the next, the start colour, and which channels increase (1) or decrease
# (-1): red - yellow - green - cyan - blue - magenta - red.
TRANSITIONS = (
    (15, (255, 0, 0), (0, 1, 0)),
    (6, (255, 255, 0), (-1, 0, 0)),
    (4, (0, 255, 0), (0, 0, 1)),
    (11, (0, 255, 255), (0, -1, 0)),
    (13, (0, 0, 255), (1, 0, 0)),
    (6, (255, 0, 255), (0, 0, -1)),
)
# Motion above the scale is darkened by this factor, as in the original program.
BEYOND = 0.75
MAX_ROWS = 8

_GAP = 0.07
_MAX_PICTURE = 3.0
_THINNEST = 0.15
_KEY = 0.8
_KEY_PIXELS = 301
_KEY_WORDS = 5.2
_BAR_ROOM = 1.6
# Percentile of the darkest colour: a few outliers may saturate, so that the rest stays visible.
_TAIL = 99.0


def colour_wheel() -> NDArray[np.float64]:
    """Return the 55 Middlebury colours around the wheel, ``[55, 3]`` in 0..255."""
    parts = []
    for steps, start, change in TRANSITIONS:
        ramp = np.floor(255 * np.arange(steps) / steps)[:, None]
        parts.append(np.asarray(start) + ramp * np.asarray(change))
    return np.concatenate(parts)


def flow_to_colour(flow: NDArray[Any], largest: float | None = None) -> NDArray[np.uint8]:
    """Convert flow ``[2, H, W]`` to colours ``[H, W, 3]``; black where it is not finite.

    Args:
        flow: Flow in pixels.
        largest: Length in pixels that gets the full colour; longer motion is darkened. None uses
            the longest motion of this flow.

    Raises:
        InputError: If the shape is not ``[2, H, W]``, or ``largest`` is not above 0.
    """
    if flow.ndim != 3 or flow.shape[0] != 2:
        raise InputError(f"flow has shape {flow.shape}; it must be [2, H, W]")
    if largest is not None and not largest > 0:
        raise InputError(f"largest is {largest}; it is a length in pixels and must be above 0")
    known = np.asarray(np.isfinite(flow).all(axis=0))
    u, v = np.where(known, np.asarray(flow, np.float64), 0.0)
    lengths = np.hypot(u, v)
    scale = (lengths.max(initial=0.0) or 1.0) if largest is None else largest
    lengths = (lengths / scale)[..., None]
    wheel = colour_wheel()
    place = (np.arctan2(-v, -u) / np.pi + 1) / 2 * len(wheel)
    lower = np.floor(place).astype(np.intp)
    share = (place - lower)[..., None]
    first, second = wheel[lower % len(wheel)], wheel[(lower + 1) % len(wheel)]
    full = ((1 - share) * first + share * second) / 255
    # Flow of exactly the largest length must not be darkened because of rounding.
    inside = lengths <= 1 + 1e-6
    colours = np.where(inside, 1 - lengths.clip(max=1) * (1 - full), BEYOND * full)
    return np.where(known[..., None], np.floor(255 * colours), 0).astype(np.uint8)


def draw_flow(
    path: Path,
    *,
    video: NDArray[Any],
    true: NDArray[Any] | None = None,
    predicted: NDArray[Any] | None = None,
    names: Sequence[str] | None = None,
    title: str,
    note: str = "",
) -> Path:
    """Draw one row per frame pair, with its flow and the error of the prediction.

    Args:
        path: PNG file to write.
        video: Frame pairs ``[n, 3, 2, H, W]``, uint8 or 0..1. The first 8 are drawn.
        true: True flow ``[n, 2, H, W]``, NaN where unknown; may be None. It sets the scale of the
            colours, so that outliers of the prediction do not make it pale.
        predicted: Predicted flow ``[n, 2, H, W]``; may be None. The end-point error is drawn if
            both are given.
        names: Name under each row.
        title: Title of the figure.
        note: Explanation under the title.

    Returns:
        The path.

    Raises:
        InputError: If neither flow is given, or the shapes of the arrays do not match.
    """
    flows = {"true flow": true, "predicted flow": predicted}
    given = {
        label: np.asarray(flow[:MAX_ROWS], np.float64)
        for label, flow in flows.items()
        if flow is not None
    }
    _check(video, [flow for flow in (true, predicted) if flow is not None], names)
    frames = video[:MAX_ROWS] / 255.0 if video.dtype == np.uint8 else video[:MAX_ROWS]
    frames = np.moveaxis(np.nan_to_num(np.asarray(frames, np.float64)).clip(0, 1), 1, -1)
    if len(video) > MAX_ROWS:
        note = f"{note} The first {MAX_ROWS} of {len(video)} pairs.".strip()
    largest = _longest(next(iter(given.values())))
    columns = {f"frame {number + 1}": frames[:, number] for number in range(2)}
    columns |= {
        label: np.stack([flow_to_colour(one, largest) for one in flow])
        for label, flow in given.items()
    }
    if len(given) < 2:
        return _draw(path, columns, largest, None, names=names, title=title, note=note)
    errors = np.hypot(*np.moveaxis(given["predicted flow"] - given["true flow"], 1, 0))
    return _draw(path, columns, largest, errors, names=names, title=title, note=note)


def _check(video: NDArray[Any], flows: list[NDArray[Any]], names: Sequence[str] | None) -> None:
    if video.ndim != 5 or video.shape[1:3] != (3, 2) or not video.size:
        raise InputError(f"frame pairs have shape {video.shape}; it must be [n, 3, 2, H, W]")
    if not flows:
        raise InputError("no flow to draw; give the true flow, the predicted flow or both")
    wanted = (len(video), 2, *video.shape[3:])
    for flow in flows:
        if flow.shape != wanted:
            raise InputError(
                f"flow has shape {flow.shape} for frame pairs of shape {video.shape}; it must be "
                f"{wanted}"
            )
    if names is not None and len(names) != len(video):
        raise InputError(f"{len(names)} names for {len(video)} frame pairs; give one for each")


def _longest(flow: NDArray[np.float64]) -> float:
    """Return the longest known motion of flow ``[n, 2, H, W]``, or 1 without motion."""
    lengths = np.hypot(flow[:, 0], flow[:, 1])
    return float(lengths[np.isfinite(lengths)].max(initial=0.0)) or 1.0


def _draw(
    path: Path,
    columns: dict[str, NDArray[Any]],
    largest: float,
    errors: NDArray[np.float64] | None,
    *,
    names: Sequence[str] | None,
    title: str,
    note: str,
) -> Path:
    worst = _limit(errors) if errors is not None else 0.0
    if errors is not None:
        columns = columns | {"end-point error": _error_colours(errors, worst)}
    pictures = next(iter(columns.values()))
    room = min((style.WIDTH + _GAP) / len(columns) - _GAP, _MAX_PICTURE)
    width, height = room, max(room * pictures.shape[1] / pictures.shape[2], _THINNEST)
    heading = style.line_height(style.TEXT_SIZE) + 0.03
    caption = style.line_height(style.SMALL_SIZE) + 0.1 if names or errors is not None else _GAP
    pitch = height + caption
    below = heading + len(pictures) * pitch + 0.06
    page = Page(style.WIDTH, below + _KEY, title=title, note=note)
    for column, (label, shown) in enumerate(columns.items()):
        x = column * (width + _GAP)
        page.lines(x + width / 2, 0, [label.capitalize()], align="center")
        for row, picture in enumerate(shown):
            page.picture(x, heading + row * pitch, width, height, picture)
    for row in range(len(pictures)):
        y = heading + row * pitch + height + 0.03
        if names:
            name = style.shorten(names[row], 2 * width, style.SMALL_SIZE)
            page.lines(0, y, [name], size=style.SMALL_SIZE, color=style.MUTED)
        if errors is not None:
            x = (len(columns) - 0.5) * (width + _GAP) - _GAP / 2
            words = _mean_words(errors[row])
            page.lines(x, y, [words], size=style.SMALL_SIZE, color=style.MUTED, align="center")
    _draw_key(page, below, largest, worst)
    return page.save(path)


def _limit(errors: NDArray[np.float64]) -> float:
    known = errors[np.isfinite(errors)]
    return (float(np.percentile(known, _TAIL)) or 1.0) if known.size else 1.0


def _error_colours(errors: NDArray[np.float64], worst: float) -> NDArray[np.float64]:
    """Convert errors ``[n, H, W]`` to colours ``[n, H, W, 3]`` in 0..1; black where unknown."""
    known = np.isfinite(errors)
    colours = colormaps[style.SEQUENTIAL](np.where(known, errors / worst, 0.0).clip(0.0, 1.0))
    return np.where(known[..., None], colours[..., :3], 0.0)


def _mean_words(errors: NDArray[np.float64]) -> str:
    known = errors[np.isfinite(errors)]
    return f"mean {style.number(float(known.mean()))} px" if known.size else "unknown"


def _draw_key(page: Page, y: float, largest: float, worst: float) -> None:
    """Draw the colour wheel with its scale, and the colour bar of the errors if there are any."""
    axis = np.linspace(-1.0, 1.0, _KEY_PIXELS)
    disc = np.stack(np.meshgrid(axis, axis))
    inside = np.hypot(*disc) <= 1
    wheel = np.where(inside[..., None], flow_to_colour(disc, 1.0), 255)
    axes = page.picture(0, y, _KEY, _KEY, wheel)
    axes.set_axis_off()
    words = style.wrap(
        f"Flow: motion of the pixels of frame 1. Hue is direction, as on the wheel; white is no "
        f"motion, the rim is {style.number(largest)} px, darker is longer, black is unknown.",
        _KEY_WORDS,
        style.TEXT_SIZE,
    )
    tall = len(words) * style.line_height(style.TEXT_SIZE)
    page.lines(_KEY + 0.15, y + (_KEY - tall) / 2, words, color=style.MUTED)
    if worst:
        x = style.WIDTH - _BAR_ROOM
        page.colour_bar(
            x,
            y,
            _KEY,
            colours=style.SEQUENTIAL,
            limits=(0.0, worst),
            labels=[(worst, f"{style.number(worst)} px or more"), (0.0, "0 px")],
        )
        page.text(
            x - 0.1, y + _KEY / 2, "error", color=style.MUTED, align="right", vertical="center"
        )
