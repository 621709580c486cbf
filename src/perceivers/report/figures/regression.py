"""Predicted numbers against true ones, a panel per target.

Legend: n samples, T targets.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceivers.errors import InputError
from perceivers.report import style
from perceivers.report.page import Page, tidy

MAX_PANELS = 6

_SIDE = 2.3
_LEFT = 0.65
_BELOW = 0.55
_PITCH = 3.0


def draw_regression(
    path: Path,
    *,
    true: NDArray[Any],
    predicted: NDArray[Any],
    names: Sequence[str],
    title: str,
    note: str = "",
) -> Path:
    """Draw a point per sample: to the right the truth, upwards the prediction; a line where equal.

    Args:
        path: Where the PNG goes.
        true: ``[n, T]``, NaN where unknown.
        predicted: ``[n, T]``.
        names: Of the T targets; the first 6 are drawn.
        title: Heading of the figure.
        note: How to read it.

    Raises:
        InputError: The arrays do not have the same shape, or not a column per name.
    """
    if true.ndim != 2 or true.shape != predicted.shape or true.shape[1] != len(names):
        raise InputError(
            f"truth has shape {true.shape} and predictions {predicted.shape} for {len(names)} "
            f"targets; both must be [n, {len(names)}]"
        )
    shown = min(len(names), MAX_PANELS)
    across = min(shown, 3)
    rows = -(-shown // across)
    height = rows * (_SIDE + _BELOW + 0.3)
    page = Page(max(across * _PITCH, 5.0), height, title=title, note=note)
    for index in range(shown):
        x = index % across * _PITCH + _LEFT
        y = index // across * (_SIDE + _BELOW + 0.3) + 0.25
        name = style.shorten(names[index], _SIDE, style.TEXT_SIZE)
        page.lines(x, y - 0.25, [name])
        axes = page.axes(x, y, _SIDE, _SIDE)
        tidy(axes)
        known = np.isfinite(true[:, index])
        truth, answer = true[known, index], predicted[known, index]
        if len(truth):
            both = np.concatenate([truth, answer])
            low, high = float(both.min()), float(both.max())
            margin = 0.05 * (high - low or 1.0)
            ends = (low - margin, high + margin)
            axes.plot(ends, ends, color=style.FRAME, linewidth=1.0)
            axes.scatter(truth, answer, s=9, color=style.BLUE, alpha=0.6, linewidths=0)
            axes.set_xlim(*ends)
            axes.set_ylim(*ends)
        font = style.font(style.SMALL_SIZE)
        axes.set_xlabel("truth", fontproperties=font, color=style.MUTED)
        axes.set_ylabel("prediction", fontproperties=font, color=style.MUTED)
    return page.save(path)
