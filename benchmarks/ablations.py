"""The HiP paper's questions at small scale, with several seeds: positions, masks, shuffled pixels.

    python benchmarks/ablations.py digits
    python benchmarks/ablations.py PICTURES --size 32 --steps 600 --name photographs

A row per condition: learned or Fourier positions, masked autoencoding first or not, pixels
in their places or all shuffled by one fixed permutation. All fine-tune for as many steps. Then HiP
and Perceiver IO train from scratch for the same processor time. Every run leaves a JSON line in
benchmarks/results/ablations; what is there is not done again. Paper: arXiv 2202.10890, Sec. 4.4.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import perceivers as pv
from perceivers.bench.children import describe_machine
from perceivers.checkpoints.loading import transfer_encoder
from perceivers.data import make_eval_loader, open_data
from perceivers.training.config import OptimizerConfig, ScheduleConfig
from perceivers.training.optimizers import make_optimizer, schedule_scale, set_learning_rate

RESULTS = Path(__file__).parent / "results" / "ablations"
BATCH = 64
RATIO = 0.75
LossOf = Callable[[torch.Generator], Tensor]


@dataclass
class Pictures:
    """All pictures and labels of the splits in memory."""

    images: dict[str, Tensor]
    labels: dict[str, Tensor]
    specs: Any
    num_classes: int

    def shuffled(self) -> "Pictures":
        """Return the same pictures with their pixels in another order, the same in all."""
        height, width = next(iter(self.images.values())).shape[-2:]
        order = torch.randperm(height * width, generator=torch.Generator().manual_seed(7))
        moved = {
            split: x.flatten(2)[:, :, order].unflatten(2, (height, width))
            for split, x in self.images.items()
        }
        return Pictures(moved, self.labels, self.specs, self.num_classes)


def read(address: str, size: int | None) -> Pictures:
    """Read train and test."""
    data = open_data(address)
    specs = data.specs(size=size)
    images, labels = {}, {}
    for split in ("train", "test"):
        batches = list(make_eval_loader(data.splits[split], specs, batch_size=256))
        images[split] = torch.cat([batch.inputs["image"] for batch in batches])
        labels[split] = torch.cat([b.labels for b in batches if b.labels is not None])
    return Pictures(images, labels, specs, len(data.classes))


def optimise(
    model: Any, rate: float, loss_of: LossOf, seed: int, *, steps: int = 0, seconds: float = 0.0
) -> int:
    """Train for so many steps, or so much processor time; return the steps taken."""
    optimizer = make_optimizer(model, OptimizerConfig(lr=rate))
    generator = torch.Generator().manual_seed(seed)
    model.train()
    began, step = time.process_time(), 0
    while True:
        done = step / steps if steps else (time.process_time() - began) / seconds
        if done >= 1.0:
            return step
        scale = schedule_scale(ScheduleConfig(), int(done * 10_000), 10_000)
        set_learning_rate(optimizer, rate * scale)
        loss_of(generator).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1


def classify(model: Any, pictures: Pictures, seed: int, **budget: float) -> dict[str, float]:
    """Train a classifier and return its accuracy on test."""
    images, labels = pictures.images["train"], pictures.labels["train"]

    def cross_entropy(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(images), (BATCH,), generator=generator)
        return F.cross_entropy(model(images[index]), labels[index], label_smoothing=0.1)

    steps = optimise(model, 1e-3, cross_entropy, seed, **budget)  # pyright: ignore
    model.eval()
    with torch.no_grad():
        parts = [model(x).argmax(-1) for x in pictures.images["test"].split(256)]
    right = torch.cat(parts) == pictures.labels["test"]
    return {"top1": float(right.float().mean()), "steps": steps}


def ablate(
    pictures: Pictures, positions: str, masked: bool, steps: int, seed: int
) -> dict[str, float]:
    """Pre-train (or not) and fine-tune a HiP once."""
    torch.manual_seed(seed)
    options: dict[str, Any] = {"inputs": pictures.specs, "positions": positions}
    classifier: Any = pv.create_model("hip_nano", num_classes=pictures.num_classes, **options)
    images = pictures.images["train"]
    if masked:
        model: Any = pv.create_model("hip_nano", **options)

        def reconstruction(generator: torch.Generator) -> Tensor:
            index = torch.randint(len(images), (BATCH,), generator=generator)
            plan = pv.draw_mask_plan(model.layout(), BATCH, ratio=RATIO, generator=generator)
            return pv.mae_losses(model, {"image": images[index]}, plan).total

        optimise(model, 2e-3, reconstruction, seed, steps=2 * steps)
        transfer_encoder(model, classifier)
    return classify(classifier, pictures, seed, steps=steps)


def conditions(args: argparse.Namespace) -> list[tuple[str, Callable[[int], dict[str, float]]]]:
    """Name every condition and what runs it with a seed."""
    plain = read(args.data, args.size)
    sets = {"in place": plain, "shuffled": plain.shuffled()}
    found: list[tuple[str, Callable[[int], dict[str, float]]]] = []
    for order, positions, masked in product(sets, ("learned", "fourier"), (True, False)):
        name = f"HiP, {positions}, {'with' if masked else 'without'} MAE, {order}"

        def run(
            seed: int, order: str = order, positions: str = positions, masked: bool = masked
        ) -> dict[str, float]:
            return ablate(sets[order], positions, masked, args.steps, seed)

        found.append((name, run))
    for family in ("hip_nano", "perceiver_io_nano", "hip_tiny", "perceiver_io_tiny"):

        def compare(seed: int, family: str = family) -> dict[str, float]:
            torch.manual_seed(seed)
            model = pv.create_model(family, inputs=plain.specs, num_classes=plain.num_classes)
            return classify(model, plain, seed, seconds=args.seconds)

        found.append((f"{family}, {args.seconds:g} s from scratch", compare))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data")
    parser.add_argument("--name", default="digits", help="of the results' file")
    parser.add_argument("--size", type=int, default=None)
    parser.add_argument("--steps", type=int, default=400, help="of fine-tuning; MAE takes twice")
    parser.add_argument("--seconds", type=float, default=40.0, help="of the equal-time runs")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    path = RESULTS / f"{args.name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []
    done = {(record["condition"], record["seed"]): record for record in records}
    for seed, (name, run) in product(range(args.seeds), conditions(args)):
        if (name, seed) in done:
            continue
        began = time.process_time()
        figures = run(seed)
        record = {"condition": name, "seed": seed, **figures}
        record |= {"cpu_seconds": round(time.process_time() - began, 1)}
        record |= {"settings": vars(args), "machine": describe_machine()}
        done[name, seed] = record
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(f"{name}, seed {seed}: {100 * figures['top1']:.1f} %", flush=True)
    print("| condition | test top-1, mean +- deviation | seeds |\n|---|---|---|")
    for name in dict.fromkeys(condition for condition, _ in done):
        values = [100 * r["top1"] for (condition, _), r in done.items() if condition == name]
        spread = f" +- {stdev(values):.1f}" if values[1:] else ""
        print(f"| {name} | {mean(values):.1f}{spread} | {len(values)} |")


if __name__ == "__main__":
    main()
