"""Decoding of image files into upright Pillow images with 1, 3 or 4 channels.

Decoding has two stages, because a JPEG can be decoded at 1/2, 1/4 or 1/8 of its size in a fraction
of the time: ``open_picture`` reads the header, ``load_picture`` decodes at the required size.
"""

import io
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from perceivers.errors import DataError, UserError
from perceivers.reading import LIMITS, check_limit, get_limit, read_file

# -- EXIF orientation: rotating a stored image, and its mask, upright ----------------------------
#
# Legend: H W rows and columns.

ORIENTATION_TAG = 0x0112
# Key in ``Image.info`` under which an upright image remembers its original orientation.
STORED = "perceivers_stored_orientation"
# By EXIF orientation: whether to swap rows and columns, then reverse rows, then reverse columns.
TURNS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
# Orientation of a mask whose image has an EXIF rotation, where the sizes do not show it.
MaskTurn = Literal["upright", "stored"]
Size = tuple[int, int]


def read_orientation(picture: Image.Image) -> int:
    """Return the EXIF orientation of an image in its file; 1 is upright."""
    if STORED in picture.info:
        return int(picture.info[STORED])
    found = picture.getexif().get(ORIENTATION_TAG, 1)
    return found if found in TURNS else 1


def turn_picture(picture: Image.Image) -> None:
    """Rotate an image upright in place; ``read_orientation`` still returns the stored one."""
    orientation = read_orientation(picture)
    ImageOps.exif_transpose(picture, in_place=True)
    if orientation != 1:
        picture.info[STORED] = orientation


def turn_array(values: NDArray, orientation: int) -> NDArray:
    """Rotate a stored image ``[H, W, ...]`` upright."""
    swap, rows, columns = TURNS.get(orientation, (False, False, False))
    values = values.swapaxes(0, 1) if swap else values
    values = values[::-1] if rows else values
    return values[:, ::-1] if columns else values


def find_mask_turn(size: Size, orientation: int, mask_size: Size, path: str) -> MaskTurn | None:
    """Infer the orientation of a mask from its size; None if the size fits both orientations.

    Args:
        size: Width and height of the upright image.
        orientation: EXIF orientation of the image in its file.
        mask_size: Width and height of the mask.
        path: Name of the sample, for messages.

    Raises:
        DataError: The mask has neither the size of the upright image nor that of the stored one.
    """
    swapped = TURNS.get(orientation, (False,))[0]
    stored = size[::-1] if swapped else size
    if mask_size not in {size, stored}:
        either = f" (stored {stored[0]}x{stored[1]}, rotated by EXIF)" if stored != size else ""
        raise DataError(
            f"{path}: the image has {size[0]}x{size[1]} pixels (width x height){either} and its "
            f"mask {mask_size[0]}x{mask_size[1]}; both must have the same size"
        )
    if orientation == 1:
        return "upright"
    if stored == size:
        return None
    return "upright" if mask_size == size else "stored"


# -- Image files to upright Pillow images of 1, 3 or 4 channels ----------------------------------

PICTURE_EXTENSIONS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
)
# Only these decoders run, because others start external programs. Pillow reports a multi-picture
# JPEG as MPO.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
GRAY_MODES = frozenset({"1", "L", "I", "I;16", "I;16B", "I;16L", "I;16N"})


def is_picture_name(name: str) -> bool:
    """Return whether a file name, without folders, has an image extension and is not hidden."""
    return not name.startswith(".") and name.lower().endswith(PICTURE_EXTENSIONS)


def read_bytes(path: str) -> bytes:
    """Read a file.

    Raises:
        DataError: The file cannot be read, is not a regular file, or is too large.
    """
    return read_file(path)


def open_picture(data: bytes, path: str) -> Image.Image:
    """Read the header of a JPEG; decode any other format at once.

    Args:
        data: Content of the file.
        path: Path of the file, for messages.

    Raises:
        DataError: The content is not an image of a supported format, or is too large.
    """
    if not data:
        raise DataError(f"{path}: the file is empty (0 bytes)")
    # Pillow's parsers raise many exception types (OSError, SyntaxError, struct.error, ...), and one
    # damaged file must not end a run.
    try:
        picture = open_header(data, path)
        if picture.format not in {"JPEG", "MPO"}:
            turn_picture(picture)
    except UserError:
        raise
    except Exception as error:
        raise _unreadable(error, path) from error
    return picture


def open_header(data: bytes, path: str, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Open an image and check its number of pixels before decoding.

    Raises:
        DataError: The image exceeds the pixel limit.
        Exception: Any error that Pillow's parser raises.
    """
    most = get_limit("pixels")
    # Pillow raises an error above twice MAX_IMAGE_PIXELS; raising our limit raises this one too.
    raised = most > LIMITS["pixels"].default
    if raised and Image.MAX_IMAGE_PIXELS is not None and most > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = most
    picture = Image.open(io.BytesIO(data), formats=formats)
    check_limit("pixels", picture.width * picture.height, path)
    return picture


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """Return width and height after applying the EXIF orientation."""
    width, height = picture.size
    turned = picture.getexif().get(ORIENTATION_TAG, 1) in {5, 6, 7, 8}
    return (height, width) if turned else (width, height)


def load_picture(
    picture: Image.Image, path: str, *, least: tuple[int, int] | None = None
) -> Image.Image:
    """Decode an opened image and rotate it upright.

    Args:
        picture: The result of ``open_picture``; it is changed in place.
        path: Path of the file, for messages.
        least: Sufficient upright width and height in pixels; a JPEG may be decoded at a reduced
            size, but never below this.

    Raises:
        DataError: The content is damaged or truncated.
    """
    try:
        if least is not None and picture.format in {"JPEG", "MPO"}:
            turned = upright_size(picture) != picture.size
            picture.draft(None, (least[1], least[0]) if turned else least)
        turn_picture(picture)
        picture.load()
    except Exception as error:
        raise _unreadable(error, path) from error
    return picture


def read_picture(data: bytes, path: str) -> Image.Image:
    """Decode an image at full size, upright, in its own mode.

    Raises:
        DataError: The content is not an image, damaged or too large.
    """
    return load_picture(open_picture(data, path), path)


def convert_channels(picture: Image.Image, channels: int, path: str) -> Image.Image:
    """Convert an image to 8 bits and 1 (gray), 3 (RGB) or 4 (RGBA) channels.

    Transparent parts become white unless ``channels`` is 4; 16-bit gray is scaled to 8 bits.

    Raises:
        DataError: The image has 32-bit values, which have no declared range, its mode cannot be
            converted, or ``channels`` is not 1, 3 or 4.
    """
    if channels not in MODES:
        have = "1 band (gray)" if picture.mode in GRAY_MODES else "3 bands (RGB)"
        raise DataError(
            f"{path}: the image has {have}, but {channels} channels are read; counts other than "
            f"1, 3 and 4 (RGBA) need TIFF files with that many bands, or an .npz file"
        )
    mode = MODES[channels]
    if picture.mode == mode and "transparency" not in picture.info:
        return picture
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = _eight_bits(picture, path)
    if picture.mode in {"LA", "La", "PA", "RGBA", "RGBa"} or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        if channels != 4:
            white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
            picture = Image.alpha_composite(white, picture).convert("RGB")
    if picture.mode == "P":
        picture = picture.convert("RGB")
    try:
        return picture if picture.mode == mode else picture.convert(mode)
    except ValueError as error:
        raise DataError(
            f"{path}: colours of mode {picture.mode!r} cannot be converted to {mode!r}; save the "
            f"image as RGB or gray"
        ) from error


def _eight_bits(picture: Image.Image, path: str) -> Image.Image:
    """Scale 16-bit gray (which some formats store as 32-bit integers) to 8 bits, rounding."""
    values = np.asarray(picture)
    if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise DataError(
            f"{path}: 32-bit values in {values.min():g}..{values.max():g} have no declared range; "
            f"save the image with 8 or 16 bits, or give the values in an .npz file"
        )
    return Image.fromarray(np.rint(values.astype(np.float64) / 257).astype(np.uint8))


def _unreadable(error: Exception, path: str) -> DataError:
    """Convert an error of Pillow to a DataError with a one-line message."""
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return DataError(
            f"{path}: too many pixels to decode safely ({error}); make it smaller, or set "
            f"{LIMITS['pixels'].variable} if this size is intended"
        )
    if isinstance(error, Image.UnidentifiedImageError):
        return DataError(f"{path}: the content is not an image in {', '.join(FORMATS)}")
    return DataError(f"{path}: cannot be decoded ({str(error) or type(error).__name__})")
