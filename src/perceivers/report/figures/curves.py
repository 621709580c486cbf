"""Training curves of one run and of several: one panel per quantity."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import floor, isfinite, log10
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from perceivers.report import style
from perceivers.report.style import Page, tidy

# ------------------------------------------------------------------------------------------------
# Legend above a figure: a stroke and a name per line, in as many rows as needed.
#
# Lines differ in colour, and also in dashes if there are more lines than colours.


# The common palette, then the other colours of Okabe and Ito.
_COLOURS = (*style.CYCLE, "#e69f00", "#56b4e9", style.INK)
_DASHES = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)))
_STROKE = 0.28
_GAP = 0.3


class Key(NamedTuple):
    """Entry of the legend: its name, its row, and its distance from the left in inches."""

    name: str
    row: int
    x: float


def place_keys(names: Sequence[str]) -> list[Key]:
    """Lay out a legend in rows no wider than a figure."""
    placed: list[Key] = []
    row, x = 0, 0.0
    for name in names:
        name = style.shorten(name, style.WIDTH - _STROKE - 0.1, style.TEXT_SIZE)
        width = _STROKE + 0.08 + style.text_width(name, style.TEXT_SIZE)
        if x and x + width > style.WIDTH:
            row, x = row + 1, 0.0
        placed.append(Key(name, row, x))
        x += width + _GAP
    return placed


def keys_height(keys: Sequence[Key]) -> float:
    """Return the height of a legend in inches."""
    return (1 + max((key.row for key in keys), default=0)) * style.line_height(style.TEXT_SIZE)


def draw_keys(page: Page, keys: Sequence[Key]) -> None:
    """Draw a legend at the top of a page."""
    step = style.line_height(style.TEXT_SIZE)
    for index, (name, row, x) in enumerate(keys):
        axes = page.axes(x, row * step, _STROKE, step)
        axes.set_axis_off()
        axes.set_ylim(0, 1)
        axes.plot([0, 1], [0.5, 0.5], linewidth=2.0, **line_look(index))
        page.lines(x + _STROKE + 0.08, row * step, [name])


def line_look(index: int) -> dict[str, Any]:
    """Return the colour and dashes of a line as keyword arguments of matplotlib."""
    turn, colour = divmod(index, len(_COLOURS))
    return {"color": _COLOURS[colour], "linestyle": _DASHES[turn % len(_DASHES)]}


# ------------------------------------------------------------------------------------------------
# Training curves of one run: one panel per quantity, with lines labelled at their ends.


_LABELS = {
    "loss": "loss",
    "lr": "learning rate",
    "learning_rate": "learning rate",
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "grad_norm": "gradient norm",
    "samples_per_second": "samples per second",
    "data_wait": "fraction of the time spent waiting for data",
}
_TICK_ROOM = 0.62
_END_ROOM = 0.92
_COLUMN_GAP = 0.1
_MIN_POINTS_TO_SMOOTH = 20
# Schedules have second differences far below their range; smoothing would round their corners.
_ROUGH = 0.002
_ROUND_STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class _Series:
    """Finite values of one quantity on one split, ordered by step."""

    split: str
    steps: NDArray[np.float64]
    values: NDArray[np.float64]


def draw_curves(
    path: Path,
    *,
    records: Sequence[Mapping[str, Any]],
    keys: Sequence[str],
    title: str,
    log_y: bool = False,
) -> Path:
    """Draw quantities over the steps of a run, for every split with records of them.

    Args:
        path: PNG file to write.
        records: Lines of ``metrics.jsonl``: ``step``, ``split`` and any quantities. Missing, null
            and non-finite values are left out.
        keys: Quantities, one panel each.
        title: Title of the figure.
        log_y: Logarithmic vertical axes; panels with values of 0 or below stay linear, with a
            remark.

    Returns:
        The path.
    """
    panels = {key: _collect(records, key) for key in keys}
    drawn = [line for lines in panels.values() for line in lines]
    span = _common_span(drawn)
    half = (style.WIDTH - _COLUMN_GAP) / 2
    heading = style.line_height(style.HEADING_SIZE) + 0.06
    below = 0.52
    height = 2.6 if len(panels) == 1 else 1.85
    row_height = heading + height + below
    # With an odd number of panels, the first and most important one gets a whole row.
    odd = len(panels) % 2
    page = Page(
        style.WIDTH,
        (len(panels) + odd) // 2 * row_height - 0.08 if panels else 0.0,
        title=title,
        note="Pale lines are the raw values, dark lines a moving average."
        if any(_is_smoothed(line) for line in drawn)
        else "",
    )
    for index, (key, lines) in enumerate(panels.items()):
        wide = bool(odd and index == 0)
        row, column = divmod(index + odd if not wide else 0, 2)
        x, y = column * (half + _COLUMN_GAP), row * row_height
        width = (style.WIDTH if wide else half) - _TICK_ROOM - _END_ROOM
        linear = not log_y or any((line.values <= 0).any() for line in lines)
        name = _LABELS.get(key, key.replace("_", " "))
        if log_y and linear and lines:
            name += " (linear: has values of 0 or below)"
        name = style.shorten(name, width + _TICK_ROOM, style.HEADING_SIZE)
        page.lines(x, y, [name], size=style.HEADING_SIZE)
        axes = page.axes(x + _TICK_ROOM, y + heading, width, height)
        _draw_panel(axes, lines, span=span, log_y=not linear)
        if lines:
            middle, below = x + _TICK_ROOM + width / 2, y + heading + height + 0.22
            small = style.SMALL_SIZE
            page.lines(middle, below, ["step"], size=small, color=style.MUTED, align="center")
    return page.save(path)


def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Smooth with a triangular window of 1/20 of the points, truncated at both ends."""
    half = max(2, len(values) // 40)
    window = 1 - np.abs(np.arange(-half, half + 1)) / (half + 1)
    total = np.convolve(values, window)[half:-half]
    return total / np.convolve(np.ones_like(values), window)[half:-half]


def _collect(records: Sequence[Mapping[str, Any]], key: str) -> list[_Series]:
    """Collect a quantity by split: train first, then val, then others by name."""
    points: dict[str, dict[float, float]] = {}
    for record in records:
        step, value = _finite(record.get("step")), _finite(record.get(key))
        if step is not None and value is not None:
            points.setdefault(str(record.get("split", "train")), {})[step] = value
    lines: list[_Series] = []
    for split in sorted(points, key=lambda name: (name != "train", name != "val", name)):
        steps = sorted(points[split])
        values = [points[split][step] for step in steps]
        lines.append(_Series(split, np.asarray(steps), np.asarray(values)))
    return lines


def _common_span(lines: Sequence[_Series]) -> tuple[float, float]:
    """Return the common range of steps, from 0 if recording starts soon after."""
    first = min((float(line.steps[0]) for line in lines), default=0.0)
    last = max((float(line.steps[-1]) for line in lines), default=1.0)
    if 0 < first <= 0.1 * last:
        first = 0.0
    return (first, last) if last > first else (first - 1, last + 1)


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    return float(value) if isfinite(float(value)) else None


def _is_smoothed(line: _Series) -> bool:
    """Check whether a line is long and noisy enough for a moving average."""
    if line.split != "train" or len(line.values) < _MIN_POINTS_TO_SMOOTH:
        return False
    bends = np.abs(np.diff(line.values, n=2))
    return float(np.median(bends)) > _ROUGH * float(np.ptp(line.values))


def _draw_panel(
    axes: Axes, lines: Sequence[_Series], *, span: tuple[float, float], log_y: bool
) -> None:
    if not lines:
        axes.set_axis_off()
        axes.text(
            0.5,
            0.5,
            "not recorded",
            transform=axes.transAxes,
            fontproperties=style.font(style.TEXT_SIZE),
            color=style.MUTED,
            ha="center",
            va="center",
        )
        return
    tidy(axes)
    names = [line.split for line in lines]
    ends: list[tuple[str, str, float]] = []
    for line in lines:
        color = style.CYCLE[names.index(line.split) % len(style.CYCLE)]
        if line.split == "val":
            color = style.VERMILION
        elif line.split == "train":
            color = style.BLUE
        drawn = _draw_line(axes, line, color)
        ends.append((f"{line.split} {style.number(float(drawn[-1]))}", color, float(drawn[-1])))
    _scale(axes, lines, span=span, log_y=log_y)
    _label_ends(axes, ends)


def _draw_line(axes: Axes, line: _Series, color: str) -> NDArray[np.float64]:
    """Draw one split; return the values of the dark line."""
    marker = "" if line.split == "train" and len(line.values) > 1 else "o"
    if len(line.values) > 40:
        marker = ""
    values = line.values
    if _is_smoothed(line):
        axes.plot(line.steps, values, color=color, alpha=0.25, linewidth=0.8)
        values = smooth(values)
    axes.plot(
        line.steps,
        values,
        color=color,
        linewidth=1.6,
        marker=marker,
        markersize=4.2,
        markeredgecolor=style.PAPER,
        markeredgewidth=0.7,
        solid_capstyle="round",
        clip_on=False,
    )
    return values


def _scale(axes: Axes, lines: Sequence[_Series], *, span: tuple[float, float], log_y: bool) -> None:
    """Set limits and a few round ticks on both axes."""
    axes.set_xlim(*span)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=_ROUND_STEPS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    low = min(float(line.values.min()) for line in lines)
    high = max(float(line.values.max()) for line in lines)
    if log_y:
        axes.set_yscale("log")
        ratio = max(high / low, 1.02)
        axes.set_ylim(low / ratio**0.06, high * ratio**0.06)
        few = LogLocator(subs=(1, 2, 5) if ratio < 200 else (1,), numticks=6)
        axes.yaxis.set_major_locator(few if ratio > 10 else MaxNLocator(5, steps=_ROUND_STEPS))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        margin = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
        axes.set_ylim(low - margin if low < 0 or low > margin else 0.0, high + margin)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=_ROUND_STEPS))
    axes.yaxis.set_major_formatter(FuncFormatter(_tick_format(axes, log_y=log_y)))


def _tick_format(axes: Axes, *, log_y: bool) -> Callable[[float, int | None], str]:
    """Return a tick formatter; small values on a linear axis share one power of ten."""
    ticks = axes.get_yticks()
    largest = float(np.abs(ticks).max(initial=0.0))
    if log_y or len(ticks) < 2 or not 0 < largest < 0.01:
        return lambda value, _: style.number(value, digits=6)
    power = floor(log10(float(ticks[1] - ticks[0])))
    return lambda value, _: f"{value / 10.0**power:.4g}e{power}" if value else "0"


def _label_ends(axes: Axes, ends: Sequence[tuple[str, str, float]]) -> None:
    """Write name and last value to the right of each line, without overlaps."""
    box = axes.get_window_extent()
    step = style.line_height(style.SMALL_SIZE) * style.DPI / box.height
    right = 1 + 0.1 * style.DPI / box.width
    to_share = axes.transData + axes.transAxes.inverted()
    placed = sorted(
        (float(to_share.transform((axes.get_xlim()[1], value))[1]), label, color)
        for label, color, value in ends
    )
    shares = np.array([share for share, _, _ in placed])
    apart = np.maximum.accumulate(shares - step * np.arange(len(shares)))
    apart += step * np.arange(len(shares))
    # Half of the shift goes down, so that a pair stays centred on its lines.
    apart -= min((apart - shares).max() / 2, max(apart.min(), 0.0))
    for share, (_, label, color) in zip(apart, placed, strict=True):
        axes.text(
            right,
            float(share),
            style.printable(label),
            transform=axes.transAxes,
            fontproperties=style.font(style.SMALL_SIZE),
            color=color,
            va="center",
            parse_math=False,
        )


# -- Curves of several runs: one panel per quantity, under one legend ----------------------------


Records = Sequence[Mapping[str, Any]]
Quantity = tuple[str, str]

_RUNS_GAP = 0.35
_BELOW = 0.52


def draw_comparison(
    path: Path, *, runs: Mapping[str, Records], quantities: Sequence[Quantity], title: str
) -> Path:
    """Draw quantities over the steps of several runs.

    Args:
        path: PNG file to write.
        runs: Lines of ``metrics.jsonl`` by name of the run, which the legend uses.
        quantities: Pairs of split and key, such as ``("train", "loss")``; one panel each. A run
            without records of a quantity is missing from its panel.
        title: Title of the figure.

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
    note = "Lines of training metrics are moving averages." if smoothed else ""
    body = legend + 0.16 + rows * row_height - 0.08
    page = Page(style.WIDTH, body, title=title, note=note)
    draw_keys(page, keys)
    half = (style.WIDTH - _RUNS_GAP) / 2
    for index, quantity in enumerate(quantities):
        wide = bool(odd and index == 0)
        row, column = divmod(index + odd if not wide else 0, 2)
        x, y = column * (half + _RUNS_GAP), legend + 0.16 + row * row_height
        width = (style.WIDTH if wide else half) - _TICK_ROOM - 0.1
        page.lines(x, y, [" ".join(quantity)], size=style.HEADING_SIZE)
        axes = page.axes(x + _TICK_ROOM, y + heading, width, height)
        _draw_runs(axes, [_points(records, quantity) for records in runs.values()])
        middle, under = x + _TICK_ROOM + width / 2, y + heading + height + 0.22
        small = style.SMALL_SIZE
        page.lines(middle, under, ["step"], size=small, color=style.MUTED, align="center")
    return page.save(path)


def _points(
    records: Records, quantity: Quantity
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    split, key = quantity
    found: dict[float, float] = {}
    for record in records:
        value = record.get(key)
        if record.get("split") == split and isinstance(value, Real) and isfinite(float(value)):
            found[float(record["step"])] = float(value)
    steps = sorted(found)
    return np.asarray(steps), np.asarray([found[step] for step in steps])


def _draw_runs(
    axes: Axes, lines: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]
) -> None:
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
