"""EXIF orientations: how a stored picture is turned upright, and its mask along with it.

Legend: H W rows and columns.
"""

from typing import Literal

from numpy.typing import NDArray
from PIL import Image, ImageOps

from perceivers.errors import DataError

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
