"""The one look of all figures: colours, sizes, and text that is measured before it is drawn.

Lengths are inches, font sizes are points. Figures are saved at twice the density of a browser,
where one inch is 96 pixels; at half their pixel size, a 9.5 point font reads as 12.7 CSS pixels.
Everything is passed explicitly and nothing is read from or written to matplotlib's global settings.
"""

from collections.abc import Sequence

from matplotlib.font_manager import FontProperties, fontManager, get_font
from matplotlib.textpath import text_to_path

WIDTH = 9.0
DENSITY = 2
DPI = 96 * DENSITY

# Bundled with matplotlib, so that figures look the same on every machine.
FONT = "DejaVu Sans"
TITLE_SIZE = 13.0
HEADING_SIZE = 10.0
TEXT_SIZE = 9.5
SMALL_SIZE = 8.5

INK = "#1f2430"
MUTED = "#646c7a"
FRAME = "#b9bfca"
FAINT = "#e6e9ee"
PAPER = "#ffffff"
# Slightly blue, so that a hidden pixel is not mistaken for a grey one of the picture.
HIDDEN = (0.58, 0.60, 0.65)

# Okabe and Ito's palette: told apart by readers with any common colour blindness.
BLUE = "#0072b2"
VERMILION = "#d55e00"
GREEN = "#009e73"
PURPLE = "#a8578a"
CYCLE = (BLUE, VERMILION, GREEN, PURPLE)
DIVERGING = "RdBu_r"
SEQUENTIAL = "Blues"

HAIRLINE = 0.6
LINE_SPACING = 1.35

_POINTS_PER_INCH = 72.0
_ELLIPSIS = "\u2026"
_NO_GLYPH = "\u25a1"


def font(size: float) -> FontProperties:
    """Return the figure font at a size in points."""
    return FontProperties(family=FONT, size=size)


def line_height(size: float) -> float:
    """Return the distance between two base lines, in inches."""
    return size * LINE_SPACING / _POINTS_PER_INCH


def printable(words: str) -> str:
    """Put text on one line and swap characters the font cannot draw for an empty box.

    Class names may hold any character; matplotlib would warn about every missing one.
    """
    face = get_font(fontManager.findfont(font(TEXT_SIZE)))
    line = " ".join(words.split())
    return "".join(char if face.get_char_index(ord(char)) else _NO_GLYPH for char in line)


def text_width(words: str, size: float) -> float:
    """Return the width of one line of text, in inches."""
    width, _, _ = text_to_path.get_text_width_height_descent(printable(words), font(size), False)
    return float(width) / _POINTS_PER_INCH


def shorten(words: str, width: float, size: float) -> str:
    """Return the longest start of a text that fits a width, with an ellipsis where it was cut."""
    words = printable(words)
    if text_width(words, size) <= width:
        return words
    while words and text_width(words + _ELLIPSIS, size) > width:
        words = words[:-1].rstrip()
    return words + _ELLIPSIS


def wrap(words: str, width: float, size: float) -> Sequence[str]:
    """Break a text into lines no wider than a width, at spaces."""
    lines: list[str] = []
    for word in printable(words).split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(joined, size) <= width:
            lines[-1] = joined
        else:
            lines.append(shorten(word, width, size))
    return lines


def number(value: float, digits: int = 3) -> str:
    """Format a number for a reader: ``12,345``, ``0.125``, ``3.8e-5``."""
    size = abs(value)
    if size == 0:
        return "0"
    if size < 1e-3 or size >= 1e6:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{int(exponent)}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def percent(share: float, digits: int = 1) -> str:
    """Format a share of one as ``97.8 %``; only nothing is ``0 %`` and only all is ``100 %``."""
    value = 100 * share
    if value in {0.0, 100.0}:
        return f"{value:.0f} %"
    while digits < 4 and float(f"{value:.{digits}f}") in {0.0, 100.0}:
        digits += 1
    return f"{value:.{digits}f} %"
