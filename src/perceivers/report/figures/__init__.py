"""Figures of a run, one function each, in the style of ``perceivers.report.style``."""

from perceivers.report.figures.curves import draw_comparison, draw_curves
from perceivers.report.figures.positions import draw_positions
from perceivers.report.figures.reconstruction import draw_mistakes, draw_reconstructions
from perceivers.report.figures.scores import draw_confusion

__all__ = [
    "draw_comparison",
    "draw_confusion",
    "draw_curves",
    "draw_mistakes",
    "draw_positions",
    "draw_reconstructions",
]
