"""Picture files to upright Pillow pictures of 1, 3 or 4 channels.

Decoding has two stages, because a JPEG can be decoded at 1/2, 1/4 or 1/8 of its size for a fraction
of the time: ``open_picture`` reads the header, ``load_picture`` decodes what is needed.
"""

import io
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from perceivers.errors import DataError, UserError
from perceivers.limits import LIMITS, check_limit, get_limit
from perceivers.reading import read_file

# -- EXIF orientations: how a stored picture is turned upright, and its mask along with it -------
#
# Legend: H W rows and columns.

ORIENTATION_TAG = 0x0112
# Under which an upright Pillow picture keeps the orientation that it was stored with.
STORED = "perceivers_stored_orientation"
# By EXIF orientation: whether rows and columns change places, then rows, then columns are reversed.
TURNS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
# How a mask lies beside a photograph that EXIF turns, where their sizes do not tell.
MaskTurn = Literal["upright", "stored"]
Size = tuple[int, int]


def read_orientation(picture: Image.Image) -> int:
    """Return the EXIF orientation that a picture is, or was, stored with; 1 is upright."""
    if STORED in picture.info:
        return int(picture.info[STORED])
    found = picture.getexif().get(ORIENTATION_TAG, 1)
    return found if found in TURNS else 1


def turn_picture(picture: Image.Image) -> None:
    """Turn a picture upright in place; ``read_orientation`` still tells how it was stored."""
    orientation = read_orientation(picture)
    ImageOps.exif_transpose(picture, in_place=True)
    if orientation != 1:
        picture.info[STORED] = orientation


def turn_array(values: NDArray, orientation: int) -> NDArray:
    """Turn a stored picture ``[H, W, ...]`` upright."""
    swap, rows, columns = TURNS.get(orientation, (False, False, False))
    values = values.swapaxes(0, 1) if swap else values
    values = values[::-1] if rows else values
    return values[:, ::-1] if columns else values


def find_mask_turn(size: Size, orientation: int, mask_size: Size, path: str) -> MaskTurn | None:
    """Return how a mask lies beside its picture by their sizes; None where these do not tell.

    Args:
        size: Width and height of the picture, upright.
        orientation: EXIF orientation that it was stored with.
        mask_size: Width and height of the mask.
        path: Names the sample, for messages.

    Raises:
        DataError: The mask has neither size.
    """
    swapped = TURNS.get(orientation, (False,))[0]
    stored = size[::-1] if swapped else size
    if mask_size not in {size, stored}:
        either = f" (stored {stored[0]}x{stored[1]}, turned by EXIF)" if stored != size else ""
        raise DataError(
            f"{path}: the picture has {size[0]}x{size[1]} pixels (width x height){either} and its "
            f"mask {mask_size[0]}x{mask_size[1]}; both must be of one size"
        )
    if orientation == 1:
        return "upright"
    if stored == size:
        return None
    return "upright" if mask_size == size else "stored"


# -- Picture files to upright Pillow pictures of 1, 3 or 4 channels ------------------------------

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
# Only these decoders run: others start foreign programs. A multi-picture JPEG calls itself MPO.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
GRAY_MODES = frozenset({"1", "L", "I", "I;16", "I;16B", "I;16L", "I;16N"})


def is_picture_name(name: str) -> bool:
    """Tell whether a file name, without folders, ends like a picture; hidden files are none."""
    return not name.startswith(".") and name.lower().endswith(PICTURE_EXTENSIONS)


def read_bytes(path: str) -> bytes:
    """Return a file's bytes.

    Raises:
        DataError: The file cannot be read, is no regular file, or is too large.
    """
    return read_file(path)


def open_picture(data: bytes, path: str) -> Image.Image:
    """Read the header of a JPEG; decode any other format at once.

    Args:
        data: The file's content.
        path: Where it lies, for messages.

    Raises:
        DataError: The content is no picture of a known format, or too large.
    """
    if not data:
        raise DataError(f"{path}: the file is empty (0 bytes)")
    # Pillow's parsers raise whatever they trip over (OSError, SyntaxError, struct.error, ...), so
    # nothing narrower keeps one damaged file from ending a run.
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
    """Open a picture, whose pixels are counted before any is decoded.

    Raises:
        DataError: It has more pixels than are decoded.
        Exception: What Pillow trips over.
    """
    most = get_limit("pixels")
    # Pillow has a limit of its own, at twice this number; whoever raises ours means both.
    raised = most > LIMITS["pixels"].default
    if raised and Image.MAX_IMAGE_PIXELS is not None and most > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = most
    picture = Image.open(io.BytesIO(data), formats=formats)
    check_limit("pixels", picture.width * picture.height, path)
    return picture


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """Return width and height as they will be once the EXIF orientation is applied."""
    width, height = picture.size
    turned = picture.getexif().get(ORIENTATION_TAG, 1) in {5, 6, 7, 8}
    return (height, width) if turned else (width, height)


def load_picture(
    picture: Image.Image, path: str, *, least: tuple[int, int] | None = None
) -> Image.Image:
    """Decode an opened picture and turn it upright.

    Args:
        picture: The result of ``open_picture``; it is changed in place.
        path: Where it lies, for messages.
        least: Upright width and height in pixels that are enough; a JPEG may be decoded smaller
            than it is, but never below this.

    Raises:
        DataError: The content is damaged or cut short.
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
    """Decode a whole picture, upright, in its own mode.

    Raises:
        DataError: The content is no picture, damaged or too large.
    """
    return load_picture(open_picture(data, path), path)


def convert_channels(picture: Image.Image, channels: int, path: str) -> Image.Image:
    """Return the picture with 8 bits in 1 (gray), 3 (RGB) or 4 (RGBA) channels.

    Transparent parts become white unless four channels are kept; 16-bit gray is scaled to 8 bits.

    Raises:
        DataError: A picture of 32-bit values, which have no declared range, or of a colour space
            without colours; or other channels.
    """
    if channels not in MODES:
        have = "1 band (gray)" if picture.mode in GRAY_MODES else "3 bands (RGB)"
        raise DataError(
            f"{path}: the picture has {have}, but {channels} channels are read; other counts than "
            f"1, 3 and 4 (RGBA) come from TIFF files of so many bands, or from an .npz file"
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
            f"{path}: colours of mode {picture.mode!r} cannot be turned into {mode!r}; save the "
            f"picture as RGB or gray"
        ) from error


def _eight_bits(picture: Image.Image, path: str) -> Image.Image:
    """Scale 16-bit gray (which some formats store as 32-bit integers) to 8 bits, rounding."""
    values = np.asarray(picture)
    if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise DataError(
            f"{path}: 32-bit values in {values.min():g}..{values.max():g} have no declared range; "
            f"save the picture with 8 or 16 bits, or give the values in an .npz file"
        )
    return Image.fromarray(np.rint(values.astype(np.float64) / 257).astype(np.uint8))


def _unreadable(error: Exception, path: str) -> DataError:
    """Say why Pillow gave up, in one line."""
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return DataError(
            f"{path}: too many pixels to decode safely ({error}); make it smaller, or set "
            f"{LIMITS['pixels'].variable} where this size is meant"
        )
    if isinstance(error, Image.UnidentifiedImageError):
        return DataError(f"{path}: the content is no picture in {', '.join(FORMATS)}")
    return DataError(f"{path}: cannot be decoded ({str(error) or type(error).__name__})")
