"""Trivial answers to compare trained models with: the mean and silence, the most common class.

    python benchmarks/baselines.py signals CLIPS --inputs '{"video": {"frames": 8}}'
    python benchmarks/baselines.py classes "TOPICS + INTENTS"

``signals``: PSNR of always answering the mean training signal, element by element, and of silence,
on the test split, as the evaluation of autoencoding defines it. ``classes``: for each label column
the share of its most common training class on the test split, and the mean average precision of
constant scores, which is the mean share of the classes.
"""

import argparse
import json
from collections.abc import Sequence
from math import log10

import numpy as np
import torch

from perceivers.adapters import ElementAdapter
from perceivers.data import make_eval_loader, open_data
from perceivers.data.dataset import Dataset


def signals(dataset: Dataset, inputs: dict[str, dict[str, int]]) -> None:
    """Print PSNR per modality."""
    specs = dataset.specs(overrides=inputs)
    adapters = {name: ElementAdapter(name, spec) for name, spec in specs.items()}

    def batches(split: str) -> list[dict[str, torch.Tensor]]:
        loader = make_eval_loader(dataset.splits[split], specs, batch_size=32)
        plain = []
        for batch in loader:
            raw = {
                n: a.normalise(a.flatten(batch.inputs[n]), torch.float32)
                for n, a in adapters.items()
            }
            plain.append({n: x * adapters[n].std + adapters[n].mean for n, x in raw.items()})
        return plain

    train = batches("train")
    means = {name: torch.cat([b[name] for b in train]).double().mean(0) for name in specs}
    for name, spec in specs.items():
        truth = torch.cat([batch[name] for batch in batches("test")]).double()
        peak = 2.0 if spec.kind == "audio" else 1.0
        answers = {"mean of training": means[name]}
        if spec.kind == "audio":
            answers["silence"] = torch.zeros_like(means[name])
        for label, answer in answers.items():
            noise = float((truth - answer).square().mean())
            print(f"{name}, {label}: PSNR {10 * log10(peak**2 / noise):.2f} dB")


def classes(dataset: Dataset) -> None:
    """Print the accuracy of the most common class per label column."""
    columns = dict(dataset.columns) or {"label": dataset.classes}
    shares = []
    for index, (name, words) in enumerate(columns.items()):
        known = []
        for split in ("train", "test"):
            labels = dataset.splits[split].labels
            assert labels is not None
            column = labels if labels.ndim == 1 else labels[:, index]
            known.append(column[column >= 0])
        train, test = known
        common = int(np.bincount(train).argmax())
        counts = np.bincount(test, minlength=len(words)) / len(test)
        shares += [share for share in counts if share]
        print(f"{name}: {len(words)} classes, most common {words[common]!r} {counts[common]:.4f}")
    print(f"mean average precision of constant scores: {np.mean(shares):.4f}")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kind", choices=("signals", "classes"))
    parser.add_argument("data")
    parser.add_argument("--inputs", type=json.loads, default={})
    parser.add_argument("--labels", type=json.loads, default=[])
    args = parser.parse_args(argv)
    dataset = open_data(args.data, labels=args.labels)
    if args.kind == "signals":
        signals(dataset, args.inputs)
    else:
        classes(dataset)


if __name__ == "__main__":
    main()
