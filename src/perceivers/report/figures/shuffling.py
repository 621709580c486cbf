"""A metric with elements in place, in one other order, and in many: a point per seed."""

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from perceivers.report import style
from perceivers.report.page import Page, tidy

_HEIGHT = 2.5
_TICK_ROOM = 0.62
_GAP = 0.45
_BELOW = 0.5
_BAR = 0.26
_TITLES = {"val": "validation", "test": "test"}


def draw_shuffling(
    path: Path,
    *,
    values: Mapping[str, Mapping[str, Sequence[float]]],
    constant: Mapping[str, float | None],
    metric: str,
    title: str,
    note: str = "",
) -> Path:
    """Draw a panel per split, with a column of points per order of elements.

    Args:
        path: Where the PNG goes.
        values: Order -> split -> a value per seed.
        constant: What a constant answer reaches, by split; None where there is none.
        metric: Name of the metric.
        title: Heading of the figure.
        note: How to read it.

    Returns:
        The path.
    """
    splits = list(constant)
    heading = style.line_height(style.HEADING_SIZE) + 0.06
    page = Page(style.WIDTH, heading + _HEIGHT + _BELOW, title=title, note=note)
    width = (style.WIDTH - _GAP * (len(splits) - 1)) / len(splits)
    held = [v for orders in values.values() for split in orders.values() for v in split]
    held += [value for value in constant.values() if value is not None]
    for place, split in enumerate(splits):
        x = place * (width + _GAP)
        page.lines(x, 0, [f"{_TITLES.get(split, split)} {metric}"], size=style.HEADING_SIZE)
        axes = page.axes(x + _TICK_ROOM, heading, width - _TICK_ROOM, _HEIGHT)
        tidy(axes)
        columns = {order: found.get(split, ()) for order, found in values.items()}
        _draw_panel(axes, columns, constant[split], width - _TICK_ROOM)
        _set_values(axes, held)  # the same in all panels
    return page.save(path)


def _draw_panel(
    axes: Axes, columns: Mapping[str, Sequence[float]], constant: float | None, width: float
) -> None:
    """Draw the columns of one split; ``width`` is that of the panel, in inches."""
    for place, found in enumerate(columns.values()):
        seeds = [value for value in found if isfinite(value)]
        color = style.CYCLE[place % len(style.CYCLE)]
        spread = [place + 0.07 * (i - (len(seeds) - 1) / 2) for i in range(len(seeds))]
        axes.plot(
            spread,
            seeds,
            marker="o",
            markersize=6,
            linestyle="",
            color=color,
            markeredgecolor=style.PAPER,
            markeredgewidth=0.7,
            clip_on=False,
            zorder=3,
        )
        if seeds:
            middle = sum(seeds) / len(seeds)
            axes.hlines(middle, place - _BAR, place + _BAR, color=color, linewidth=1.6)
    if constant is not None:
        axes.axhline(constant, color=style.MUTED, linewidth=1.0, linestyle=(0, (4, 2)))
        axes.annotate(
            "constant answer",
            (0.0, constant),
            xycoords=("axes fraction", "data"),
            xytext=(4, 4),
            textcoords="offset points",
            fontproperties=style.font(style.SMALL_SIZE),
            color=style.MUTED,
        )
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.xaxis.set_major_locator(FixedLocator(range(len(columns))))
    room = width / max(len(columns), 1) - 0.1
    names = ["\n".join(style.wrap(name, room, style.SMALL_SIZE)) for name in columns]
    axes.xaxis.set_major_formatter(FuncFormatter(lambda _, place: names[place or 0]))
    axes.tick_params(axis="x", length=0)


def _set_values(axes: Axes, values: Sequence[float]) -> None:
    """Choose the range of the metric."""
    held = [value for value in values if isfinite(value)]
    low, high = (min(held), max(held)) if held else (0.0, 1.0)
    margin = 0.08 * (high - low) or 0.08 * abs(high) or 1.0
    axes.set_ylim(low - margin, high + margin)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 2.5, 5, 10)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: style.number(value, digits=4)))
