"""Inputs on which attention is drawn as heat: pictures, clips, waves and point sets.

A canvas holds one input and knows how tall it is at a width. Heat is the attention of a token as a
share of that which gets the full colour, 0..1, on the input's token grid.

Legend: H W rows and columns, T frames, S samples, P points, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from numpy.typing import NDArray

from perceivers.errors import InputError
from perceivers.report import style
from perceivers.report.page import Page

Heat = NDArray[np.float64]
Place = tuple[float, ...]

# One hue: no colour is told from its neighbour by hue, only by strength.
HEAT = LinearSegmentedColormap.from_list("heat", ["#ffffff", "#fdb98a", style.VERMILION, "#8c2d04"])
MARK = style.BLUE
# The picture under the heat is paler than it is, so that its blacks are not taken for heat.
PALEST, DARKEST = 0.97, 0.55
HEAT_STRENGTH = 0.85

SHOWN_FRAMES = 4
_GAP = 0.05
_WAVE_HEIGHT = 0.62
_AXIS_HEIGHT = 0.2
_COLUMNS_PER_INCH = 96


@runtime_checkable
class Canvas(Protocol):
    """One input that heat can be drawn on; wide ones take a row of their own."""

    wide: bool

    @property
    def caption(self) -> str:
        """What a reader cannot see in the drawing; empty when nothing."""
        ...

    def height(self, width: float) -> float:
        """Return the height in inches at a width in inches."""
        ...

    def paint(
        self, page: Page, x: float, y: float, width: float, heat: Heat | None, mark: Place
    ) -> None:
        """Draw the input with heat on it, or as it is; ``mark`` is a place, 0..1 per axis."""
        ...


def upsample(heat: Heat, shape: Sequence[int]) -> Heat:
    """Give every element of a raw grid the value of the token that covers it.

    Args:
        heat: Values on the token grid; a missing last or first axis is not made up.
        shape: The raw grid, of as many axes.

    Raises:
        InputError: The number of axes differs.
    """
    if heat.ndim != len(shape):
        raise InputError(
            f"a token grid of {heat.shape} cannot be laid over an input of {tuple(shape)}; both "
            f"need the same axes"
        )
    for axis, size in enumerate(shape):
        heat = heat.take(np.arange(size) * heat.shape[axis] // size, axis)
    return heat


def blend(grey: NDArray[Any], heat: Heat) -> NDArray[np.float64]:
    """Lay heat ``[H, W]`` in 0..1 over a grey picture ``[H, W]`` in 0..1; returns RGB."""
    pale = DARKEST + (PALEST - DARKEST) * np.clip(grey, 0.0, 1.0)
    alpha = (HEAT_STRENGTH * np.asarray(heat))[..., None]
    return (1 - alpha) * pale[..., None] + alpha * HEAT(0.3 + 0.7 * heat)[..., :3]


def to_grey(picture: NDArray[Any]) -> NDArray[np.float64]:
    """Return the brightness of a picture ``[C, H, W]`` in 0..1: the mean of up to 3 channels."""
    return np.nan_to_num(np.asarray(picture[:3], np.float64)).mean(0).clip(0.0, 1.0)


def to_colour(picture: NDArray[Any]) -> NDArray[np.float64]:
    """Return RGB ``[H, W, 3]`` of a picture ``[C, H, W]`` in 0..1; fewer channels become grey."""
    values = np.nan_to_num(np.asarray(picture, np.float64)).clip(0.0, 1.0)
    values = values[:3] if len(values) >= 3 else values[:1].repeat(3, 0)
    return np.moveaxis(values, 0, -1)


@dataclass(frozen=True)
class PictureCanvas:
    """A picture ``[C, H, W]`` in 0..1."""

    picture: NDArray[Any]
    caption: str = ""
    wide = False

    def height(self, width: float) -> float:
        """Keep the picture's proportions, within bounds that leave something to see."""
        rows, columns = self.picture.shape[1:]
        return min(max(width * rows / columns, 0.15), 3 * width)

    def paint(
        self, page: Page, x: float, y: float, width: float, heat: Heat | None, mark: Place
    ) -> None:
        """Draw heat over the grey picture, or the picture in its colours."""
        shape = self.picture.shape[1:]
        image = to_colour(self.picture)
        if heat is not None:
            image = blend(to_grey(self.picture), upsample(heat, shape))
        axes = page.picture(x, y, width, self.height(width), image)
        if mark:
            _cross(axes, mark[1] * shape[1] - 0.5, mark[0] * shape[0] - 0.5)


@dataclass(frozen=True)
class ClipCanvas:
    """Frames ``[C, T, H, W]`` in 0..1; up to four are drawn, each in the middle of its quarter."""

    frames: NDArray[Any]
    wide = True

    @property
    def caption(self) -> str:
        """That some frames are not drawn."""
        total = self.frames.shape[1]
        return f"{len(self.shown())} of {total} frames drawn" if total > SHOWN_FRAMES else ""

    def shown(self, mark: Place = ()) -> list[int]:
        """Return the frames drawn; the one that is marked takes the place of the nearest."""
        total = self.frames.shape[1]
        count = min(SHOWN_FRAMES, total)
        chosen = [int((number + 0.5) * total / count) for number in range(count)]
        if mark:
            marked = int(mark[0] * total)
            nearest = min(range(count), key=lambda number: abs(chosen[number] - marked))
            chosen[nearest] = marked
        return chosen

    def _frame_width(self, width: float) -> float:
        count = len(self.shown())
        return min((width + _GAP) / count - _GAP, 2.2)

    def height(self, width: float) -> float:
        """Height of a frame, with a line for its number."""
        rows, columns = self.frames.shape[2:]
        return self._frame_width(width) * rows / columns + style.line_height(style.SMALL_SIZE)

    def paint(
        self, page: Page, x: float, y: float, width: float, heat: Heat | None, mark: Place
    ) -> None:
        """Draw the frames side by side."""
        _, total, *shape = self.frames.shape
        over = None if heat is None else upsample(heat, (total, *shape))
        each = self._frame_width(width)
        tall = each * shape[0] / shape[1]
        marked = int(mark[0] * total) if mark else -1
        for number, frame in enumerate(self.shown(mark)):
            picture = self.frames[:, frame]
            image = to_colour(picture) if over is None else blend(to_grey(picture), over[frame])
            at = x + number * (each + _GAP)
            axes = page.picture(at, y, each, tall, image)
            if frame == marked:
                _cross(axes, mark[2] * shape[1] - 0.5, mark[1] * shape[0] - 0.5)
            words = f"frame {frame + 1} of {total}"
            page.lines(at, y + tall, [words], size=style.SMALL_SIZE, color=style.MUTED)


@dataclass(frozen=True)
class WaveCanvas:
    """A signal ``[C, S]`` along one axis; ``rate`` in samples per second, 0 where unknown."""

    wave: NDArray[Any]
    rate: float = 0.0
    caption: str = ""
    wide = True

    def height(self, width: float) -> float:
        """Height of the wave and of its axis."""
        return _WAVE_HEIGHT + _AXIS_HEIGHT

    def paint(
        self, page: Page, x: float, y: float, width: float, heat: Heat | None, mark: Place
    ) -> None:
        """Draw the wave on a ground that is shaded by heat."""
        samples = self.wave.shape[1]
        end = samples / self.rate if self.rate else float(samples)
        axes = page.axes(x, y, width, _WAVE_HEIGHT)
        low, high = envelope(self.wave.mean(0), max(int(width * _COLUMNS_PER_INCH), 1))
        largest = max(float(np.abs([low, high]).max()), 1e-9) * 1.05
        if heat is not None:
            columns = condense(heat, len(low))
            axes.imshow(
                HEAT(columns)[None],
                extent=(0.0, end, -largest, largest),
                aspect="auto",
                interpolation="nearest",
            )
        places = (np.arange(len(low)) + 0.5) * end / len(low)
        axes.fill_between(places, low, high, color=style.INK, linewidth=0.4, alpha=0.85)
        if mark:
            axes.axvline(mark[0] * end, color=MARK, linewidth=1.2)
        axes.set_xlim(0.0, end)
        axes.set_ylim(-largest, largest)
        _bare(axes)
        words = f"{style.number(end)} s" if self.rate else f"{samples:,} samples"
        for at, text, align in ((x, "0", "left"), (x + width, words, "right")):
            page.text(
                at,
                y + _WAVE_HEIGHT + 0.03,
                text,
                size=style.SMALL_SIZE,
                color=style.MUTED,
                align="left" if align == "left" else "right",
            )


@dataclass(frozen=True)
class PointsCanvas:
    """Points ``[P, C]`` seen along their other coordinates: the first to the right, the second up.

    Rows of NaN are no points and are not drawn.
    """

    points: NDArray[Any]
    wide = False

    def height(self, width: float) -> float:
        """A square."""
        return width

    @property
    def caption(self) -> str:
        """Words on the coordinates that a plane has no room for."""
        channels = self.points.shape[1]
        if channels < 3:
            return ""
        if channels > 3:
            return f"values 3 to {channels} not drawn"
        third = self.points[~np.isnan(self.points).any(1), 2]
        if not third.size:
            return ""
        ends = (style.number(float(end), 2) for end in (third.min(), third.max()))
        return f"third coordinate: {' to '.join(ends)}"

    def paint(
        self, page: Page, x: float, y: float, width: float, heat: Heat | None, mark: Place
    ) -> None:
        """Draw the points, the strongest on top."""
        axes = page.axes(x, y, width, width)
        real = ~np.isnan(self.points).any(1)
        flat = np.stack(
            [
                self.points[:, 0],
                self.points[:, 1] if self.points.shape[1] > 1 else 0 * self.points[:, 0],
            ]
        )
        strength = np.zeros(len(self.points)) if heat is None else heat.reshape(-1)
        order = np.flatnonzero(real)[np.argsort(strength[real], kind="stable")]
        size = float(np.clip(2500 / max(len(order), 1), 4.0, 30.0))
        colours: Any = style.FRAME if heat is None else HEAT(0.12 + 0.88 * strength[order])
        edge = {"edgecolors": style.FRAME, "linewidths": 0.3}
        axes.scatter(*flat[:, order], s=size * (1 + strength[order]), c=colours, **edge)
        if mark:
            chosen = int(mark[0] * len(self.points))
            axes.scatter(
                *flat[:, [chosen]], s=4 * size, facecolors="none", edgecolors=MARK, linewidths=1.2
            )
        axes.margins(0.06)
        axes.set_aspect("equal", adjustable="datalim")
        _bare(axes)


def envelope(wave: NDArray[Any], columns: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the lowest and highest value of a signal in each of at most so many columns."""
    count = min(columns, len(wave))
    starts = np.arange(count) * len(wave) // count
    return np.minimum.reduceat(wave, starts), np.maximum.reduceat(wave, starts)


def condense(heat: Heat, columns: int) -> Heat:
    """Fit heat along one axis to columns: the mean of the tokens that fall into each."""
    flat = heat.reshape(-1)
    if len(flat) <= columns:
        return upsample(flat, (columns,))
    starts = np.arange(columns) * len(flat) // columns
    counts = np.diff(np.append(starts, len(flat)))
    return np.add.reduceat(flat, starts) / counts


def _cross(axes: Axes, column: float, row: float) -> None:
    """Mark one place of a picture."""
    axes.plot([column], [row], marker="+", color=MARK, markersize=11, markeredgewidth=1.8)


def _bare(axes: Axes) -> None:
    """Leave a hairline frame and nothing else."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=style.FRAME, linewidth=style.HAIRLINE)
