"""Figures of comparisons that train several models: bake-off, and order of elements."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, log10
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from perceivers.report import style
from perceivers.report.figures.curves import draw_keys, keys_height, line_look, place_keys
from perceivers.report.style import Page, tidy

# -- Bake-off: validation metric over training time and over the number of parameters ------------


_HEIGHT = 2.7
_TICK_ROOM = 0.62
_NAME_ROOM = 2.35
_BELOW = 0.62
_FAINT = 0.35
# Names of model families in the legend.
_TITLES = {
    "hip": "HiP",
    "hiera": "Hiera",
    "perceiver": "Perceiver",
    "perceiver_io": "Perceiver IO",
    "entity_set": "entity set",
}


@dataclass(frozen=True)
class Curve:
    """Evaluations of one candidate in one rung.

    Args:
        name: Name of the candidate.
        family: Model family.
        rung: Index of the rung.
        seconds: Training time at each evaluation.
        values: Metric of each evaluation.
    """

    name: str
    family: str
    rung: int
    seconds: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True)
class Trial:
    """Result of a candidate in the last rung that it reached.

    Args:
        name: Name of the candidate.
        family: Model family.
        rung: Index of that rung.
        parameters: Number of parameters of the model.
        value: Metric.
        on_front: Whether no other candidate is as good with fewer parameters.
        has_won: Whether it is the winner.
    """

    name: str
    family: str
    rung: int
    parameters: int
    value: float
    on_front: bool
    has_won: bool


def draw_bakeoff(
    path: Path,
    *,
    curves: Sequence[Curve],
    candidates: Sequence[Trial],
    metric: str,
    higher_is_better: bool,
    constant: float | None,
    title: str,
    note: str = "",
) -> Path:
    """Draw the metric over training time and over parameters, coloured by model family.

    Args:
        path: PNG file to write.
        curves: Evaluations of all candidates in all rungs.
        candidates: Results of all candidates.
        metric: Name of the metric.
        higher_is_better: Whether higher values of the metric are better.
        constant: Metric of a constant prediction, or None.
        title: Title of the figure.
        note: Explanation under the title.

    Returns:
        The path.
    """
    families = list(dict.fromkeys([c.family for c in (*candidates, *curves)]))
    keys = place_keys([_TITLES.get(family, family) for family in families])
    heading = style.line_height(style.HEADING_SIZE) + 0.06
    top = keys_height(keys) + 0.16
    row = heading + _HEIGHT + _BELOW
    page = Page(style.WIDTH, top + 2 * row - 0.08, title=title, note=note)
    draw_keys(page, keys)
    width = style.WIDTH - _TICK_ROOM - _NAME_ROOM
    better = f"{'higher' if higher_is_better else 'lower'} is better"
    for place, over in enumerate(("training time", "parameters")):
        words = f"{metric} over {over} ({better})"
        y = top + place * row
        page.lines(0, y, [words], size=style.HEADING_SIZE)
        axes = page.axes(_TICK_ROOM, y + heading, width, _HEIGHT)
        tidy(axes)
        values = (
            _draw_times(axes, curves, families) if place == 0 else [c.value for c in candidates]
        )
        _set_values(axes, values, constant)
        if place == 0:
            _label_ends(page, axes, y + heading, width, curves, families)
        else:
            _draw_sizes(axes, candidates, families)
            _label_sizes(page, y + heading, candidates, families)
        if constant is not None:
            _draw_constant(axes, constant)
        under = ["training time in seconds", "parameters"][place]
        _caption(page, _TICK_ROOM + width / 2, y + heading + _HEIGHT + 0.24, under)
    return page.save(path)


def _caption(page: Page, x: float, y: float, words: str) -> None:
    page.lines(x, y, [words], size=style.SMALL_SIZE, color=style.MUTED, align="center")


def _draw_times(axes: Axes, curves: Sequence[Curve], families: Sequence[str]) -> list[float]:
    """Draw one line per candidate and rung; return all values."""
    last = max((curve.rung for curve in curves), default=0)
    drawn: list[float] = []
    for curve in sorted(curves, key=lambda curve: curve.rung):
        is_last = curve.rung == last
        points = [(s, v) for s, v in zip(curve.seconds, curve.values, strict=True) if isfinite(v)]
        drawn += [value for _, value in points]
        axes.plot(
            [point[0] for point in points],
            [point[1] for point in points],
            linewidth=1.8 if is_last else 1.0,
            alpha=1.0 if is_last else _FAINT,
            marker="o",
            markersize=3.8 if is_last else 2.6,
            markeredgecolor=style.PAPER,
            markeredgewidth=0.5,
            color=line_look(families.index(curve.family))["color"],
            clip_on=False,
        )
    axes.set_xlim(0, max((s for curve in curves for s in curve.seconds), default=1.0) or 1.0)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 2.5, 5, 10)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: style.number(value)))
    return drawn


def _set_values(axes: Axes, values: Sequence[float], constant: float | None) -> None:
    held = [*values, *([] if constant is None else [constant])]
    held = [value for value in held if isfinite(value)]
    low, high = (min(held), max(held)) if held else (0.0, 1.0)
    margin = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    axes.set_ylim(low - margin, high + margin)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 2.5, 5, 10)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: style.number(value, digits=4)))


def _draw_constant(axes: Axes, constant: float) -> None:
    axes.axhline(constant, color=style.MUTED, linewidth=1.0, linestyle=(0, (4, 2)))
    axes.annotate(
        "constant prediction",
        (1.0, constant),
        xycoords=("axes fraction", "data"),
        xytext=(6, 0),
        textcoords="offset points",
        fontproperties=style.font(style.SMALL_SIZE),
        color=style.MUTED,
        va="center",
        annotation_clip=False,
    )


def _label_ends(
    page: Page,
    axes: Axes,
    top: float,
    width: float,
    curves: Sequence[Curve],
    families: Sequence[str],
) -> None:
    """Write names to the right of the lines of the last rung, without overlaps."""
    last = max((curve.rung for curve in curves), default=0)
    ends = [(c.values[-1], c) for c in curves if c.rung == last and isfinite(c.values[-1])]
    low, high = axes.get_ylim()
    step = style.line_height(style.SMALL_SIZE)
    previous = -step
    for value, curve in sorted(ends, key=lambda end: -end[0]):
        wanted = (high - value) / (high - low) * _HEIGHT - step / 2
        y = max(wanted, previous + step)
        previous = y
        page.lines(
            _TICK_ROOM + width + 0.1,
            top + y,
            [style.shorten(curve.name, _NAME_ROOM - 0.1, style.SMALL_SIZE)],
            size=style.SMALL_SIZE,
            color=line_look(families.index(curve.family))["color"],
        )


def _draw_sizes(axes: Axes, candidates: Sequence[Trial], families: Sequence[str]) -> None:
    """Draw one point per candidate, filled for the last rung, and the Pareto front."""
    last = max((c.rung for c in candidates), default=0)
    front = sorted((c.parameters, c.value) for c in candidates if c.on_front)
    axes.set_xscale("log")
    axes.plot(
        [p for p, _ in front],
        [v for _, v in front],
        color=style.FRAME,
        linewidth=1.4,
        drawstyle="steps-post",
        zorder=1,
    )
    for candidate in candidates:
        color = line_look(families.index(candidate.family))["color"]
        axes.plot(
            [candidate.parameters],
            [candidate.value],
            marker="*" if candidate.has_won else "o",
            markersize=13 if candidate.has_won else 6,
            color=color if candidate.rung == last else style.PAPER,
            markeredgecolor=color,
            markeredgewidth=1.2,
            linestyle="",
            clip_on=False,
            zorder=3 if candidate.has_won else 2,
        )
    sizes = [c.parameters for c in candidates]
    low, high = min(sizes) / 1.4, max(sizes) * 1.4
    axes.set_xlim(low, high)
    ticks = [
        step * 10.0**power
        for power in range(int(log10(low)), int(log10(high)) + 1)
        for step in (1, 2, 5)
    ]
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.xaxis.set_minor_locator(NullLocator())


def _label_sizes(
    page: Page, top: float, candidates: Sequence[Trial], families: Sequence[str]
) -> None:
    """List the Pareto front on the right, largest model first, as far as there is room."""
    step = style.line_height(style.SMALL_SIZE)
    x = style.WIDTH - _NAME_ROOM + 0.1
    rising = sorted((c for c in candidates if c.on_front), key=lambda c: -c.parameters)
    page.lines(x, top, ["Pareto front, largest first:"], size=style.SMALL_SIZE, color=style.MUTED)
    for place, candidate in enumerate(rising[: int(_HEIGHT / step) - 2], start=1):
        page.lines(
            x,
            top + place * step,
            [style.shorten(candidate.name, _NAME_ROOM - 0.1, style.SMALL_SIZE)],
            size=style.SMALL_SIZE,
            color=line_look(families.index(candidate.family))["color"],
        )


def _short(count: float) -> str:
    """Format a number of parameters: ``50 k``, ``1.05 M``."""
    if count >= 1_000_000:
        return f"{count / 1e6:.3g} M"
    return f"{count / 1e3:.3g} k" if count >= 1000 else f"{count:.0f}"


# -- Order of elements: original, one fixed permutation, one per sample --------------------------


_ORDER_HEIGHT = 2.5
_GAP = 0.45
_ORDER_BELOW = 0.5
_BAR = 0.26
_ORDER_TITLES = {"val": "validation", "test": "test"}


def draw_shuffling(
    path: Path,
    *,
    values: Mapping[str, Mapping[str, Sequence[float]]],
    constant: Mapping[str, float | None],
    metric: str,
    title: str,
    note: str = "",
) -> Path:
    """Draw one panel per split, with one column of points (seeds) per order of elements.

    Args:
        path: PNG file to write.
        values: One value per seed, by order and by split.
        constant: Metric of a constant prediction by split, or None.
        metric: Name of the metric.
        title: Title of the figure.
        note: Explanation under the title.

    Returns:
        The path.
    """
    splits = list(constant)
    heading = style.line_height(style.HEADING_SIZE) + 0.06
    page = Page(style.WIDTH, heading + _ORDER_HEIGHT + _ORDER_BELOW, title=title, note=note)
    width = (style.WIDTH - _GAP * (len(splits) - 1)) / len(splits)
    held = [v for orders in values.values() for split in orders.values() for v in split]
    held += [value for value in constant.values() if value is not None]
    for place, split in enumerate(splits):
        x = place * (width + _GAP)
        page.lines(x, 0, [f"{_ORDER_TITLES.get(split, split)} {metric}"], size=style.HEADING_SIZE)
        axes = page.axes(x + _TICK_ROOM, heading, width - _TICK_ROOM, _ORDER_HEIGHT)
        tidy(axes)
        columns = {order: found.get(split, ()) for order, found in values.items()}
        _draw_panel(axes, columns, constant[split], width - _TICK_ROOM)
        _set_values(axes, held, None)  # one range for all panels, to compare them
    return page.save(path)


def _draw_panel(
    axes: Axes, columns: Mapping[str, Sequence[float]], constant: float | None, width: float
) -> None:
    # ``width`` is the width of the panel in inches.
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
            "constant prediction",
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
