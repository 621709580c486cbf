"""Do the loaders keep up: samples per second of a loader alone against a training step's demand.

    python benchmarks/bench_loaders.py --data-root DATA --out results.json

For each recipe: the loader is read alone, with no model, in this process and by one and two
workers; then training steps are computed on one batch that is at hand. The ratio is the loader's
samples per second over the step's. From 1.2 on, a loader that works beside the step never makes it
wait. Times are by the wall clock, after two warm-up batches or steps; workers' start is left out.
With as many workers as cores, the loader alone has the whole machine, and so has the step: a ratio
of r then means that loading costs 1 / r of what the step does. ``cpu`` compares a loader in this
process with the step by the processor's clock, which other programs do not slow down.

The whole pipeline counts: reading, decoding, cropping, other changes, putting the batch together.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from measuring import show
from perceivers.bench.children import describe_machine
from perceivers.data import Batch, make_train_loader
from perceivers.tasks import Task
from perceivers.training.config import TrainConfig, build_config
from perceivers.training.optimizers import make_optimizer
from perceivers.training.run_folder import TASKS
from perceivers.workflows.opening import find_recipe
from perceivers.workflows.task_table import Prepared, tasks

WANTED = 1.2
WARM_UP = 2


@dataclass(frozen=True)
class Case:
    """A recipe on data below the root."""

    recipe: str
    data: str
    labels: tuple[str, ...] = ()


CASES = (
    Case("masked_photographs", "images/trashnet-256"),
    Case("nano_photographs", "images/trashnet-256"),
    Case("hip_photographs", "images/trashnet-256"),
    Case("photographs", "images/trashnet-256"),
    Case("masked_clips", "av/grid-s1"),
    Case("clip_autoencoding", "av/grid-s1"),
    Case("sound_labels", "av/grid-s1", ("command", "digit")),
    Case("sounds", "audio/esc10"),
    Case("spoken_words", "audio/fsdd"),
    Case("point_clouds", "points/omniglot-strokes", ("alphabet",)),
    Case("text_classification", "text/dbpedia14-small"),
    Case("texts", "text/dbpedia14-small"),
    Case("masked_bytes", "text/dbpedia14-small"),
    Case("segmentation", "segmentation/camvid"),
    Case("optical_flow", "warps:images/trashnet-256"),
)


def configure(case: Case, root: Path) -> tuple[str, TrainConfig]:
    """Return the task and the settings of a recipe."""
    settings: dict[str, Any] = yaml.safe_load(find_recipe(case.recipe).text)
    task = settings.pop("task")
    kind, colon, path = case.data.rpartition(":")
    own: dict[str, Any] = {"data": f"{kind}{colon}{root / path}", "out": "unused"}
    if case.labels:
        own["labels"] = list(case.labels)
    return task, build_config(TASKS[task], {**settings, **own})


@dataclass(frozen=True)
class Rate:
    """Samples per second, by the wall clock and of this process's processor time."""

    wall: float
    cpu: float


def loader_rate(prepared: Prepared, config: TrainConfig, workers: int, batches: int) -> Rate:
    """Return the samples per second of a loader alone."""
    # What workers read ahead while the clock does not run must not count.
    count = WARM_UP + batches + 2 * workers
    loader = iter(read(prepared, replace(config, workers=workers), count))
    for _ in range(WARM_UP):
        next(loader)
    began, cpu, samples = time.perf_counter(), time.process_time(), 0
    for batch in loader:
        samples += len(batch)
    return Rate(samples / (time.perf_counter() - began), samples / (time.process_time() - cpu))


def read(prepared: Prepared, config: TrainConfig, num_steps: int) -> Iterator[Batch]:
    """Read the batches of a run's first steps."""
    yield from make_train_loader(
        prepared.dataset.splits["train"],
        prepared.specs,
        batch_size=config.batch_size,
        seed=config.seed,
        augment=config.augment,
        start_step=0,
        num_steps=num_steps,
        workers=config.workers,
    )


def step_rate(task: Task, batch: Batch, config: TrainConfig, steps: int) -> Rate:
    """Return the samples per second that training steps ask for."""
    task.train()
    optimizer = make_optimizer(task.model, config.optimizer)
    began = cpu = 0.0
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            began, cpu = time.perf_counter(), time.process_time()
        task(batch, torch.Generator().manual_seed(step)).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    samples = steps * len(batch)
    return Rate(samples / (time.perf_counter() - began), samples / (time.process_time() - cpu))


def measure(case: Case, root: Path, *, batches: int, steps: int, workers: list[int]) -> dict:
    """Measure one case."""
    name, config = configure(case, root)
    prepared = tasks()[name].prepare(config)
    batch = next(read(prepared, config, 1))
    demand = step_rate(prepared.task, batch, config, steps)
    rates = {str(count): loader_rate(prepared, config, count, batches) for count in workers}
    return {
        "recipe": case.recipe,
        "data": case.data,
        "model": config.model,
        "batch_size": config.batch_size,
        "demand": round(demand.wall, 2),
        "loader": {count: round(rate.wall, 2) for count, rate in rates.items()},
        "ratio": {count: round(rate.wall / demand.wall, 2) for count, rate in rates.items()},
        "cpu_ratio": round(rates["0"].cpu / demand.cpu, 2) if "0" in rates else None,
        "bytes_per_sample": sum(t.nbytes for t in batch.inputs.values()) // len(batch),
        "types": {key: str(t.dtype).removeprefix("torch.") for key, t in batch.inputs.items()},
    }


def main() -> None:
    """Measure the cases and write them."""
    parser = argparse.ArgumentParser(description="Loaders alone against training steps.")
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--recipe", action="append", help="only these; all without")
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    for case in CASES:
        if args.recipe and case.recipe not in args.recipe:
            continue
        rows.append(
            measure(
                case,
                args.data_root,
                batches=args.batches,
                steps=args.steps,
                workers=args.workers,
            )
        )
        print(json.dumps(rows[-1]), file=sys.stderr)
    counts = [str(count) for count in args.workers]
    show(
        "Samples per second: the step's demand, the loader, and their ratio",
        (
            "recipe",
            "model",
            "demand",
            *(f"loader, {count} workers" for count in counts),
            "CPU ratio",
        ),
        [
            (
                row["recipe"],
                row["model"],
                f"{row['demand']:.1f}",
                *(f"{row['loader'][c]:.1f} ({row['ratio'][c]:.2f})" for c in counts),
                str(row["cpu_ratio"]),
            )
            for row in rows
        ],
    )
    slow = [row["recipe"] for row in rows if max(row["ratio"].values()) < WANTED]
    print(f"\nbelow {WANTED}: {', '.join(slow) or 'none'}")
    if args.out:
        record = {"machine": describe_machine(), "command": sys.argv, "rows": rows}
        args.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
