"""Pictures that Pillow does not hold: more than 8 bits per value, and any number of bands.

PNG and TIFF files of 16 bits give floats in 0..1, nothing rounded; TIFF files of several bands,
signed values or floats are read by ``tiff_bands``. Pillow reads 16-bit gray exactly, but cuts
16-bit colour down to 8 bits; PyAV reads that of PNG exactly.

Legend: C channels, H W rows and columns.
"""

import io
from importlib import import_module

import numpy as np
from jaxtyping import Float32, Shaped, UInt8
from numpy.typing import NDArray
from PIL import Image

from perceivers.data.orientations import read_orientation, turn_array
from perceivers.data.pictures import GRAY_MODES, open_picture, upright_size
from perceivers.data.tiff_bands import (
    BLACK_IS_ZERO,
    MULTIPLIED,
    RGB,
    UNSIGNED,
    TiffLayout,
    read_bands,
    read_layout,
)
from perceivers.errors import DataError

PNG_HEAD, PNG_DEPTH_AT = b"\x89PNG\r\n\x1a\n", 24
FULL = 65535.0
# Fractions of red, green and blue in gray (ITU-R 601), as in Pillow.
LUMA = np.array([0.299, 0.587, 0.114])
# Of a picture whose brightness has no declared range, what is drawn black and white.
DRAWN_PERCENT = (2, 98)


def is_deep(data: bytes) -> bool:
    """Tell by its header whether ``read_deep`` reads a picture, rather than Pillow in 8 bits."""
    if data[:8] == PNG_HEAD:
        return len(data) > PNG_DEPTH_AT and data[PNG_DEPTH_AT] == 16
    layout = read_layout(data)
    return layout is not None and not layout.is_plain


def count_channels(data: bytes, path: str) -> int:
    """Return how many channels a picture has by its header: 1 gray, 3 colours, or all its bands.

    Declared opacity is none, as it is taken out where no fourth channel is asked for.

    Raises:
        DataError: The content is no picture.
    """
    layout = read_layout(data)
    if layout is not None and not layout.is_plain:
        return layout.colours
    return 1 if open_picture(data, path).mode in GRAY_MODES else 3


def deep_size(data: bytes, path: str) -> tuple[int, int]:
    """Return the upright width and height of a picture that ``is_deep``.

    Raises:
        DataError: The content is no picture.
    """
    layout = read_layout(data)
    if layout is None:
        return upright_size(open_picture(data, path))
    swapped = layout.orientation in {5, 6, 7, 8}
    return (layout.size[1], layout.size[0]) if swapped else layout.size


def read_deep(data: bytes, path: str, channels: int) -> Shaped[np.ndarray, "C H W"]:
    """Decode a picture that ``is_deep``, upright, to uint8 or to floats (``tiff_bands``).

    Every band is a channel. Only what the file declares as opacity is such: transparent parts
    become white unless opacity is asked for as the last channel.

    Args:
        data: The file's content.
        path: Where it lies, for messages.
        channels: As many as the picture has bands; of gray and RGB pictures 1, 3, or 4 with
            opacity.

    Raises:
        DataError: The content is damaged or too large; other channels; or a package is missing.
    """
    layout = read_layout(data)
    if layout is not None and not _is_pillow_gray(layout):
        return _read_tiff(data, layout, path, channels)
    picture = open_picture(data, path)
    if picture.mode in GRAY_MODES:
        gray = np.asarray(picture)[..., None] / FULL  # [H, W, 1]
        clear = picture.info.get("transparency")
        opaque = np.ones_like(gray) if clear is None else (gray * FULL != clear).astype(float)
        _check_channels(1, channels, path)
        return _with_channels(gray, opaque, channels)
    _check_channels(3, channels, path)
    values = _decode_colour(data, path, picture.format or "")
    values = turn_array(values, stored_orientation(data)) / FULL
    return _with_channels(values[..., :3], values[..., 3:], channels)


def _read_tiff(
    data: bytes, layout: TiffLayout, path: str, channels: int
) -> Shaped[np.ndarray, "C H W"]:
    """Decode a TIFF of any bands."""
    if channels != layout.bands:
        coloured = layout.colours == 1 or (layout.colours == 3 and layout.photometric == RGB)
        _check_channels(layout.colours, channels, path, coloured=coloured)
    values = read_bands(data, layout, path)  # [H, W, N]
    if channels == layout.bands and not (layout.is_transparent and layout.opacity == MULTIPLIED):
        return np.ascontiguousarray(values.transpose(2, 0, 1))
    whole = values.dtype == np.uint8
    numbers = values / 255 if whole else values.astype(np.float64)
    colour, opaque = numbers, np.ones((*numbers.shape[:2], 1))
    if layout.is_transparent:
        colour, opaque = numbers[..., :-1], numbers[..., -1:].clip(0, 1)
        if layout.opacity == MULTIPLIED:
            colour = np.divide(colour, opaque, out=np.zeros_like(colour), where=opaque > 0)
    made = _with_channels(colour, opaque, channels)
    return to_eight_bits(made) if whole else made


def _is_pillow_gray(layout: TiffLayout) -> bool:
    """Tell whether a picture is 16-bit gray, which needs no other package than Pillow."""
    alone = layout.bands == 1 and layout.photometric == BLACK_IS_ZERO
    return alone and layout.bits == 16 and layout.format == UNSIGNED


def _check_channels(have: int, wanted: int, path: str, *, coloured: bool = True) -> None:
    """Refuse channels that a picture does not have."""
    if not coloured or wanted not in {1, 3, 4}:
        raise DataError(
            f"{path}: the picture has {have} band{'s' if have > 1 else ''}, but {wanted} channels "
            f"are read; use channels {have} (--channels {have}) for data of such pictures"
        )


def stored_orientation(data: bytes) -> int:
    """Return the EXIF orientation of a file that was opened before; 1 is upright."""
    layout = read_layout(data)
    return layout.orientation if layout else read_orientation(Image.open(io.BytesIO(data)))


def to_drawn(values: NDArray) -> UInt8[np.ndarray, "H W 3"]:
    """Return a picture ``[C, H, W]`` as it is drawn: RGB, gray, or the first three bands.

    Bands, and values beyond 0..1, are stretched so that their 2 % and 98 % become black and white.
    """
    drawn = values[:3] if len(values) >= 3 else values[:1].repeat(3, axis=0)
    if len(values) not in {1, 3} or (drawn.dtype != np.uint8 and not _is_in_range(drawn)):
        low, high = np.percentile(drawn, DRAWN_PERCENT, axis=(1, 2))[..., None, None]
        drawn = (drawn - low) / np.maximum(high - low, 1e-12)
    return np.ascontiguousarray(to_eight_bits(drawn).transpose(1, 2, 0))


def to_augmented(values: NDArray, path: str) -> UInt8[np.ndarray, "..."]:
    """Return a picture in 8 bits, for RandAugment.

    Raises:
        DataError: Values beyond 0..1, which 8 bits do not hold.
    """
    if values.dtype != np.uint8 and not _is_in_range(values):
        raise DataError(
            f"{path}: values lie in {values.min():g}..{values.max():g}, but RandAugment changes "
            f"pictures of 0..1 in 8 bits; use augment.rand_augment: 0"
        )
    return to_eight_bits(values)


def _is_in_range(values: NDArray) -> bool:
    return bool(values.min() >= 0 and values.max() <= 1)


def to_eight_bits(values: NDArray) -> UInt8[np.ndarray, "..."]:
    """Return what is drawn, uint8 as it is and floats 0..1 rounded to 0..255."""
    if values.dtype == np.uint8:
        return values
    return np.rint(values.clip(0, 1) * 255).astype(np.uint8)


def _decode_colour(data: bytes, path: str, kind: str) -> NDArray[np.uint16]:
    """Return the stored picture ``[H, W, 4]``, RGBA."""
    try:
        av = import_module("av")
    except ImportError as error:
        raise DataError(
            f"{path}: pictures of 16-bit colour need PyAV, which cannot be imported ({error}); run "
            f'pip install "perceivers[media]", or save the pictures with 8 bits'
        ) from error
    if av.logging.get_level() is not None:
        av.logging.set_level(av.logging.PANIC)
    try:
        frames = av.CodecContext.create(kind.lower(), "r").decode(av.Packet(data))
    except av.error.FFmpegError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(f"{path}: cannot be decoded ({reason})") from error
    if not frames:
        raise DataError(f"{path}: cannot be decoded (it holds no whole picture)")
    return frames[0].reformat(format="rgba64le").to_ndarray()


def _with_channels(
    colour: NDArray[np.float64], alpha: NDArray[np.float64], channels: int
) -> Float32[np.ndarray, "C H W"]:
    """Return ``[C, H, W]`` from gray or RGB ``[H, W, 1 or 3]`` and opacity ``[H, W, 1]``."""
    if channels == 4:
        colour = np.broadcast_to(colour, (*colour.shape[:2], 3))
        values = np.concatenate([colour, alpha], axis=2)
    else:
        values = colour * alpha + (1.0 - alpha)
        if channels == 1 and values.shape[2] == 3:
            values = (values @ LUMA)[..., None]
        values = np.broadcast_to(values, (*values.shape[:2], channels))
    return np.ascontiguousarray(values.transpose(2, 0, 1), dtype=np.float32)
