"""RandAugment: a few operations, drawn from sixteen, change the colours or the shape of a picture.

One magnitude M in 0..10 sets the strength of all. Signs and places are random, and nothing else is:
a drawn operation is always applied. Lengths are shares of the picture's sides, rounded to
pixels: they come to the stated pixels on 224 x 224, and to twice as many on 448 x 448.

| operation | at M | at M = 5 |
|---|---|---|
| AutoContrast, Equalize, Invert | | |
| Rotate | +-3 M degrees about the centre | +-15 |
| ShearX, ShearY | +-0.03 M of the other side, from the upper left corner | +-0.15 |
| TranslateX, TranslateY | +-10 M px of 224 | +-50 |
| Cutout | a box of half-size 4 M px of 224, its centre anywhere, becomes grey | 20 |
| Posterize | keep int(0.4 M) bits, at least 1 | 2 |
| Solarize | invert values from int(25.6 M) on | 128 |
| SolarizeAdd | add int(11 M) to values below 128 | 55 |
| Color, Contrast, Brightness, Sharpness | factor 0.1 + 0.18 M; 1 changes nothing | 1 |

So a quarter of the operations does nothing at M = 5, which is the magnitude of Perceiver IO's
released recipe; that is how it was trained. Pixels from outside the picture become grey (128).

Differs: the released script counts translations and cutouts in pixels of a crop of any size; its
Contrast takes the number of pixels / 256 for the mean grey, Pillow's (which is used here) the mean;
it posterizes to 0 bits, which is black, below M = 3.
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
# The side on which the lengths of the recipe are counted, in pixels.
REFERENCE_SIDE = 224
SOLARIZE_ADD_BELOW = 128
MODES = ("RGB", "L")
# Operations that move pixels or cover them; what belongs to a pixel, such as its class, would move.
SHAPES = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY", "Cutout")
EDGE = 1e-6


def apply(
    picture: Picture, config: AugmentConfig, rng: np.random.Generator, *, keep_shape: bool = False
) -> Picture:
    """Apply ``config.rand_augment`` operations of ``config.magnitude`` to a picture.

    Args:
        picture: RGB or grey (modes RGB and L), 8 bits per value, of any size.
        config: How many operations, and how strong.
        rng: Which ones, and with which signs and places; the draws do not depend on the picture.
        keep_shape: Draw only from the operations that leave every pixel in its place.

    Returns:
        A picture of the same mode and size; the same object when there is nothing to do.

    Raises:
        ConfigError: The picture is of another mode.
    """
    if config.rand_augment and picture.mode not in MODES:
        raise ConfigError(
            f"augment.rand_augment is {config.rand_augment}, but the picture has mode "
            f"{picture.mode!r}; its operations are for RGB and grey pictures of 8 bits, so set "
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
    """Cut out what a view looks at and apply the operations to it, before it is resized.

    Args:
        picture: RGB or grey, 8 bits per value.
        view: The box, which is rounded outwards to whole pixels; mirroring, turning and shifting
            are left to who draws it.
        config: How many operations, and how strong.
        rng: Where they come from; None for evaluation, which has none.

    Returns:
        The changed crop, and the view of all of it. Without operations both stay as they are.

    Raises:
        ConfigError: As ``apply``.
    """
    if rng is None or not config.rand_augment:
        return picture, view
    width, height = picture.size
    # Shares carry rounding errors; a millionth of a pixel beyond an edge is no further pixel.
    left, top = floor(view.left * width + EDGE), floor(view.top * height + EDGE)
    right = min(width, ceil((view.left + view.width) * width - EDGE))
    lower = min(height, ceil((view.top + view.height) * height - EDGE))
    crop = apply(picture.crop((left, top, right, lower)), config, rng)
    return crop, replace(view, left=0.0, top=0.0, width=1.0, height=1.0)


def as_picture(array: NDArray) -> Picture:
    """Return an array ``[C, H, W]`` as a picture that ``apply`` takes.

    Raises:
        ConfigError: It is not uint8, or has not 1 or 3 channels.
    """
    if array.dtype != np.uint8 or array.shape[0] not in {1, 3}:
        raise ConfigError(
            f"augment.rand_augment is for uint8 pictures of 1 or 3 channels, but the data hold "
            f"{array.dtype} with {array.shape[0]} channels; set augment.rand_augment to 0"
        )
    values = array[0] if array.shape[0] == 1 else array.transpose(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(values))


def _sign(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


def _grey(picture: Picture) -> tuple[int, ...]:
    return (FILL,) * len(picture.getbands())


def _warp(picture: Picture, matrix: tuple[float, float, float, float, float, float]) -> Picture:
    """Look up every pixel at its place times the matrix: nearest pixels, as released."""
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
    """Return an operation that blends with a duller picture, or away from it above 1."""

    def operation(picture: Picture, magnitude: float, rng: np.random.Generator) -> Picture:
        return enhancer(picture).enhance(magnitude / 10 * 1.8 + 0.1)

    return operation


def _shear_x(picture: Picture, magnitude: float, rng: np.random.Generator) -> Picture:
    return _warp(picture, (1.0, _sign(rng) * magnitude / 10 * 0.3, 0.0, 0.0, 1.0, 0.0))


def _shear_y(picture: Picture, magnitude: float, rng: np.random.Generator) -> Picture:
    return _warp(picture, (1.0, 0.0, 0.0, _sign(rng) * magnitude / 10 * 0.3, 1.0, 0.0))


def _length(side: int, pixels: float) -> int:
    """Scale a length on the reference side to a side of ``side`` pixels."""
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


# In the order of the released script.
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
