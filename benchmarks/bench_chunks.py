"""HiP's first read in chunks beside the same read as a whole: training steps, taking turns.

    python benchmarks/bench_chunks.py --sizes 1024 2048 4096 --rounds 5 --out results.json

One process, forward and backward pass at batch 1 on uint8 pixels. A ratio is the median of the
ratios of neighbours, with its range.
"""

import argparse
import datetime
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import perceivers as pv
from measuring import show
from perceivers.bench.children import describe_machine
from perceivers.nn.chunking import use_chunks


def step(model: nn.Module, raw: Tensor, *, chunks: bool) -> float:
    """Return the seconds of a training step."""
    model.zero_grad()
    began = time.perf_counter()
    with use_chunks(on=chunks):
        model(raw).square().mean().backward()
    return time.perf_counter() - began


def main() -> None:
    """Measure, print a table and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="hip_256")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("chunks.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results: dict[str, Any] = {}
    rows = []
    for size in args.sizes:
        inputs = {"image": pv.Image(size, size, 3)}
        model = pv.create_model(args.model, inputs=inputs, num_classes=10)
        raw = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8)
        for chunks in (False, True):
            step(model, raw, chunks=chunks)  # not counted
        pairs = [
            (step(model, raw, chunks=False), step(model, raw, chunks=True))
            for _ in range(args.rounds)
        ]
        results[str(size)] = pairs
        gains = [whole / cut for whole, cut in pairs]
        whole, cut = (median(column) for column in zip(*pairs, strict=True))
        gain = f"{median(gains):.2f} [{min(gains):.2f}-{max(gains):.2f}]"
        rows.append([str(size), f"{whole:.2f} s", f"{cut:.2f} s", gain])
        del model, raw
    date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    record = {"date": date, "machine": describe_machine(), "model": args.model, "steps": results}
    args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    show(f"{args.model}, training step", ["pixels", "whole", "in chunks", "ratio"], rows)


if __name__ == "__main__":
    main()
