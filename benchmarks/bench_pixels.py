"""Time and peak memory of a training step of HiP-256 on one image of many raw pixels.

    python benchmarks/bench_pixels.py --side 8192 --stride 8

Forward and backward pass of a classifier in float32 on uint8 pixels, without an optimizer, twice;
the second pass counts. With ``--stride`` above 1, positions are interpolated (``position_stride``).
"""

import argparse
import json
import resource
import time
from collections.abc import Sequence

import torch
from torch.nn import functional as F

import perceivers as pv


def measure(side: int, stride: int, model: str) -> dict[str, float]:
    """Return seconds of the second step and the peak memory of the process in GB."""
    inputs = {"image": pv.Image(side, side, 3)}
    net = pv.create_model(model, inputs=inputs, num_classes=1000, position_stride=stride).train()
    pixels = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8)
    seconds = 0.0
    for _ in range(2):
        net.zero_grad()
        began = time.perf_counter()
        F.cross_entropy(net(pixels), torch.tensor([3])).backward()
        seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"pixels": side * side, "seconds": round(seconds, 2), "peak_gb": round(peak, 2)}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--side", type=int, default=8192, help="pixels per side")
    parser.add_argument("--stride", type=int, default=8, help="cells per learned position and axis")
    parser.add_argument("--model", default="hip_256")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    print(json.dumps(vars(args) | measure(args.side, args.stride, args.model)))


if __name__ == "__main__":
    main()
