"""float32 beside bf16 autocast on a CPU: the same steps, several seeds, the losses that come out.

    python benchmarks/compare_precision.py --data ../shared/data --out results.json

Each recipe is trained for ``--steps`` steps in both precisions with the same seeds, so with the
same weights, order and masks. Printed are the validation loss of each, mean and range over seeds,
the mean training loss of the last 50 steps, and the ratio of processor times.
"""

import argparse
import datetime
import json
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch

import perceivers as pv
from measuring import show
from perceivers.bench.children import describe_machine
from perceivers.training.config import read_yaml
from perceivers.workflows.opening import settings_file

# Recipe: verb, data below --data, and what makes 200 steps take a minute.
RECIPES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "hip_photographs": ("pretrain", "images/trashnet-256", {"batch_size": 16}),
    "masked_photographs": ("pretrain", "images/trashnet-256", {"batch_size": 16}),
    "texts": ("train", "text/banking77", {"batch_size": 16}),
}


def run(name: str, data: Path, precision: str, seed: int, steps: int) -> dict[str, float]:
    """Train, and return validation loss, training loss and processor time."""
    verb, address, changes = RECIPES[name]
    settings = {**read_yaml(settings_file(name)), **changes, "precision": precision, "seed": seed}
    settings |= {"steps": steps, "eval_every": steps, "checkpoint_every": steps, "log_every": 10}
    settings |= {"device": "cpu", "data": str(data / address), "quiet": True}
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        done = getattr(pv, verb)(**settings, out=str(Path(folder) / "run"))
        seconds = time.process_time() - began
        lines = (done.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    losses = {
        split: [record["loss"] for record in records if record["split"] == split]
        for split in ("train", "val")
    }
    return {
        "validation": losses["val"][-1],
        "training": mean(losses["train"][-5:]),
        "seconds": seconds,
    }


def main() -> None:
    """Compare, print a table and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("precision.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results: dict[str, Any] = {}
    rows = []
    for name in args.recipes:
        found: dict[str, list[dict[str, float]]] = {"float32": [], "bf16": []}
        for seed in args.seeds:
            for precision, each in found.items():
                each.append(run(name, args.data, precision, seed, args.steps))
        results[name] = found
        seconds = {key: sum(each["seconds"] for each in runs) for key, runs in found.items()}
        for precision, runs in found.items():
            values = [each["validation"] for each in runs]
            rows.append(
                [
                    name,
                    precision,
                    f"{mean(values):.4f} [{min(values):.4f}, {max(values):.4f}]",
                    f"{mean(each['training'] for each in runs):.4f}",
                    f"{seconds['float32'] / seconds[precision]:.2f}",
                ]
            )
        date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
        record = {"date": date, "machine": describe_machine(), "steps": args.steps}
        args.out.write_text(
            json.dumps({**record, "seeds": args.seeds, "runs": results}, indent=1) + "\n",
            encoding="utf-8",
        )
    columns = ["recipe", "precision", "validation loss [range]", "training loss", "speed"]
    show(f"{args.steps} steps, {len(args.seeds)} seeds", columns, rows)


if __name__ == "__main__":
    main()
