"""A figure that is laid out in inches, from the top left corner down, under a title and a note.

Exact placement instead of a layout engine: pictures keep whole pixels, text is measured and wrapped
before it is drawn, and nothing overlaps whatever the lengths of names and titles.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from perceivers.report import style

_MARGIN = 0.05
_COLOUR_BAR_WIDTH = 0.1


class Page:
    """One figure; ``x`` and ``y`` are inches right of and below the corner under the header.

    Args:
        width: Width of the body, in inches; the title and the note wrap to it.
        height: Height of the body, in inches.
        title: What the figure shows, one line or a few.
        note: How to read it, in smaller grey text under the title.
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
        """Add axes that fill a box, given by its top left corner and its size."""
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
        """Write one line of text; dollar signs are printed, not read as mathematics."""
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
        """Write lines of text from ``y`` down, on a fixed grid of base lines."""
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
        """Draw an image that fills a box: sharp pixels when enlarged, filtered when reduced."""
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
        """Draw an upright colour scale, a tenth of an inch wide, with labels to its right."""
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
        """Write the figure as a PNG, making the folder if needed."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._canvas.print_png(path)
        return path


def tidy(axes: Axes) -> None:
    """Give axes the common look: two thin spines, small grey ticks, a faint horizontal grid."""
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
