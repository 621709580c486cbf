"""RandAugment: random operations, out of sixteen, that change the colours or shape of an image.

One magnitude M in 0..10 sets the strength of all operations. Only signs and positions are random; a
sampled operation is always applied. Lengths scale with the sides of the image and are rounded to
pixels: the stated lengths apply to 224 x 224, and twice these to 448 x 448.

| operation | at M | at M = 5 |
|---|---|---|
| AutoContrast, Equalize, Invert | | |
| Rotate | +-3 M degrees about the centre | +-15 |
| ShearX, ShearY | +-0.03 M of the other side, from the upper left corner | +-0.15 |
| TranslateX, TranslateY | +-10 M px of 224 | +-50 |
| Cutout | a box of half-size 4 M px of 224, centred anywhere, becomes gray | 20 |
| Posterize | keep int(0.4 M) bits, at least 1 | 2 |
| Solarize | invert values from int(25.6 M) on | 128 |
| SolarizeAdd | add int(11 M) to values below 128 | 55 |
| Color, Contrast, Brightness, Sharpness | factor 0.1 + 0.18 M; 1 changes nothing | 1 |

At M = 5, the magnitude of the released Perceiver IO recipe, a quarter of the operations therefore
does nothing, as in the original training. Pixels from outside the image become gray (128).

Differences from the released script: it counts translations and cutouts in pixels whatever the size
of the crop; its Contrast uses the number of pixels / 256 as mean gray, while Pillow (used here)
uses the mean; below M = 3 it posterizes to 0 bits, which is black.
Paper: arXiv 1909.13719; Perceiver IO (arXiv 2107.14795) App. A.1.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import ceil, floor

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from perceivers.data.augment import AugmentConfig, View
from perceivers.errors import ConfigError

Picture = Image.Image
Operation = Callable[[Picture, float, np.random.Generator], Picture]

FILL = 128
# Image side in pixels that the lengths of the recipe refer to.
REFERENCE_SIDE = 224
SOLARIZE_ADD_BELOW = 128
MODES = ("RGB", "L")
# Operations that move or cover pixels, so that a mask would no longer match the image.
SHAPES = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY", "Cutout")
EDGE = 1e-6


def apply(
    picture: Picture, config: AugmentConfig, rng: np.random.Generator, *, keep_shape: bool = False
) -> Picture:
    """Apply ``config.rand_augment`` random operations of ``config.magnitude`` to an image.

    Args:
        picture: RGB or gray (mode RGB or L), 8 bits per value, of any size.
        config: Number and magnitude of the operations.
        rng: Random generator of operations, signs and positions.
        keep_shape: Use only operations that leave every pixel in place.

    Returns:
        An image of the same mode and size; the same object if there are no operations.

    Raises:
        ConfigError: The image has another mode.
    """
    if config.rand_augment and picture.mode not in MODES:
        raise ConfigError(
            f"augment.rand_augment is {config.rand_augment}, but the image has mode "
            f"{picture.mode!r}; its operations need 8-bit RGB or gray images, so set "
            f"augment.rand_augment to 0"
        )
    names = [name for name in OPERATIONS if not (keep_shape and name in SHAPES)]
    for _ in range(config.rand_augment):
        name = names[int(rng.integers(len(names)))]
        picture = OPERATIONS[name](picture, float(config.magnitude), rng)
    return picture


def augment_crop(
    picture: Picture, view: View, config: AugmentConfig, rng: np.random.Generator | None
) -> tuple[Picture, View]:
    """Crop the box of a view and apply the operations to it, before resizing.

    Args:
        picture: RGB or gray, 8 bits per value.
        view: The box, which is rounded outwards to whole pixels; flip, rotation and shift of the
            view are applied later.
        config: Number and magnitude of the operations.
        rng: Random generator; None for evaluation, without augmentation.

    Returns:
        The augmented crop and a view of all of it; without operations, the unchanged arguments.

    Raises:
        ConfigError: See ``apply``.
    """
    if rng is None or not config.rand_augment:
        return picture, view
    width, height = picture.size
    # Fractions have rounding errors: a millionth of a pixel must not add another row or column.
    left, top = floor(view.left * width + EDGE), floor(view.top * height + EDGE)
    right = min(width, ceil((view.left + view.width) * width - EDGE))
    lower = min(height, ceil((view.top + view.height) * height - EDGE))
    crop = apply(picture.crop((left, top, right, lower)), config, rng)
    return crop, replace(view, left=0.0, top=0.0, width=1.0, height=1.0)


def as_picture(array: NDArray) -> Picture:
    """Convert an array ``[C, H, W]`` to an image that ``apply`` accepts.

    Raises:
        ConfigError: The array is not uint8, or does not have 1 or 3 channels.
    """
    if array.dtype != np.uint8 or array.shape[0] not in {1, 3}:
        raise ConfigError(
            f"augment.rand_augment needs uint8 images of 1 or 3 channels, but the data are "
            f"{array.dtype} with {array.shape[0]} channels; set augment.rand_augment to 0"
        )
    values = array[0] if array.shape[0] == 1 else array.transpose(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(values))


def _sign(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


def _grey(picture: Picture) -> tuple[int, ...]:
    return (FILL,) * len(picture.getbands())


def _warp(picture: Picture, matrix: tuple[float, float, float, float, float, float]) -> Picture:
    """Apply an affine map from output to input positions; nearest neighbour, as in the release."""
    return picture.transform(
        picture.size,
        Image.Transform.AFFINE,
        matrix,
        Image.Resampling.NEAREST,
        fillcolor=_grey(picture),
    )


def _auto_contrast(picture: Picture, magnitude: float, rng: np.random.Generator) -> Picture:
    return ImageOps.autocontrast(picture)


def _equalize(picture: Picture, magnitude: float, rng: np.random.Generator) -> Picture:
    return ImageOps.equalize(picture)


def _invert(picture: Picture, magnitude: float, rng: np.random.Generator) -> Picture:
    return ImageOps.invert(picture)


def _rotate(picture: Picture, magnitude: float, rng: np.random.Generator) -> Picture:
    return picture.rotate(_sign(rng) * 3.0 * magnitude, fillcolor=_grey(picture))


def _posterize(picture: Picture, magnitude: float, rng: np.random.Generator) -> Picture:
    return ImageOps.posterize(picture, max(1, int(magnitude / 10 * 4)))


def _solarize(picture: Picture, magnitude: float, rng: np.random.Generator) -> Picture:
    return ImageOps.solarize(picture, int(magnitude / 10 * 256))


def _solarize_add(picture: Picture, magnitude: float, rng: np.random.Generator) -> Picture:
    more = int(magnitude / 10 * 110)
    table = [min(255, v + more) if v < SOLARIZE_ADD_BELOW else v for v in range(256)]
    return picture.point(table * len(picture.getbands()))


def _enhance(enhancer: Callable[[Picture], ImageEnhance._Enhance]) -> Operation:
    """Return an operation that blends with a degenerate image; factors above 1 extrapolate."""

    def operation(picture: Picture, magnitude: float, rng: np.random.Generator) -> Picture:
        return enhancer(picture).enhance(magnitude / 10 * 1.8 + 0.1)

    return operation


def _shear_x(picture: Picture, magnitude: float, rng: np.random.Generator) -> Picture:
    return _warp(picture, (1.0, _sign(rng) * magnitude / 10 * 0.3, 0.0, 0.0, 1.0, 0.0))


def _shear_y(picture: Picture, magnitude: float, rng: np.random.Generator) -> Picture:
    return _warp(picture, (1.0, 0.0, 0.0, _sign(rng) * magnitude / 10 * 0.3, 1.0, 0.0))


def _length(side: int, pixels: float) -> int:
    """Scale a length from the reference side to a side of ``side`` pixels."""
    return round(pixels * side / REFERENCE_SIDE)


def _translate_x(picture: Picture, magnitude: float, rng: np.random.Generator) -> Picture:
    shift = _sign(rng) * _length(picture.width, magnitude * 10)
    return _warp(picture, (1.0, 0.0, float(shift), 0.0, 1.0, 0.0))


def _translate_y(picture: Picture, magnitude: float, rng: np.random.Generator) -> Picture:
    shift = _sign(rng) * _length(picture.height, magnitude * 10)
    return _warp(picture, (1.0, 0.0, 0.0, 0.0, 1.0, float(shift)))


def _cutout(picture: Picture, magnitude: float, rng: np.random.Generator) -> Picture:
    across, down = (floor(rng.random() * side) for side in picture.size)
    wide, high = (_length(side, magnitude * 4) for side in picture.size)
    left, top = max(0, across - wide), max(0, down - high)
    right, lower = min(picture.width, across + wide), min(picture.height, down + high)
    covered = picture.copy()
    covered.paste(_grey(picture), (left, top, right, lower))
    return covered


# Same order as in the released script.
OPERATIONS: Mapping[str, Operation] = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Invert": _invert,
    "Rotate": _rotate,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "Color": _enhance(ImageEnhance.Color),
    "Contrast": _enhance(ImageEnhance.Contrast),
    "Brightness": _enhance(ImageEnhance.Brightness),
    "Sharpness": _enhance(ImageEnhance.Sharpness),
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateX": _translate_x,
    "TranslateY": _translate_y,
    "Cutout": _cutout,
    "SolarizeAdd": _solarize_add,
}
