"""What saving costs a run: how long the steps wait, and what they lose to a writer beside them.

    python benchmarks/bench_saving.py --out benchmarks/results/saving.json

One real run, in blocks of steps that take turns: ``none`` saves nothing, ``waiting`` begins with a
save that the steps wait for, ``beside`` with one that is written beside them, as runs do it. A
block waits for its save at its end, if that is still being written. The seconds that a block takes
longer than the ``none`` before it are the cost of its save, put beside the steps of ``EVERY``.
Medians over rounds, by the wall clock and by the processor's.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from measuring import show
from perceivers.bench.children import describe_machine
from perceivers.training.loop import Trainer
from perceivers.workflows import run as run_module
from perceivers.workflows.training import pretrain

EVERY = 50
WAYS = ("none", "waiting", "beside")


@dataclass(frozen=True)
class Case:
    """A model at 224 pixels, and how many pictures a step takes."""

    model: str
    batch_size: int


CASES = (Case("hip_mini", 2), Case("hiera_tiny_224", 4))


@dataclass
class Block:
    """Seconds that steps took with the save before them, and that they waited for the save."""

    way: str
    wall: float
    cpu: float
    wait: float = 0.0


@contextmanager
def timed(blocks: list[Block]) -> Iterator[None]:
    """Time the blocks of a trainer, which end where it would save."""
    begin, evaluate = Trainer._begin_saving, Trainer._evaluate

    def next_block(trainer: Trainer) -> None:
        now = time.perf_counter()
        trainer._finish_saving()
        if blocks and blocks[-1].wall < 0:
            blocks[-1].wait += time.perf_counter() - now
            blocks[-1].wall += time.perf_counter()
            blocks[-1].cpu += time.process_time()
        if not trainer.progress.step or trainer.progress.step == trainer.config.total_steps:
            begin(trainer)  # the first save of a run, and its last, are no part of the loop
            trainer._finish_saving()
        way = WAYS[len(blocks) % len(WAYS)]
        now = time.perf_counter()
        block = Block(way, -now, -time.process_time())
        if way != "none":
            trainer._saved_step = -1
            begin(trainer)
        if way == "waiting":
            trainer._finish_saving()
        block.wait = time.perf_counter() - now
        blocks.append(block)

    def choose(trainer: Trainer) -> None:
        trainer.progress.best = 0.0

    patched: Any = Trainer
    patched._begin_saving, patched._evaluate = next_block, choose
    try:
        yield
    finally:
        patched._begin_saving, patched._evaluate = begin, evaluate


def measure(case: Case, *, rounds: int, steps: int, folder: Path | None) -> dict[str, Any]:
    """Run a case."""
    blocks: list[Block] = []
    # The round before the first counts as warm-up: the copy's memory is fresh then.
    count = len(WAYS) * (rounds + 1)
    with timed(blocks), tempfile.TemporaryDirectory(dir=folder) as out:
        pretrain(
            model=case.model,
            data="digits",
            size=224,
            out=f"{out}/run",
            steps=count * steps,
            batch_size=case.batch_size,
            checkpoint_every=steps,
            device="cpu",
            precision="float32",
            memory_limit=0.0,
            quiet=True,
        )
    found = [blocks[at : at + len(WAYS)] for at in range(len(WAYS), count, len(WAYS))]
    figures = {
        way: {
            "wait_seconds": _spread([each[place].wait for each in found]),
            "wait": _spread([_part(each[place].wait, each[0].wall / steps) for each in found]),
            **{
                f"slower_{clock}": _spread(
                    [
                        (getattr(each[place], clock) - getattr(each[0], clock))
                        / (EVERY * getattr(each[0], clock) / steps)
                        for each in found
                    ]
                )
                for clock in ("wall", "cpu")
            },
        }
        for place, way in enumerate(WAYS)
        if place
    }
    seconds = _spread([each[0].wall / steps for each in found])
    return {"model": case.model, "batch_size": case.batch_size, "step_seconds": seconds, **figures}


def _part(wait: float, step: float) -> float:
    return wait / (EVERY * step + wait)


def _spread(values: list[float]) -> list[float]:
    return [round(pick(values), 4) for pick in (median, min, max)]


def main() -> None:
    """Measure the cases and write them."""
    parser = argparse.ArgumentParser(description="What saving costs a run.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=8, help="of a block")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", action="append", help="only these; all without")
    parser.add_argument("--folder", type=Path, help="where run folders are made, on a real disk")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    run_module.write_run_report = lambda folder: folder.report
    rows = []
    for case in CASES:
        if not args.model or case.model in args.model:
            rows.append(measure(case, rounds=args.rounds, steps=args.steps, folder=args.folder))
            print(json.dumps(rows[-1]), file=sys.stderr)
    show(
        f"Cost of a save every {EVERY} steps, in percent of the steps: median [range]",
        ("model", "way", "steps wait", "longer, wall", "longer, CPU", "seconds that steps wait"),
        [
            (
                row["model"],
                way,
                *(percent(row[way][name]) for name in ("wait", "slower_wall", "slower_cpu")),
                f"{row[way]['wait_seconds'][0]:.2f}",
            )
            for row in rows
            for way in WAYS[1:]
        ],
    )
    if args.out:
        record = {"machine": describe_machine(), "command": sys.argv, "rows": rows}
        args.out.write_text(json.dumps(record, indent=2) + "\n")


def percent(values: list[float]) -> str:
    """Format a median with its range."""
    middle, least, most = (100 * value for value in values)
    return f"{middle:.1f} [{least:.1f}-{most:.1f}]"


if __name__ == "__main__":
    main()
