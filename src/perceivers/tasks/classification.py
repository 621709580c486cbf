"""Classification: cross-entropy with smoothing, mixed samples, class weights; accuracy per class.

Legend: B batch, K classes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers.errors import DataError
from perceivers.models.base import Model
from perceivers.settings import Range, Rate, Settings
from perceivers.tasks.base import Choices, Losses, Task, TaskBatch
from perceivers.tasks.metrics import (
    add_mean,
    device_of,
    new_accuracies,
    new_means,
    results,
    update,
)
from perceivers.tasks.mixing import check_mixing, mix_samples
from perceivers.tasks.presence import answer, held_modalities, shown_modalities


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig(Settings, prefix="loss."):
    """The loss."""

    label_smoothing: Rate = 0.0
    """Share of the target spread evenly over all classes that can be named, 0..1; after mixing."""
    mixup: Annotated[float, Range(0, 1e6)] = 0.0
    """MixUp's Beta(a, a) parameter; 0 switches it off (arXiv 1710.09412)."""
    cutmix: bool = False
    """Paste boxes of other pictures or clips (arXiv 1905.04899): in half of every batch, the other
    half being for MixUp, or in all of it where mixup is 0."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: weigh each class by the inverse of its frequency in the training split."""

    @property
    def mixes(self) -> bool:
        """Whether samples are mixed."""
        return self.mixup > 0.0 or self.cutmix


def balanced_weights(labels: Int[Tensor, " n"], num_classes: int) -> Float[Tensor, " K"]:
    """Return n / (K x count) per class, 0 for a class without samples."""
    counts = torch.bincount(labels[labels >= 0], minlength=num_classes).float()
    return torch.where(counts > 0, counts.sum() / (num_classes * counts.clamp(min=1)), 0.0)


def soft_cross_entropy(
    logits: Float[Tensor, "B K"],
    targets: Float[Tensor, "B K"],
    smoothing: float = 0.0,
    weights: Float[Tensor, " K"] | None = None,
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy in nats against class probabilities.

    As PyTorch's, but for logits of -inf, where PyTorch returns NaN or infinity: such a class cannot
    be named (a place that a sample does not have), so smoothing spreads over the others only. Only
    a target on it costs infinity. NaN stays NaN, also in a row that can name nothing.

    Args:
        logits: Per class; at least one finite in every row.
        targets: Probabilities, whose sum is 1.
        smoothing: Share of the target spread evenly over the classes that can be named, 0..1.
        weights: Factor per class.
    """
    possible = logits != -torch.inf  # NaN is none of these
    spread = possible.float() / possible.sum(-1, keepdim=True)
    targets = targets * (1.0 - smoothing) + spread * smoothing
    # Not a plain product, which is NaN where nothing is expected of a class that cannot be named.
    costs = torch.where(targets == 0.0, 0.0, -targets * logits.log_softmax(-1))
    if weights is not None:
        costs = costs * weights
    return costs.sum(-1).mean()


class Classification(Task):
    """One class per sample.

    Args:
        model: Whose call returns logits ``[B, K]``; -inf is a class that cannot be named.
        num_classes: Classes K.
        config: The loss.
        class_weights: Weight per class ``[K]``, from ``balanced_weights``.

    Raises:
        ConfigError: The samples of the model's modalities cannot be mixed.
    """

    best_metric = "top1"
    higher_is_better = True
    class_weights: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        config: ClassificationConfig,
        class_weights: Float[Tensor, " K"] | None = None,
    ) -> None:
        super().__init__(model)
        if config.mixes:
            assert isinstance(model, Model)
            specs = model.config.data_inputs
            check_mixing(specs, mixup=config.mixup > 0.0, cutmix=config.cutmix)
        self.num_classes = num_classes
        self.config = config
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, batch: TaskBatch, generator: torch.Generator) -> Losses:
        """Return the cross-entropy, of mixed samples where they are asked for."""
        targets = F.one_hot(self._labels(batch), self.num_classes).float()
        inputs, config = batch.inputs, self.config
        if config.mixes:
            inputs, targets = mix_samples(
                inputs, targets, generator, mixup=config.mixup, cutmix=config.cutmix
            )
        logits = answer(self.model, inputs, shown_modalities(self, batch, generator)).float()
        loss = soft_cross_entropy(logits, targets, config.label_smoothing, self.class_weights)
        return Losses(total=loss, parts={})

    def _labels(self, batch: TaskBatch) -> Int[Tensor, " B"]:
        if batch.labels is None:
            raise DataError("classification needs labelled data; the batch has no labels")
        return batch.labels

    @torch.no_grad()
    def evaluate(self, batches: Iterable[TaskBatch]) -> dict[str, float]:
        """Return loss, top1 and macro accuracy."""
        self.eval()
        device = device_of(self.model)
        metrics = new_means(["loss"], device) | new_accuracies(self.num_classes, device)
        choices = Choices(device)
        for batch in batches:
            labels = self._labels(batch)
            logits = answer(self.model, batch.inputs, held_modalities(self.model, batch)).float()
            add_mean(metrics["loss"], F.cross_entropy(logits, labels), len(labels))
            chosen = choices.of(logits)
            for name in ("top1", "macro"):
                update(metrics[name], chosen, labels)
        del metrics["matrix"]
        loss = results({"loss": metrics.pop("loss")})
        return {**loss, **choices.judge(results(metrics))}
