"""Figures of a run, one function each; all share the look of ``perceivers.report.style``."""

from perceivers.report.figures.comparison import draw_comparison
from perceivers.report.figures.confusion import draw_confusion
from perceivers.report.figures.curves import draw_curves
from perceivers.report.figures.pictures import draw_mistakes, draw_reconstructions
from perceivers.report.figures.positions import draw_positions

__all__ = [
    "draw_comparison",
    "draw_confusion",
    "draw_curves",
    "draw_mistakes",
    "draw_positions",
    "draw_reconstructions",
]
