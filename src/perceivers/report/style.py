"""Common style of all figures, and layout in inches from the top left corner."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager, get_font
from matplotlib.textpath import text_to_path
from numpy.typing import NDArray

from perceivers.report import style

# -- Colours, sizes and text measurement ---------------------------------------------------------
#
# Lengths are in inches, font sizes in points. Figures are saved at twice the density of a browser
# (96 pixels per inch), so a 9.5 point font appears as 12.7 CSS pixels. Every style is passed
# explicitly, because matplotlib's global settings belong to the user.


WIDTH = 9.0
DENSITY = 2
DPI = 96 * DENSITY

# Bundled with matplotlib, so that figures look the same on every machine.
FONT = "DejaVu Sans"
TITLE_SIZE = 13.0
HEADING_SIZE = 10.0
TEXT_SIZE = 9.5
SMALL_SIZE = 8.5

INK = "#1f2430"
MUTED = "#646c7a"
FRAME = "#b9bfca"
FAINT = "#e6e9ee"
PAPER = "#ffffff"
# Slightly blue, so that a hidden pixel is not mistaken for a grey pixel of the image.
HIDDEN = (0.58, 0.60, 0.65)

# Palette of Okabe and Ito, which remains distinguishable with common colour blindness.
BLUE = "#0072b2"
VERMILION = "#d55e00"
GREEN = "#009e73"
PURPLE = "#a8578a"
CYCLE = (BLUE, VERMILION, GREEN, PURPLE)
DIVERGING = "RdBu_r"
SEQUENTIAL = "Blues"

HAIRLINE = 0.6
LINE_SPACING = 1.35

_POINTS_PER_INCH = 72.0
_ELLIPSIS = "\u2026"
_NO_GLYPH = "\u25a1"


def font(size: float) -> FontProperties:
    """Return the figure font at a size in points."""
    return FontProperties(family=FONT, size=size)


def line_height(size: float) -> float:
    """Return the distance between two baselines, in inches."""
    return size * LINE_SPACING / _POINTS_PER_INCH


def printable(words: str) -> str:
    """Join text to one line and replace characters missing from the font by an empty box.

    Class names may contain any character, and matplotlib would warn about each missing one.
    """
    face = get_font(fontManager.findfont(font(TEXT_SIZE)))
    line = " ".join(words.split())
    return "".join(char if face.get_char_index(ord(char)) else _NO_GLYPH for char in line)


def text_width(words: str, size: float) -> float:
    """Return the width of one line of text, in inches."""
    width, _, _ = text_to_path.get_text_width_height_descent(printable(words), font(size), False)
    return float(width) / _POINTS_PER_INCH


def shorten(words: str, width: float, size: float) -> str:
    """Cut a text to a width in inches, with an ellipsis if it was cut."""
    words = printable(words)
    if text_width(words, size) <= width:
        return words
    while words and text_width(words + _ELLIPSIS, size) > width:
        words = words[:-1].rstrip()
    return words + _ELLIPSIS


def wrap(words: str, width: float, size: float) -> Sequence[str]:
    """Break a text at spaces into lines of at most a width in inches."""
    lines: list[str] = []
    for word in printable(words).split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(joined, size) <= width:
            lines[-1] = joined
        else:
            lines.append(shorten(word, width, size))
    return lines


def number(value: float, digits: int = 3) -> str:
    """Format a number for a reader: ``12,345``, ``0.125``, ``3.8e-5``."""
    size = abs(value)
    if size == 0:
        return "0"
    if size < 1e-3 or size >= 1e6:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{int(exponent)}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def percent(share: float, digits: int = 1) -> str:
    """Format a fraction as ``97.8 %``; only exactly 0 and 1 become ``0 %`` and ``100 %``."""
    value = 100 * share
    if value in {0.0, 100.0}:
        return f"{value:.0f} %"
    while digits < 4 and float(f"{value:.{digits}f}") in {0.0, 100.0}:
        digits += 1
    return f"{value:.{digits}f} %"


# ------------------------------------------------------------------------------------------------
# Page: a figure laid out in inches from the top left corner, under a title and a note.
#
# Exact placement instead of a layout engine keeps images at whole pixels. Text is measured and
# wrapped before it is drawn, so nothing overlaps, however long names and titles are.


_MARGIN = 0.05
_COLOUR_BAR_WIDTH = 0.1


class Page:
    """One figure; ``x`` and ``y`` are inches from the top left corner of the body.

    Args:
        width: Width of the body in inches; the title and the note are wrapped to it.
        height: Height of the body in inches.
        title: Title of the figure.
        note: Explanation, in smaller grey text under the title.
    """

    def __init__(self, width: float, height: float, *, title: str, note: str = "") -> None:
        titles = style.wrap(title, width, style.TITLE_SIZE)
        notes = style.wrap(note, width, style.TEXT_SIZE)
        title_height = len(titles) * style.line_height(style.TITLE_SIZE)
        header = title_height + len(notes) * style.line_height(style.TEXT_SIZE)
        gap = 0.14 if titles or notes else 0.0
        self._left = _MARGIN
        self._top = _MARGIN + header + gap
        self._width = width + 2 * _MARGIN
        self._height = self._top + height + _MARGIN
        self.figure = Figure((self._width, self._height), dpi=style.DPI, facecolor=style.PAPER)
        self._canvas = FigureCanvasAgg(self.figure)
        self.lines(0, -header - gap, titles, size=style.TITLE_SIZE)
        self.lines(0, -header - gap + title_height, notes, color=style.MUTED)

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Add axes that fill a box, given by its top left corner and size."""
        bottom = self._height - self._top - y - height
        return self.figure.add_axes(
            (
                (self._left + x) / self._width,
                bottom / self._height,
                width / self._width,
                height / self._height,
            )
        )

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: float = style.TEXT_SIZE,
        color: Any = style.INK,
        align: Literal["left", "center", "right"] = "left",
        vertical: Literal["top", "center", "baseline", "bottom"] = "top",
        rotation: float = 0.0,
    ) -> None:
        """Draw one line of text; dollar signs do not start mathematics."""
        self.figure.text(
            (self._left + x) / self._width,
            1 - (self._top + y) / self._height,
            style.printable(words),
            fontproperties=style.font(size),
            color=color,
            ha=align,
            va=vertical,
            rotation=rotation,
            rotation_mode="default",
            parse_math=False,
        )

    def lines(
        self,
        x: float,
        y: float,
        words: Sequence[str],
        *,
        size: float = style.TEXT_SIZE,
        color: Any = style.INK,
        align: Literal["left", "center", "right"] = "left",
    ) -> None:
        """Draw lines of text downwards from ``y``, with equally spaced baselines."""
        step = style.line_height(size)
        for row, line in enumerate(words):
            baseline = y + row * step + 0.78 * step
            self.text(x, baseline, line, size=size, color=color, align=align, vertical="baseline")

    def picture(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        image: NDArray[Any],
        *,
        colours: str = "gray",
        limits: tuple[float, float] = (0.0, 1.0),
    ) -> Axes:
        """Draw an image that fills a box, with sharp pixels if enlarged and filtered if reduced."""
        axes = self.axes(x, y, width, height)
        enlarged = width * style.DPI >= image.shape[1] and height * style.DPI >= image.shape[0]
        axes.imshow(
            image,
            cmap=colours,
            vmin=limits[0],
            vmax=limits[1],
            aspect="auto",
            interpolation="nearest" if enlarged else "antialiased",
        )
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(color=style.FRAME, linewidth=style.HAIRLINE)
        return axes

    def colour_bar(
        self,
        x: float,
        y: float,
        height: float,
        *,
        colours: str,
        limits: tuple[float, float],
        labels: Sequence[tuple[float, str]],
    ) -> None:
        """Draw a vertical colour bar, 0.1 inches wide, with labels on the right."""
        axes = self.axes(x, y, _COLOUR_BAR_WIDTH, height)
        scale = ScalarMappable(norm=Normalize(*limits), cmap=colours)
        ramp = scale.to_rgba(np.linspace(limits[1], limits[0], 256)[:, None])
        axes.imshow(ramp, aspect="auto", interpolation="bilinear")
        axes.set_axis_off()
        low, high = limits
        inset = style.SMALL_SIZE / 72 / 2
        crowded = len(labels) > 2 and height < len(labels) * style.line_height(style.SMALL_SIZE)
        for value, label in (labels[0], labels[-1]) if crowded else labels:
            at = y + inset + (high - value) / (high - low) * (height - 2 * inset)
            self.text(
                x + _COLOUR_BAR_WIDTH + 0.06,
                at,
                label,
                size=style.SMALL_SIZE,
                color=style.MUTED,
                vertical="center",
            )

    def save(self, path: Path) -> Path:
        """Write the figure as PNG; the folder is created if needed."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._canvas.print_png(path)
        return path


def tidy(axes: Axes) -> None:
    """Apply the common style to axes: two thin spines, small grey ticks, a faint grid."""
    axes.set_facecolor(style.PAPER)
    for side, spine in axes.spines.items():
        spine.set(visible=side in {"left", "bottom"}, color=style.FRAME, linewidth=style.HAIRLINE)
    axes.tick_params(
        which="both",
        labelsize=style.SMALL_SIZE,
        labelfontfamily=style.FONT,
        labelcolor=style.MUTED,
        color=style.FRAME,
        width=style.HAIRLINE,
        length=3,
        pad=3,
    )
    axes.grid(visible=True, axis="y", color=style.FAINT, linewidth=style.HAIRLINE)
    axes.set_axisbelow(True)
