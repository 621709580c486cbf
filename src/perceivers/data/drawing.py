"""Resampling of images to the size that a spec declares; uint8 stays uint8.

Legend: C channels, H W rows and columns of the spec.
"""

from math import ceil, cos, sin

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from perceivers.data.augment import PLAIN, Look, View, place_view, random_view
from perceivers.data.deep_pictures import is_deep, read_deep, to_augmented
from perceivers.data.pictures import convert_channels, load_picture, open_picture, upright_size
from perceivers.data.rand_augment import as_picture, augment_crop
from perceivers.data.sources import Encoded
from perceivers.types import Image as ImageSpec

# A JPEG is decoded at no less than this many times the size of the output, so that the final,
# better filter determines how the image looks.
DRAFT_MARGIN = 1.5


def fit_encoded(
    encoded: Encoded, spec: ImageSpec, look: Look = PLAIN
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Decode an image file, no larger than needed, to uint8 ``[C, H, W]``.

    An image that ``is_deep`` becomes what ``read_deep`` returns, or uint8 if RandAugment changes
    it, because its operations need 8 bits.

    Args:
        encoded: The file.
        spec: Shape of the output.
        look: View and augmentation; erasing is left to ``erasing``.

    Raises:
        DataError: The file is damaged, not an image, or too large.
    """
    data = encoded.load()
    if is_deep(data):
        return _fit_deep(data, encoded.path, spec, look)
    picture = open_picture(data, encoded.path)
    size, target = upright_size(picture), (spec.width, spec.height)
    view = choose_view(size, target, look)
    enlarge = DRAFT_MARGIN * max(
        spec.width / (view.width * size[0]), spec.height / (view.height * size[1])
    )
    picture = load_picture(
        picture, encoded.path, least=(ceil(size[0] * enlarge), ceil(size[1] * enlarge))
    )
    picture = convert_channels(picture, spec.channels, encoded.path)
    picture, view = augment_crop(picture, view, look.augment, look.rng)
    return _to_array(draw_view(picture, view, target))


def _fit_deep(
    data: bytes, path: str, spec: ImageSpec, look: Look
) -> NDArray[np.uint8] | NDArray[np.float32]:
    values = read_deep(data, path, spec.channels)
    view = choose_view((values.shape[2], values.shape[1]), (spec.width, spec.height), look)
    if look.rng is not None and look.augment.rand_augment:
        eight = to_augmented(values, path)
        return fit_picture(as_picture(eight), path, spec, view, look)
    return fit_array(values, spec, view)


def fit_picture(
    picture: Image.Image, path: str, spec: ImageSpec, view: View, look: Look = PLAIN
) -> NDArray[np.uint8]:
    """Fit a decoded image to uint8 ``[C, H, W]``."""
    picture = convert_channels(picture, spec.channels, path)
    picture, view = augment_crop(picture, view, look.augment, look.rng)
    return _to_array(draw_view(picture, view, (spec.width, spec.height)))


def fit_array(array: NDArray, spec: ImageSpec, view: View) -> NDArray:
    """Resample ``[C, H, W]`` with any number of channels, one by one; unchanged if it fits already.

    Args:
        array: uint8, or float32, clipped to its own range because bicubic filters overshoot.
        spec: Shape of the output; a single channel is repeated if more are requested.
        view: The part to resample.
    """
    if array.shape[0] == 1 and spec.channels > 1:
        array = np.repeat(array, spec.channels, axis=0)
    if view.is_whole and not view.is_turned and array.shape[1:] == spec.grid:
        return array[:, :, ::-1] if view.flip else array
    target = (spec.width, spec.height)
    fitted = [
        np.asarray(draw_view(Image.fromarray(channel), view, target))
        for channel in np.ascontiguousarray(array)
    ]
    if array.dtype == np.uint8:
        return np.stack(fitted)
    return np.stack(
        [
            values.clip(min(channel.min(), 0.0) if view.is_turned else channel.min(), channel.max())
            for values, channel in zip(fitted, array, strict=True)
        ]
    )


def draw_picture(picture: Image.Image, view: View, target: tuple[int, int]) -> NDArray[np.uint8]:
    """Resample the box of a view to the target's width and height, as uint8 ``[C, H, W]``."""
    return _to_array(draw_view(picture, view, target))


def draw_ids(
    picture: Image.Image, view: View, target: tuple[int, int], *, fill: int
) -> NDArray[np.uint8]:
    """Resample the box of a view by nearest neighbours, aligned with the pixels of ``draw_view``.

    Args:
        picture: Image of mode L, whose values must not be blended.
        view: The box, and how it is mirrored, rotated and shifted.
        target: Width and height of the output in pixels.
        fill: Value outside the image.
    """
    if view.is_turned:
        drawn = picture.transform(
            target,
            Image.Transform.AFFINE,
            _affine(view, picture.size, target),
            Image.Resampling.NEAREST,
            fillcolor=fill,
        )
        return np.array(drawn)
    (width, height), left, top = picture.size, view.left, view.top
    right, bottom = min(1.0, left + view.width), min(1.0, top + view.height)
    box = (left * width, top * height, right * width, bottom * height)
    drawn = picture.resize(target, Image.Resampling.NEAREST, box=box)
    return np.array(drawn.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.flip else drawn)


def draw_view(picture: Image.Image, view: View, target: tuple[int, int]) -> Image.Image:
    """Resample the box of a view to the target's width and height, in a single pass.

    Only a rotated view of an image that must shrink is resampled twice, because Pillow's affine
    transform samples points and would skip pixels.
    """
    if not view.is_turned:
        (width, height), left, top = picture.size, view.left, view.top
        right, bottom = min(1.0, left + view.width), min(1.0, top + view.height)
        box = (left * width, top * height, right * width, bottom * height)
        picture = picture.resize(target, Image.Resampling.BICUBIC, box=box)
        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.flip else picture
    shrink = [
        max(1.0, share * side / goal)
        for share, side, goal in zip((view.width, view.height), picture.size, target, strict=True)
    ]
    if max(shrink) > 1:
        sides = [max(1, round(side / by)) for side, by in zip(picture.size, shrink, strict=True)]
        picture = picture.resize((sides[0], sides[1]), Image.Resampling.BICUBIC)
    return picture.transform(
        target,
        Image.Transform.AFFINE,
        _affine(view, picture.size, target),
        Image.Resampling.BILINEAR,
    )


def _affine(
    view: View, size: tuple[int, int], target: tuple[int, int]
) -> tuple[float, float, float, float, float, float]:
    """Return the matrix from output to source pixels, in Pillow's order."""
    box_width, box_height = view.width * size[0], view.height * size[1]
    scale_x, scale_y = box_width / target[0], box_height / target[1]
    # Source = box centre + rotation of (scaled, mirrored output offset from the shifted centre).
    mirror = -1.0 if view.flip else 1.0
    a, b = cos(view.angle) * scale_x * mirror, -sin(view.angle) * scale_y
    d, e = sin(view.angle) * scale_x * mirror, cos(view.angle) * scale_y
    x, y = target[0] * (0.5 + view.shift[0]), target[1] * (0.5 + view.shift[1])
    c = view.left * size[0] + box_width / 2 - a * x - b * y
    f = view.top * size[1] + box_height / 2 - d * x - e * y
    return a, b, c, d, e, f


def choose_view(size: tuple[int, int], target: tuple[int, int], look: Look) -> View:
    """Sample a view for training with augmentation, else return the view of evaluation.

    Args:
        size: Width and height of the image in pixels.
        target: Width and height of the output in pixels.
        look: Random or fixed.
    """
    if look.rng is None or not look.augment.active:
        return place_view(size, target, look.place.along)
    return random_view(size, target, look.augment, look.rng)


def _to_array(picture: Image.Image) -> NDArray[np.uint8]:
    """Return the values of an image as ``[C, H, W]``."""
    values = np.asarray(picture)
    return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
