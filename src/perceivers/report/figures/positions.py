"""Figures of learned position embeddings before and after masked pre-training.

Legend: N positions, P channels, H W rows and columns of a grid.
Paper: HiP (arXiv 2202.10890) Sec. 3.2, low-dimensional learned position embeddings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from perceivers.errors import InputError
from perceivers.report import style
from perceivers.report.style import Page, tidy

# ------------------------------------------------------------------------------------------------
# Statistics of position embeddings: principal components, similarities, variance of channels.
#
# Legend: N positions, P channels.


# 2 % at both ends may saturate, so that one outlier does not make all other colours equal.
_TAILS = (2.0, 98.0)


@dataclass(frozen=True)
class Components:
    """Principal components of position embeddings.

    Args:
        scores: ``[N, P]``, coordinates of every position, strongest component first.
        variances: ``[P]``, explained fraction of the variance; all 0 for constant embeddings.
    """

    scores: NDArray[np.float64]
    variances: NDArray[np.float64]


def principal_components(table: NDArray[Any]) -> Components:
    """Return the principal components of embeddings ``[N, P]``, with deterministic signs."""
    centred = table - table.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    values, vectors = values[::-1].clip(0.0), vectors[:, ::-1]
    largest = np.abs(vectors).argmax(axis=0)
    vectors = vectors * np.where(vectors[largest, np.arange(len(values))] < 0, -1.0, 1.0)
    total = float(values.sum())
    # Below this, the variance is rounding error of constant embeddings.
    floor = 1e-20 * max(float(np.square(table).sum()), 1e-300)
    shares = values / total if total > floor else np.zeros_like(values)
    return Components(scores=centred @ vectors, variances=shares)


def colours(components: Components) -> NDArray[np.float64]:
    """Map the first three components to red, green and blue in 0..1: ``[N, 3]``."""
    result = np.full((len(components.scores), 3), 0.5)
    for index in range(min(3, components.scores.shape[1])):
        if components.variances[index] > 0:
            scores = components.scores[:, index]
            low, high = np.percentile(scores, _TAILS)
            if high > low:
                result[:, index] = ((scores - low) / (high - low)).clip(0.0, 1.0)
    return result


def similarity(table: NDArray[np.float64], index: int) -> NDArray[np.float64]:
    """Return the cosine similarity of one position with all: ``[N]``; 0 for zero vectors."""
    lengths = np.linalg.norm(table, axis=1)
    scaled = table / np.where(lengths > 0, lengths, 1.0)[:, None]
    return scaled @ scaled[index]


def busiest_channels(table: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """Return the channels with the largest variance over positions, in descending order."""
    return np.argsort(-table.var(axis=0), kind="stable")[:count]


def spread_indices(size: int, count: int) -> list[int]:
    """Return up to ``count`` evenly spaced indices in ``0..size - 1``."""
    return sorted({int(size * (index + 0.5) / count) for index in range(count)})


# -- Position embeddings before and after training -----------------------------------------------

_CHANNELS = 8
_REFERENCES = 3
_GAP = 0.06
_BLOCK_GAP = 0.3
_BAR_ROOM = 0.72
_THINNEST = 0.3
_BEFORE, _AFTER = "before training", "after training"

Tables = Sequence[tuple[str, NDArray[np.float64]]]


def draw_positions(
    path: Path,
    *,
    before: NDArray[Any] | None,
    after: NDArray[Any],
    grid: tuple[int, ...],
    title: str,
) -> Path:
    """Draw learned position embeddings on their grid, next to those before training.

    On a 2-D grid: the first three principal components as colours, the similarity of a few
    positions with all others, and the channels with the largest variance. On a 1-D grid: all
    channels as a heat map, and similarities as curves. On other grids, which cannot be drawn in the
    plane: the variance explained by the components. Axes of size 1 are ignored.

    Args:
        path: PNG file to write.
        before: Embeddings ``[N, P]`` before training, or None if unknown.
        after: Embeddings ``[N, P]`` after training.
        grid: Shape of the grid of the N positions, slowest axis first.
        title: Title of the figure.

    Returns:
        The path.

    Raises:
        InputError: If there is not one row per grid cell, or the two shapes differ.
    """
    for name, table in ((_BEFORE, before), (_AFTER, after)):
        if table is not None and (table.ndim != 2 or len(table) != prod(grid) or not table.size):
            raise InputError(
                f"position embeddings {name} have shape {table.shape} for grid {grid}; it must be "
                f"[{prod(grid)}, channels]"
            )
    if before is not None and before.shape != after.shape:
        raise InputError(
            f"position embeddings have shapes {before.shape} and {after.shape}; they must be equal"
        )
    tables = [(_AFTER, np.nan_to_num(np.asarray(after, dtype=np.float64)))]
    if before is not None:
        tables.insert(0, (_BEFORE, np.nan_to_num(np.asarray(before, dtype=np.float64))))
    axes = tuple(size for size in grid if size > 1)
    if len(axes) == 2:
        return _draw_plane(path, tables, grid=(axes[0], axes[1]), title=title)
    if len(axes) == 1:
        return _draw_line(path, tables, title=title)
    return _draw_variances(path, tables, grid=grid, title=title)


def _draw_plane(path: Path, tables: Tables, *, grid: tuple[int, int], title: str) -> Path:
    rows, columns = grid
    heading = style.line_height(style.HEADING_SIZE) + 0.05
    caption = style.line_height(style.SMALL_SIZE) + 0.04
    # Wide grids are stacked, because three of them in a row would be thin stripes.
    blocks = 1 if columns > 2.5 * rows else len(tables) + 1
    pitch = (style.WIDTH - _BAR_ROOM + _BLOCK_GAP) / blocks
    room = pitch - _BLOCK_GAP
    width, height = _fit(grid, room, 1.7 if blocks == 1 else min(room, 4.0))
    block_height = heading + height + caption + 0.16
    places = [
        (index % blocks * pitch, index // blocks * block_height) for index in range(len(tables) + 1)
    ]
    second = places[-1][1] + block_height + 0.1
    per_row = _CHANNELS if blocks > 1 else _CHANNELS // 2
    small = (style.WIDTH - _BAR_ROOM - (per_row - 1) * _GAP) / per_row
    size = _fit(grid, small, 1.25 * small)
    chosen = busiest_channels(tables[-1][1], _CHANNELS)
    strip = caption + -(-len(chosen) // per_row) * (size[1] + _GAP) + 0.1
    page = Page(
        style.WIDTH,
        second + heading + len(tables) * strip - _GAP - 0.1,
        title=title,
        note=f"{rows} x {columns} positions of {tables[0][1].shape[1]} channels. Top: the first "
        f"three principal components as red, green and blue, and the cosine similarity of the "
        f"positions at the dots with all others.",
    )
    for index, (name, table) in enumerate(tables):
        x, y = places[index]
        components = principal_components(table)
        page.lines(x, y, [name.capitalize()], size=style.HEADING_SIZE)
        picture = colours(components).reshape(rows, columns, 3)
        page.picture(x, y + heading, width, height, picture)
        words = style.shorten(_held(components), pitch - 0.1, style.SMALL_SIZE)
        below = y + heading + height + 0.04
        page.lines(x, below, [words], size=style.SMALL_SIZE, color=style.MUTED)
    x, y = places[-1]
    page.lines(x, y, ["Similarity after training"], size=style.HEADING_SIZE)
    _draw_similarities(page, tables[-1][1], grid, x=x, y=y + heading, size=(width, height))
    words = f"The {len(chosen)} channels with the largest variance after training"
    page.lines(0, second, [words], size=style.HEADING_SIZE)
    for index, (name, table) in enumerate(tables):
        y = second + heading + index * strip
        page.lines(0, y, [name], size=style.SMALL_SIZE, color=style.MUTED)
        maps = table[:, chosen].T.reshape(len(chosen), *grid)
        _draw_channels(page, maps, y=y + caption, size=size, per_row=per_row)
    return page.save(path)


def _draw_similarities(
    page: Page,
    table: NDArray[np.float64],
    grid: tuple[int, int],
    *,
    x: float,
    y: float,
    size: tuple[float, float],
) -> None:
    """Draw similarity maps of several positions, arranged like these positions."""
    width, height = size
    picked = [spread_indices(count, _REFERENCES) for count in grid]
    down, across = len(picked[0]), len(picked[1])
    cell = (width - (across - 1) * _GAP) / across, (height - (down - 1) * _GAP) / down
    for row, place in enumerate(picked[0]):
        for column, other in enumerate(picked[1]):
            values = similarity(table, place * grid[1] + other).reshape(grid)
            left, top = x + column * (cell[0] + _GAP), y + row * (cell[1] + _GAP)
            axes = page.picture(
                left, top, *cell, values, colours=style.DIVERGING, limits=(-1.0, 1.0)
            )
            axes.plot(
                other,
                place,
                marker="o",
                markersize=4.5,
                markerfacecolor=style.PAPER,
                markeredgecolor=style.INK,
                markeredgewidth=1.0,
                clip_on=False,
            )
    page.colour_bar(
        x + width + 0.1,
        y,
        height,
        colours=style.DIVERGING,
        limits=(-1.0, 1.0),
        labels=[(1.0, "1"), (0.0, "0"), (-1.0, "\u22121")],
    )


def _draw_channels(
    page: Page, maps: NDArray[np.float64], *, y: float, size: tuple[float, float], per_row: int
) -> None:
    """Draw channels ``[count, H, W]`` on one colour scale centred at 0."""
    across, down = size[0] + _GAP, size[1] + _GAP
    limit = _limit(maps)
    for index, values in enumerate(maps):
        row, column = divmod(index, per_row)
        page.picture(
            column * across,
            y + row * down,
            *size,
            values,
            colours=style.DIVERGING,
            limits=(-limit, limit),
        )
    right = min(len(maps), per_row) * across - _GAP
    _draw_scale(page, right + 0.1, y, -(-len(maps) // per_row) * down - _GAP, limit)


def _draw_line(path: Path, tables: Tables, *, title: str) -> Path:
    count, channels = tables[0][1].shape
    left, right = 0.62, 0.75
    width = style.WIDTH - left - right
    height = float(np.clip(channels * 0.06, 0.9, 1.8))
    heading = style.line_height(style.HEADING_SIZE) + 0.06
    pitch = heading + height + 0.42
    page = Page(
        style.WIDTH,
        len(tables) * pitch + heading + 1.6 + 0.45,
        title=title,
        note=f"{count:,} positions of {channels} channels.",
    )
    for index, (name, table) in enumerate(tables):
        y = index * pitch
        words = f"{name.capitalize()}; {_held(principal_components(table))}"
        page.lines(left, y, [words], size=style.HEADING_SIZE)
        limit = _limit(table)
        axes = page.picture(
            left,
            y + heading,
            width,
            height,
            table.T,
            colours=style.DIVERGING,
            limits=(-limit, limit),
        )
        tidy(axes)
        axes.grid(visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        _name_axes(page, left, y + heading, height, "channel")
        _draw_scale(page, left + width + 0.12, y + heading, height, limit)
    y = len(tables) * pitch
    words = "Cosine similarity of five positions (dots) with all others, after training"
    page.lines(left, y, [words], size=style.HEADING_SIZE)
    axes = page.axes(left, y + heading, width, 1.6)
    tidy(axes)
    for index, place in enumerate(spread_indices(count, 5)):
        color = (*style.CYCLE, style.INK)[index]
        values = similarity(tables[-1][1], place)
        axes.plot(np.arange(count), values, color=color, linewidth=1.2)
        axes.plot(place, values[place], "o", color=color, markersize=5, clip_on=False)
    axes.set(xlim=(-0.5, count - 0.5), ylim=(-1.05, 1.05), yticks=(-1, 0, 1))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    _name_axes(page, left, y + heading, 1.6, "similarity")
    page.text(
        left + width / 2,
        y + heading + 1.6 + 0.25,
        "position",
        size=style.SMALL_SIZE,
        color=style.MUTED,
        align="center",
    )
    return page.save(path)


def _draw_variances(path: Path, tables: Tables, *, grid: tuple[int, ...], title: str) -> Path:
    left, height, width = 0.62, 2.4, 6.0
    shape = " x ".join(str(size) for size in grid)
    page = Page(
        left + width + 1.3,
        height + 0.5,
        title=title,
        note=f"{tables[0][1].shape[0]:,} positions on a {shape} grid, which cannot be drawn in the "
        f"plane: fraction of the variance explained by the first principal components.",
    )
    axes = page.axes(left, 0.05, width, height)
    tidy(axes)
    count = tables[0][1].shape[1]
    axes.set(xlim=(0, max(count, 1)), ylim=(0, 1.03), yticks=(0, 0.25, 0.5, 0.75, 1))
    axes.yaxis.set_major_formatter(lambda value, _: style.percent(value, digits=0))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    for index, (name, table) in enumerate(tables):
        components = principal_components(table)
        color = style.BLUE if name == _AFTER else style.MUTED
        held = np.concatenate([[0.0], components.variances.cumsum()])
        axes.plot(np.arange(count + 1), held, "o-", color=color, markersize=3.5, clip_on=False)
        y = height - 0.1 - (len(tables) - index) * style.line_height(style.TEXT_SIZE)
        page.lines(left + width + 0.15, y, [name], color=color)
    page.text(
        left + width / 2,
        height + 0.32,
        "components",
        size=style.SMALL_SIZE,
        color=style.MUTED,
        align="center",
    )
    return page.save(path)


def _draw_scale(page: Page, x: float, y: float, height: float, limit: float) -> None:
    words = style.number(limit, digits=2)
    page.colour_bar(
        x,
        y,
        height,
        colours=style.DIVERGING,
        limits=(-limit, limit),
        labels=[(limit, words), (0.0, "0"), (-limit, f"\u2212{words}")],
    )


def _name_axes(page: Page, left: float, y: float, height: float, words: str) -> None:
    page.text(
        0.08,
        y + height / 2,
        words,
        size=style.SMALL_SIZE,
        color=style.MUTED,
        align="center",
        vertical="center",
        rotation=90,
    )


def _held(components: Components) -> str:
    share = float(components.variances[:3].sum())
    if share == 0:
        return "no variance: all positions are equal"
    return f"3 components explain {style.percent(share)} of the variance"


def _limit(values: NDArray[np.float64]) -> float:
    """Return the largest absolute value, or 1 if all are 0."""
    return float(np.abs(values).max(initial=0.0)) or 1.0


def _fit(grid: Sequence[int], width: float, height: float) -> tuple[float, float]:
    """Return the size of a map of square cells that fits a box.

    Extremely long grids get oblong cells, so that the map does not become thinner than a line.
    """
    cell = min(width / grid[1], height / grid[0])
    return max(cell * grid[1], _THINNEST), max(cell * grid[0], _THINNEST)
