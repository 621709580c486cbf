"""End-point error of no motion, and of Lucas and Kanade's least squares, on generated frame pairs.

    python benchmarks/baseline_flow.py PHOTOGRAPHS --max_flow 3

Shows how much of the motion the pairs give away. Grey frames; central differences of their mean;
least squares over a square window around every pixel, slightly regularised, answers cut to the
largest motion.
"""

import argparse
import math
from collections.abc import Sequence
from statistics import mean
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from perceivers.data import Source, open_data
from perceivers.data.flow_pairs import make_warps
from perceivers.tasks.flow import end_point_error

REGULARISER = 1e-3


def slopes(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences along rows and columns, edges repeated."""
    padded = F.pad(frames.unsqueeze(1), (1, 1, 1, 1), mode="replicate").squeeze(1)
    along_x = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2
    along_y = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2
    return along_x, along_y


def least_squares(video: Tensor, window: int) -> Tensor:
    """Return flow ``[B, 2, H, W]`` of pairs ``[B, 3, 2, H, W]``."""
    first, second = (video.float().mean(1) / 255).unbind(1)
    x, y = slopes((first + second) / 2)
    t = second - first

    def around(values: Tensor) -> Tensor:
        padding = window // 2
        pooled = F.avg_pool2d(values.unsqueeze(1), window, 1, padding, count_include_pad=False)
        return pooled.squeeze(1)

    xx, xy, yy = around(x * x) + REGULARISER, around(x * y), around(y * y) + REGULARISER
    xt, yt = around(x * t), around(y * t)
    determinant = xx * yy - xy * xy
    u, v = (xy * yt - yy * xt) / determinant, (xy * xt - xx * yt) / determinant
    return torch.stack([u, v], 1)


def mean_error(pairs: Source, window: int, most: float = math.inf) -> float:
    """Return the end-point error in pixels of least squares, the mean over pairs of any size.

    Args:
        pairs: Samples with ``video`` and ``flow``.
        window: Side of the square around a pixel; 0 answers that nothing moves.
        most: Pixels that answers are cut to.
    """
    errors = []
    for index in range(len(pairs)):
        sample = pairs.read(index)
        video, flow = (torch.from_numpy(sample[name])[None] for name in ("video", "flow"))
        found = least_squares(video, window).clamp(-most, most) if window else flow * 0
        errors.append(float(end_point_error(found, flow)))
    return mean(errors)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("photographs")
    parser.add_argument("--max_flow", type=float, default=3.0)
    parser.add_argument("--split", default="val")
    args = parser.parse_args(argv)
    splits = open_data(args.photographs).splits
    made = make_warps(splits, height=48, width=64, max_flow=args.max_flow)
    # A cached property is one to the protocol, whatever the checker says.
    pairs = cast(Source, made[args.split])
    print(f"{len(pairs)} pairs, zero flow: {mean_error(pairs, 0):.4f} pixels")
    for window in (5, 15, 31):
        print(f"windows of {window}: {mean_error(pairs, window, args.max_flow):.4f} pixels")


if __name__ == "__main__":
    main()
