"""A data set: its splits, classes, and the specs that say what its samples look like.

Legend: C channels, H W rows and columns, n samples looked at.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image as Picture

from perceivers.data.augment import centre_view
from perceivers.data.fitting import fit_array, fit_encoded
from perceivers.data.pictures import GRAY_MODES, check_picture_spec, open_picture
from perceivers.data.sources import PictureSource, Source
from perceivers.errors import DataError
from perceivers.types import Array, Audio, Image, ModalitySpec, Points, Video

MAX_LOOKED_AT = 512
PICTURE_SIZE = 64
# What integer types are divided by before they reach a model, as in adapters.
FULL_SCALE = {np.dtype(np.uint8): 255.0, np.dtype(np.int16): 32768.0}


@dataclass(frozen=True)
class Dataset:
    """Opened data.

    Args:
        address: What was opened.
        splits: Sources by name: ``train`` and ``val`` always, ``test`` only when the data give it.
        classes: Class names in the order of the labels; none when unlabelled.
        notes: Sentences on what was decided while opening.
    """

    address: str
    splits: Mapping[str, Source]
    classes: tuple[str, ...]
    notes: tuple[str, ...]

    def specs(
        self, *, size: int | tuple[int, int] | None = None, channels: int | None = None
    ) -> dict[str, ModalitySpec]:
        """Describe every modality, with mean and deviation measured on up to 512 training samples.

        Args:
            size: Side, or height and width, in pixels that images are fitted to; None keeps the
                size of arrays and fits picture files to 64.
            channels: Channels of images; None keeps those of arrays, and for picture files means
                3, or 1 if every picture looked at is gray.

        Raises:
            DataError: No sample can be read, or the channels cannot be had.
            ConfigError: A size below 1.
        """
        source = self.splits["train"]
        indices = np.unique(np.linspace(0, len(source) - 1, MAX_LOOKED_AT).round().astype(int))
        if isinstance(source, PictureSource):
            return {"image": _measure_pictures(source, indices.tolist(), size, channels)}
        return _measure_arrays(source, indices.tolist(), size, channels)


def _measure_pictures(
    source: PictureSource,
    indices: list[int],
    size: int | tuple[int, int] | None,
    channels: int | None,
) -> Image:
    """Fit and measure picture files; unreadable ones do not count."""
    height, width = _as_pair(PICTURE_SIZE if size is None else size)
    spec = Image(height, width, 3 if channels is None else channels)
    check_picture_spec(spec)
    moments, reasons, all_gray = _Moments(), [], True
    for index in indices:
        try:
            encoded = source.encoded(index)
            if channels is None:
                all_gray &= open_picture(encoded.data, encoded.path).mode in GRAY_MODES
            moments.add(fit_encoded(encoded, spec), channels_first=True)
        except DataError as error:
            reasons.append(str(error))
    if not moments.count:
        raise DataError(
            f"none of the {len(indices)} training pictures looked at could be read; the first: "
            f"{reasons[0]}"
        )
    mean, std = moments.result()
    if channels is None and all_gray:
        return Image(height, width, 1, mean=mean[:1], std=std[:1])
    return replace(spec, mean=mean, std=std)


def _measure_arrays(
    source: Source,
    indices: list[int],
    size: int | tuple[int, int] | None,
    channels: int | None,
) -> dict[str, ModalitySpec]:
    """Fit and measure ready arrays."""
    specs: dict[str, ModalitySpec] = {}
    for kind, raw in source.read(indices[0]).items():
        if isinstance(raw, Picture):
            raise DataError(f"modality {kind!r} gives Pillow pictures; offer their bytes instead")
        spec = _native_spec(kind, raw)
        if isinstance(spec, Image):
            spec = _asked_spec(spec, size, channels)
        moments = _Moments()
        for index in indices:
            values = source.read(index)[kind]
            if isinstance(values, Picture):
                raise AssertionError("a source does not change its type from sample to sample")
            if isinstance(spec, Image):
                view = centre_view((values.shape[2], values.shape[1]), (spec.width, spec.height))
                values = fit_array(values, spec, view)
            moments.add(values, channels_first=spec.channels_first)
        mean, std = moments.result()
        specs[kind] = replace(spec, mean=mean, std=std)
    return specs


def _asked_spec(spec: Image, size: int | tuple[int, int] | None, channels: int | None) -> Image:
    """Apply the asked size and channels to the native spec of array images."""
    if channels is not None and channels != spec.channels:
        if spec.channels != 1:
            raise DataError(
                f"the images are arrays of {spec.channels} channels, channels={channels} was asked "
                f"for; leave channels out (only single-channel images can be repeated)"
            )
        spec = replace(spec, channels=channels)
    if size is not None:
        height, width = _as_pair(size)
        spec = replace(spec, height=height, width=width)
    return spec


def _native_spec(kind: str, raw: NDArray) -> Image | Video | Audio | Points | Array:
    """Return the spec of one raw sample."""
    if kind == "image":
        return Image(raw.shape[1], raw.shape[2], raw.shape[0])
    if kind == "video":
        return Video(raw.shape[1], raw.shape[2], raw.shape[3], raw.shape[0])
    if kind == "audio":
        return Audio(raw.shape[1], raw.shape[0])
    if kind == "points":
        return Points(raw.shape[0], raw.shape[1])
    return Array(raw.shape[:-1], raw.shape[-1])


def _as_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return height and width."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


class _Moments:
    """Sums over samples, in float64, from which mean and deviation per channel follow."""

    def __init__(self) -> None:
        self.count = 0
        self.total: NDArray[np.float64] | float = 0.0
        self.squares: NDArray[np.float64] | float = 0.0

    def add(self, values: NDArray, *, channels_first: bool) -> None:
        """Count one sample, scaled as models see it."""
        scaled = values.astype(np.float64) / FULL_SCALE.get(values.dtype, 1.0)
        rows = (
            scaled.reshape(len(scaled), -1)
            if channels_first
            else scaled.reshape(-1, scaled.shape[-1]).T
        )
        self.count += rows.shape[1]
        self.total = self.total + rows.sum(axis=1)
        self.squares = self.squares + (rows**2).sum(axis=1)

    def result(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and population deviation per channel, to six digits.

        A channel that never changes gets a deviation of 1, which leaves it at zero.
        """
        mean = np.asarray(self.total) / self.count
        variance = np.maximum(np.asarray(self.squares) / self.count - mean**2, 0.0)
        # Below this the difference of sums is rounding, not variation.
        constant = variance <= 1e-12 * np.maximum(mean**2, 1e-12)
        std = np.where(constant, 1.0, np.sqrt(variance))
        return tuple(float(f"{m:.6g}") for m in mean), tuple(float(f"{s:.6g}") for s in std)
