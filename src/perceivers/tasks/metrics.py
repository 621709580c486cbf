"""Metrics, all from torchmetrics: accumulated in double precision and merged over processes.

torchmetrics takes seconds to import, so it is imported only when metrics are computed.

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
# Label of an unlabelled sample.
UNKNOWN = -1
# Upper limit in decibels: a reconstruction without error would have infinite PSNR.
PERFECT_PSNR = 120.0


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's metrics: that of its parameters, so processes can merge them.

    On Apple GPUs it is the CPU: they lack double precision, and there is only one process.
    """
    device = next(model.parameters()).device
    return torch.device("cpu") if device.type in SINGLE_PRECISION else device


def new_metric(path: str, device: torch.device, **settings: Any) -> "Metric":
    """Return a torchmetrics metric in double precision.

    Args:
        path: Class in torchmetrics, such as ``classification.MulticlassAccuracy``.
        device: Device of the metric's state.
        settings: Arguments of the class.

    Raises:
        ConfigError: torchmetrics is not installed.
    """
    try:
        with warnings.catch_warnings():
            # Optional packages that torchmetrics probes for may warn about each other.
            warnings.simplefilter("ignore")
            import torchmetrics
            import torchmetrics.classification
    except ImportError as error:
        raise ConfigError(
            'metrics need torchmetrics, which is not installed; run pip install "perceivers[train]"'
        ) from error
    found: Any = torchmetrics
    for part in path.split("."):
        found = getattr(found, part)
    metric = found(**settings)
    return metric.set_dtype(torch.float64).to(device)


def new_means(names: Iterable[str], device: torch.device) -> "dict[str, MeanMetric]":
    """Return a weighted mean for each name."""
    means: Any = {name: new_metric("MeanMetric", device) for name in names}
    return means


def new_accuracies(num_classes: int, device: torch.device) -> "dict[str, Metric]":
    """Return top-1 accuracy, macro accuracy and the confusion matrix ``[K, K]``.

    Macro accuracy is the mean recall over the classes that occur as truth or as prediction. Rows of
    the matrix are true classes.
    """
    home, count = "classification.", {"num_classes": num_classes, "validate_args": False}
    return {
        "top1": new_metric(f"{home}MulticlassAccuracy", device, average="micro", **count),
        "macro": new_metric(f"{home}MulticlassAccuracy", device, average="macro", **count),
        "matrix": new_metric(f"{home}MulticlassConfusionMatrix", device, **count),
    }


def update(metric: "Metric", *values: Tensor) -> None:
    """Update a metric on its device, with floating-point values in double precision."""
    # Move before converting: the source device may lack double precision.
    here = [value.detach().to(metric.device) for value in values]
    metric.update(*[value.double() if value.is_floating_point() else value for value in here])


def add_mean(metric: "Metric", value: Tensor, weight: Tensor | float | int) -> None:
    """Add a mean to a weighted mean; with weight 0 it is ignored, even if it is NaN.

    With a positive weight, NaN counts as infinity: torchmetrics would drop it or raise, but a model
    that diverged must not go unnoticed.
    """
    weight = torch.as_tensor(weight).to(metric.device).double()
    value = value.detach().to(metric.device).double()
    value = value.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    metric.update(torch.where(weight > 0, value, 0.0), weight)


def result(metric: "Metric") -> Tensor:
    """Return a metric over all processes; 0 for a mean without any weight."""
    with warnings.catch_warnings():
        # Expected: a process without batches must still take part in merging.
        warnings.filterwarnings("ignore", message=".*compute.*before the.*update.*")
        value = metric.compute()
    is_empty = hasattr(metric, "weight") and bool(value.isnan()) and not total_weight(metric)
    return torch.zeros_like(value) if is_empty else value


def results(metrics: "Mapping[str, Metric]") -> dict[str, float]:
    """Return metrics by name over all processes; the order must be the same in each of them."""
    return {name: float(result(metric)) for name, metric in metrics.items()}


def new_column_accuracies(
    columns: Mapping[str, tuple[str, ...]], device: torch.device
) -> "dict[str, Metric]":
    """Return a top-1 accuracy per label column, over the known labels (not -1)."""
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
    """Return the accuracy per label column, leaving out columns without a known label."""
    shares = {}
    for name, metric in metrics.items():
        # All processes must merge all columns in the same order, including those left out.
        share = float(result(metric))
        with metric.sync_context():
            state: Any = metric
            seen = int((state.tp + state.fn).sum())
        if seen:
            shares[name] = share
    return shares


def total_weight(metric: "Metric") -> float:
    """Return the sum of a mean's weights over all processes."""
    with metric.sync_context():
        state: Any = metric
        return float(state.weight)


def new_precision(num_outputs: int, device: torch.device) -> "Metric":
    """Return the average precision of every output ``[K]``, over the samples with a known label.

    Tied scores share a rank, so their order does not matter; precision is not interpolated.
    """
    metric = new_metric(
        "classification.MultilabelAveragePrecision",
        device,
        num_labels=num_outputs,
        average="none",
        ignore_index=UNKNOWN,
        validate_args=False,
    )
    # A process without samples must have a state to merge: one sample with unknown labels.
    blank = torch.zeros(1, num_outputs, device=device, dtype=torch.float64)
    metric.update(blank, torch.full_like(blank, UNKNOWN, dtype=torch.int64))
    return metric


def mean_precision(metric: "Metric") -> float:
    """Return the mean average precision over the outputs that are true for at least one sample."""
    from torchmetrics.functional.classification import binary_average_precision

    with metric.sync_context():
        state: Any = metric
        parts = [state.preds, state.target]
        scores, truth = (torch.cat(p) if isinstance(p, list) else p for p in parts)
    # One output at a time, as average precision is undefined if an output is never true.
    found = [
        binary_average_precision(scores[:, k], truth[:, k], ignore_index=UNKNOWN)
        for k in (truth == 1).any(0).nonzero().flatten().tolist()
    ]
    return float(torch.stack(found).mean()) if found else 0.0
