"""Optical flow: for every pixel of the first frame, where it is in the second.

The released model's raw output, divided by 100, is a flow in units of 20 pixels; the loss that
trained it is not stated. Here it is the mean end-point error in those units.

Legend: B batch, H W rows and columns; channel 0 is x (right), 1 is y (down), in pixels.
Paper: Perceiver IO (arXiv 2107.14795) Sec. 4.2 and App. H.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from perceivers.errors import ConfigError, DataError
from perceivers.settings import Positive, Settings
from perceivers.tasks.base import Losses, Task, TaskBatch
from perceivers.tasks.flow_metrics import end_point_error, outlier_share
from perceivers.tasks.metrics import add_mean, device_of, new_means, results

TARGET = "flow"
FLOW_SCALE = 20.0


@dataclass(frozen=True, kw_only=True)
class FlowConfig(Settings, prefix="flow."):
    """The loss."""

    kind: Literal["epe", "l1"] = "epe"
    """epe: mean Euclidean error; l1: mean absolute error of both components."""
    scale: Positive = FLOW_SCALE
    """Pixels per unit of the model's output; 20 as released."""


def flow_modality(model: Any) -> str:
    """Return the video input whose pixels the model's flow output belongs to.

    Raises:
        ConfigError: The model has no such output.
    """
    output = getattr(model.config, "outputs", {}).get(TARGET)
    if output is None or output.channels != 2 or output.queries != "tokens":
        raise ConfigError(
            "optical flow needs a model with an output 'flow' of 2 channels per pixel; use one of "
            "the perceiver_io_flow variants"
        )
    return output.modality


class OpticalFlow(Task):
    """Predict flow.

    Args:
        model: With an output ``flow``.
        config: The loss.
    """

    best_metric = "epe"
    higher_is_better = False

    def __init__(self, model: Any, config: FlowConfig) -> None:
        super().__init__(model)
        self.name = flow_modality(model)
        self.config = config

    def forward(self, batch: TaskBatch, generator: torch.Generator) -> Losses:
        """Return the error of the scaled flow, over the pixels whose flow is known."""
        truth, known = self._truth(batch)
        error = self._answer(batch) - truth / self.config.scale
        if self.config.kind == "epe":
            # The root has no slope at zero, where an output of zeros may start.
            each = (error.square().sum(1) + 1e-8).sqrt()
        else:
            each = error.abs().mean(1)
        return Losses(total=(each * known).sum() / known.sum().clamp(min=1), parts={})

    def _answer(self, batch: TaskBatch) -> Float[Tensor, "B 2 H W"]:
        return self.model({self.name: batch.inputs[self.name]}).float()

    def _truth(self, batch: TaskBatch) -> tuple[Float[Tensor, "B 2 H W"], Bool[Tensor, "B H W"]]:
        """Flow with zeros where it is unknown (NaN), and where it is known."""
        if TARGET not in batch.inputs:
            raise DataError(
                "training flow needs data with flow: 'warps:PHOTOGRAPHS' generates it, a folder "
                "with frame1, frame2 and flow.flo brings it"
            )
        truth = batch.inputs[TARGET].float()
        known = torch.isfinite(truth).all(1)
        return torch.where(known.unsqueeze(1), truth, 0.0), known

    @torch.no_grad()
    def evaluate(self, batches: Iterable[TaskBatch]) -> dict[str, float]:
        """Return end-point error in pixels, that of no motion, and the share above 3 px and 5 %."""
        self.eval()
        metrics = new_means(["epe", "epe_of_zero", "outliers"], device_of(self.model))
        for batch in batches:
            truth, known = self._truth(batch)
            if not bool(known.any()):
                continue
            predicted = self._answer(batch) * self.config.scale
            count = known.sum()
            add_mean(metrics["epe"], end_point_error(predicted, truth, known), count)
            add_mean(metrics["epe_of_zero"], end_point_error(truth * 0, truth, known), count)
            add_mean(metrics["outliers"], outlier_share(predicted, truth, known), count)
        return results(metrics)
