"""Random erasing: noise replaces a box of an image, or of all frames of a clip.

The box covers 0.02 to 1/3 of the area, uniformly, with an aspect ratio sampled log-uniformly from
0.3 to 1 / 0.3; a box that does not fit is sampled again, up to 10 times. Every pixel, channel and
frame has independent noise, such that a model sees standard normal values after normalisation: raw
values are sampled with the mean and standard deviation of the spec, times 255 for uint8, rounded
and clipped to 0..255. If a spec states none, noise is uniform over 0..255, or over the range of the
sample's own values for other dtypes.

Legend: C channels, T frames, H W rows and columns.
Paper: arXiv 1708.04896; noise in the model's space as in common fine-tuning recipes.
Differs: raw values are clipped to their range, which normal noise is not.
"""

from math import exp, log, sqrt

import numpy as np
from numpy.typing import NDArray

from perceivers.data.augment import Look
from perceivers.data.modality import FULL_SCALE
from perceivers.types import Image, Video

AREA = (0.02, 1 / 3)
ASPECT = (0.3, 1 / 0.3)
ATTEMPTS = 10


def erase_box(values: NDArray, spec: Image | Video, look: Look) -> NDArray:
    """Erase a box with probability ``look.augment.erase``; never in evaluation.

    Args:
        values: Fitted image ``[C, H, W]`` or clip ``[C, T, H, W]``; not changed in place.
        spec: Its spec, for mean and standard deviation.
        look: Random generator, not used if the probability is 0, and settings.
    """
    rng, probability = look.rng, look.augment.erase
    if rng is None or not probability or rng.random() >= probability:
        return values
    box = draw_box(spec.height, spec.width, rng)
    if box is None:
        return values
    erased = values.copy()
    part = erased[..., box[0], box[1]]
    part[...] = _draw_noise(part.shape, values, spec, rng)
    return erased


def draw_box(height: int, width: int, rng: np.random.Generator) -> tuple[slice, slice] | None:
    """Sample the rows and columns of a box; None if none fits.

    Args:
        height: Rows H of the image.
        width: Columns W of the image.
        rng: Random generator; how many numbers are sampled depends on the sizes alone.
    """
    for _ in range(ATTEMPTS):
        area = rng.uniform(*AREA) * height * width
        aspect = exp(rng.uniform(log(ASPECT[0]), log(ASPECT[1])))
        rows, columns = round(sqrt(area * aspect)), round(sqrt(area / aspect))
        if 0 < rows < height and 0 < columns < width:
            top = int(rng.integers(height - rows + 1))
            left = int(rng.integers(width - columns + 1))
            return slice(top, top + rows), slice(left, left + columns)
    return None


def _draw_noise(
    shape: tuple[int, ...], values: NDArray, spec: Image | Video, rng: np.random.Generator
) -> NDArray:
    """Return raw values of shape ``[C, ..., h, w]``, in the dtype of the sample."""
    if spec.mean and spec.std:
        axes = (-1, *[1] * (len(shape) - 1))
        mean, deviation = (np.array(v).reshape(axes) for v in (spec.mean, spec.std))
        noise = (mean + deviation * rng.standard_normal(shape)) * FULL_SCALE.get(values.dtype, 1.0)
    else:
        low, high = (0, 255) if values.dtype == np.uint8 else (values.min(), values.max())
        noise = rng.uniform(low, high, shape)
    if np.issubdtype(values.dtype, np.integer):
        limits = np.iinfo(values.dtype)
        noise = np.rint(noise).clip(limits.min, limits.max)
    return noise.astype(values.dtype)
