"""Canvases for heat maps: images, videos, waveforms, point clouds and texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.font_manager import FontProperties, fontManager, get_font
from numpy.typing import NDArray

from perceivers.errors import InputError
from perceivers.report import style
from perceivers.report.style import Page
from perceivers.types import BOS, CLS, EOS, FIRST_BYTE, MASK, PAD, SEP

# -- Point clouds from above ---------------------------------------------------------------------
#
# Legend: P points, S side of the view in pixels.


# Index of pixels without a point.
NOTHING = -1
# Pixels per point; few enough that most pixels contain one.
FILL = 2
MIN_SIDE, MAX_SIDE = 32, 1024


def choose_side(num_points: int) -> int:
    """Return a side in pixels at which most points are visible and most pixels contain one."""
    return int(np.clip(round((FILL * num_points) ** 0.5), MIN_SIDE, MAX_SIDE))


def look_down(cloud: NDArray, side: int, frame: NDArray | None = None) -> Int[np.ndarray, "S S"]:
    """Return the index of the highest point in every pixel seen from above, -1 without a point.

    The y axis points up. An empty pixel takes the point of a neighbour, so that sparse clouds are
    not speckled.

    Args:
        cloud: Points ``[P, C]`` with at least x and y; rows with NaN are ignored. Without z, later
            points cover earlier ones.
        side: Pixels S along both sides; the longer side of the cloud fills it.
        frame: Points that define the visible extent instead of the cloud, to compare several
            clouds; points outside are drawn at the edge.

    Raises:
        InputError: If there are fewer than two values per point.
    """
    if cloud.ndim != 2 or cloud.shape[1] < 2:
        raise InputError(f"points have shape {cloud.shape}; a view from above needs [P, 2 or more]")
    real = np.flatnonzero(~np.isnan(cloud).any(axis=1))
    seen = np.full((side, side), NOTHING)
    if not len(real):
        return seen
    places = cloud[real, :2].astype(np.float64)
    shown = places if frame is None else _places(frame)
    low, reach = shown.min(axis=0), float(np.ptp(shown, axis=0).max()) or 1.0
    cells = np.clip(((places - low) / reach * side).astype(int), 0, side - 1)
    order = (
        np.argsort(cloud[real, 2], kind="stable") if cloud.shape[1] > 2 else np.arange(len(real))
    )
    # Assignment to equal indices keeps the last value, which is the highest point.
    seen[side - 1 - cells[order, 1], cells[order, 0]] = real[order]
    for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
        moved = np.roll(seen, step, axis)
        edge = 0 if step > 0 else -1
        moved[(edge, slice(None)) if axis == 0 else (slice(None), edge)] = NOTHING
        seen = np.where(seen == NOTHING, moved, seen)
    return seen


def _places(cloud: NDArray) -> NDArray[np.float64]:
    return cloud[~np.isnan(cloud).any(axis=1), :2].astype(np.float64)


def shade_heights(
    cloud: NDArray, seen: Int[np.ndarray, "S S"], frame: NDArray | None = None
) -> NDArray[np.float32]:
    """Return grey values ``[1, S, S]`` in 0..1 by height, dark for low; black without a point.

    Args:
        cloud: Points ``[P, C]``; without z all have the same shade.
        seen: Point indices from ``look_down``.
        frame: Points that define the range of heights instead of the cloud.
    """
    heights = cloud[:, 2] if cloud.shape[1] > 2 else np.zeros(len(cloud))
    there = heights[seen[seen != NOTHING]]
    if frame is not None and frame.shape[1] > 2:
        there = frame[~np.isnan(frame).any(axis=1), 2]
    if not len(there):
        return np.zeros((1, *seen.shape), np.float32)
    low, high = np.percentile(there, (1, 99))
    shades = 0.15 + 0.85 * np.clip((heights[seen] - low) / max(high - low, 1e-9), 0, 1)
    return np.where(seen == NOTHING, 0.0, shades).astype(np.float32)[None]


# -- Images, videos, waveforms and points under attention as heat --------------------------------
#
# A canvas has one input and a height for every width. Heat is the attention on the input's token
# grid, divided by the attention that gets the full colour, 0..1.
#
# Legend: H W rows and columns, T frames, S samples, P points, C channels.


Heat = NDArray[np.float64]
Place = tuple[float, ...]

# A single hue, so that colours differ in strength only.
HEAT = LinearSegmentedColormap.from_list("heat", ["#ffffff", "#fdb98a", style.VERMILION, "#8c2d04"])
MARK = style.BLUE
# The image under the heat is made paler, so that its dark parts are not mistaken for heat.
PALEST, DARKEST = 0.97, 0.55
HEAT_STRENGTH = 0.85

SHOWN_FRAMES = 4
_GAP = 0.05
_WAVE_HEIGHT = 0.62
_AXIS_HEIGHT = 0.2
_COLUMNS_PER_INCH = 96


@runtime_checkable
class Canvas(Protocol):
    """An input on which heat is drawn; wide ones take a whole row."""

    wide: bool

    @property
    def caption(self) -> str:
        """Text on what the drawing leaves out; empty if complete."""
        ...

    def height(self, width: float) -> float:
        """Return the height in inches at a width in inches."""
        ...

    def paint(
        self, page: Page, x: float, y: float, width: float, heat: Heat | None, mark: Place
    ) -> None:
        """Draw the input, with heat if given; ``mark`` is a position, 0..1 per axis."""
        ...


def upsample(heat: Heat, shape: Sequence[int]) -> Heat:
    """Repeat token values to the raw grid by nearest neighbour.

    Args:
        heat: Values on the token grid.
        shape: Shape of the raw grid, with the same number of axes.

    Raises:
        InputError: If the number of axes differs.
    """
    if heat.ndim != len(shape):
        raise InputError(
            f"a token grid of {heat.shape} does not fit an input of {tuple(shape)}; both need the "
            f"same number of axes"
        )
    for axis, size in enumerate(shape):
        heat = heat.take(np.arange(size) * heat.shape[axis] // size, axis)
    return heat


def blend(grey: NDArray[Any], heat: Heat) -> NDArray[np.float64]:
    """Overlay a grey image ``[H, W]`` with heat ``[H, W]``, both in 0..1; return RGB."""
    pale = DARKEST + (PALEST - DARKEST) * np.clip(grey, 0.0, 1.0)
    alpha = (HEAT_STRENGTH * np.asarray(heat))[..., None]
    return (1 - alpha) * pale[..., None] + alpha * HEAT(0.3 + 0.7 * heat)[..., :3]


def to_grey(picture: NDArray[Any]) -> NDArray[np.float64]:
    """Return the brightness of an image ``[C, H, W]`` in 0..1: the mean of up to 3 channels."""
    return np.nan_to_num(np.asarray(picture[:3], np.float64)).mean(0).clip(0.0, 1.0)


def to_colour(picture: NDArray[Any]) -> NDArray[np.float64]:
    """Return RGB ``[H, W, 3]`` of an image ``[C, H, W]`` in 0..1; grey for 1 or 2 channels."""
    values = np.nan_to_num(np.asarray(picture, np.float64)).clip(0.0, 1.0)
    values = values[:3] if len(values) >= 3 else values[:1].repeat(3, 0)
    return np.moveaxis(values, 0, -1)


@dataclass(frozen=True)
class PictureCanvas:
    """An image ``[C, H, W]`` in 0..1."""

    picture: NDArray[Any]
    caption: str = ""
    wide = False

    def height(self, width: float) -> float:
        """Keep the aspect ratio, within bounds for extremely long images."""
        rows, columns = self.picture.shape[1:]
        return min(max(width * rows / columns, 0.15), 3 * width)

    def paint(
        self, page: Page, x: float, y: float, width: float, heat: Heat | None, mark: Place
    ) -> None:
        """Draw the image in grey under heat, or in colour without heat."""
        shape = self.picture.shape[1:]
        image = to_colour(self.picture)
        if heat is not None:
            image = blend(to_grey(self.picture), upsample(heat, shape))
        axes = page.picture(x, y, width, self.height(width), image)
        if mark:
            _cross(axes, mark[1] * shape[1] - 0.5, mark[0] * shape[0] - 0.5)


@dataclass(frozen=True)
class ClipCanvas:
    """A video ``[C, T, H, W]`` in 0..1, of which up to four evenly spaced frames are drawn."""

    frames: NDArray[Any]
    wide = True

    @property
    def caption(self) -> str:
        """Text on frames that are not drawn."""
        total = self.frames.shape[1]
        return f"{len(self.shown())} of {total} frames drawn" if total > SHOWN_FRAMES else ""

    def shown(self, mark: Place = ()) -> list[int]:
        """Return the indices of drawn frames; a marked frame replaces the nearest one."""
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
        """Height of a frame with its label."""
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
    """A signal ``[C, S]``; ``rate`` in samples per second, 0 if unknown."""

    wave: NDArray[Any]
    rate: float = 0.0
    caption: str = ""
    wide = True

    def height(self, width: float) -> float:
        """Height of the waveform with its axis."""
        return _WAVE_HEIGHT + _AXIS_HEIGHT

    def paint(
        self, page: Page, x: float, y: float, width: float, heat: Heat | None, mark: Place
    ) -> None:
        """Draw the waveform on a background of heat."""
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
    """Points ``[P, C]``, first coordinate to the right, second up; rows with NaN are ignored."""

    points: NDArray[Any]
    wide = False

    def height(self, width: float) -> float:
        """Return the width: the canvas is square."""
        return width

    @property
    def caption(self) -> str:
        """Text on the coordinates that are not drawn."""
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
        """Draw the points, those with most heat on top."""
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
    """Return the minimum and maximum of a signal in each of at most ``columns`` columns."""
    count = min(columns, len(wave))
    starts = np.arange(count) * len(wave) // count
    return np.minimum.reduceat(wave, starts), np.maximum.reduceat(wave, starts)


def condense(heat: Heat, columns: int) -> Heat:
    """Resample heat along one axis to columns; several tokens per column are averaged."""
    flat = heat.reshape(-1)
    if len(flat) <= columns:
        return upsample(flat, (columns,))
    starts = np.arange(columns) * len(flat) // columns
    counts = np.diff(np.append(starts, len(flat)))
    return np.add.reduceat(flat, starts) / counts


def _cross(axes: Axes, column: float, row: float) -> None:
    axes.plot([column], [row], marker="+", color=MARK, markersize=11, markeredgewidth=1.8)


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=style.FRAME, linewidth=style.HAIRLINE)


# ------------------------------------------------------------------------------------------------
# Texts on a background of heat: one cell per character, in a monospaced font.
#
# Legend: L byte ids.


MONOSPACE = "DejaVu Sans Mono"
# The pitch is a whole number of pixels, so that long lines do not drift from their background.
PITCH = 14 / style.DPI
SIZE = 14 / style.DPI * 72 / 0.60205
LINE = 30 / style.DPI
# Glyphs of special ids and invisible characters.
SPECIAL = {
    PAD: "\u2205",
    BOS: "\u00ab",
    EOS: "\u00bb",
    MASK: "\u25a1",
    CLS: "\u25b7",
    SEP: "\u25c1",
}
SPECIAL_NAMES = {PAD: "PAD", BOS: "BOS", EOS: "EOS", MASK: "MASK", CLS: "CLS", SEP: "SEP"}
VISIBLE = {"\n": "\u21b5", "\t": "\u2192", "\r": "\u240d"}
_NO_GLYPH = "\u25a1"
_GROUND = 0.75


@dataclass(frozen=True)
class Cell:
    """One character or special id: its glyph and the range ``[first, end)`` of its ids."""

    glyph: str
    first: int
    end: int
    special: bool = False
    ends_line: bool = False


@dataclass(frozen=True)
class TextCanvas:
    """Byte ids ``[L]`` of one text; padding at the end is not drawn."""

    ids: NDArray[Any]
    wide = True

    def height(self, width: float) -> float:
        """Height of all lines."""
        return len(break_lines(split_cells(self.ids), int(width / PITCH))) * LINE

    @property
    def caption(self) -> str:
        """Names of the special ids in the text, and the number of padded positions."""
        ids = without_padding(self.ids)
        found = [number for number in SPECIAL if (ids == number).any()]
        words = [f"{SPECIAL[number]} {SPECIAL_NAMES[number]}" for number in found]
        padded = len(self.ids) - len(ids)
        words += [f"{padded} padded positions at the end, ignored by attention"] if padded else []
        return "; ".join(words)

    def paint(
        self, page: Page, x: float, y: float, width: float, heat: Heat | None, mark: Place
    ) -> None:
        """Draw the lines on a background of heat."""
        columns = int(width / PITCH)
        lines = break_lines(split_cells(self.ids), columns)
        marked = int(mark[0] * len(self.ids)) if mark else -1
        for row, line in enumerate(lines):
            at = y + row * LINE
            if heat is not None and line:
                strength = [float(heat.reshape(-1)[c.first : c.end].max()) for c in line]
                ground = HEAT(_GROUND * np.asarray(strength))[None, :, :3]
                axes = page.axes(x, at, len(line) * PITCH, LINE)
                axes.imshow(ground, aspect="auto", interpolation="nearest")
                axes.set_axis_off()
            for column, cell in enumerate(line):
                if cell.first <= marked < cell.end:
                    self._frame(page, x + column * PITCH, at)
            plain = "".join(" " if cell.special else cell.glyph for cell in line)
            special = "".join(cell.glyph if cell.special else " " for cell in line)
            _write(page, x, at, plain, style.INK)
            _write(page, x, at, special, MARK)

    def _frame(self, page: Page, x: float, y: float) -> None:
        axes = page.axes(x, y, PITCH, LINE)
        axes.patch.set_alpha(0.0)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(color=MARK, linewidth=1.6)


def without_padding(ids: NDArray[Any]) -> NDArray[Any]:
    """Return ids ``[L]`` without the padding at the end."""
    real = np.flatnonzero(ids != PAD)
    return ids[: real[-1] + 1] if len(real) else ids[:0]


def split_cells(ids: NDArray[Any]) -> list[Cell]:
    """Split ids ``[L]`` into characters and special ids; invalid UTF-8 gives one cell per byte."""
    shown = without_padding(ids)
    cells: list[Cell] = []
    first = 0
    while first < len(shown):
        value = int(shown[first])
        if value < FIRST_BYTE:
            cells.append(Cell(SPECIAL[value], first, first + 1, special=True))
            first += 1
            continue
        char, size = _read_character(shown[first : first + 4])
        cells.append(Cell(_glyph(char), first, first + size, ends_line=char == "\n"))
        first += size
    return cells


def break_lines(cells: Sequence[Cell], columns: int) -> list[list[Cell]]:
    """Break cells into lines of at most ``columns`` cells, after a space if possible."""
    lines: list[list[Cell]] = [[]]
    for cell in cells:
        if len(lines[-1]) == columns:
            spaces = [place for place, each in enumerate(lines[-1]) if each.glyph == " "]
            cut = spaces[-1] + 1 if spaces else columns
            lines[-1:] = [lines[-1][:cut], lines[-1][cut:]]
        lines[-1].append(cell)
        if cell.ends_line:
            lines.append([])
    return lines if lines[-1] or len(lines) == 1 else lines[:-1]


def _read_character(ids: NDArray[Any]) -> tuple[str, int]:
    """Decode the first character of some ids; also return its number of bytes."""
    for size in range(1, len(ids) + 1):
        part = ids[:size]
        if (part < FIRST_BYTE).any():
            break
        try:
            return bytes((part - FIRST_BYTE).astype(np.uint8)).decode("utf-8"), size
        except UnicodeDecodeError:
            continue
    return "\ufffd", 1


def _glyph(char: str) -> str:
    char = VISIBLE.get(char, char)
    face = get_font(fontManager.findfont(FontProperties(family=MONOSPACE)))
    drawable = char.isprintable() and bool(face.get_char_index(ord(char)))
    return char if drawable else _NO_GLYPH


def _write(page: Page, x: float, y: float, line: str, color: str) -> None:
    if line.strip():
        axes = page.axes(x, y, max(len(line), 1) * PITCH, LINE)
        axes.set_axis_off()
        axes.text(
            0.0,
            0.28,
            line,
            transform=axes.transAxes,
            fontproperties=FontProperties(family=MONOSPACE, size=SIZE),
            color=color,
            va="baseline",
            parse_math=False,
        )
