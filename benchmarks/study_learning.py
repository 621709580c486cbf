"""What each setting of a small HiP is worth on raw images and raw audio, by leaving it out.

    python benchmarks/study_learning.py --data-root DATA --seeds 0 1 2

Trains masked autoencoders from the recipes ``raw_images`` and ``raw_audio``, shortened, with equal
steps in all arms, and reports the held-out error of hidden elements over the seeds. Finished runs
in ``--out`` are kept, so an interrupted study continues where it was.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perceivers.models import HiPConfig
from perceivers.models.hip.variants import LEARNABLE

Options = dict[str, Any]

# What the recipes set (layers among elements: those of raw_images), and the same as released.
OURS: Options = {**LEARNABLE, "element_layers": 3}
RELEASED: Options = {name: HiPConfig.__dataclass_fields__[name].default for name in OURS}
# Arm -> fields of the model that differ from the recipe's, and the optimizer.
ARMS: dict[str, tuple[Options, Sequence[str]]] = {
    "ours": ({}, ()),
    "as released, AdamW": (RELEASED, ("--optimizer.name", "adamw", "--optimizer.lr", "1e-3")),
    "without query_elements": ({"query_elements": False}, ()),
    "without embed_scale": ({"embed_scale": 1.0}, ()),
    "without products": ({"position_product": False, "query_product": False}, ()),
    "without waves": ({"position_init": "normal"}, ()),
    "with AdamW": ({}, ("--optimizer.name", "adamw")),
    "without blocks": ({"element_order": "raster"}, ()),
    "without element_layers": ({"element_layers": 0}, ()),
}
# Recipe, data below the root, steps; audio has one axis, so blocks are strips there.
SETS: dict[str, tuple[str, int]] = {
    "raw_images": ("images/trashnet-256", 100),
    "raw_audio": ("audio/fsdd", 150),
}


def train(recipe: str, arm: str, seed: int, root: Path, out: Path) -> float:
    """Return the validation error of one run, trained unless it is there."""
    data, steps = SETS[recipe]
    options, flags = ARMS[arm]
    folder = out / f"{recipe}-{arm.replace(' ', '_').replace(',', '')}-{seed}"
    metrics = folder / "metrics.jsonl"
    if not (folder / "report.html").is_file():
        command = [sys.executable, "-m", "perceivers", "pretrain", "--config", recipe]
        command += ["--data", str(root / data), "--out", str(folder), "--overwrite", *flags]
        command += ["--seed", str(seed), "--steps", str(steps), "--eval_every", str(steps)]
        command += ["--precision", "float32", "--model_options", json.dumps(OURS | options)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [float(record["loss"]) for record in records if record.get("split") == "val"][-1]


def main(argv: Sequence[str] | None = None) -> None:
    """Train, and print a table per recipe after every seed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/study_learning"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, list[float]]] = {recipe: {} for recipe in args.sets}
    for seed in args.seeds:
        for arm in args.arms:
            for recipe in args.sets:
                if recipe == "raw_audio" and arm == "without blocks":
                    continue
                error = train(recipe, arm, seed, args.data_root, args.out)
                found[recipe].setdefault(arm, []).append(round(error, 4))
                (args.out / "errors.json").write_text(json.dumps(found, indent=1) + "\n")
    for recipe, arms in found.items():
        print(f"\n{recipe}, {SETS[recipe][1]} steps: mean over {len(args.seeds)} seeds (range)")
        for arm, errors in arms.items():
            mean, low, high = statistics.mean(errors), min(errors), max(errors)
            print(f"  {arm:24} {mean:.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
