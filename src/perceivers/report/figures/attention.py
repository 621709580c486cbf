"""Figures of attention maps: heat on the input, in panels under headings.

A map sums to 1. Since the weight of one token among thousands says little, each panel states the
attention on the strongest 1 % of tokens, and the full colour as a multiple of uniform attention.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceivers.errors import InputError
from perceivers.report import style
from perceivers.report.figures.canvases import HEAT, Canvas
from perceivers.report.style import Page

COLUMNS = 5
STRONGEST = 0.01
# Tokens above this quantile have the full colour, so that one outlier does not make the rest pale.
FULL = 0.995
LEAST = 3.0
HONEST = "Attention shows where information was read, not what determined the output."
SCALE = (
    "The attention of a map sums to 1 over all tokens; 'uniform' is the attention of each token if "
    "it were equal for all. Colours are comparable within a map, not between maps."
)

_GAP = 0.14
# Drawn text is slightly wider than measured text.
_SLACK = 0.25
_BAR = 0.14
_SCALE_WIDTH = 1.6
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Panel:
    """One attention map on one sample.

    Attributes:
        canvases: Inputs of the sample by modality.
        label: Name of the map.
        shares: Attention on each modality's token grid, with a total of 1; None draws the input
            without a map.
        tokens: Number of tokens that can be attended to.
        notes: Lines under the label.
        mark: Modality and position, 0..1 per axis, of the element whose output is explained.
    """

    canvases: Mapping[str, Canvas]
    label: str
    shares: Mapping[str, NDArray[Any]] | None = None
    tokens: int = 0
    notes: Sequence[str] = ()
    mark: tuple[str, tuple[float, ...]] | None = None


@dataclass(frozen=True)
class PanelSection:
    """Panels under a heading, with a paragraph that explains their maps."""

    heading: str
    text: str
    panels: Sequence[Panel]


def strongest_share(shares: Mapping[str, NDArray[Any]], tokens: int) -> float:
    """Return the attention on the strongest 1 % of the tokens (at least one token)."""
    values = np.sort(_joined(shares))[::-1]
    return float(values[: max(ceil(STRONGEST * tokens), 1)].sum())


def full_colour(shares: Mapping[str, NDArray[Any]], tokens: int) -> float:
    """Return the attention that gets the full colour.

    At least a fifth of the largest value and three times uniform attention, so that a nearly
    uniform map is pale.
    """
    values = np.sort(_joined(shares))[::-1]
    usual = values[: max(tokens, 1)][int((1 - FULL) * max(tokens - 1, 0))]
    return float(max(usual, values[0] / 5, min(LEAST / max(tokens, 1), 1.0)))


def draw_attention(
    path: Path, sections: Sequence[PanelSection], *, title: str, note: str = ""
) -> Path:
    """Draw sections of panels, with images and points side by side and other inputs one per row.

    Args:
        path: PNG file to write.
        sections: Panels with headings.
        title: Title of the figure.
        note: Explanation under the title; that of the scale is appended.

    Returns:
        The path.

    Raises:
        InputError: If there is no panel, or the attention of one does not sum to 1.
    """
    panels = [panel for section in sections for panel in section.panels]
    if not panels:
        raise InputError("no attention to draw; give at least one section with a panel")
    for panel in panels:
        _check(panel)
    note = f"{note} {HONEST} {SCALE}".strip()
    tall = sum(_section_height(section) for section in sections)
    page = Page(style.WIDTH, tall + _BAR, title=title, note=note)
    y = 0.0
    for section in sections:
        y = _draw_section(page, y, section)
    _draw_scale(page, y)
    return page.save(path)


def _joined(shares: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    return np.concatenate([np.asarray(grid, np.float64).reshape(-1) for grid in shares.values()])


def _check(panel: Panel) -> None:
    if panel.shares is None:
        return
    if panel.shares.keys() - panel.canvases.keys():
        raise InputError(
            f"map {panel.label!r} covers {list(panel.shares)}, but the panel shows "
            f"{list(panel.canvases)}; give a canvas for each modality"
        )
    total = float(_joined(panel.shares).sum())
    if abs(total - 1.0) > _TOLERANCE or not panel.tokens:
        raise InputError(
            f"map {panel.label!r} has {panel.tokens} tokens and attention that sums to "
            f"{total:.4g}; it must have at least one token and sum to 1"
        )


def _is_wide(panel: Panel) -> bool:
    return len(panel.canvases) > 1 or any(canvas.wide for canvas in panel.canvases.values())


def _width(panel: Panel) -> float:
    return style.WIDTH if _is_wide(panel) else (style.WIDTH + _GAP) / COLUMNS - _GAP


def _canvas_width(panel: Panel) -> float:
    # Several modalities share a row.
    count = len(panel.canvases)
    return (_width(panel) + _GAP) / count - _GAP


def _words(panel: Panel) -> list[str]:
    words = list(panel.notes)
    if panel.shares is None:
        return words
    strongest = strongest_share(panel.shares, panel.tokens)
    full = full_colour(panel.shares, panel.tokens) * panel.tokens
    if len(panel.shares) > 1:
        parts = (f"{n} {style.percent(float(s.sum()))}" for n, s in panel.shares.items())
        words.append(f"attention on {', '.join(parts)}")
    few = STRONGEST * panel.tokens <= 1
    return [
        *words,
        f"strongest {'token' if few else '1 %'}: {style.percent(strongest)}",
        f"full colour: {style.number(full)} x uniform",
    ]


def _lines(panel: Panel) -> tuple[Sequence[str], Sequence[str]]:
    """Wrap label and notes to the panel; wide panels join them."""
    width = _width(panel)
    if _is_wide(panel):
        words = "; ".join(_words(panel))
        joined = f"{panel.label} ({words})" if words else panel.label
        return (), style.wrap(joined, width - _SLACK, style.SMALL_SIZE)
    label = style.wrap(panel.label, width, style.TEXT_SIZE)
    return label, [x for words in _words(panel) for x in style.wrap(words, width, style.SMALL_SIZE)]


def _text_height(panel: Panel) -> float:
    label, words = _lines(panel)
    return len(label) * style.line_height(style.TEXT_SIZE) + len(words) * style.line_height(
        style.SMALL_SIZE
    )


def _body_height(panel: Panel) -> float:
    return max(canvas.height(_canvas_width(panel)) for canvas in panel.canvases.values())


def _rows(section: PanelSection) -> list[list[Panel]]:
    rows: list[list[Panel]] = []
    for panel in section.panels:
        narrow = bool(rows) and not _is_wide(panel) and not _is_wide(rows[-1][0])
        if narrow and len(rows[-1]) < COLUMNS:
            rows[-1].append(panel)
        else:
            rows.append([panel])
    return rows


def _row_height(row: Sequence[Panel]) -> float:
    return max(map(_body_height, row)) + 0.04 + max(map(_text_height, row)) + 0.14


def _header(section: PanelSection) -> tuple[Sequence[str], Sequence[str], float]:
    heading = style.wrap(section.heading, style.WIDTH, style.HEADING_SIZE)
    text = style.wrap(section.text, style.WIDTH - _SLACK, style.SMALL_SIZE)
    tall = len(heading) * style.line_height(style.HEADING_SIZE)
    tall += len(text) * style.line_height(style.SMALL_SIZE)
    return heading, text, tall + (0.06 if tall else 0.0)


def _section_height(section: PanelSection) -> float:
    return _header(section)[2] + sum(map(_row_height, _rows(section))) + 0.08


def _draw_section(page: Page, y: float, section: PanelSection) -> float:
    """Draw one section and return the y of the next."""
    heading, text, tall = _header(section)
    page.lines(0, y, heading, size=style.HEADING_SIZE)
    below = y + len(heading) * style.line_height(style.HEADING_SIZE)
    page.lines(0, below, text, size=style.SMALL_SIZE, color=style.MUTED)
    y += tall
    for row in _rows(section):
        for column, panel in enumerate(row):
            body = max(map(_body_height, row))
            _draw_panel(page, column * (_width(panel) + _GAP), y, body, panel)
        y += _row_height(row)
    return y + 0.08


def _draw_scale(page: Page, y: float) -> None:
    words = "no attention", "full colour or more: stated for each map"
    left = style.text_width(words[0], style.SMALL_SIZE) + 0.1
    page.text(0.0, y, words[0], size=style.SMALL_SIZE, color=style.MUTED)
    axes = page.axes(left, y, _SCALE_WIDTH, _BAR)
    axes.imshow(HEAT(np.linspace(0.0, 1.0, 256))[None], aspect="auto")
    axes.set_axis_off()
    at = left + _SCALE_WIDTH + 0.1
    page.text(at, y, words[1], size=style.SMALL_SIZE, color=style.MUTED)


def _draw_panel(page: Page, x: float, y: float, body: float, panel: Panel) -> None:
    """Draw one map, with its text above wide inputs and below narrow ones."""
    label, words = _lines(panel)
    wide = _is_wide(panel)
    at = y if wide else y + body + 0.04
    page.lines(x, at, label)
    at += len(label) * style.line_height(style.TEXT_SIZE)
    page.lines(x, at, words, size=style.SMALL_SIZE, color=style.INK if wide else style.MUTED)
    top = y + _text_height(panel) + 0.04 if wide else y
    full = full_colour(panel.shares, panel.tokens) if panel.shares is not None else 1.0
    for number, (name, canvas) in enumerate(panel.canvases.items()):
        width = _canvas_width(panel)
        shares = None if panel.shares is None else panel.shares.get(name)
        heat = None if shares is None else np.clip(np.asarray(shares, np.float64) / full, 0.0, 1.0)
        mark = panel.mark[1] if panel.mark is not None and panel.mark[0] == name else ()
        canvas.paint(page, x + number * (width + _GAP), top, width, heat, mark)
