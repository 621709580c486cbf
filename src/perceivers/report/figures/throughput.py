"""Log-log figures of time and memory of several models over the number of inputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from perceivers.report import style
from perceivers.report.figures.curves import draw_keys, keys_height, line_look, place_keys
from perceivers.report.style import Page, tidy

_HEIGHT = 2.5
_TICK_ROOM = 0.62
_COLUMN_GAP = 0.35
_BELOW = 0.66
# Height of the first cross, and distance between two, as fractions of the panel height.
_CROSS, _CROSS_STEP = 0.96, 0.06
# Ticks within a decade; only the first if the axis covers more than _LONG decades.
_TICKS = (1.0, 2.0, 5.0)
_LONG = 2.5
# Minimum ratio of the ends of an axis; a shorter axis might contain no tick.
_LEAST_RANGE = 5.0
# Width of the tick label of a size, and of a number of inputs, as fractions of the panel width.
_SIZE_ROOM, _INPUTS_ROOM = 0.07, 0.12


@dataclass(frozen=True)
class Line:
    """Measurements of one model in one kind of pass.

    Args:
        sizes: Image sides in pixels, ascending.
        seconds: Time for each size.
        memory: Peak memory for each size, in GB.
        stopped: First size at which memory ran out, or None.
    """

    sizes: Sequence[int]
    seconds: Sequence[float]
    memory: Sequence[float]
    stopped: int | None = None


def draw_throughput(
    path: Path,
    *,
    passes: Mapping[str, Mapping[str, Line]],
    limits: Sequence[float] = (),
    title: str,
    note: str = "",
) -> Path:
    """Draw two panels per kind of pass: time in seconds, and peak memory in GB.

    Args:
        path: PNG file to write.
        passes: Lines by kind of pass (heading of a row) and by model; the same models in all rows.
        limits: Memory limits in GB, drawn as horizontal lines.
        title: Title of the figure.
        note: Explanation under the title.

    Returns:
        The path.
    """
    names = list(dict.fromkeys(name for lines in passes.values() for name in lines))
    keys = place_keys(names)
    heading = style.line_height(style.HEADING_SIZE) + 0.06
    row_height = heading + _HEIGHT + _BELOW
    top = keys_height(keys) + 0.16
    page = Page(style.WIDTH, top + len(passes) * row_height - 0.08, title=title, note=note)
    draw_keys(page, keys)
    half = (style.WIDTH - _COLUMN_GAP) / 2
    width = half - _TICK_ROOM - 0.1
    for row, (label, lines) in enumerate(passes.items()):
        for column, quantity in enumerate(("seconds", "peak memory, GB")):
            x, y = column * (half + _COLUMN_GAP), top + row * row_height
            page.lines(x, y, [f"{label}: {quantity}"], size=style.HEADING_SIZE)
            axes = page.axes(x + _TICK_ROOM, y + heading, width, _HEIGHT)
            found = {name: lines[name] for name in names if name in lines}
            _draw_panel(axes, names, found, limits if column else (), memory=bool(column))
            middle, under = x + _TICK_ROOM + width / 2, y + heading + _HEIGHT + 0.36
            words = ["image side in pixels, and number of inputs"]
            page.lines(
                middle, under, words, size=style.SMALL_SIZE, color=style.MUTED, align="center"
            )
    return page.save(path)


def _draw_panel(
    axes: Axes,
    names: Sequence[str],
    lines: Mapping[str, Line],
    limits: Sequence[float],
    *,
    memory: bool,
) -> None:
    tidy(axes)
    axes.set_xscale("log")
    axes.set_yscale("log")
    values: list[float] = []
    crosses: dict[int, int] = {}
    for name, line in lines.items():
        look = line_look(names.index(name))
        heights = line.memory if memory else line.seconds
        values += heights
        axes.plot(
            [size**2 for size in line.sizes],
            heights,
            linewidth=1.6,
            marker="o",
            markersize=4.2,
            markeredgecolor=style.PAPER,
            markeredgewidth=0.6,
            clip_on=False,
            **look,
        )
        if memory and line.stopped is not None:
            place = crosses[line.stopped] = crosses.get(line.stopped, -1) + 1
            axes.plot(
                [line.stopped**2],
                [_CROSS - place * _CROSS_STEP],
                transform=axes.get_xaxis_transform(),
                marker="x",
                markersize=5.5,
                markeredgewidth=1.6,
                color=look["color"],
            )
    for limit in limits:
        axes.axhline(limit, color=style.MUTED, linewidth=1.0, linestyle=(0, (2, 2)))
    sizes = sorted({size for line in lines.values() for size in (*line.sizes, *_stop(line))})
    _set_ticks(axes, sizes, [*values, *limits], room=max(crosses.values(), default=-1) + 1)


def _stop(line: Line) -> tuple[int, ...]:
    return () if line.stopped is None else (line.stopped,)


def _set_ticks(axes: Axes, sizes: Sequence[int], values: Sequence[float], *, room: int) -> None:
    """Set a tick at every measured size, and a few round ticks on the other axis.

    ``room`` is the number of rows of crosses to leave free at the top.
    """
    first, last = (sizes[0] ** 2, sizes[-1] ** 2) if sizes else (1, 10)
    margin = (last / first) ** 0.06 if last > first else 2.0
    axes.set_xlim(first / margin, last * margin)
    span = last * margin * margin / first
    shown, counted = (_apart(sizes, span, room) for room in (_SIZE_ROOM, _INPUTS_ROOM))
    labels = {n**2: f"{n}\n{_short(n**2)}" if n in counted else f"{n}\n " for n in shown}
    axes.xaxis.set_major_locator(FixedLocator(list(labels)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: labels.get(round(value), "")))
    axes.xaxis.set_minor_locator(NullLocator())
    low, high = (min(values), max(values)) if values else (0.1, 1.0)
    widening = max(1.25, (_LEAST_RANGE * low / high) ** 0.5)
    low, high = low / widening, high * widening
    high *= (high / low) ** (room * _CROSS_STEP)
    axes.set_ylim(low, high)
    decades = range(floor(log10(low)), ceil(log10(high)) + 1)
    steps = _TICKS if log10(high / low) < _LONG else _TICKS[:1]
    ticks = [step * 10.0**power for power in decades for step in steps]
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: style.number(value)))
    axes.yaxis.set_minor_locator(NullLocator())


def _apart(sizes: Sequence[int], span: float, room: float) -> list[int]:
    """Return sizes at least a fraction of the axis apart, so that labels do not overlap."""
    shown: list[int] = []
    for size in sizes:
        if not shown or 2 * log10(size / shown[-1]) >= room * log10(span):
            shown.append(size)
    return shown


def _short(count: int) -> str:
    """Format a number of inputs: ``50 k``, ``1.05 M``."""
    if count >= 1_000_000:
        return f"{count / 1e6:.3g} M"
    return f"{count / 1e3:.3g} k" if count >= 1000 else str(count)
