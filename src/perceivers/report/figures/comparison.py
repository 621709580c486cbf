"""Curves of several runs in one panel per quantity, under one legend."""

from collections.abc import Mapping, Sequence
from math import isfinite
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from perceivers.report import style
from perceivers.report.figures.curves import smooth
from perceivers.report.figures.keys import draw_keys, keys_height, line_look, place_keys
from perceivers.report.page import Page, tidy

Records = Sequence[Mapping[str, Any]]
Quantity = tuple[str, str]

_MIN_POINTS_TO_SMOOTH = 20
_TICK_ROOM = 0.62
_COLUMN_GAP = 0.35
_BELOW = 0.52


def draw_comparison(
    path: Path, *, runs: Mapping[str, Records], quantities: Sequence[Quantity], title: str
) -> Path:
    """Draw how quantities changed over the steps of several runs.

    Args:
        path: Where the PNG goes.
        runs: Lines of ``metrics.jsonl`` of each run, under the name that the legend gives it.
        quantities: Pairs of split and key, such as ``("train", "loss")``; one panel each. A run
            that did not record one is missing from its panel.
        title: Heading of the figure.

    Returns:
        The path.
    """
    keys = place_keys(list(runs))
    legend = keys_height(keys)
    heading = style.line_height(style.HEADING_SIZE) + 0.06
    odd = len(quantities) % 2
    height = 2.6 if len(quantities) == 1 else 1.95
    row_height = heading + height + _BELOW
    rows = (len(quantities) + odd) // 2
    smoothed = any(
        len(_points(records, quantity)[0]) >= _MIN_POINTS_TO_SMOOTH
        for records in runs.values()
        for quantity in quantities
        if quantity[0] == "train"
    )
    note = "Lines of training figures are moving averages." if smoothed else ""
    body = legend + 0.16 + rows * row_height - 0.08
    page = Page(style.WIDTH, body, title=title, note=note)
    draw_keys(page, keys)
    half = (style.WIDTH - _COLUMN_GAP) / 2
    for index, quantity in enumerate(quantities):
        wide = bool(odd and index == 0)
        row, column = divmod(index + odd if not wide else 0, 2)
        x, y = column * (half + _COLUMN_GAP), legend + 0.16 + row * row_height
        width = (style.WIDTH if wide else half) - _TICK_ROOM - 0.1
        page.lines(x, y, [" ".join(quantity)], size=style.HEADING_SIZE)
        axes = page.axes(x + _TICK_ROOM, y + heading, width, height)
        _draw_panel(axes, [_points(records, quantity) for records in runs.values()])
        middle, under = x + _TICK_ROOM + width / 2, y + heading + height + 0.22
        small = style.SMALL_SIZE
        page.lines(middle, under, ["step"], size=small, color=style.MUTED, align="center")
    return page.save(path)


def _points(
    records: Records, quantity: Quantity
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return steps and finite values of a quantity."""
    split, key = quantity
    found: dict[float, float] = {}
    for record in records:
        value = record.get(key)
        if record.get("split") == split and isinstance(value, Real) and isfinite(float(value)):
            found[float(record["step"])] = float(value)
    steps = sorted(found)
    return np.asarray(steps), np.asarray([found[step] for step in steps])


def _draw_panel(
    axes: Axes, lines: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]
) -> None:
    """Draw one quantity of all runs that recorded it."""
    tidy(axes)
    drawn: list[NDArray[np.float64]] = []
    last = 0.0
    for index, (steps, values) in enumerate(lines):
        if not len(steps):
            continue
        if len(values) >= _MIN_POINTS_TO_SMOOTH:
            values = smooth(values)
        marker = "o" if len(values) <= 20 else ""
        axes.plot(
            steps,
            values,
            linewidth=1.6,
            marker=marker,
            markersize=3.6,
            markeredgecolor=style.PAPER,
            markeredgewidth=0.6,
            clip_on=False,
            **line_look(index),
        )
        drawn.append(values)
        last = max(last, float(steps[-1]))
    axes.set_xlim(0, last or 1.0)
    low = min((float(values.min()) for values in drawn), default=0.0)
    high = max((float(values.max()) for values in drawn), default=1.0)
    margin = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    axes.set_ylim(low - margin if low < 0 or low > margin else 0.0, high + margin)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=(1, 2, 2.5, 5, 10)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 2.5, 5, 10)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: style.number(value, digits=6)))
