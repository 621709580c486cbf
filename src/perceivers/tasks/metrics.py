"""Metrics, all of torchmetrics: counts in exact arithmetic, merged over processes that have joined.

torchmetrics takes seconds to import, so it is imported where figures are computed.

Legend: B batch, K classes or outputs.
"""

import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from perceivers.errors import ConfigError

if TYPE_CHECKING:
    from torchmetrics import MeanMetric, Metric

# Devices without float64.
SINGLE_PRECISION = {"mps"}
# A label that nobody gave.
UNKNOWN = -1
# Decibels of a reconstruction without error, which would be infinitely many.
PERFECT_PSNR = 120.0


def device_of(model: nn.Module) -> torch.device:
    """Return where a model's metrics are kept: with its parameters, for processes to merge them.

    Apple's GPUs know no double precision, and work alone: there it is the CPU.
    """
    device = next(model.parameters()).device
    return torch.device("cpu") if device.type in SINGLE_PRECISION else device


def new_metric(path: str, device: torch.device, **settings: Any) -> "Metric":
    """Return a metric of torchmetrics that counts in double precision.

    Args:
        path: Its class in torchmetrics, such as ``classification.MulticlassAccuracy``.
        device: Where its counts are kept.
        settings: Arguments of the class.

    Raises:
        ConfigError: torchmetrics is not installed.
    """
    try:
        with warnings.catch_warnings():
            # Optional packages that torchmetrics looks for may warn about one another.
            warnings.simplefilter("ignore")
            import torchmetrics
            import torchmetrics.classification
    except ImportError as error:
        raise ConfigError(
            'figures need torchmetrics, which is not installed; run pip install "perceivers[train]"'
        ) from error
    found: Any = torchmetrics
    for part in path.split("."):
        found = getattr(found, part)
    metric = found(**settings)
    return metric.set_dtype(torch.float64).to(device)


def new_means(names: Iterable[str], device: torch.device) -> "dict[str, MeanMetric]":
    """Return a weighted mean by name."""
    means: Any = {name: new_metric("MeanMetric", device) for name in names}
    return means


def new_accuracies(num_classes: int, device: torch.device) -> "dict[str, Metric]":
    """Return top-1 accuracy, macro accuracy and the confusion matrix ``[K, K]``.

    Macro accuracy is the mean over the classes that occur, as truth or as prediction, of the share
    recognised. Rows of the matrix are the truth.
    """
    home, count = "classification.", {"num_classes": num_classes, "validate_args": False}
    return {
        "top1": new_metric(f"{home}MulticlassAccuracy", device, average="micro", **count),
        "macro": new_metric(f"{home}MulticlassAccuracy", device, average="macro", **count),
        "matrix": new_metric(f"{home}MulticlassConfusionMatrix", device, **count),
    }


def update(metric: "Metric", *values: Tensor) -> None:
    """Count values where the metric is, numbers in double precision.

    In this order: the device that they come from may have no double precision.
    """
    here = [value.detach().to(metric.device) for value in values]
    metric.update(*[value.double() if value.is_floating_point() else value for value in here])


def add_mean(metric: "Metric", value: Tensor, weight: Tensor | float | int) -> None:
    """Add a mean to a weighted mean; one without weight, which may be NaN, adds nothing.

    A mean with weight that is not a number, of a model that diverged, counts as infinite: it must
    show, but torchmetrics would drop it, or stop.
    """
    weight = torch.as_tensor(weight).to(metric.device).double()
    value = value.detach().to(metric.device).double()
    value = value.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    metric.update(torch.where(weight > 0, value, 0.0), weight)


def result(metric: "Metric") -> Tensor:
    """Return a metric over all processes; of one that saw nothing, 0."""
    with warnings.catch_warnings():
        # A process without batches must still take part in merging.
        warnings.filterwarnings("ignore", message=".*compute.*before the.*update.*")
        value = metric.compute()
    is_empty = hasattr(metric, "weight") and bool(value.isnan()) and not total_weight(metric)
    return torch.zeros_like(value) if is_empty else value


def results(metrics: "Mapping[str, Metric]") -> dict[str, float]:
    """Return figures by name, over all processes, merged in the mapping's order."""
    return {name: float(result(metric)) for name, metric in metrics.items()}


def new_column_accuracies(
    columns: Mapping[str, tuple[str, ...]], device: torch.device
) -> "dict[str, Metric]":
    """Return a top-1 accuracy per label column, of those labels that are known (not -1)."""
    return {
        name: new_metric(
            "classification.MulticlassAccuracy",
            device,
            num_classes=len(classes),
            average="micro",
            ignore_index=UNKNOWN,
            validate_args=False,
        )
        for name, classes in columns.items()
    }


def column_shares(metrics: "Mapping[str, Metric]") -> dict[str, float]:
    """Return the share recognised per label column, of columns with a known label."""
    shares = {}
    for name, metric in metrics.items():
        # Merging must be asked of every column in the same order, also of those left out.
        share = float(result(metric))
        with metric.sync_context():
            state: Any = metric
            seen = int((state.tp + state.fn).sum())
        if seen:
            shares[name] = share
    return shares


def total_weight(metric: "Metric") -> float:
    """Return the weight of all that a mean has seen, over all processes."""
    with metric.sync_context():
        state: Any = metric
        return float(state.weight)


def new_precision(num_outputs: int, device: torch.device) -> "Metric":
    """Return the average precision of every output ``[K]``, over its known samples.

    Equal scores are ranked together, so their order does not matter; no interpolation.
    """
    metric = new_metric(
        "classification.MultilabelAveragePrecision",
        device,
        num_labels=num_outputs,
        average="none",
        ignore_index=UNKNOWN,
        validate_args=False,
    )
    # A process without samples must bring something to merge: one of which nothing is known.
    blank = torch.zeros(1, num_outputs, device=device, dtype=torch.float64)
    metric.update(blank, torch.full_like(blank, UNKNOWN, dtype=torch.int64))
    return metric


def mean_precision(metric: "Metric") -> float:
    """Return the mean of average precisions over the outputs that are true for some sample."""
    from torchmetrics.functional.classification import binary_average_precision

    with metric.sync_context():
        state: Any = metric
        parts = [state.preds, state.target]
        scores, truth = (torch.cat(p) if isinstance(p, list) else p for p in parts)
    # Asked one by one, as an output that is never true has no average precision.
    found = [
        binary_average_precision(scores[:, k], truth[:, k], ignore_index=UNKNOWN)
        for k in (truth == 1).any(0).nonzero().flatten().tolist()
    ]
    return float(torch.stack(found).mean()) if found else 0.0
