"""Regression of one or more numbers per sample, each standardised for training.

Legend: B batch, T targets.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from perceivers.errors import ConfigError, DataError
from perceivers.settings import Positive, Settings, UsedIf
from perceivers.tasks.base import Losses, Task, TaskBatch, answer, held_modalities, shown_modalities
from perceivers.tasks.metrics import add_mean, device_of, new_means, new_metric, result, update

# R2 is undefined for fewer.
MIN_SAMPLES = 2


@dataclass(frozen=True, kw_only=True)
class RegressionConfig(Settings, prefix="regress."):
    """The loss, in units of each target's standard deviation."""

    loss: Literal["mse", "huber", "mae"] = "mse"
    """mse: mean squared error; mae: mean absolute error; huber: squared up to delta, then
    linear, so that outliers have less influence."""
    delta: Annotated[Positive, UsedIf("loss", "huber")] = 1.0
    """huber: error at which the loss becomes linear, in standard deviations."""


def measure_targets(
    targets: Float[Tensor, "n T"], names: Iterable[str]
) -> dict[str, tuple[float, float]]:
    """Return the mean and population standard deviation of each target, ignoring NaN (unknown).

    The deviation of a constant target is set to 1.

    Args:
        targets: Values of the training split.
        names: Column names.

    Raises:
        DataError: A target has no known value, or an infinite one.
    """
    found = {}
    for name, column in zip(names, targets.double().unbind(1), strict=True):
        known = column[~column.isnan()]
        if not len(known) or not bool(known.isfinite().all()):
            raise DataError(
                f"target {name!r} has {len(known)} known values in the training split, of which "
                f"{int(known.isfinite().sum())} are finite; it needs at least one, and all finite"
            )
        deviation = float(known.std(correction=0))
        # Rounding may leave a constant column a tiny deviation, which must not become a divisor.
        flat = deviation <= 1e-12 * max(float(known.abs().max()), 1e-12)
        found[name] = (float(known.mean()), 1.0 if flat else deviation)
    return found


class Regression(Task):
    """Predict one or more numbers per sample.

    Args:
        model: Returns standardised values ``[B, T]``.
        targets: Mean and standard deviation by target, from ``measure_targets``.
        config: Loss settings.

    Raises:
        ConfigError: The model's number of outputs differs from the number of targets.
    """

    best_metric = "loss"
    higher_is_better = False
    mean: Tensor
    deviation: Tensor

    def __init__(
        self, model: Any, targets: Mapping[str, tuple[float, float]], config: RegressionConfig
    ) -> None:
        super().__init__(model)
        if model.config.num_classes != len(targets) or not targets:
            raise ConfigError(
                f"the model returns {model.config.num_classes} values, but the targets are "
                f"{list(targets)}; build it with one output per target"
            )
        self.names = tuple(targets)
        self.config = config
        mean, deviation = zip(*targets.values(), strict=True)
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation), persistent=False)

    def forward(self, batch: TaskBatch, generator: torch.Generator) -> Losses:
        """Return the mean loss over the known values."""
        answers = answer(self.model, batch.inputs, shown_modalities(self, batch, generator))
        targets, known = self._truth(batch)
        errors = self._errors(answers.float(), targets, known)
        return Losses(total=errors.sum() / known.sum().clamp(min=1), parts={})

    def restore(self, answers: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """Convert standardised model outputs to the units of the targets."""
        return answers.float() * self.deviation + self.mean

    def _truth(self, batch: TaskBatch) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
        """Return the targets, 0 where unknown (NaN), and which are known."""
        found = None if batch.targets is None else tuple(batch.targets.shape)
        if batch.targets is None or batch.targets.shape[1] != len(self.names):
            raise DataError(
                f"regression needs the targets {list(self.names)}, but the batch's have shape "
                f"{found}; name the columns with --targets"
            )
        known = ~batch.targets.isnan()
        return torch.where(known, batch.targets, 0.0), known

    def _errors(
        self, answers: Float[Tensor, "B T"], targets: Float[Tensor, "B T"], known: Tensor
    ) -> Float[Tensor, "B T"]:
        # Where unknown, the target is the output itself, so that the loss and its gradient are 0.
        wanted = torch.where(known, (targets - self.mean) / self.deviation, answers.detach())
        if self.config.loss == "mse":
            return F.mse_loss(answers, wanted, reduction="none")
        if self.config.loss == "mae":
            return F.l1_loss(answers, wanted, reduction="none")
        return F.huber_loss(answers, wanted, reduction="none", delta=self.config.delta)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[TaskBatch]) -> dict[str, float]:
        """Return the loss, and MAE, RMSE and R2 per target in its own units.

        Their names are ``mae/<target>`` and so on; ``r2`` is the mean over targets. R2 is left out
        for targets with fewer than two known values.
        """
        self.eval()
        device = device_of(self.model)
        loss = new_means(["loss"], device)["loss"]
        metrics = {
            name: {
                "mae": new_metric("MeanAbsoluteError", device),
                "rmse": new_metric("MeanSquaredError", device, squared=False),
                "r2": new_metric("R2Score", device),
                "count": new_metric("SumMetric", device),
            }
            for name in self.names
        }
        for batch in batches:
            answers = answer(self.model, batch.inputs, held_modalities(self.model, batch)).float()
            targets, known = self._truth(batch)
            number = known.sum()
            add_mean(loss, self._errors(answers, targets, known).sum() / number, number)
            restored = self.restore(answers)
            for place, each in enumerate(metrics.values()):
                rows = known[:, place]
                update(each["count"], rows.sum())
                for name in ("mae", "rmse", "r2") if bool(rows.any()) else ():
                    update(each[name], restored[rows, place], targets[rows, place])
        return {"loss": float(result(loss)), **_figures(metrics)}


def _figures(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the metrics by name; each process must compute all of them, so that they can merge."""
    figures: dict[str, float] = {}
    scores = []
    for target, each in metrics.items():
        count = float(result(each["count"]))
        figures |= {f"{name}/{target}": float(result(each[name])) for name in ("mae", "rmse")}
        if count >= MIN_SAMPLES:
            score = float(result(each["r2"]))
            figures[f"r2/{target}"] = score
            scores.append(score)
    return {**({"r2": sum(scores) / len(scores)} if scores else {}), **figures}
