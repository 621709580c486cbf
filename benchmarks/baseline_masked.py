"""What a masked Hiera is to beat: the mean training signal, put into every hidden patch.

    python benchmarks/baseline_masked.py RUN --split test

Reads a pre-training run, draws the masks of its evaluation, and prints the error of the model and
of the mean of all training samples, element by element, in the space of the run's target. A patch
of nothing but its own mean has error 1 in patch-normalised space.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

import perceivers as pv
from perceivers.checkpoints.loading import load_with_info
from perceivers.data import make_eval_loader
from perceivers.draws import sample_generators
from perceivers.models.hiera.objective import patch_statistics
from perceivers.tasks.mae import EVALUATION_SEED, objective_of, weighted_mean
from perceivers.workflows.opening import open_dataset
from perceivers.workflows.task_table import find_masking


@torch.no_grad()
def compare_with_mean(run: str | Path, split: str) -> dict[str, float]:
    """Return the error of hidden patches of the model of a run, and of the mean of its training."""
    config = pv.Run(run).config
    assert isinstance(config, pv.PretrainConfig)
    loaded, dataset = load_with_info(run), open_dataset(config)
    model, settings = loaded.model.eval(), find_masking(loaded, config)
    name, objective = model.config.name, objective_of(model)

    def batches(wanted: str) -> Iterator[tuple[Tensor, Tensor | None]]:
        for batch in make_eval_loader(dataset.splits[wanted], model.config.inputs, batch_size=32):
            yield batch.inputs[name], batch.position

    total, count = torch.zeros(()), 0
    for raw, _ in batches("train"):
        total, count = total + raw.double().sum(0), count + len(raw)
    # Raw bytes are scaled by the adapter, which knows them by their type.
    mean = (total / count).round().to(torch.uint8)[None]
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    sums, seen = {"model": 0.0, "mean": 0.0}, 0
    for raw, position in batches(split):
        draws = sample_generators(generator, position)
        plan = objective.draw({name: raw}, settings, draws)
        scored = objective.score({name: raw}, plan, settings.target)[name]
        masked = plan.masked[name]
        truth, guess = (model.patches(x, masked) for x in (raw, mean.expand_as(raw)))
        if settings.target == "patch-normalised":
            truth, guess = (
                (x - centre) / deviation
                for x, (centre, deviation) in ((x, patch_statistics(x)) for x in (truth, guess))
            )
        sums["model"] += float(weighted_mean(scored.errors, scored.weight)) * len(raw)
        sums["mean"] += float((truth - guess).square().mean()) * len(raw)
        seen += len(raw)
    return {key: value / seen for key, value in sums.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run")
    parser.add_argument("--split", default="test")
    args = parser.parse_args(argv)
    found = compare_with_mean(args.run, args.split)
    print(json.dumps({key: round(value, 4) for key, value in found.items()}))


if __name__ == "__main__":
    main()
