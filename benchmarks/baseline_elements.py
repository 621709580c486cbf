"""What a masked HiP has to beat: interpolation from the same visible elements.

    python benchmarks/baseline_elements.py RUN --split test

Reads a pre-training run of a HiP on images, audio, videos or points, draws the masks of its
evaluation, and prints the mean squared error of hidden elements, in units of their variance over
the training split, of

- constant: the training mean of each channel,
- nearest: the nearest visible element on the grid (frames count as one cell; points are in the
  order of their file, such as along a stroke or a scan line),
- linear: linear interpolation between visible elements (Delaunay; nearest outside their hull),
- wiener: the best linear predictor from the nearest visible elements (simple kriging) under the
  stationary covariance of the training split,
- model: the run's best weights.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import LinearNDInterpolator
from sklearn.neighbors import KDTree
from torch import Tensor

import perceivers as pv
from perceivers.adapters.elements import is_point
from perceivers.checkpoints.loading import load_with_info
from perceivers.data import make_eval_loader
from perceivers.draws import sample_generators
from perceivers.masking import MaskPlan
from perceivers.models.hip.objective import visible_elements
from perceivers.tasks.mae import EVALUATION_SEED, objective_of
from perceivers.workflows.opening import open_dataset
from perceivers.workflows.task_table import find_masking

NEIGHBOURS = 48
# Training samples from which the covariance is measured, and the noise that keeps it solvable.
MEASURED, NOISE = 512, 1e-3


class Predictor:
    """Linear prediction from visible neighbours on a grid.

    Args:
        grid: Shape of the grid.
        samples: Standardised training samples ``[B, N, C]``, NaN where there is no point.
    """

    def __init__(self, grid: tuple[int, ...], samples: Tensor) -> None:
        self.grid = grid
        axes = [np.arange(size) for size in grid]
        self.places = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(grid))
        self.covariance = _covariance(samples, grid)

    def fill(self, known: NDArray, visible: NDArray, hidden: NDArray) -> dict[str, NDArray]:
        """Return what each method makes of the hidden elements, ``[Q, C]``.

        Args:
            known: Values of the visible elements ``[K, C]``.
            visible: Which elements are visible, bool ``[N]``.
            hidden: Which are to be filled in, bool ``[N]``.
        """
        seen, hidden = self.places[visible], self.places[hidden]
        count = min(NEIGHBOURS, len(seen))
        neighbours = KDTree(seen).query(hidden, k=count, return_distance=False)
        nearest = known[neighbours[:, 0]]
        return {
            "constant": np.zeros_like(nearest),
            "nearest": nearest,
            "linear": self._linear(seen, hidden, known, nearest),
            "wiener": self._wiener(seen, hidden, known, neighbours),
        }

    def _linear(self, seen: NDArray, hidden: NDArray, known: NDArray, nearest: NDArray) -> NDArray:
        if len(self.grid) == 1:
            columns = [np.interp(hidden[:, 0], seen[:, 0], column) for column in known.T]
            return np.stack(columns, -1)
        found = LinearNDInterpolator(seen, known)(hidden)
        return np.where(np.isnan(found), nearest, found)

    def _wiener(
        self, seen: NDArray, hidden: NDArray, known: NDArray, neighbours: NDArray
    ) -> NDArray:
        parts = []
        for rows, places in zip(_chunks(neighbours), _chunks(hidden), strict=True):
            around = seen[rows]  # [q, k, A]
            between = self._lookup(around[:, :, None] - around[:, None])
            between += NOISE * np.eye(rows.shape[1])
            toward = self._lookup(around - places[:, None])
            weights = np.linalg.solve(between, toward[..., None])[..., 0]
            parts.append(np.einsum("qk,qkc->qc", weights, known[rows]))
        return np.concatenate(parts)

    def _lookup(self, lags: NDArray) -> NDArray:
        return self.covariance[tuple(np.moveaxis(lags, -1, 0))].astype(np.float64)


def _covariance(samples: Tensor, grid: tuple[int, ...]) -> NDArray:
    """Return the mean covariance by lag (negative lags at the end), one at lag zero."""
    padded = tuple(2 * size for size in grid)
    axes = tuple(range(1, len(grid) + 1))
    total = np.zeros(padded)
    for sample in samples.nan_to_num().numpy():
        field = sample.T.reshape(-1, *grid)
        total += np.fft.ifftn(np.abs(np.fft.fftn(field, padded, axes)) ** 2, axes=axes).real.sum(0)
    # Not divided by the number of pairs at each lag: only so are all systems of equations solvable.
    return total / total[(0,) * len(grid)]


def _chunks(rows: NDArray, length: int = 2048) -> Iterator[NDArray]:
    for start in range(0, len(rows), length):
        yield rows[start : start + length]


@dataclass(frozen=True)
class Case:
    """Held-out samples of one modality of a run, standardised by the training split.

    Attributes:
        model: The run's, in evaluation mode.
        name: The modality.
        centre: Mean per channel ``[C]`` of the training split, in the model's space.
        spread: Deviation per channel ``[C]``.
        predictor: Fitted to the training split.
        tokens: Standardised samples ``[B, N, C]``.
        visible: What the masks of the evaluation keep, bool ``[B, N]``.
        hidden: What they hide, without rows that are no point, bool ``[B, N]``.
        reconstructed: What the model makes of it, standardised, ``[B, N, C]``.
    """

    model: Any
    name: str
    centre: Tensor
    spread: Tensor
    predictor: Predictor
    tokens: Tensor
    visible: Tensor
    hidden: Tensor
    reconstructed: Tensor

    def fill(self, index: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return a sample, which of its elements are visible, and what each method makes of it."""
        sample, visible, hidden = self.tokens[index], self.visible[index], self.hidden[index]
        found = self.predictor.fill(sample[visible].numpy(), visible.numpy(), hidden.numpy())
        whole = {}
        for method, guess in found.items():
            whole[method] = sample.clone()
            whole[method][hidden] = torch.as_tensor(guess, dtype=sample.dtype)
        whole["model"] = torch.where(hidden[:, None], self.reconstructed[index], sample)
        return sample, visible, whole

    def restore(self, tokens: Tensor) -> Tensor:
        """Return one standardised sample in the raw layout."""
        return self.model.adapter(self.name).restore((tokens * self.spread + self.centre)[None])[0]


@torch.no_grad()
def open_cases(run: str | Path, split: str, limit: int, batch: int = 32) -> dict[str, Case]:
    """Return the first ``limit`` samples of a split, by modality, with the run's reconstruction."""
    config = pv.Run(run).config
    assert isinstance(config, pv.PretrainConfig)
    loaded, dataset = load_with_info(run), open_dataset(config)
    model, settings = loaded.model.eval(), find_masking(loaded, config)
    objective, specs = objective_of(model), model.config.data_inputs

    def tokens(inputs: Mapping[str, Tensor], name: str) -> Tensor:
        adapter = model.adapter(name)
        return adapter.normalise(adapter.flatten(inputs[name]), torch.float32)

    train = make_eval_loader(dataset.splits["train"], specs, batch_size=batch)
    measured = [each.inputs for each in islice(train, -(-MEASURED // batch))]
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    parts: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {name: [] for name in specs}
    held_out = make_eval_loader(dataset.splits[split], specs, batch_size=batch)
    for each in islice(held_out, -(-limit // batch)):
        draws = sample_generators(generator, each.position)
        plan: MaskPlan = objective.draw(each.inputs, settings, draws)
        found = model.reconstruct(model.encode(each.inputs, plan.to_dense(model.layout())))
        for name in specs:
            visible = visible_elements(model, plan, name).flatten(1)
            parts[name].append((tokens(each.inputs, name), visible, found[name].float()))
    cases = {}
    for name, spec in specs.items():
        x = torch.cat([tokens(inputs, name) for inputs in measured])
        points = x[is_point(x)]
        centre, spread = points.mean(0), points.std(0)
        sample, visible, made = (torch.cat(each) for each in zip(*parts[name], strict=True))
        real = is_point(sample)
        predictor = Predictor(spec.grid, (x - centre) / spread)
        standard = ((each - centre) / spread for each in (sample, made))
        values, guesses = standard
        cases[name] = Case(
            model, name, centre, spread, predictor, values, visible & real, ~visible & real, guesses
        )
    return cases


def open_case(run: str | Path, name: str, count: int) -> Case:
    """Return the first ``count`` test samples of one modality."""
    return open_cases(run, "test", count, batch=count)[name]


def compare(run: str | Path, split: str, limit: int) -> dict[str, dict[str, float]]:
    """Return the errors of every method by modality."""
    errors = {}
    for name, case in open_cases(run, split, limit, batch=min(32, limit)).items():
        sums: dict[str, float] = {}
        for index, hidden in enumerate(case.hidden):
            sample, _, found = case.fill(index)
            for method, guess in found.items():
                error = float((guess - sample)[hidden].double().square().mean(1).sum())
                sums[method] = sums.get(method, 0.0) + error
        count = int(case.hidden.sum())
        errors[name] = {method: round(total / count, 4) for method, total in sums.items()}
    return errors


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run")
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, default=10_000, help="samples, in whole batches")
    args = parser.parse_args(argv)
    print(json.dumps(compare(args.run, args.split, args.limit)))


if __name__ == "__main__":
    main()
