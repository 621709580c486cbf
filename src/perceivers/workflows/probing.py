"""How much frozen features know: k-NN and linear probes beside what simple features know.

Legend: n samples, D width of a feature, T numbers to be predicted.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceivers.checkpoints.loading import Loaded, load_with_info
from perceivers.data import Dataset
from perceivers.data.splits import hash_order
from perceivers.errors import ConfigError, DataError
from perceivers.settings import Count, Natural, checked
from perceivers.types import ModalitySpec
from perceivers.workflows.embedding import POOLS, Pool, pooled_features
from perceivers.workflows.evaluation import open_for_model
from perceivers.workflows.feeding import Feed, feed_dataset
from perceivers.workflows.origin import own_data, run_config
from perceivers.workflows.probes import Kind, Table, fit_floor, fit_probes, need_sklearn
from perceivers.workflows.simple_features import simple_features

# Of the training split, where validation is what figures are of.
CHOOSING_SHARE = 0.2


@dataclass(frozen=True)
class ProbeRow:
    """One line of the table.

    Attributes:
        column: What is predicted; empty with one plain label.
        features: ``model``, ``simple`` or ``none``.
        probe: ``k-NN``, ``linear``, ``majority`` or ``mean``.
        width: Width of the features.
        chosen: The settings that were chosen.
        chosen_figure: Accuracy, or R2, where they were chosen.
        figures: Figures where the probe is reported.
    """

    column: str
    features: str
    probe: str
    width: int
    chosen: Mapping[str, Any]
    chosen_figure: float
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Probed:
    """What probes found.

    Attributes:
        rows: A line per column, features and probe.
        counts: Samples by split.
        reported: The split that figures are of.
        chosen_on: Where settings were chosen.
        skipped: Samples that could not be read, as ``path: reason``.
    """

    rows: tuple[ProbeRow, ...]
    counts: Mapping[str, int]
    reported: str
    chosen_on: str
    skipped: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {**asdict(self), "rows": [asdict(row) for row in self.rows]}


@dataclass(frozen=True)
class Split:
    """Both kinds of features of one split, and every answer there is."""

    features: Mapping[str, NDArray[np.float32]]
    names: list[str]
    labels: NDArray[np.int64] | None
    targets: NDArray[np.float32] | None


@checked
def probe(
    model: str | Path,
    *,
    data: str | None = None,
    pool: Pool = "mean",
    batch_size: Count = 64,
    workers: Natural = 0,
) -> Probed:
    """Fit k-NN and a linear model to frozen features of labelled data.

    Fitted on ``train``, settings chosen on ``val``, figures of ``test``. Data without a test split
    are reported on ``val``; settings are then chosen on a fifth of ``train`` that is not fitted.

    Args:
        model: Run folder, ``RUN@last``, model folder, or the name of weights of ours.
        data: Address of labelled data, or of data with numbers to be predicted; the run's own when
            not given.
        pool: As for ``embed``.
        batch_size: Samples at once.
        workers: Processes that read data.

    Raises:
        UserError: The data have no labels, or do not fit the model.
    """
    if pool not in POOLS:
        raise ConfigError(f"pool {pool!r} is unknown; use {', '.join(POOLS)}")
    need_sklearn()
    loaded, config = load_with_info(model), run_config(model)
    address = data or own_data(model, config)
    dataset, specs = open_for_model(loaded, config, address)
    skipped: list[str] = []
    parts = {
        split: _read_split(loaded, dataset, specs, split, (pool, batch_size, workers), skipped)
        for split in ("train", "val", "test")
        if split in dataset.splits
    }
    rows: list[ProbeRow] = []
    for column, kind, answers in columns(dataset, parts):
        rows += probe_column(column, kind, parts, answers)
    if not rows:
        raise DataError(
            f"{address} has neither labels nor numbers to be predicted; a probe needs them"
        )
    return Probed(
        rows=tuple(rows),
        counts={split: len(part.names) for split, part in parts.items()},
        reported="test" if "test" in parts else "val",
        chosen_on="val" if "test" in parts else "a fifth of train",
        skipped=skipped,
    )


def _read_split(
    loaded: Loaded,
    dataset: Dataset,
    specs: Mapping[str, ModalitySpec],
    split: str,
    reading: tuple[str, int, int],
    skipped: list[str],
) -> Split:
    """Read one split once, for both kinds of features."""
    pool, batch_size, workers = reading
    inputs = loaded.model.config.data_inputs
    feed: Feed = feed_dataset(dataset, specs, list(inputs), split, batch_size, workers)
    learned, simple, names, labels, targets = [], [], [], [], []
    loaded.model.eval()
    for portion in feed.read():
        batch = portion.batch
        skipped += batch.bad
        learned.append(pooled_features(loaded.model, batch, pool).numpy())
        simple.append(simple_features(batch, inputs).numpy())
        names += portion.names
        labels.append(None if batch.labels is None else batch.labels.numpy())
        targets.append(None if batch.targets is None else batch.targets.numpy())
    features = {"model": np.concatenate(learned), "simple": np.concatenate(simple)}
    return Split(
        features,
        names,
        None if labels[0] is None else np.concatenate(labels),
        None if targets[0] is None else np.concatenate(targets),
    )


def columns(
    dataset: Dataset, parts: Mapping[str, Split]
) -> Iterator[tuple[str, Kind, dict[str, NDArray[Any]]]]:
    """Yield everything that can be predicted: its name, its kind, and the answers by split."""
    if all(part.labels is not None for part in parts.values()):
        labels = {split: np.asarray(part.labels) for split, part in parts.items()}
        several = list(dataset.columns) if labels["train"].ndim == 2 else []
        for place, name in enumerate(several):
            yield name, "classes", {split: values[:, place] for split, values in labels.items()}
        if not several:
            yield "", "classes", labels
    if all(part.targets is not None for part in parts.values()):
        targets = {split: np.asarray(part.targets) for split, part in parts.items()}
        for place in range(targets["train"].shape[1]):
            name = dataset.targets[place] if dataset.targets else f"target {place}"
            yield name, "numbers", {split: values[:, place] for split, values in targets.items()}


def probe_column(
    column: str, kind: Kind, parts: Mapping[str, Split], answers: Mapping[str, NDArray[Any]]
) -> list[ProbeRow]:
    """Fit every probe to every kind of features, for one thing to be predicted."""
    known = {
        split: values >= 0 if kind == "classes" else np.isfinite(values)
        for split, values in answers.items()
    }
    for split, mask in known.items():
        if not mask.any():
            what = f"column {column!r}" if column else "labels"
            raise DataError(f"no sample of {split!r} has a known answer ({what}); a probe needs it")
    rows = []
    for name in ("model", "simple"):
        tables = {
            split: Table(part.features[name][known[split]], answers[split][known[split]])
            for split, part in parts.items()
        }
        fit, choose, report = assign_roles(
            tables, [n for n, k in zip(parts["train"].names, known["train"], strict=True) if k]
        )
        fitted = fit_probes(fit, choose, report, kind)
        if name == "simple":
            fitted.append(fit_floor(fit, choose, report, kind))
        for each in fitted:
            used = "none" if each.probe in {"majority", "mean"} else name
            width = 0 if used == "none" else fit.x.shape[1]
            rows.append(
                ProbeRow(
                    column, used, each.probe, width, each.chosen, each.chosen_figure, each.figures
                )
            )
    return rows


def assign_roles(tables: Mapping[str, Table], names: list[str]) -> tuple[Table, Table, Table]:
    """Say which part is fitted, chosen on and reported; the same part has never two roles."""
    train, val = tables["train"], tables["val"]
    if "test" in tables:
        return train, val, tables["test"]
    if len(names) < 2:
        raise DataError(f"{len(names)} samples to fit; a probe without a test split needs 2")
    order = hash_order(names, np.arange(len(names)))
    count = max(1, round(CHOOSING_SHARE * len(order)))
    choose, fit = np.sort(order[:count]), np.sort(order[count:])
    return Table(train.x[fit], train.y[fit]), Table(train.x[choose], train.y[choose]), val
