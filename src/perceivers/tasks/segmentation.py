"""Semantic segmentation: predict a class per element; intersection over union (IoU) per class.

Legend: B batch, K classes; the grid is rows and columns of an image, or the points of a cloud.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from perceivers.errors import ConfigError, DataError
from perceivers.settings import Range, Settings
from perceivers.tasks.base import (
    Choices,
    Losses,
    Task,
    TaskBatch,
    answer,
    held_modalities,
    shown_modalities,
)
from perceivers.tasks.metrics import add_mean, device_of, new_means, new_metric, result, update

# Name of the masks in a batch, and the class id of elements left out of loss and metrics.
TARGET = "mask"
IGNORED = 255


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig(Settings, prefix="segment."):
    """Loss settings, and how masks are read."""

    ignore: Annotated[int, Range(0, IGNORED)] | str = "void"
    """Class left out of loss and metrics: its name in classes.txt, or its id in the masks. The id
    255 is always ignored. The default has no effect if no class is called void."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: weigh each class by the inverse of its pixel count in the training split."""
    exif_masks: Literal["upright", "stored"] = "upright"
    """Orientation of masks for images with an EXIF rotation, if sizes do not tell (square, mirrored
    or upside down): upright, as in image viewers, or as stored in the file."""


def segmented_modality(model: Any) -> str:
    """Return the modality whose elements a model classifies.

    Raises:
        ConfigError: The model has no segmentation output.
    """
    if model.segmented_modality is not None:
        return model.segmented_modality
    raise ConfigError(
        f"this {model.family} model has no output per element; segmentation is for hip, hiera and "
        f"perceiver_io models, trained with --task segment"
    )


def element_logits(model: Any, logits: Tensor) -> Float[Tensor, "B K *grid"]:
    """Return a model's logits in float32, with the class axis before the grid."""
    spec = model.config.inputs[segmented_modality(model)]
    return (logits if spec.channels_first else logits.movedim(-1, 1)).float()


def element_loss(
    logits: Float[Tensor, "B K *grid"],
    classes: Int[Tensor, "B *grid"],
    weights: Float[Tensor, " K"] | None = None,
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy in nats over the elements not ignored; 0 if there are none.

    Args:
        logits: Logits per class.
        classes: Target classes 0..K-1, or 255 to ignore.
        weights: Factor per class; the mean is then weighted by them.
    """
    # Not ``reduction="mean"``, which returns NaN if every element is ignored.
    total = F.cross_entropy(logits, classes, weight=weights, ignore_index=IGNORED, reduction="sum")
    known = classes[classes != IGNORED]
    share = known.new_tensor(len(known), dtype=torch.float32) if weights is None else weights[known]
    share = share.sum()
    return total / torch.where(share > 0, share, 1.0)


def class_iou(matrix: Int[Tensor, "K K"]) -> Float[Tensor, " K"]:
    """Return intersection over union per class from a confusion matrix (rows are true classes).

    Classes that neither occur nor are predicted are NaN.
    """
    counts = matrix.double()
    right = counts.diag()
    return right / (counts.sum(0) + counts.sum(1) - right)


def segmentation_figures(matrix: Int[Tensor, "K K"], classes: Sequence[str]) -> dict[str, float]:
    """Return mean IoU, pixel accuracy, mean class accuracy and the IoU of each class.

    Mean IoU is over the classes that occur or are predicted, mean class accuracy over those that
    occur.

    Args:
        matrix: Counts of elements; rows are true classes.
        classes: Class names, in the order of the rows.
    """
    iou, counts = class_iou(matrix), matrix.double()
    recall = counts.diag() / counts.sum(1)
    means = {
        "miou": iou.nanmean(),
        "pixel_accuracy": counts.diag().sum() / counts.sum(),
        "class_accuracy": recall.nanmean(),
    }
    each = {f"iou/{name}": value for name, value in zip(classes, iou, strict=True)}
    found = {name: float(value) for name, value in (means | each).items()}
    return {name: value for name, value in found.items() if value == value}  # without NaN


class Segmentation(Task):
    """Predict one class per element.

    Args:
        model: Returns logits ``[B, K, *grid]``, or ``[B, P, K]`` for points.
        classes: Names of the K classes.
        config: Loss settings.
        class_weights: Weight per class ``[K]``.

    Raises:
        ConfigError: The model has no segmentation output.
    """

    best_metric = "miou"
    higher_is_better = True
    class_weights: Tensor | None

    def __init__(
        self,
        model: Any,
        classes: Sequence[str],
        config: SegmentationConfig,
        class_weights: Float[Tensor, " K"] | None = None,
    ) -> None:
        super().__init__(model)
        self.name = segmented_modality(model)
        self.classes = tuple(classes)
        self.config = config
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, batch: TaskBatch, generator: torch.Generator) -> Losses:
        """Return the mean cross-entropy over the elements that are not ignored."""
        logits = self._logits(batch, shown_modalities(self, batch, generator))
        loss = element_loss(logits, self.true_classes(batch), self.class_weights)
        return Losses(total=loss, parts={})

    def _logits(self, batch: TaskBatch, shown: dict[str, Tensor]) -> Float[Tensor, "B K *grid"]:
        inputs = {name: raw for name, raw in batch.inputs.items() if name != TARGET}
        return element_logits(self.model, answer(self.model, inputs, shown))

    def true_classes(self, batch: TaskBatch) -> Int[Tensor, "B *grid"]:
        """Return target classes; 255 marks ignored elements and samples without mask or image.

        Raises:
            DataError: The batch has no masks.
        """
        if TARGET not in batch.inputs:
            raise DataError(
                "segmentation needs data with masks: a folder with images/ and masks/, tar files "
                "with KEY.png beside KEY.jpg, or point clouds with a label per point"
            )
        classes = batch.inputs[TARGET].long()
        for name in (TARGET, self.name):
            if name in batch.present:
                held = batch.present[name].view(-1, *[1] * (classes.ndim - 1))
                classes = torch.where(held, classes, IGNORED)
        return classes

    @torch.no_grad()
    def evaluate(self, batches: Iterable[TaskBatch]) -> dict[str, float]:
        """Return loss, mean IoU ``miou``, accuracies and ``iou/<class>``, at the model's size.

        IoU and accuracies come from one confusion matrix over the whole split.
        """
        self.eval()
        device = device_of(self.model)
        loss = new_means(["loss"], device)["loss"]
        counted = new_metric(
            "classification.MulticlassConfusionMatrix",
            device,
            num_classes=len(self.classes),
            ignore_index=IGNORED,
            validate_args=False,
        )
        choices = Choices(device)
        for batch in batches:
            logits = self._logits(batch, held_modalities(self.model, batch))
            truth = self.true_classes(batch)
            add_mean(loss, element_loss(logits, truth), (truth != IGNORED).sum())
            update(counted, choices.of(logits, 1), truth)
        matrix = result(counted).long().cpu()
        figures = choices.judge(segmentation_figures(matrix, self.classes))
        return {"loss": float(result(loss)), **figures}
