"""Training curves: one panel per quantity, every line labelled at its end instead of in a legend."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from perceivers.report import style
from perceivers.report.page import Page, tidy

_LABELS = {
    "loss": "loss",
    "lr": "learning rate",
    "learning_rate": "learning rate",
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "grad_norm": "gradient norm",
    "samples_per_second": "samples per second",
}
_TICK_ROOM = 0.62
_END_ROOM = 0.92
_COLUMN_GAP = 0.1
_MIN_POINTS_TO_SMOOTH = 20
# A schedule has second differences far below its range; smoothing it would round its corners.
_ROUGH = 0.002


@dataclass(frozen=True)
class _Series:
    """Finite values of one quantity in one split, in the order of their steps."""

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
    """Draw how quantities changed over the steps of a run, for every split that recorded them.

    Args:
        path: Where the PNG goes.
        records: Lines of ``metrics.jsonl``: ``step``, ``split`` and any quantities. Missing, null
            and non-finite values are left out.
        keys: The quantities, one panel each.
        title: Heading of the figure.
        log_y: Logarithmic vertical axes; a panel with values of 0 or below stays linear and says so.

    Returns:
        The path.
    """
    columns = min(len(keys), 2) or 1
    height = 2.9 if columns == 1 else 1.85
    pitch = (style.WIDTH - (columns - 1) * _COLUMN_GAP) / columns
    heading = style.line_height(style.HEADING_SIZE) + 0.06
    row_height = heading + height + 0.36
    rows = -(-len(keys) // columns)
    page = Page(
        style.WIDTH,
        rows * row_height + 0.1,
        title=title,
        note="Pale lines are the raw values, dark lines a moving average."
        if any(_is_smoothed(line) for key in keys for line in _collect(records, key))
        else "",
    )
    finite = [line.steps for key in keys for line in _collect(records, key)]
    span = (min(s[0] for s in finite), max(s[-1] for s in finite)) if finite else (0.0, 1.0)
    for index, key in enumerate(keys):
        x = index % columns * (pitch + _COLUMN_GAP)
        y = index // columns * row_height
        lines = _collect(records, key)
        linear = not log_y or any((line.values <= 0).any() for line in lines)
        remark = " (linear: it holds values of 0 or below)" if log_y and linear and lines else ""
        name = _LABELS.get(key, key.replace("_", " ")) + remark
        name = style.shorten(name, pitch, style.HEADING_SIZE)
        page.lines(x, y, [name], size=style.HEADING_SIZE)
        axes = page.axes(x + _TICK_ROOM, y + heading, pitch - _TICK_ROOM - _END_ROOM, height)
        _draw_panel(axes, lines, span=span, log_y=not linear)
        if index + columns >= len(keys):
            middle = x + _TICK_ROOM + (pitch - _TICK_ROOM - _END_ROOM) / 2
            page.text(
                middle,
                y + heading + height + 0.27,
                "step",
                size=style.SMALL_SIZE,
                color=style.MUTED,
                align="center",
            )
    return page.save(path)


def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average over a triangular window of a tenth of the points, narrower at both ends."""
    half = max(2, len(values) // 20)
    window = 1 - np.abs(np.arange(-half, half + 1)) / (half + 1)
    total = np.convolve(values, window)[half:-half]
    return total / np.convolve(np.ones_like(values), window)[half:-half]


def _collect(records: Sequence[Mapping[str, Any]], key: str) -> list[_Series]:
    """Gather a quantity by split: train first, then the others by name."""
    points: dict[str, dict[float, float]] = {}
    for record in records:
        step, value = record.get("step"), record.get(key)
        if _is_number(step) and _is_number(value):
            points.setdefault(str(record.get("split", "train")), {})[float(step)] = float(value)
    lines: list[_Series] = []
    for split in sorted(points, key=lambda name: (name != "train", name != "val", name)):
        steps = sorted(points[split])
        values = [points[split][step] for step in steps]
        lines.append(_Series(split, np.asarray(steps), np.asarray(values)))
    return lines


def _is_number(value: Any) -> bool:
    """Whether a recorded value can be drawn."""
    return isinstance(value, Real) and not isinstance(value, bool) and isfinite(float(value))


def _is_smoothed(line: _Series) -> bool:
    """Whether a line is long and rough enough to need a moving average."""
    if line.split != "train" or len(line.values) < _MIN_POINTS_TO_SMOOTH:
        return False
    bends = np.abs(np.diff(line.values, n=2))
    return float(np.median(bends)) > _ROUGH * float(np.ptp(line.values))


def _draw_panel(
    axes: Axes, lines: Sequence[_Series], *, span: tuple[float, float], log_y: bool
) -> None:
    """Draw all splits of one quantity."""
    tidy(axes)
    if not lines:
        axes.set(xticks=[], yticks=[])
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
    """Draw one split and return the values of its dark line."""
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


def _scale(
    axes: Axes, lines: Sequence[_Series], *, span: tuple[float, float], log_y: bool
) -> None:
    """Set the limits and a few round ticks on both axes."""
    axes.set_xlim(*(span if span[1] > span[0] else (span[0] - 1, span[1] + 1)))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    low = min(float(line.values.min()) for line in lines)
    high = max(float(line.values.max()) for line in lines)
    if log_y:
        axes.set_yscale("log")
        ratio = max(high / low, 1.02)
        axes.set_ylim(low / ratio**0.06, high * ratio**0.06)
        few = LogLocator(subs=(1, 2, 5) if ratio < 200 else (1,), numticks=6)
        axes.yaxis.set_major_locator(few if ratio > 10 else MaxNLocator(5))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set_ylim(low - margin if low < 0 or low > margin else 0.0, high + margin)
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: style.number(value, digits=6)))


def _label_ends(axes: Axes, ends: Sequence[tuple[str, str, float]]) -> None:
    """Write name and last value right of each line, moved apart where they would overlap."""
    figure = axes.figure
    assert figure is not None
    height = axes.get_position().height * figure.get_figheight()  # pyright: ignore
    step = style.line_height(style.SMALL_SIZE) / height
    to_share = axes.transData + axes.transAxes.inverted()
    placed = sorted(
        (float(to_share.transform((axes.get_xlim()[1], value))[1]), label, color)
        for label, color, value in ends
    )
    below = -1.0
    for share, label, color in placed:
        share = max(share, below + step)
        below = share
        axes.text(
            1.03,
            share,
            style.printable(label),
            transform=axes.transAxes,
            fontproperties=style.font(style.SMALL_SIZE),
            color=color,
            va="center",
            parse_math=False,
        )
