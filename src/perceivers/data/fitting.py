"""Raw samples to arrays of exactly the shape a spec declares, uint8 staying uint8.

Legend: C channels, H W rows and columns of the spec.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, cos, sin
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from perceivers.data.augment import AugmentConfig, View, centre_view, random_view
from perceivers.data.pictures import (
    check_picture_spec,
    convert_channels,
    load_picture,
    open_picture,
    upright_size,
)
from perceivers.data.sources import Encoded, PictureSource, Source
from perceivers.errors import ConfigError, DataError
from perceivers.types import Image as ImageSpec
from perceivers.types import ModalitySpec

# A JPEG is decoded no smaller than this many times what is kept of it, so that the final,
# better filter decides how the picture looks.
DRAFT_MARGIN = 1.5


@dataclass(frozen=True)
class SampleReader:
    """Reads one sample of a source and fits it to the specs.

    Args:
        source: Where the samples come from.
        specs: What each modality must look like; other modalities of the source are left out.
        augment: How pictures are changed when a generator is given.

    Raises:
        DataError: The specs do not fit the source.
        ConfigError: An augmentation without a picture to apply it to.
    """

    source: Source
    specs: Mapping[str, ModalitySpec]
    augment: AugmentConfig

    def __post_init__(self) -> None:
        """Compare the specs with the source before any worker starts."""
        check_specs(self.source, self.specs)
        if self.augment.active and not any(isinstance(s, ImageSpec) for s in self.specs.values()):
            raise ConfigError(
                f"augmentation changes pictures, but the modalities are {sorted(self.specs)}; "
                f"leave the augmentation at its defaults"
            )

    def __call__(self, index: int, rng: np.random.Generator | None = None) -> dict[str, NDArray]:
        """Return one array per modality in the raw layout, without a batch axis.

        Args:
            index: Sample in the source.
            rng: Where random views come from; None looks at the centre.

        Raises:
            DataError: The sample cannot be read.
        """
        augment = self.augment
        if isinstance(self.source, PictureSource):
            encoded = self.source.encoded(index)
            return {
                name: fit_encoded(encoded, spec, augment, rng)
                for name, spec in self.specs.items()
                if isinstance(spec, ImageSpec)
            }
        sample, path = self.source.read(index), self.source.names[index]
        return {
            name: _fit_raw(sample[name], path, spec, augment, rng)
            for name, spec in self.specs.items()
        }


def check_specs(source: Source, specs: Mapping[str, ModalitySpec]) -> None:
    """Reject specs that name modalities, channels or shapes the source does not have.

    Raises:
        DataError: With what the source has.
    """
    if not specs:
        raise DataError("no modality is asked for; give at least one spec")
    if len(source) == 0:
        raise DataError("the source holds no samples; at least 1 is needed")
    if isinstance(source, PictureSource):
        for name, spec in specs.items():
            if name != "image" or not isinstance(spec, ImageSpec):
                raise DataError(
                    f"the specs ask for {name!r} ({spec.kind}), but picture files hold only "
                    f"'image'; name the modality 'image' and declare it as Image"
                )
            check_picture_spec(spec)
        return
    try:
        sample = source.read(0)
    except DataError:
        # An unreadable sample is the loader's business: it is named and replaced there.
        return
    for name, spec in specs.items():
        if name not in sample:
            raise DataError(
                f"the specs ask for {name!r}, but the data hold {sorted(sample)}; "
                f"leave it out, or add it to the data"
            )
        raw = sample[name]
        if isinstance(raw, Image.Image):
            if isinstance(spec, ImageSpec):
                check_picture_spec(spec)
            continue
        _check_array(raw, name, spec)


def fit_encoded(
    encoded: Encoded,
    spec: ImageSpec,
    augment: AugmentConfig | None = None,
    rng: np.random.Generator | None = None,
) -> NDArray[np.uint8]:
    """Decode a picture file, no larger than needed, to uint8 ``[C, H, W]``.

    Raises:
        DataError: The file is damaged, no picture, or too large.
    """
    picture = open_picture(encoded.data, encoded.path)
    size, target = upright_size(picture), (spec.width, spec.height)
    view = _choose_view(size, target, augment, rng)
    enlarge = DRAFT_MARGIN * max(
        spec.width / (view.width * size[0]), spec.height / (view.height * size[1])
    )
    picture = load_picture(
        picture, encoded.path, least=(ceil(size[0] * enlarge), ceil(size[1] * enlarge))
    )
    picture = convert_channels(picture, spec.channels, encoded.path)
    return _to_array(draw_view(picture, view, target))


def fit_picture(picture: Image.Image, path: str, spec: ImageSpec, view: View) -> NDArray[np.uint8]:
    """Fit a decoded picture to uint8 ``[C, H, W]``."""
    picture = convert_channels(picture, spec.channels, path)
    return _to_array(draw_view(picture, view, (spec.width, spec.height)))


def fit_array(array: NDArray, spec: ImageSpec, view: View) -> NDArray:
    """Fit ``[C, H, W]`` of any channel count, each channel alone; untouched where it fits already.

    Args:
        array: uint8, or float32, whose range is kept although bicubic filters overshoot.
        spec: The shape to reach; one channel is repeated where more are asked for.
        view: What to look at.
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


def draw_view(picture: Image.Image, view: View, target: tuple[int, int]) -> Image.Image:
    """Draw the box of a view at the target's width and height, resampling once.

    Only a turned view of a picture that must shrink is resampled twice, because Pillow's affine
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


def _fit_raw(
    raw: Any,
    path: str,
    spec: ModalitySpec,
    augment: AugmentConfig,
    rng: np.random.Generator | None,
) -> NDArray:
    """Fit one modality of a raw sample."""
    if not isinstance(spec, ImageSpec):
        return raw
    target = (spec.width, spec.height)
    if isinstance(raw, Image.Image):
        return fit_picture(raw, path, spec, _choose_view(raw.size, target, augment, rng))
    size = (raw.shape[2], raw.shape[1])
    return fit_array(raw, spec, _choose_view(size, target, augment, rng))


def _choose_view(
    size: tuple[int, int],
    target: tuple[int, int],
    augment: AugmentConfig | None,
    rng: np.random.Generator | None,
) -> View:
    """Draw a view where there is something to draw from, else look at the centre."""
    if rng is None or augment is None or not augment.active:
        return centre_view(size, target)
    return random_view(size, target, augment, rng)


def _check_array(raw: NDArray, name: str, spec: ModalitySpec) -> None:
    """Compare a raw array with its spec; pictures may differ in size and repeat one channel."""
    if isinstance(spec, ImageSpec):
        if raw.ndim == 3 and raw.shape[0] in {1, spec.channels}:
            return
        raise DataError(
            f"modality {name!r} has shape {raw.shape} [C, H, W], but the spec has "
            f"{spec.channels} channels; use the channels of the data"
        )
    if raw.shape != spec.raw_shape:
        raise DataError(
            f"modality {name!r} has shape {raw.shape} per sample, but the spec ({spec.kind}) "
            f"expects {spec.raw_shape}; only images are resized, so use the shape of the data"
        )


def _to_array(picture: Image.Image) -> NDArray[np.uint8]:
    """Return a picture's values as ``[C, H, W]``."""
    values = np.asarray(picture)
    return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
