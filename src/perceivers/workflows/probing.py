"""Probes of frozen features (k-NN and linear), and of simple features as a baseline.

Legend: n samples, D width of a feature, T predicted numbers.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from perceivers.checkpoints.loading import Loaded, load_with_info
from perceivers.data import Batch, Dataset
from perceivers.data.modality import modality_of
from perceivers.data.splits import hash_order
from perceivers.errors import ConfigError, DataError
from perceivers.files import write_json
from perceivers.report.console import Grid, Shown, name_skipped
from perceivers.settings import Count, Natural, checked
from perceivers.tasks.metrics import new_metric
from perceivers.types import ModalitySpec
from perceivers.workflows.embedding import POOLS, Feed, Pool, feed_dataset, pooled_features
from perceivers.workflows.opening import own_data, run_config
from perceivers.workflows.task_table import open_for_model

# -- Simple features: a baseline that a model's features must exceed -----------------------------
#
# Legend: B batch, D width of a feature.


def simple_features(batch: Batch, specs: Mapping[str, ModalitySpec]) -> Float[Tensor, "B D"]:
    """Return features that are not learned, concatenated over the modalities.

    | modality | feature |
    |---|---|
    | image | pixels, averaged to at most 16 x 16 |
    | video | the same for the mean frame, and for the mean change between frames |
    | audio | mean and deviation over time of the log spectrum in 64 bands |
    | points | histogram over 12 x 12 cells of the first two coordinates, mean, deviation, count |
    | bytes | square roots of the counts of bytes, and of pairs of bytes in 512 hash buckets |
    | other | the values, averaged to at most 1024 |

    Features of missing modalities are zero.

    Args:
        batch: Raw tensors ``[B, ...]`` by name.
        specs: Specs of the modalities.
    """
    parts = []
    for name, spec in specs.items():
        raw = batch.inputs[name]
        part = modality_of(spec).summarise(raw).float()
        if name in batch.present:
            part = part * batch.present[name].unsqueeze(1)
        parts.append(part)
    return torch.cat(parts, 1)


# ------------------------------------------------------------------------------------------------
# Probes: nearest neighbours and a linear model, whose settings are chosen on validation data.
#
# Fitting uses scikit-learn, metrics use torchmetrics.
#
# Legend: n samples, D width of a feature, T predicted numbers.

NEIGHBOURS = (1, 3, 5, 10, 20, 50)
METRICS = ("cosine", "euclidean")
# Regularisation: inverse strengths for logistic regression, strengths for ridge regression.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
PENALTIES = (1e-2, 1.0, 1e1, 1e2, 1e3, 1e4, 1e5)
ROUNDS = 300
Kind = Literal["classes", "numbers"]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class FeatureTable:
    """Features ``[n, D]`` and targets: classes ``[n]`` or numbers ``[n, T]``, none unknown."""

    x: NDArray[np.float32]
    y: NDArray[Any]


@dataclass(frozen=True)
class Fitted:
    """A fitted probe.

    Attributes:
        probe: ``k-NN``, ``linear``, ``majority`` or ``mean``.
        chosen: The best settings.
        chosen_figure: Value of the metric that they were chosen by.
        figures: Metrics on the data that are reported.
    """

    probe: str
    chosen: Mapping[str, Any]
    chosen_figure: float
    figures: dict[str, float]


def need_sklearn() -> None:
    """Check that scikit-learn is installed.

    Raises:
        ConfigError: It is not.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            'probes need scikit-learn, which is not installed; run pip install "perceivers[demo]"'
        ) from error


def fit_probes(
    fit: FeatureTable, choose: FeatureTable, report: FeatureTable, kind: Kind
) -> list[Fitted]:
    """Fit a k-NN and a linear probe.

    Features are standardised with the mean and deviation of ``fit``.

    Args:
        fit: Data to fit.
        choose: Data on which settings are chosen.
        report: Data on which metrics are reported.
        kind: What is predicted.
    """
    mean, deviation = fit.x.mean(0), fit.x.std(0)
    scale = np.where(deviation > 1e-8, deviation, 1.0).astype(np.float32)
    fit, choose, report = (FeatureTable((t.x - mean) / scale, t.y) for t in (fit, choose, report))
    neighbours = _choose(_neighbours(fit, kind), choose, report, kind, "k-NN")
    linear = _choose(_linear(fit, kind), choose, report, kind, "linear")
    return [neighbours, linear]


def fit_floor(fit: FeatureTable, choose: FeatureTable, report: FeatureTable, kind: Kind) -> Fitted:
    """Fit a constant baseline: the most common class, or the mean."""
    constant = np.bincount(fit.y).argmax() if kind == "classes" else fit.y.mean(0)

    def answer(x: NDArray[np.float32]) -> NDArray[Any]:
        return np.repeat(np.asarray(constant)[None], len(x), 0)

    name = "majority" if kind == "classes" else "mean"
    return _choose([({}, answer)], choose, report, kind, name)


Answer = Callable[[NDArray[np.float32]], NDArray[Any]]
Candidate = tuple[Mapping[str, Any], Answer]


def _choose(
    candidates: Sequence[Candidate],
    choose: FeatureTable,
    report: FeatureTable,
    kind: Kind,
    probe: str,
) -> Fitted:
    """Return the best candidate, of equal ones the first, with its metrics."""
    best: tuple[float, Candidate] | None = None
    for candidate in candidates:
        value = figures_of(candidate[1](choose.x), choose.y, kind)[leading(kind)]
        if best is None or value > best[0]:
            best = (value, candidate)
    assert best is not None
    value, (chosen, answer) = best
    return Fitted(probe, chosen, value, figures_of(answer(report.x), report.y, kind))


def leading(kind: Kind) -> str:
    """Return the metric that settings are chosen by."""
    return "accuracy" if kind == "classes" else "r2"


def figures_of(answers: NDArray[Any], truth: NDArray[Any], kind: Kind) -> dict[str, float]:
    """Return accuracy and macro accuracy for classes, or mean R2 and MAE for numbers.

    Args:
        answers: Predicted classes ``[n]`` or numbers ``[n, T]``.
        truth: True classes or numbers, of the same shape.
        kind: Which of the two they are.
    """
    given, wanted = torch.from_numpy(np.asarray(answers)), torch.from_numpy(np.asarray(truth))
    if kind == "classes":
        count = int(max(given.max(), wanted.max())) + 1
        figures = {}
        for name, average in (("accuracy", "micro"), ("macro", "macro")):
            metric = new_metric(
                "classification.MulticlassAccuracy", CPU, num_classes=max(count, 2), average=average
            )
            figures[name] = float(metric(given, wanted))
        return figures
    given, wanted = given.double().reshape(len(given), -1), wanted.double().reshape(len(wanted), -1)
    error = float(new_metric("MeanAbsoluteError", CPU)(given, wanted))
    if len(given) < 2:
        return {"r2": float("nan"), "mae": error}
    # For a single number, torchmetrics expects vectors.
    pair = (given.squeeze(1), wanted.squeeze(1)) if given.shape[1] == 1 else (given, wanted)
    return {"r2": float(new_metric("R2Score", CPU)(*pair)), "mae": error}


def _neighbours(fit: FeatureTable, kind: Kind) -> list[Candidate]:
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

    model: Any = KNeighborsClassifier if kind == "classes" else KNeighborsRegressor
    return [
        ({"k": k, "metric": metric}, model(k, metric=metric).fit(fit.x, fit.y).predict)
        for metric in METRICS
        for k in NEIGHBOURS
        if k <= len(fit.x)
    ]


def _linear(fit: FeatureTable, kind: Kind) -> list[Candidate]:
    """Return a candidate per strength of regularisation, strongest first."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, Ridge

    if kind == "numbers":
        return [
            ({"alpha": alpha}, Ridge(alpha=alpha).fit(fit.x, fit.y).predict)
            for alpha in reversed(PENALTIES)
        ]
    if len(np.unique(fit.y)) < 2:
        raise ConfigError(
            f"all {len(fit.y)} samples to fit have the same class; a probe needs at least two"
        )
    with warnings.catch_warnings():
        # A fit that has not converged is judged by its metric like any other.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return [
            ({"C": c}, LogisticRegression(C=c, max_iter=ROUNDS).fit(fit.x, fit.y).predict)
            for c in STRENGTHS
        ]


# -- Probe a model on labelled data --------------------------------------------------------------

# Fraction of the training split on which settings are chosen if there is no test split.
CHOOSING_SHARE = 0.2


@dataclass(frozen=True)
class ProbeRow:
    """One row of the result table.

    Attributes:
        column: Predicted column; empty if the data have a single unnamed label.
        features: ``model``, ``simple`` or ``none``.
        probe: ``k-NN``, ``linear``, ``majority`` or ``mean``.
        width: Width of the features.
        chosen: The chosen settings.
        chosen_figure: Accuracy or R2 that they were chosen by.
        figures: Metrics on the reported split.
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
    """Results of all probes.

    Attributes:
        rows: One row per column, features and probe.
        counts: Number of samples by split.
        reported: Split on which metrics are reported.
        chosen_on: Data on which settings were chosen.
        skipped: Samples that could not be read, as ``path: reason``.
    """

    rows: tuple[ProbeRow, ...]
    counts: Mapping[str, int]
    reported: str
    chosen_on: str
    skipped: list[str]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible types."""
        return {**asdict(self), "rows": [asdict(row) for row in self.rows]}


@dataclass(frozen=True)
class Split:
    """Model features, simple features, labels and targets of one split."""

    features: Mapping[str, NDArray[np.float32]]
    names: list[str]
    labels: NDArray[np.int64] | None
    targets: NDArray[np.float32] | None


@checked
def probe(
    model: str | Path,
    *,
    data: str | None = None,
    out: str | Path | None = None,
    pool: Pool = "mean",
    batch_size: Count = 64,
    workers: Natural = 0,
    overwrite: bool = False,
) -> Probed:
    """Fit k-NN and a linear model to frozen features of labelled data, and to simple features.

    Probes are fitted on ``train``, their settings are chosen on ``val``, and metrics are reported
    on ``test``. Without a test split, metrics are reported on ``val``, and settings are chosen on a
    fifth of ``train`` that is not used for fitting.

    Args:
        model: Run folder, ``RUN@last``, model folder, or the name of packaged weights.
        data: Address of data with labels or with numbers to predict; default: the data of the run.
        out: File for the metrics, ``.json``; nothing is written if not given.
        pool: Pooling over the latents, or over the cells of a Hiera's last feature map, as for
            ``embed``; ``flat`` concatenates them.
        batch_size: Samples per batch.
        workers: Number of processes that read data.
        overwrite: Replace an existing file.

    Raises:
        UserError: The data have no labels or numbers, or do not fit the model; or ``out`` exists or
            has another extension.
    """
    path = None if out is None else _check_out(Path(out), overwrite=overwrite)
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
            f"{address} has neither labels nor numbers to predict; a probe needs one of them"
        )
    probed = Probed(
        rows=tuple(rows),
        counts={split: len(part.names) for split, part in parts.items()},
        reported="test" if "test" in parts else "val",
        chosen_on="val" if "test" in parts else "a fifth of train",
        skipped=skipped,
    )
    if path is not None:
        write_json(path, probed.to_json())
    return probed


def _check_out(path: Path, *, overwrite: bool) -> Path:
    if path.suffix != ".json":
        raise ConfigError(f"--out is {path}, but metrics are written as .json; give a .json file")
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists; pass --overwrite or another --out")
    return path


def _read_split(
    loaded: Loaded,
    dataset: Dataset,
    specs: Mapping[str, ModalitySpec],
    split: str,
    reading: tuple[str, int, int],
    skipped: list[str],
) -> Split:
    """Compute both kinds of features in one pass over a split."""
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
    """Yield everything that can be predicted: name, kind, and true values by split."""
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
    """Fit all probes to both kinds of features, for one predicted column."""
    known = {
        split: values >= 0 if kind == "classes" else np.isfinite(values)
        for split, values in answers.items()
    }
    for split, mask in known.items():
        if not mask.any():
            what = f"column {column!r}" if column else "labels"
            raise DataError(f"no sample of {split!r} has a known value ({what}); a probe needs one")
    rows = []
    for name in ("model", "simple"):
        tables = {
            split: FeatureTable(part.features[name][known[split]], answers[split][known[split]])
            for split, part in parts.items()
        }
        fit, choose, report = assign_roles(
            tables, [n for n, k in zip(parts["train"].names, known["train"], strict=True) if k]
        )
        fitted = fit_probes(fit, choose, report, kind)
        # The constant baseline uses no features, so it is fitted only once.
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


def assign_roles(
    tables: Mapping[str, FeatureTable], names: list[str]
) -> tuple[FeatureTable, FeatureTable, FeatureTable]:
    """Return disjoint data for fitting, for choosing settings, and for reporting."""
    train, val = tables["train"], tables["val"]
    if "test" in tables:
        return train, val, tables["test"]
    if len(names) < 2:
        raise DataError(f"{len(names)} samples to fit; without a test split a probe needs 2")
    # Ordered by hashes of names, so that the division does not depend on the order of files.
    order = hash_order(names, np.arange(len(names)))
    count = max(1, round(CHOOSING_SHARE * len(order)))
    choose, fit = np.sort(order[:count]), np.sort(order[count:])
    return (
        FeatureTable(train.x[fit], train.y[fit]),
        FeatureTable(train.x[choose], train.y[choose]),
        val,
    )


def show(found: Probed, *, out: str | Path | None) -> Shown:
    """Show the metrics of all probes.

    Args:
        found: From ``probe``.
        out: File that they were written to, if any.
    """
    # Classification and regression have different metrics, so each gets its own table.
    kinds = dict.fromkeys(tuple(row.figures) for row in found.rows)
    counts = ", ".join(f"{split} {count}" for split, count in found.counts.items())
    text = (
        f"samples: {counts}; fitted by scikit-learn on train, settings chosen on "
        f"{found.chosen_on}, metrics by torchmetrics"
    )
    tables = [_tabulate(found, figures) for figures in kinds]
    return Shown([*tables, text, *([str(out)] if out else [])], name_skipped(found.skipped))


def _tabulate(found: Probed, figures: Sequence[str]) -> Grid:
    """Return a table of the probes with these metrics; an unnamed column is left out."""
    rows = [
        (
            row.column,
            row.features if row.features == "none" else f"{row.features} ({row.width})",
            row.probe,
            ", ".join(f"{name} {value}" for name, value in row.chosen.items()),
            f"{row.chosen_figure:.4f}",
            *(f"{row.figures[name]:.4f}" for name in figures),
        )
        for row in found.rows
        if tuple(row.figures) == tuple(figures)
    ]
    names = [f"{found.reported} {name}" for name in figures]
    header = ("column", "features", "probe", "chosen", f"on {found.chosen_on}", *names)
    first = 0 if any(row[0] for row in rows) else 1
    return Grid(header[first:], [row[first:] for row in rows])
