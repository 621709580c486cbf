"""Texts on which attention is drawn as a shaded ground: one cell per character, in a fixed pitch.

Legend: L ids of bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.font_manager import FontProperties, fontManager, get_font
from numpy.typing import NDArray

from perceivers.report import style
from perceivers.report.figures.attention_canvases import HEAT, MARK, Heat, Place
from perceivers.report.page import Page
from perceivers.types import BOS, CLS, EOS, FIRST_BYTE, MASK, PAD, SEP

MONOSPACE = "DejaVu Sans Mono"
# The pitch is whole pixels at the density of the figures, so that long lines do not drift.
PITCH = 14 / style.DPI
SIZE = 14 / style.DPI * 72 / 0.60205
LINE = 30 / style.DPI
# How special ids and invisible characters are shown.
SPECIAL = {
    PAD: "\u2205",
    BOS: "\u00ab",
    EOS: "\u00bb",
    MASK: "\u25a1",
    CLS: "\u25b7",
    SEP: "\u25c1",
}
SPECIAL_NAMES = {PAD: "PAD", BOS: "BOS", EOS: "EOS", MASK: "MASK", CLS: "CLS", SEP: "SEP"}
VISIBLE = {"\n": "\u21b5", "\t": "\u2192", "\r": "\u240d"}
_NO_GLYPH = "\u25a1"
_GROUND = 0.75


@dataclass(frozen=True)
class Cell:
    """One character, or one special id: its glyph and the ids ``[first, end)`` it is made of."""

    glyph: str
    first: int
    end: int
    special: bool = False
    ends_line: bool = False


@dataclass(frozen=True)
class TextCanvas:
    """Ids ``[L]`` of one text; padding at the end is left out and counted."""

    ids: NDArray[Any]
    wide = True

    def height(self, width: float) -> float:
        """Height of all lines."""
        return len(break_lines(split_cells(self.ids), int(width / PITCH))) * LINE

    @property
    def caption(self) -> str:
        """What the special signs in this text are, and how much padding is left out."""
        ids = without_padding(self.ids)
        found = [number for number in SPECIAL if (ids == number).any()]
        words = [f"{SPECIAL[number]} {SPECIAL_NAMES[number]}" for number in found]
        padded = len(self.ids) - len(ids)
        words += [f"{padded} padded places after the end, which nothing can read"] if padded else []
        return "; ".join(words)

    def paint(
        self, page: Page, x: float, y: float, width: float, heat: Heat | None, mark: Place
    ) -> None:
        """Draw the lines on a ground that is shaded by heat."""
        columns = int(width / PITCH)
        lines = break_lines(split_cells(self.ids), columns)
        marked = int(mark[0] * len(self.ids)) if mark else -1
        for row, line in enumerate(lines):
            at = y + row * LINE
            if heat is not None and line:
                strength = [float(heat.reshape(-1)[c.first : c.end].max()) for c in line]
                ground = HEAT(_GROUND * np.asarray(strength))[None, :, :3]
                axes = page.axes(x, at, len(line) * PITCH, LINE)
                axes.imshow(ground, aspect="auto", interpolation="nearest")
                axes.set_axis_off()
            for column, cell in enumerate(line):
                if cell.first <= marked < cell.end:
                    self._frame(page, x + column * PITCH, at)
            plain = "".join(" " if cell.special else cell.glyph for cell in line)
            special = "".join(cell.glyph if cell.special else " " for cell in line)
            _write(page, x, at, plain, style.INK)
            _write(page, x, at, special, MARK)

    def _frame(self, page: Page, x: float, y: float) -> None:
        """Draw a box around the cell that is spoken of."""
        axes = page.axes(x, y, PITCH, LINE)
        axes.patch.set_alpha(0.0)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(color=MARK, linewidth=1.6)


def without_padding(ids: NDArray[Any]) -> NDArray[Any]:
    """Return ids ``[L]`` up to the last that is not padding."""
    real = np.flatnonzero(ids != PAD)
    return ids[: real[-1] + 1] if len(real) else ids[:0]


def split_cells(ids: NDArray[Any]) -> list[Cell]:
    """Divide ids ``[L]`` into characters and special ids; bytes that are no UTF-8 stand alone."""
    shown = without_padding(ids)
    cells: list[Cell] = []
    first = 0
    while first < len(shown):
        value = int(shown[first])
        if value < FIRST_BYTE:
            cells.append(Cell(SPECIAL[value], first, first + 1, special=True))
            first += 1
            continue
        char, size = _read_character(shown[first : first + 4])
        cells.append(Cell(_glyph(char), first, first + size, ends_line=char == "\n"))
        first += size
    return cells


def break_lines(cells: Sequence[Cell], columns: int) -> list[list[Cell]]:
    """Break cells into lines of at most so many, after a space where there is one."""
    lines: list[list[Cell]] = [[]]
    for cell in cells:
        if len(lines[-1]) == columns:
            spaces = [place for place, each in enumerate(lines[-1]) if each.glyph == " "]
            cut = spaces[-1] + 1 if spaces else columns
            lines[-1:] = [lines[-1][:cut], lines[-1][cut:]]
        lines[-1].append(cell)
        if cell.ends_line:
            lines.append([])
    return lines if lines[-1] or len(lines) == 1 else lines[:-1]


def _read_character(ids: NDArray[Any]) -> tuple[str, int]:
    """Return the character at the start of some ids and how many bytes it takes."""
    for size in range(1, len(ids) + 1):
        part = ids[:size]
        if (part < FIRST_BYTE).any():
            break
        try:
            return bytes((part - FIRST_BYTE).astype(np.uint8)).decode("utf-8"), size
        except UnicodeDecodeError:
            continue
    return "\ufffd", 1


def _glyph(char: str) -> str:
    """Return what is printed for a character: one glyph of the fixed pitch."""
    char = VISIBLE.get(char, char)
    face = get_font(fontManager.findfont(FontProperties(family=MONOSPACE)))
    drawable = char.isprintable() and bool(face.get_char_index(ord(char)))
    return char if drawable else _NO_GLYPH


def _write(page: Page, x: float, y: float, line: str, color: str) -> None:
    """Write one line in the fixed pitch."""
    if line.strip():
        axes = page.axes(x, y, max(len(line), 1) * PITCH, LINE)
        axes.set_axis_off()
        axes.text(
            0.0,
            0.28,
            line,
            transform=axes.transAxes,
            fontproperties=FontProperties(family=MONOSPACE, size=SIZE),
            color=color,
            va="baseline",
            parse_math=False,
        )
