"""Pictures of 16 bits per value, as PNG and TIFF hold them: floats in 0..1, nothing rounded.

Pillow reads 16-bit gray exactly, but cuts 16-bit colour down to 8 bits; PyAV reads that exactly.

Legend: C channels, H W rows and columns.
"""

import io
from importlib import import_module
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from numpy.typing import NDArray
from PIL import Image

from perceivers.data.orientations import read_orientation, turn_array
from perceivers.data.pictures import GRAY_MODES, MODES, open_picture
from perceivers.errors import DataError

PNG_HEAD, PNG_DEPTH_AT = b"\x89PNG\r\n\x1a\n", 24
TIFF_HEADS = (b"II*\0", b"MM\0*")
BITS_TAG, FORMAT_TAG, UNSIGNED = 258, 339, 1
FULL = 65535.0
# Shares of red, green and blue in gray (ITU-R 601), as in Pillow.
LUMA = np.array([0.299, 0.587, 0.114])


def is_deep(data: bytes) -> bool:
    """Tell by its header whether a PNG or TIFF has 16 bits per value, without a sign."""
    if data[:8] == PNG_HEAD:
        return len(data) > PNG_DEPTH_AT and data[PNG_DEPTH_AT] == 16
    if data[:4] not in TIFF_HEADS:
        return False
    # What is no TIFF after all is for who decodes it to report.
    try:
        tags: Any = getattr(Image.open(io.BytesIO(data), formats=("TIFF",)), "tag_v2", {})
    except Exception:
        return False
    bits, formats = _tuple(tags.get(BITS_TAG, 1)), _tuple(tags.get(FORMAT_TAG, UNSIGNED))
    return set(bits) == {16} and set(formats) == {UNSIGNED}


def read_deep(data: bytes, path: str, channels: int) -> Float32[np.ndarray, "C H W"]:
    """Decode a picture that ``is_deep``, upright, to values in 0..1.

    Transparent parts become white unless four channels are kept.

    Args:
        data: The file's content.
        path: Where it lies, for messages.
        channels: 1 (gray), 3 (RGB) or 4 (RGBA).

    Raises:
        DataError: The content is damaged or too large; other channels; or PyAV is missing.
    """
    if channels not in MODES:
        raise DataError(
            f"{path}: pictures have 1 (gray), 3 (RGB) or 4 (RGBA) channels, not {channels}; "
            f"give other counts as arrays in an .npz file"
        )
    picture = open_picture(data, path)
    if picture.mode in GRAY_MODES:
        gray = np.asarray(picture)[..., None] / FULL  # [H, W, 1]
        clear = picture.info.get("transparency")
        opaque = np.ones_like(gray) if clear is None else (gray * FULL != clear).astype(float)
        return _with_channels(gray, opaque, channels)
    values = _decode_colour(data, path, picture.format or "")
    values = turn_array(values, stored_orientation(data)) / FULL
    return _with_channels(values[..., :3], values[..., 3:], channels)


def stored_orientation(data: bytes) -> int:
    """Return the EXIF orientation of a file that was opened before; 1 is upright."""
    return read_orientation(Image.open(io.BytesIO(data)))


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


def _tuple(value: Any) -> tuple[Any, ...]:
    """Return the values of a tag that has one or several."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)
