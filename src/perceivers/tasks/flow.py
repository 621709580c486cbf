"""Optical flow: for every pixel of the first frame, where it is in the second.

The released model's raw output, divided by 100, is a flow in units of 20 pixels; the loss that
trained it is not stated. Here it is the mean end-point error in those units.

Legend: B batch, H W rows and columns; channel 0 is x (right), 1 is y (down), in pixels.
Paper: Perceiver IO (arXiv 2107.14795) Sec. 4.2 and App. H.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from perceivers.errors import ConfigError, DataError, InputError
from perceivers.nn.patches import (
    blend_tiles,
    crop_to_size,
    cut_tiles,
    pad_to_tile,
    pixel_places,
    sample_pixels,
    tile_places,
)
from perceivers.settings import Positive, Settings
from perceivers.tasks.base import Losses, Task, TaskBatch
from perceivers.tasks.metrics import add_mean, device_of, new_means, results

# -- How far predicted optical flow is from the truth, and warping a frame by it -----------------
#
# Legend: B batch, C channels, H W rows and columns. Flow is in pixels from frame 1 to frame 2,
# channel 0 = u (to the right), channel 1 = v (down).

# KITTI 2015 (Menze and Geiger): an outlier is off by more than both of these.
OUTLIER_PIXELS = 3.0
OUTLIER_SHARE = 0.05


def end_point_errors(
    predicted: Float[Tensor, "*B 2 H W"], true: Float[Tensor, "*B 2 H W"]
) -> Float[Tensor, "*B H W"]:
    """Return the distance in pixels between predicted and true end points; NaN where unknown."""
    return torch.linalg.vector_norm(predicted - true, dim=-3)


def end_point_error(
    predicted: Float[Tensor, "*B 2 H W"],
    true: Float[Tensor, "*B 2 H W"],
    valid: Bool[Tensor, "*B H W"] | None = None,
) -> Float[Tensor, ""]:
    """Return the mean end-point error in pixels over all pixels that count.

    Args:
        predicted: Flow to be judged.
        true: Flow it should be.
        valid: Where the truth is known; None counts pixels whose truth is finite. Whatever stands
            elsewhere, NaN as well, has no influence.

    Raises:
        InputError: No pixel counts.
    """
    counted = _counted(true, valid)
    # An unknown value that merely goes uncounted would still turn gradients into NaN.
    known = true.where(counted.unsqueeze(-3), 0.0)
    return end_point_errors(predicted, known)[counted].mean()


def outlier_share(
    predicted: Float[Tensor, "*B 2 H W"],
    true: Float[Tensor, "*B 2 H W"],
    valid: Bool[Tensor, "*B H W"] | None = None,
) -> Float[Tensor, ""]:
    """Return the share, 0..1, of pixels off by more than 3 px and more than 5 % of their motion.

    KITTI calls it Fl-all. Arguments and errors are those of ``end_point_error``.

    Raises:
        InputError: No pixel counts.
    """
    counted = _counted(true, valid)
    errors = end_point_errors(predicted, true)[counted]
    lengths = torch.linalg.vector_norm(true, dim=-3)[counted]
    # Asked this way round, an error of NaN is an outlier.
    good = (errors <= OUTLIER_PIXELS) | (errors <= OUTLIER_SHARE * lengths)
    return (~good).to(errors.dtype).mean()


def warp_backward(
    frame2: Float[Tensor, "B C H W"], flow: Float[Tensor, "B 2 H W"]
) -> Float[Tensor, "B C H W"]:
    """Return frame 2 as seen from frame 1: ``out(x) = frame2(x + flow(x))``, bilinear.

    With true flow it looks like frame 1, except where frame 1 shows what frame 2 hides. Places
    outside frame 2 take its outermost pixels.
    """
    height, width = frame2.shape[-2:]
    return sample_pixels(frame2, pixel_places(height, width, flow.device) + flow)


def _counted(true: Tensor, valid: Tensor | None) -> Tensor:
    """Return which pixels count."""
    counted = true.isfinite().all(-3) if valid is None else valid
    if not counted.any():
        raise InputError(
            f"none of the {counted.numel()} pixels has a known true flow; there is no error to "
            f"measure"
        )
    return counted


# -- Optical flow --------------------------------------------------------------------------------

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


# -- Optical flow of pictures of any size: fixed tiles, blended by their distance to the edge ----
#
# Legend: C channels, H W rows and columns of the pictures. Paper: Perceiver IO (arXiv 2107.14795)
# App. H.

MIN_OVERLAP = 20


@torch.no_grad()
def tiled_flow(
    model: Any,
    frames: Tensor,
    *,
    scale: float = FLOW_SCALE,
    min_overlap: int = MIN_OVERLAP,
    pad: bool = False,
    batch_size: int = 1,
) -> tuple[Float[Tensor, "2 H W"], int]:
    """Return the flow of a frame pair of any size, and how many tiles it took.

    Args:
        model: With an output ``flow``.
        frames: ``[C, 2, H, W]``, uint8 or 0..1.
        scale: Pixels per unit of the model's output.
        min_overlap: Pixels that neighbouring tiles share, at least.
        pad: Repeat the edge of pictures smaller than a tile instead of refusing them.
        batch_size: Tiles at once.

    Raises:
        InputError: The pictures are smaller than a tile and ``pad`` is off.
    """
    name = flow_modality(model)
    _, height, width = model.config.inputs[name].grid
    size = (frames.shape[-2], frames.shape[-1])
    if pad:
        frames = pad_to_tile(frames, (height, width))
    whole = (frames.shape[-2], frames.shape[-1])
    overlap = min(min_overlap, min(height, width) // 2)
    places = tile_places(whole, (height, width), overlap)
    tiles = cut_tiles(frames, places, (height, width))
    parts = [model({name: part}).float() for part in tiles.split(batch_size)]
    flow = blend_tiles(torch.cat(parts) * scale, places, whole)
    return crop_to_size(flow, size), len(places)


@torch.no_grad()
def evaluate_pairs(
    model: Any, pairs: Iterable[Mapping[str, NDArray]], *, scale: float = FLOW_SCALE
) -> dict[str, float]:
    """Return the figures of ``OpticalFlow`` over measured pairs, each of its own size.

    Every pair counts alike. Pictures smaller than a tile are padded by their edge, which is cut off
    again before anything is counted.

    Args:
        model: With an output ``flow``.
        pairs: Samples with the frames ``[3, 2, H, W]`` under the model's modality, and ``flow``
            ``[2, H, W]`` in pixels, NaN where unknown.
        scale: Pixels per unit of the model's output.
    """
    model.eval()
    name = flow_modality(model)
    sums = {"epe": 0.0, "epe_of_zero": 0.0, "outliers": 0.0}
    count = 0
    for pair in pairs:
        frames, truth = torch.from_numpy(pair[name]), torch.from_numpy(pair[TARGET])
        predicted, _ = tiled_flow(model, frames, scale=scale, pad=True)
        sums["epe"] += float(end_point_error(predicted, truth))
        sums["epe_of_zero"] += float(end_point_error(torch.zeros_like(truth), truth))
        sums["outliers"] += float(outlier_share(predicted, truth))
        count += 1
    return {name: value / max(count, 1) for name, value in sums.items()} | {"pairs": float(count)}
