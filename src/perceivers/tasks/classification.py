"""Classification: cross-entropy with label smoothing, MixUp, CutMix and class weights; accuracy.

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
from perceivers.tasks.base import (
    Choices,
    Losses,
    Task,
    TaskBatch,
    answer,
    held_modalities,
    shown_modalities,
)
from perceivers.tasks.metrics import (
    add_mean,
    device_of,
    new_accuracies,
    new_means,
    results,
    update,
)
from perceivers.tasks.mixing import check_mixing, mix_samples


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig(Settings, prefix="loss."):
    """Loss settings."""

    label_smoothing: Rate = 0.0
    """Fraction of the target spread evenly over all possible classes, after mixing."""
    mixup: Annotated[float, Range(0, 1e6)] = 0.0
    """Parameter a of MixUp's Beta(a, a) distribution (arXiv 1710.09412); 0 disables MixUp."""
    cutmix: bool = False
    """Replace a box by that of another image or clip (CutMix, arXiv 1905.04899). With mixup above
    0, each takes half of the batch."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: weigh each class by the inverse of its frequency in the training split."""

    @property
    def mixes(self) -> bool:
        """Whether MixUp or CutMix is enabled."""
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

    Like ``torch.nn.functional.cross_entropy``, but classes with logit -inf are excluded (such as a
    position that a sample does not have): smoothing skips them, and only a target on one of them
    makes the loss infinite. PyTorch would return NaN or infinity. NaN logits give NaN.

    Args:
        logits: At least one per row must be finite.
        targets: Class probabilities that sum to 1.
        smoothing: Fraction of the target spread evenly over the classes not excluded, 0..1.
        weights: Factor per class.
    """
    possible = logits != -torch.inf  # True for NaN
    spread = possible.float() / possible.sum(-1, keepdim=True)
    targets = targets * (1.0 - smoothing) + spread * smoothing
    # A plain product would be NaN (0 times -inf) for excluded classes.
    costs = torch.where(targets == 0.0, 0.0, -targets * logits.log_softmax(-1))
    if weights is not None:
        costs = costs * weights
    return costs.sum(-1).mean()


class Classification(Task):
    """Classify samples, one class each.

    Args:
        model: Returns logits ``[B, K]``; -inf excludes a class.
        num_classes: Classes K.
        config: Loss settings.
        class_weights: Weight per class ``[K]``, from ``balanced_weights``.

    Raises:
        ConfigError: Mixing is enabled, but not possible for the model's modalities.
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
        # Not saved: computed again from the training split.
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, batch: TaskBatch, generator: torch.Generator) -> Losses:
        """Return the cross-entropy, of mixed samples if mixing is enabled."""
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
            # Without smoothing and class weights, to be comparable between runs.
            add_mean(metrics["loss"], F.cross_entropy(logits, labels), len(labels))
            chosen = choices.of(logits)
            for name in ("top1", "macro"):
                update(metrics[name], chosen, labels)
        del metrics["matrix"]  # not a scalar; only ``perceivers evaluate`` reports it
        loss = results({"loss": metrics.pop("loss")})
        return {**loss, **choices.judge(results(metrics))}
