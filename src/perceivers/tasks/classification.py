"""Classification: cross-entropy with label smoothing, MixUp and class weights; accuracy per class.

Legend: B batch, K classes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from perceivers.errors import ConfigError, DataError
from perceivers.models.hip import HiP
from perceivers.tasks.base import Losses, Task, TaskBatch


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig:
    """The loss."""

    label_smoothing: float = 0.0
    """Share of the target spread evenly over all classes, 0..1."""
    mixup: float = 0.0
    """MixUp's Beta(a, a) parameter; 0 switches it off (arXiv 1710.09412)."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: weigh each class by the inverse of its frequency in the training split."""

    def __post_init__(self) -> None:
        """Reject values out of range."""
        if not 0.0 <= self.label_smoothing < 1.0 or self.mixup < 0.0:
            raise ConfigError(
                f"label_smoothing={self.label_smoothing} must be in [0, 1) and mixup={self.mixup} "
                f"must not be negative"
            )
        if self.class_weights not in {"none", "balanced"}:
            raise ConfigError(f"class_weights={self.class_weights!r}; use none or balanced")


def balanced_weights(labels: Int[Tensor, " n"], num_classes: int) -> Float[Tensor, " K"]:
    """Return n / (K x count) per class, 0 for a class without samples."""
    counts = torch.bincount(labels[labels >= 0], minlength=num_classes).float()
    return torch.where(counts > 0, counts.sum() / (num_classes * counts.clamp(min=1)), 0.0)


def accuracies(matrix: Int[Tensor, "K K"]) -> dict[str, float]:
    """Return top-1 and macro accuracy from a confusion matrix (rows are the truth).

    Macro accuracy is the mean over classes that occur of the share recognised.
    """
    support = matrix.sum(1)
    right = matrix.diag()
    occurs = support > 0
    recall = right[occurs].double() / support[occurs].double()
    return {
        "top1": float(right.sum()) / max(int(support.sum()), 1),
        "macro": float(recall.mean()) if len(recall) else 0.0,
    }


class Classification(Task):
    """One class per sample.

    Args:
        model: Whose call returns logits ``[B, K]``.
        num_classes: Classes K.
        config: The loss.
        class_weights: Weight per class ``[K]``, from ``balanced_weights``.
    """

    best_metric = "top1"
    higher_is_better = True
    class_weights: Tensor | None

    def __init__(
        self,
        model: HiP,
        num_classes: int,
        config: ClassificationConfig,
        class_weights: Float[Tensor, " K"] | None = None,
    ) -> None:
        super().__init__(model)
        self.num_classes = num_classes
        self.config = config
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, batch: TaskBatch, generator: torch.Generator) -> Losses:
        """Return the cross-entropy, of mixed samples if MixUp is on."""
        labels = self._labels(batch)
        targets = F.one_hot(labels, self.num_classes).float()
        inputs = batch.inputs
        if self.config.mixup > 0.0:
            inputs, targets = self._mix(inputs, targets, generator)
        loss = F.cross_entropy(
            self.model(inputs).float(),
            targets,
            weight=self.class_weights,
            label_smoothing=self.config.label_smoothing,
        )
        return Losses(total=loss, parts={})

    def _labels(self, batch: TaskBatch) -> Int[Tensor, " B"]:
        if batch.labels is None:
            raise DataError("classification needs labelled data; the batch has no labels")
        return batch.labels

    def _mix(
        self, inputs: dict[str, Tensor], targets: Tensor, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Blend every sample with another of the batch, by one share per batch."""
        seed = int(torch.randint(2**31, (), generator=generator))
        # torch's Beta takes no generator; NumPy's makes the draw a function of the step alone.
        share = float(np.random.default_rng(seed).beta(self.config.mixup, self.config.mixup))
        order = torch.randperm(len(targets), generator=generator).to(targets.device)
        mixed = {}
        for name, raw in inputs.items():
            blended = raw.float() * share + raw[order].float() * (1.0 - share)
            # Integers stay on their scale, which the adapter knows only by their type.
            mixed[name] = blended if raw.is_floating_point() else blended.round().to(raw.dtype)
        return mixed, targets * share + targets[order] * (1.0 - share)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[TaskBatch]) -> dict[str, float]:
        """Return loss, top1 and macro accuracy."""
        self.eval()
        matrix = torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64)
        loss = 0.0
        for batch in batches:
            logits, labels = self.model(batch.inputs).float(), self._labels(batch)
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            matrix += confusion(logits.argmax(-1), labels, self.num_classes)
        return {"loss": loss / max(int(matrix.sum()), 1), **accuracies(matrix)}


def confusion(
    predicted: Int[Tensor, " B"], labels: Int[Tensor, " B"], num_classes: int
) -> Int[Tensor, "K K"]:
    """Count (truth, prediction) pairs, on the CPU."""
    pairs = (labels * num_classes + predicted).cpu()
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
