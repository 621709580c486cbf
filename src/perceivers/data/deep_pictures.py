"""Images that Pillow cannot hold: more than 8 bits per value, and any number of bands.

PNG and TIFF files of 16 bits become floats in 0..1 without rounding; TIFF files may also have
several bands, signed values or floats. Pillow reads 16-bit gray exactly, but reduces 16-bit colour
to 8 bits; PyAV reads 16-bit colour PNG exactly.

Legend: C channels, H W rows and columns.
"""

import io
import logging
import re
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Shaped, UInt8
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from perceivers.data.pictures import (
    GRAY_MODES,
    ORIENTATION_TAG,
    TURNS,
    open_picture,
    read_orientation,
    turn_array,
    upright_size,
)
from perceivers.errors import DataError
from perceivers.reading import check_limit

# ------------------------------------------------------------------------------------------------
# TIFF files whose values Pillow would truncate: any number of bands, 16 bits, signed, and floats.
#
# A band is one value of every pixel, interleaved or planar, or a page of its own. Pillow reads the
# header, tifffile the values.
#
# Legend: H W rows and columns, N bands.

TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
SUBFILE, WIDTH, HEIGHT, BITS, PHOTOMETRIC, DESCRIPTION = 254, 256, 257, 258, 262, 270
SAMPLES, EXTRAS, FORMAT = 277, 338, 339
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
# Flags of thumbnails and of masks of another page, which are not bands.
SECONDARY = 1 | 4
# ExtraSamples codes of an alpha channel: colours are multiplied by it, or not.
MULTIPLIED, PLAIN = 1, 2
UNSIGNED = 1
MAX_PAGES = 4096
IMAGEJ_PAGES = re.compile(r"\bimages=(\d{1,4})\b")
# Divisors of integers; floats stay as they are.
SCALES = {"uint16": 65535.0, "int16": 32768.0, "int8": 128.0}


class TiffLayout(NamedTuple):
    """The layout that the header of a TIFF states.

    Args:
        size: Width and height in pixels, as stored.
        samples: Values per pixel of a page.
        pages: Number of pages that are bands: gray ones of this size.
        bits: Bits per value.
        format: 1 unsigned, 2 signed, 3 float.
        photometric: Code of the colour space, such as RGB.
        opacity: Code of an alpha channel in the last sample: 1 or 2, or 0 if it is not declared as
            alpha.
        orientation: As in EXIF; 1 is upright.
        unread: Number of further pages, in colour or of 1 bit, which are not read.
    """

    size: tuple[int, int]
    samples: int
    pages: int
    bits: int
    format: int
    photometric: int
    opacity: int
    orientation: int
    unread: int = 0

    @property
    def bands(self) -> int:
        """Values per pixel over all pages, alpha included."""
        return self.samples * self.pages

    @property
    def colours(self) -> int:
        """Channels without declared alpha: 1 gray, 3 RGB, or all bands."""
        return self.samples - 1 if self.is_transparent else self.bands

    @property
    def is_transparent(self) -> bool:
        """Whether the image is gray or RGB with declared alpha."""
        return self.pages == 1 and self.opacity > 0 and self.samples in {2, 4}

    @property
    def is_plain(self) -> bool:
        """Whether Pillow reads all of it in 8 bits without loss."""
        if self.pages > 1 or self.format != UNSIGNED or self.bits > 8:
            return False
        if self.photometric in {WHITE_IS_ZERO, BLACK_IS_ZERO, PALETTE}:
            return self.samples == 1
        if self.photometric == RGB:
            return self.samples == 3 or (self.samples == 4 and self.opacity > 0)
        return self.samples == (4 if self.photometric == CMYK else 3)


def read_layout(data: bytes) -> TiffLayout | None:
    """Return the layout in a TIFF header; None if the data are not TIFF, or are damaged."""
    if data[:4] not in TIFF_HEADS:
        return None
    # Damaged headers raise all kinds of exceptions here; the decoder will report them.
    try:
        pages = _read_pages(data)
        layouts = [_describe(page) for page in pages]
    except Exception:
        return None
    first = layouts[0]
    alike = [
        page
        for page, layout in zip(pages, layouts, strict=True)
        if layout == first and not int(page.get(SUBFILE, 0)) & SECONDARY
    ]
    described = IMAGEJ_PAGES.search(str(pages[0].get(DESCRIPTION, "")))
    in_one = described and str(pages[0].get(DESCRIPTION, "")).startswith("ImageJ")
    count = max(len(alike), int(described[1]) if described and in_one else 1, 1)
    if first.samples == 1 and first.bits >= 8 and first.photometric != PALETTE:
        return first._replace(pages=count)
    return first._replace(unread=count - 1)


def read_bands(data: bytes, layout: TiffLayout, path: str) -> NDArray:
    """Return the values of a TIFF ``[H, W, N]``, upright: uint8, or float32 by ``scale_bands``.

    Args:
        data: The file's content.
        layout: From ``read_layout``.
        path: Path of the file, for messages.

    Raises:
        DataError: It is damaged or too large, its colour space is not supported, its values have no
            range, or a package is missing.
    """
    width, height = layout.size
    check_limit("pixels", width * height, path)
    check_limit("values", width * height * layout.bands, path)
    if layout.photometric not in {WHITE_IS_ZERO, BLACK_IS_ZERO, RGB}:
        raise DataError(
            f"{path}: {layout.bands} bands of {layout.bits} bits in the colour space "
            f"{layout.photometric} (of TIFF); save it as gray, RGB or bands of black-is-zero"
        )
    values = _decode(data, path, whole=layout.pages > 1)
    if values.shape != (height, width, layout.bands):
        raise DataError(
            f"{path}: the header describes {width}x{height} pixels of {layout.bands} bands, but "
            f"the values have shape {values.shape} [H, W, bands]; save it again"
        )
    if layout.photometric == WHITE_IS_ZERO and values.dtype.kind == "u":
        values = np.iinfo(values.dtype).max - values
    return scale_bands(turn_array(values, layout.orientation), path)


def scale_bands(values: NDArray, path: str) -> NDArray:
    """Return values as models read them: uint8 unchanged, all others as float32.

    Unsigned 16-bit values become 0..1 (divided by 65,535), signed ones -1..1 (by 32,768; 8 bits by
    128). Floats stay as they are, whatever their range. 32-bit integers are read if they fit into
    16 bits.

    Args:
        values: Of any numeric dtype.
        path: Path of the file, for messages.

    Raises:
        DataError: Values that are not finite, or of a dtype without a range.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            scaled = values.astype(np.float32)
        bad = int((~np.isfinite(scaled)).sum())
        if bad:
            raise DataError(
                f"{path}: {bad} of {values.size} values are NaN or infinite (no data); fill them, "
                f"or leave the image out"
            )
        return scaled
    scale = SCALES.get(values.dtype.name)
    if scale is None and values.dtype.kind in "iu" and values.min() >= 0 and values.max() < 2**16:
        scale = SCALES["uint16"]
    if scale is None:
        raise DataError(
            f"{path}: {values.dtype} values in {values.min():g}..{values.max():g} have no declared "
            f"range; save them as 16 bits or as floats, or give them in an .npz file"
        )
    return (values / scale).astype(np.float32)


def describe_values(layout: TiffLayout) -> str:
    """Describe how the values of an image are read, for checks of the data."""
    if layout.format == 3:
        return "floats, read as they are"
    if layout.format != UNSIGNED:
        return f"{layout.bits} bits, signed, read as -1..1"
    return f"{layout.bits} bits, read as 0..1"


def _read_pages(data: bytes) -> list[ImageFileDirectory_v2]:
    file, head = io.BytesIO(data), data[: 16 if b"+" in data[:4] else 8]
    pages: list[ImageFileDirectory_v2] = []
    seen = {0}
    place = ImageFileDirectory_v2(head).next
    while place not in seen and len(pages) < MAX_PAGES:
        seen.add(place)
        tags = ImageFileDirectory_v2(head)
        file.seek(place)
        tags.load(file)
        pages.append(tags)
        place = tags.next
    return pages


def _describe(tags: Any) -> TiffLayout:
    samples = int(tags.get(SAMPLES, 1))
    bits, formats = _as_tuple(tags.get(BITS, 1)), _as_tuple(tags.get(FORMAT, UNSIGNED))
    extras = _as_tuple(tags.get(EXTRAS, ()))
    orientation = int(tags.get(ORIENTATION_TAG, 1))
    return TiffLayout(
        size=(int(tags[WIDTH]), int(tags[HEIGHT])),
        samples=samples,
        pages=1,
        bits=max(map(int, bits)),
        format=max(map(int, formats)),
        photometric=int(tags.get(PHOTOMETRIC, BLACK_IS_ZERO)),
        opacity=int(extras[0]) if len(extras) == 1 and extras[0] in {MULTIPLIED, PLAIN} else 0,
        orientation=orientation if orientation in TURNS else 1,
    )


def _decode(data: bytes, path: str, *, whole: bool) -> NDArray:
    """Return the stored values ``[H, W, N]``."""
    try:
        tifffile = import_module("tifffile")
    except ImportError as error:
        raise DataError(
            f"{path}: TIFF files of several bands, of 16 bits, or of signed or float values need "
            f"the package 'tifffile', which cannot be imported ({error}); run "
            f'pip install "perceivers[media]"'
        ) from error
    # tifffile warns of odd tags in files that it reads correctly.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)
    # tifffile and its codecs raise all kinds of exceptions on damaged files.
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            part = file.series[0] if whole else file.pages[0]
            values, axes = np.asarray(part.asarray()), str(part.axes)
    except Exception as error:
        if "imagecodecs" in str(error):
            raise DataError(
                f"{path}: is compressed in a way that needs the package 'imagecodecs' ({error}); "
                f'run pip install "perceivers[media]", or save it uncompressed'
            ) from error
        reason = (str(error) or type(error).__name__).partition("\n")[0]
        raise DataError(f"{path}: cannot be decoded ({reason})") from error
    if "Y" not in axes or "X" not in axes or len(axes) != values.ndim:
        raise DataError(f"{path}: has the axes {axes!r}, so it is not an image of rows and columns")
    values = np.moveaxis(values, (axes.index("Y"), axes.index("X")), (0, 1))
    return values.reshape(*values.shape[:2], -1)


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


# -- Images that Pillow cannot hold ----------------------------------------------------------------

PNG_HEAD, PNG_DEPTH_AT = b"\x89PNG\r\n\x1a\n", 24
FULL = 65535.0
# Weights of red, green and blue in gray (ITU-R 601), as in Pillow.
LUMA = np.array([0.299, 0.587, 0.114])
# Percentiles displayed as black and white if the range of an image is not declared.
DRAWN_PERCENT = (2, 98)


def is_deep(data: bytes) -> bool:
    """Tell from the header whether ``read_deep`` must read an image, not Pillow in 8 bits."""
    if data[:8] == PNG_HEAD:
        return len(data) > PNG_DEPTH_AT and data[PNG_DEPTH_AT] == 16
    layout = read_layout(data)
    return layout is not None and not layout.is_plain


def count_channels(data: bytes, path: str) -> int:
    """Return the number of channels that a header states: 1 gray, 3 colours, or all bands.

    Declared alpha does not count, because it is removed unless a fourth channel is requested.

    Raises:
        DataError: The content is not an image.
    """
    layout = read_layout(data)
    if layout is not None and not layout.is_plain:
        return layout.colours
    return 1 if open_picture(data, path).mode in GRAY_MODES else 3


def deep_size(data: bytes, path: str) -> tuple[int, int]:
    """Return the upright width and height of an image that ``is_deep``.

    Raises:
        DataError: The content is not an image.
    """
    layout = read_layout(data)
    if layout is None:
        return upright_size(open_picture(data, path))
    swapped = layout.orientation in {5, 6, 7, 8}
    return (layout.size[1], layout.size[0]) if swapped else layout.size


def read_deep(data: bytes, path: str, channels: int) -> Shaped[np.ndarray, "C H W"]:
    """Decode an image that ``is_deep``, upright, to uint8 or to floats (see ``scale_bands``).

    Every band is a channel. Only what the file declares as alpha is treated as such: transparent
    parts become white unless alpha is requested as the last channel.

    Args:
        data: The file's content.
        path: Path of the file, for messages.
        channels: The number of bands; for gray and RGB images 1, 3, or 4 with alpha.

    Raises:
        DataError: The content is damaged or too large, the channels do not match, or a package is
            missing.
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
    """Tell whether an image is 16-bit gray, which needs no other package than Pillow."""
    alone = layout.bands == 1 and layout.photometric == BLACK_IS_ZERO
    return alone and layout.bits == 16 and layout.format == UNSIGNED


def _check_channels(have: int, wanted: int, path: str, *, coloured: bool = True) -> None:
    if not coloured or wanted not in {1, 3, 4}:
        raise DataError(
            f"{path}: the image has {have} band{'s' if have > 1 else ''}, but {wanted} channels "
            f"are read; use channels {have} (--channels {have}) for data of such images"
        )


def stored_orientation(data: bytes) -> int:
    """Return the EXIF orientation of a file that was opened before; 1 is upright."""
    layout = read_layout(data)
    return layout.orientation if layout else read_orientation(Image.open(io.BytesIO(data)))


def to_drawn(values: NDArray) -> UInt8[np.ndarray, "H W 3"]:
    """Return an image ``[C, H, W]`` for display: RGB, gray, or the first three bands.

    Bands, and values beyond 0..1, are stretched so that their 2nd and 98th percentiles become black
    and white.
    """
    drawn = values[:3] if len(values) >= 3 else values[:1].repeat(3, axis=0)
    if len(values) not in {1, 3} or (drawn.dtype != np.uint8 and not _is_in_range(drawn)):
        low, high = np.percentile(drawn, DRAWN_PERCENT, axis=(1, 2))[..., None, None]
        drawn = (drawn - low) / np.maximum(high - low, 1e-12)
    return np.ascontiguousarray(to_eight_bits(drawn).transpose(1, 2, 0))


def to_augmented(values: NDArray, path: str) -> UInt8[np.ndarray, "..."]:
    """Convert an image to 8 bits, for RandAugment.

    Raises:
        DataError: Values beyond 0..1, which 8 bits cannot hold.
    """
    if values.dtype != np.uint8 and not _is_in_range(values):
        raise DataError(
            f"{path}: values lie in {values.min():g}..{values.max():g}, but RandAugment changes "
            f"images of 0..1 in 8 bits; use augment.rand_augment: 0"
        )
    return to_eight_bits(values)


def _is_in_range(values: NDArray) -> bool:
    return bool(values.min() >= 0 and values.max() <= 1)


def to_eight_bits(values: NDArray) -> UInt8[np.ndarray, "..."]:
    """Convert values to uint8: floats in 0..1 are rounded to 0..255, uint8 is unchanged."""
    if values.dtype == np.uint8:
        return values
    return np.rint(values.clip(0, 1) * 255).astype(np.uint8)


def _decode_colour(data: bytes, path: str, kind: str) -> NDArray[np.uint16]:
    """Return the stored image ``[H, W, 4]``, RGBA."""
    try:
        av = import_module("av")
    except ImportError as error:
        raise DataError(
            f"{path}: images of 16-bit colour need PyAV, which cannot be imported ({error}); run "
            f'pip install "perceivers[media]", or save the images with 8 bits'
        ) from error
    if av.logging.get_level() is not None:
        av.logging.set_level(av.logging.PANIC)
    try:
        frames = av.CodecContext.create(kind.lower(), "r").decode(av.Packet(data))
    except av.error.FFmpegError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(f"{path}: cannot be decoded ({reason})") from error
    if not frames:
        raise DataError(f"{path}: cannot be decoded (it contains no complete image)")
    return frames[0].reformat(format="rgba64le").to_ndarray()


def _with_channels(
    colour: NDArray[np.float64], alpha: NDArray[np.float64], channels: int
) -> Float32[np.ndarray, "C H W"]:
    """Return ``[C, H, W]`` from gray or RGB ``[H, W, 1 or 3]`` and alpha ``[H, W, 1]``."""
    if channels == 4:
        colour = np.broadcast_to(colour, (*colour.shape[:2], 3))
        values = np.concatenate([colour, alpha], axis=2)
    else:
        values = colour * alpha + (1.0 - alpha)
        if channels == 1 and values.shape[2] == 3:
            values = (values @ LUMA)[..., None]
        values = np.broadcast_to(values, (*values.shape[:2], channels))
    return np.ascontiguousarray(values.transpose(2, 0, 1), dtype=np.float32)
