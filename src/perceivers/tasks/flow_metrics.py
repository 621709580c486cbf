"""How far predicted optical flow is from the truth, and warping a frame by it.

Legend: B batch, C channels, H W rows and columns. Flow is in pixels from frame 1 to frame 2,
channel 0 = u (to the right), channel 1 = v (down).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from perceivers.errors import InputError
from perceivers.nn.patches import pixel_places, sample_pixels

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
