"""Random erasing: noise takes the place of a box of a picture, or of all frames of a clip.

The box covers 0.02 to 1/3 of the area, uniformly, with an aspect ratio drawn log-uniformly from
0.3 to 1 / 0.3; one that does not fit is drawn anew, up to 10 times. Every pixel, channel and frame
has noise of its own. It is such that a model, which normalises what it reads, sees standard normal
values: raw values are drawn with the mean and deviation of the spec, times 255 for uint8, rounded
and cut off at 0 and 255. Where a spec states none, noise is uniform over 0..255, or over the range
of the sample's own values for other types.

Legend: C channels, T frames, H W rows and columns.
Paper: arXiv 1708.04896; noise in the model's space as in common fine-tuning recipes.
Differs: raw values are cut off at the ends of their range, which normal noise is not.
"""

from math import exp, log, sqrt

import numpy as np
from numpy.typing import NDArray

from perceivers.data.augment import Look
from perceivers.data.fits import FULL_SCALE
from perceivers.types import Image, Video

AREA = (0.02, 1 / 3)
ASPECT = (0.3, 1 / 0.3)
ATTEMPTS = 10


def erase_box(values: NDArray, spec: Image | Video, look: Look) -> NDArray:
    """Erase a box with the probability of ``look.augment.erase``; in evaluation never.

    Args:
        values: Fitted picture ``[C, H, W]`` or clip ``[C, T, H, W]``; it is not changed in place.
        spec: Its spec, for mean and deviation.
        look: Where the draws come from; none are made when the probability is 0.
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
    """Return the rows and columns of a box, or None if none fits.

    Args:
        height: Rows H of the picture.
        width: Columns W of the picture.
        rng: Where the draws come from; how many depends on the sizes alone.
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
    """Return raw values of some shape ``[C, ..., h, w]``, in the type of the sample."""
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
