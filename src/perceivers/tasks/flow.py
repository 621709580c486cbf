"""Optical flow: the displacement of every pixel from the first frame to the second.

The released model's raw output, divided by 100, is flow in units of 20 pixels. The paper does not
state its training loss; here it is the mean end-point error in those units.

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

# -- Error metrics, and warping a frame by optical flow ------------------------------------------
#
# Legend: B batch, C channels, H W rows and columns. Flow is in pixels from frame 1 to frame 2,
# channel 0 = u (to the right), channel 1 = v (down).

# KITTI 2015 (Menze and Geiger): the error of an outlier exceeds both thresholds.
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
    """Return the mean end-point error in pixels over all valid pixels.

    Args:
        predicted: Predicted flow.
        true: True flow.
        valid: Where the true flow is known; None means wherever it is finite. Values elsewhere,
            including NaN, have no effect.

    Raises:
        InputError: No pixel is valid.
    """
    counted = _counted(true, valid)
    # Dropping NaN only after the norm would still make the gradients NaN.
    known = true.where(counted.unsqueeze(-3), 0.0)
    return end_point_errors(predicted, known)[counted].mean()


def outlier_share(
    predicted: Float[Tensor, "*B 2 H W"],
    true: Float[Tensor, "*B 2 H W"],
    valid: Bool[Tensor, "*B H W"] | None = None,
) -> Float[Tensor, ""]:
    """Return the fraction of pixels whose error exceeds both 3 px and 5 % of their true motion.

    KITTI calls it Fl-all. The arguments are those of ``end_point_error``.

    Raises:
        InputError: No pixel is valid.
    """
    counted = _counted(true, valid)
    errors = end_point_errors(predicted, true)[counted]
    lengths = torch.linalg.vector_norm(true, dim=-3)[counted]
    # Testing for inliers makes an error of NaN an outlier.
    good = (errors <= OUTLIER_PIXELS) | (errors <= OUTLIER_SHARE * lengths)
    return (~good).to(errors.dtype).mean()


def warp_backward(
    frame2: Float[Tensor, "B C H W"], flow: Float[Tensor, "B 2 H W"]
) -> Float[Tensor, "B C H W"]:
    """Warp frame 2 to frame 1: ``out(x) = frame2(x + flow(x))``, bilinear.

    With the true flow the result looks like frame 1, except for pixels that are occluded in
    frame 2. Coordinates outside frame 2 take the nearest edge pixel.
    """
    height, width = frame2.shape[-2:]
    return sample_pixels(frame2, pixel_places(height, width, flow.device) + flow)


def _counted(true: Tensor, valid: Tensor | None) -> Tensor:
    counted = true.isfinite().all(-3) if valid is None else valid
    if not counted.any():
        raise InputError(
            f"none of the {counted.numel()} pixels has a known true flow, so there is no error to "
            f"measure"
        )
    return counted


# -- Task ----------------------------------------------------------------------------------------

TARGET = "flow"
FLOW_SCALE = 20.0


@dataclass(frozen=True, kw_only=True)
class FlowConfig(Settings, prefix="flow."):
    """Loss settings."""

    kind: Literal["epe", "l1"] = "epe"
    """epe: mean Euclidean error; l1: mean absolute error of both components."""
    scale: Positive = FLOW_SCALE
    """Pixels per unit of the model's output; 20 in the released model."""


def flow_modality(model: Any) -> str:
    """Return the name of the video input that the model's flow output refers to.

    Raises:
        ConfigError: The model has no flow output.
    """
    output = getattr(model.config, "outputs", {}).get(TARGET)
    if output is None or output.channels != 2 or output.queries != "tokens":
        raise ConfigError(
            "optical flow needs a model with an output 'flow' of 2 channels per pixel; use one of "
            "the perceiver_io_flow variants"
        )
    return output.modality


class OpticalFlow(Task):
    """Predict optical flow.

    Args:
        model: A model with an output ``flow``.
        config: Loss settings.
    """

    best_metric = "epe"
    higher_is_better = False

    def __init__(self, model: Any, config: FlowConfig) -> None:
        super().__init__(model)
        self.name = flow_modality(model)
        self.config = config

    def forward(self, batch: TaskBatch, generator: torch.Generator) -> Losses:
        """Return the mean error of the scaled flow over the pixels whose true flow is known."""
        truth, known = self._truth(batch)
        error = self._answer(batch) - truth / self.config.scale
        if self.config.kind == "epe":
            # The square root has no gradient at 0, where a zero-initialised output may start.
            each = (error.square().sum(1) + 1e-8).sqrt()
        else:
            each = error.abs().mean(1)
        return Losses(total=(each * known).sum() / known.sum().clamp(min=1), parts={})

    def _answer(self, batch: TaskBatch) -> Float[Tensor, "B 2 H W"]:
        return self.model({self.name: batch.inputs[self.name]}).float()

    def _truth(self, batch: TaskBatch) -> tuple[Float[Tensor, "B 2 H W"], Bool[Tensor, "B H W"]]:
        """Return the true flow, 0 where unknown (NaN), and where it is known."""
        if TARGET not in batch.inputs:
            raise DataError(
                "training flow needs data with flow: 'warps:PHOTOGRAPHS' generates it; or use a "
                "folder with frame1, frame2 and flow.flo"
            )
        truth = batch.inputs[TARGET].float()
        known = torch.isfinite(truth).all(1)
        return torch.where(known.unsqueeze(1), truth, 0.0), known

    @torch.no_grad()
    def evaluate(self, batches: Iterable[TaskBatch]) -> dict[str, float]:
        """Return the end-point error in pixels, that of zero flow, and the outlier fraction."""
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


# -- Images of any size: tiles of fixed size, blended by distance to the tile edge ---------------
#
# Legend: C channels, H W rows and columns of the frames. Paper: Perceiver IO (arXiv 2107.14795)
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
    """Return the flow in pixels of a frame pair of any size, and the number of tiles.

    Args:
        model: A model with an output ``flow``.
        frames: Frame pair ``[C, 2, H, W]``, uint8 or float in 0..1.
        scale: Pixels per unit of the model's output.
        min_overlap: Minimum overlap of neighbouring tiles in pixels.
        pad: Pad frames smaller than a tile by repeating their edge, instead of raising.
        batch_size: Tiles per forward pass.

    Raises:
        InputError: The frames are smaller than a tile and ``pad`` is False.
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
    """Return the metrics of ``OpticalFlow`` averaged over frame pairs, which may differ in size.

    Every pair has the same weight. Frames smaller than a tile are padded by repeating their edge;
    the padding is cropped before errors are computed.

    Args:
        model: A model with an output ``flow``.
        pairs: Samples with the frames ``[3, 2, H, W]`` under the name of the model's input, and
            ``flow`` ``[2, H, W]`` in pixels, NaN where unknown.
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
