"""What compiling a model's parts gives, and how long it takes first: a step and features.

    python benchmarks/bench_compile.py --out results.json

One small model of each family. A step is forward and backward of its task, features are what
``embed`` computes. Both ways run in one process and in turn, A B A B, on the same compiled model:
the uncompiled way leaves the compiled code aside. A ratio is the median of the ratios of
neighbours, with its range, in wall and in process CPU time. Warm-up is measured twice: with an
empty cache of compiled code, and with the one that this leaves on the disk, as a second run finds
it.
"""

import argparse
import datetime
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import perceivers as pv
from measuring import keep_freed_memory, measure_times, ratios, show, show_ratios
from perceivers.bench.children import describe_machine
from perceivers.data import Batch
from perceivers.models.compiling import CompiledParts
from perceivers.tasks import (
    Classification,
    ClassificationConfig,
    MaskedAutoencoding,
    MaskedAutoencodingConfig,
    MaskedLanguage,
    MaskedLanguageConfig,
    Task,
)

CLASSES = 10


@dataclass(frozen=True)
class Case:
    """A model, its task and how many samples it is given."""

    name: str
    task: Callable[[], Task]
    batch: int


def classify(name: str, side: int) -> Task:
    """Make a classifier of square images."""
    model = pv.create_model(name, inputs={"image": pv.Image(side, side)}, num_classes=CLASSES)
    return Classification(model, CLASSES, ClassificationConfig())


def hide_patches(name: str, side: int) -> Task:
    """Make a masked autoencoder of square images."""
    model = pv.create_model(name, inputs={"image": pv.Image(side, side)})
    return MaskedAutoencoding(model, MaskedAutoencodingConfig())


def hide_bytes(name: str, length: int) -> Task:
    """Make a model of masked bytes."""
    model = pv.create_model(name, inputs={"bytes": pv.Bytes(length)})
    return MaskedLanguage(model, MaskedLanguageConfig())


CASES: Mapping[str, Case] = {
    "hip": Case("hip_tiny, 64 x 64, masked", lambda: hide_patches("hip_tiny", 64), 8),
    "perceiver": Case("perceiver_tiny, 64 x 64", lambda: classify("perceiver_tiny", 64), 8),
    "perceiver_io": Case(
        "perceiver_io_text_tiny, 512 bytes, masked",
        lambda: hide_bytes("perceiver_io_text_tiny", 512),
        8,
    ),
    "hiera": Case("hiera_tiny_224", lambda: classify("hiera_tiny_224", 224), 2),
}


def make_batch(model: Any, size: int) -> Batch:
    """Draw samples and labels."""
    generator = torch.Generator().manual_seed(0)
    inputs = {
        name: torch.randint(1, 256, (size, *spec.raw_shape), generator=generator)
        for name, spec in model.config.data_inputs.items()
    }
    inputs = {n: x if n == "bytes" else x.to(torch.uint8) for n, x in inputs.items()}
    index = torch.arange(size)
    return Batch(inputs, index % CLASSES, index, [], position=index)


class Subject:
    """A case as it is run, one way or the other."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        self.size = case.batch
        self.task = case.task()
        self.batch = make_batch(self.task.model, case.batch)
        self.compile()

    def compile(self) -> None:
        """Begin again without compiled code in memory."""
        torch.compiler.reset()
        self.parts = CompiledParts(self.task.model, [self.size])

    def step(self, *, compiled: bool) -> None:
        """Run forward and backward once."""
        self.task.train()
        torch.manual_seed(0)
        with self.parts.batch(self.size if compiled else 0):
            self.task(self.batch, torch.Generator().manual_seed(0)).total.backward()
        self.task.zero_grad()

    def embed(self, *, compiled: bool) -> None:
        """Compute features once."""
        self.task.eval()
        with torch.no_grad(), self.parts.batch(self.size if compiled else 0):
            self.task.model.forward_features(self.batch.inputs)

    def warm_up(self) -> list[float]:
        """Return the seconds of compiling for steps, and for features beside them."""
        self.compile()
        self.step(compiled=True)
        first = self.parts.seconds
        self.embed(compiled=True)
        return [round(first, 1), round(self.parts.seconds - first, 1)]


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Measure one case."""
    subject = Subject(case)
    row: dict[str, Any] = {"model": case.name, "batch": case.batch, "cold": subject.warm_up()}
    row |= {"cached": subject.warm_up(), "parts": subject.parts.num_parts}
    row["graphs"] = subject.parts.num_graphs
    for name, run in (("step", subject.step), ("features", subject.embed)):
        runs = {
            "theirs": lambda run=run: run(compiled=False),
            "ours": lambda run=run: run(compiled=True),
        }
        row[name] = ratios(measure_times(runs, rounds))
    return row


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--cache", type=Path, help="compiled code to begin with and to keep; none when not given"
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    results: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(),
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(args.cache or cache)
        for name in args.cases:
            results["rows"].append(measure(CASES[name], args.rounds))
            if args.out:
                args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    rows = [
        (
            f"{row['model']}, batch {row['batch']}",
            f"{row['parts']} in {row['graphs']}",
            *(
                f"{show_ratios(row[n])}, {row[n]['cpu']['seconds'][1]:.2f} s"
                for n in ("step", "features")
            ),
            *(f"{row[n][0]:.0f} s + {row[n][1]:.0f} s" for n in ("cold", "cached")),
        )
        for row in results["rows"]
    ]
    columns = ("model", "parts in graphs", "step", "features", "warm-up", "from the cache")
    show("uncompiled / compiled in time (wall / processor), uncompiled seconds", columns, rows)


if __name__ == "__main__":
    main()
