"""TIFF files whose values Pillow would cut down: any number of bands, 16 bits, signed, and floats.

A band is a sample of every pixel, interleaved or planar, or a page of its own. The header is read
with Pillow, values with tifffile.

Legend: H W rows and columns, N bands.
"""

import io
import logging
import re
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from perceivers.data.orientations import ORIENTATION_TAG, TURNS, turn_array
from perceivers.errors import DataError
from perceivers.limits import check_limit

TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
SUBFILE, WIDTH, HEIGHT, BITS, PHOTOMETRIC, DESCRIPTION = 254, 256, 257, 258, 262, 270
SAMPLES, EXTRAS, FORMAT = 277, 338, 339
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
# Reduced copies and masks of another page are no bands.
SECONDARY = 1 | 4
# What ExtraSamples says of opacity: colours were multiplied by it, or not.
MULTIPLIED, PLAIN = 1, 2
UNSIGNED = 1
MAX_PAGES = 4096
IMAGEJ_PAGES = re.compile(r"\bimages=(\d{1,4})\b")
# What integers are divided by; floats stay as they are.
SCALES = {"uint16": 65535.0, "int16": 32768.0, "int8": 128.0}


class TiffLayout(NamedTuple):
    """What the header of a TIFF says of its picture.

    Args:
        size: Width and height in pixels, as stored.
        samples: Values per pixel of a page.
        pages: Pages that are bands: gray ones of this size.
        bits: Per value.
        format: 1 unsigned, 2 signed, 3 float.
        photometric: What values mean, such as RGB.
        opacity: How the last sample is declared as opacity: 1 or 2, or 0 where it is not.
        orientation: As EXIF has it; 1 is upright.
        unread: Further pages, in colours or of 1 bit, of which only the first is read.
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
        """Values per pixel over all pages, opacity included."""
        return self.samples * self.pages

    @property
    def colours(self) -> int:
        """Channels that the picture has without declared opacity: 1 gray, 3 RGB, or all bands."""
        return self.samples - 1 if self.is_transparent else self.bands

    @property
    def is_transparent(self) -> bool:
        """Whether it is gray or RGB with declared opacity."""
        return self.pages == 1 and self.opacity > 0 and self.samples in {2, 4}

    @property
    def is_plain(self) -> bool:
        """Whether Pillow holds all of it in 8 bits."""
        if self.pages > 1 or self.format != UNSIGNED or self.bits > 8:
            return False
        if self.photometric in {WHITE_IS_ZERO, BLACK_IS_ZERO, PALETTE}:
            return self.samples == 1
        if self.photometric == RGB:
            return self.samples == 3 or (self.samples == 4 and self.opacity > 0)
        return self.samples == (4 if self.photometric == CMYK else 3)


def read_layout(data: bytes) -> TiffLayout | None:
    """Return what a header says; None where it is no TIFF, or damaged."""
    if data[:4] not in TIFF_HEADS:
        return None
    # What is no TIFF after all, in whatever way, is for who decodes it to report.
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
        path: Where it lies, for messages.

    Raises:
        DataError: It is damaged or too large, of a kind that has no bands, its values have no
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

    16 bits without a sign become 0..1 (divided by 65,535), with a sign -1..1 (by 32,768; 8 bits by
    128). Floats stay as they are, whatever their range. Integers of 32 bits are read if they fit
    into 16.

    Args:
        values: Of any numeric type.
        path: Where they lie, for messages.

    Raises:
        DataError: Values that are not finite, or of a type without a range.
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
                f"or leave the picture out"
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
    """Return what becomes of a picture's values, for who checks the data."""
    if layout.format == 3:
        return "floats, read as they are"
    if layout.format != UNSIGNED:
        return f"{layout.bits} bits with a sign, read as -1..1"
    return f"{layout.bits} bits, read as 0..1"


def _read_pages(data: bytes) -> list[ImageFileDirectory_v2]:
    """Return the tags of every page."""
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
    """Return the layout of one page."""
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
    # It complains of odd tags in files that it reads well.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)
    # tifffile and its codecs raise whatever they trip over in a damaged file.
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
        raise DataError(f"{path}: holds values of axes {axes!r}, no picture of rows and columns")
    values = np.moveaxis(values, (axes.index("Y"), axes.index("X")), (0, 1))
    return values.reshape(*values.shape[:2], -1)


def _as_tuple(value: Any) -> tuple[Any, ...]:
    """Return the values of a tag that has one or several."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)
