"""Draw what a HiP and what interpolation make of the same visible elements (docs/learning.md).

    python benchmarks/draw_learning.py --images RUN --audio RUN --out docs/images/learning.png

Held-out samples of two pre-training runs, under the masks of their evaluation.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from baseline_elements import Case, open_case
from perceivers.report import style

SHOWN, WINDOW = 4, 320


def draw_images(axes: Sequence[Sequence[Axes]], case: Case) -> None:
    """Draw a row per image: original, visible pixels, linear, Wiener, HiP."""
    titles = ("original", "15 % visible", "linear interpolation", "Wiener", "HiP")
    for row, place in zip(axes, range(SHOWN), strict=True):
        sample, visible, fills = case.fill(place)
        hidden = sample.clone()
        hidden[~visible] = torch.nan
        pictures = [sample, hidden, fills["linear"], fills["wiener"], fills["model"]]
        for axis, picture, title in zip(row, pictures, titles, strict=True):
            shown = case.restore(picture).clamp(0, 1).nan_to_num(nan=0.62)
            axis.imshow(shown.permute(1, 2, 0).numpy(), interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            if place == 0:
                axis.set_title(title, fontproperties=style.font(style.TEXT_SIZE), color=style.INK)


def draw_waveforms(axes: Sequence[Axes], case: Case) -> None:
    """Draw a row per recording: 40 ms around its loudest sample."""
    for axis, place in zip(axes, range(len(axes)), strict=True):
        sample, visible, fills = case.fill(place)
        start = int(sample[:, 0].abs().argmax()) - WINDOW // 2
        part = slice(max(start, 0), max(start, 0) + WINDOW)
        time = torch.arange(WINDOW) / 8.0
        for name, colour, label in (
            ("wiener", style.VERMILION, "Wiener"),
            ("model", style.BLUE, "HiP"),
        ):
            axis.plot(time, fills[name][part, 0], color=colour, lw=1.1, label=label)
        axis.plot(time, sample[part, 0], color=style.MUTED, lw=0.8, label="original")
        seen = visible[part]
        axis.plot(time[seen], sample[part, 0][seen], "o", ms=3, color=style.INK, label="visible")
        axis.set_xlim(0, float(time[-1]))
        axis.tick_params(labelsize=style.SMALL_SIZE, colors=style.MUTED)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0].legend(ncols=4, frameon=False, prop=style.font(style.SMALL_SIZE), loc="lower right")
    axes[-1].set_xlabel("milliseconds", fontproperties=style.font(style.TEXT_SIZE))


def main(argv: Sequence[str] | None = None) -> None:
    """Draw one picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--audio", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    figure = Figure(figsize=(style.WIDTH, 12.0), dpi=style.DPI, layout="constrained")
    parts = figure.subfigures(2, 1, height_ratios=(7.4, 4.6))
    above, below = np.asarray(parts).ravel()
    draw_images(above.subplots(SHOWN, 5), open_case(args.images, "image", SHOWN))
    draw_waveforms(below.subplots(2, 1), open_case(args.audio, "audio", SHOWN))
    figure.savefig(args.out)


if __name__ == "__main__":
    main()
