"""Segmentation masks: a class per pixel of an image, or per point of a cloud (``scenes``).

A mask file is an 8-bit gray or palette image whose values (palette indices, not colours) are class
ids. Reading maps them to consecutive classes; ignored ids and pixels outside the image become 255.

Legend: C channels, H W rows and columns, P points, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL.Image import Image as Picture
from PIL.Image import fromarray

from perceivers.data.augment import PLAIN, Look, View
from perceivers.data.deep_pictures import (
    deep_size,
    read_deep,
    stored_orientation,
    to_augmented,
)
from perceivers.data.drawing import choose_view, draw_ids, draw_picture, fit_array
from perceivers.data.labels import read_names
from perceivers.data.pictures import (
    MaskTurn,
    convert_channels,
    find_mask_turn,
    read_orientation,
    read_picture,
    turn_array,
)
from perceivers.data.rand_augment import apply, as_picture
from perceivers.data.sources import Encoded, Source, number_classes
from perceivers.errors import DataError
from perceivers.settings import Count, Finite, Positive, Range
from perceivers.types import Image, ModalitySpec

# Name of the modality that holds masks.
MASK_NAME = "mask"
# Value of a pixel without a class; class ids are smaller.
IGNORED = 255
UNUSED = -1
# In tars, in order of preference.
MASK_ENDINGS = ("mask.png", "seg.png", "png")
ID_MODES = frozenset({"1", "L", "P"})
# Number of masks to search for the highest class id if no file names the classes.
MAX_SEARCHED = 512


@dataclass(frozen=True)
class Mask(ModalitySpec):
    """Masks ``[B, H, W]``, uint8: classes 0..K-1, 255 where ignored. A target, never an input.

    Args:
        height: Rows H in pixels.
        width: Columns W in pixels.
        num_classes: Classes K, up to 255.
        ignore: Ids in the files that are not classes; the ids above them move down.
        exif: Orientation of masks whose images have an EXIF rotation, where the sizes do not show
            it: ``upright``, or ``stored`` like the image in its file.
    """

    kind: ClassVar[str] = "mask"

    height: Count
    width: Count
    num_classes: Annotated[int, Range(1, IGNORED)] = IGNORED
    ignore: tuple[Annotated[int, Range(0, IGNORED)], ...] = (IGNORED,)
    exif: MaskTurn = "upright"
    channels: Count = field(default=1, init=False)
    mean: tuple[Finite, ...] = field(default=(), init=False)
    std: tuple[Positive, ...] = field(default=(), init=False)

    @property
    def grid(self) -> tuple[int, ...]:
        """Rows and columns."""
        return (self.height, self.width)

    @property
    def raw_shape(self) -> tuple[int, ...]:
        """Shape ``(H, W)``; masks have no channel axis."""
        return self.grid

    @property
    def table(self) -> NDArray[np.int64]:
        """Class of each file id ``[256]``; 255 for ignored ids, -1 for ids without a class."""
        return class_table(self.num_classes, self.ignore)


def class_table(num_classes: int, ignore: Sequence[int]) -> NDArray[np.int64]:
    """Return the class of each id ``[256]``; 255 for ignored ids, -1 for ids without a class.

    Args:
        num_classes: Classes K, up to 255.
        ignore: Ids that are not classes; the ids above them move down.
    """
    ids = [number for number in range(IGNORED) if number not in ignore]
    table = np.full(IGNORED + 1, UNUSED)
    table[ids[:num_classes]] = np.arange(min(num_classes, len(ids)))
    table[[IGNORED, *ignore]] = IGNORED
    return table


@runtime_checkable
class NumberedIds(Protocol):
    """Spec of class ids per pixel or per point."""

    @property
    def num_classes(self) -> int:
        """Classes K."""
        ...

    @property
    def ignore(self) -> tuple[int, ...]:
        """Ids that are not classes."""
        ...

    @property
    def grid(self) -> tuple[int, ...]:
        """``(H, W)``, or ``(P,)``."""
        ...

    @property
    def table(self) -> NDArray[np.int64]:
        """Class of each id ``[256]``, see ``class_table``."""
        ...


def read_ids(raw: Picture | NDArray, path: str, axes: int = 2) -> NDArray[np.integer]:
    """Return the ids of a mask as stored: ``[H, W]``, or ``[P]`` for points.

    Args:
        raw: A decoded image, or an array of integers.
        path: Name of the sample, for messages.
        axes: 2 for images, 1 for points.

    Raises:
        DataError: The mask contains colours or fractions instead of ids.
    """
    if isinstance(raw, Picture):
        if raw.mode not in ID_MODES and not raw.mode.startswith("I"):
            raise DataError(
                f"{path}: the mask has mode {raw.mode!r}, so it contains colours; a mask must be a "
                f"gray or palette image whose values are class ids"
            )
        return np.asarray(raw).astype(np.int64 if raw.mode.startswith("I") else np.uint8)
    if raw.ndim != axes or not np.issubdtype(raw.dtype, np.integer):
        raise DataError(
            f"{path}: the mask has shape {raw.shape} and dtype {raw.dtype}; it must be "
            f"{'[H, W]' if axes == 2 else '[P]'} integers, the class ids"
        )
    return raw


def number_ids(
    ids: NDArray[np.integer], spec: NumberedIds, path: str
) -> UInt8[np.ndarray, "*grid"]:
    """Map stored ids to classes; 255 where ignored.

    Args:
        ids: Ids as stored.
        spec: Spec that defines the classes and the ignored ids.
        path: Name of the sample, for messages.

    Raises:
        DataError: An id is neither a class nor ignored.
    """
    table = spec.table
    inside = (ids >= 0) & (ids <= IGNORED)
    classes = table[np.where(inside, ids, 0)]
    wrong = ~inside | (classes == UNUSED)
    if wrong.any():
        known = np.flatnonzero((table != UNUSED) & (table != IGNORED))
        raise DataError(
            f"{path}: the mask contains the ids {np.unique(ids[wrong])[:8].tolist()}, but the "
            f"{spec.num_classes} classes are {known.min()}..{known.max()} and "
            f"{sorted({*spec.ignore, IGNORED})} are ignored; name every class in classes.txt, "
            f"or repair the mask"
        )
    return classes.astype(np.uint8)


def fit_mask(
    raw: Any, path: str, spec: Mask, look: Look = PLAIN, view: View | None = None
) -> UInt8[np.ndarray, "H W"]:
    """Resize a mask to its spec by nearest-neighbour sampling; 255 outside the image.

    Args:
        raw: A decoded image, or ids ``[H, W]``.
        path: Name of the sample, for messages.
        spec: Spec with the output shape and the classes.
        look: Chooses the view if ``view`` is not given.
        view: View of the corresponding image.

    Raises:
        DataError: The input is not a mask, or contains ids that are not classes.
    """
    picture = fromarray(number_ids(read_ids(raw, path), spec, path))
    target = (spec.width, spec.height)
    view = view or choose_view(picture.size, target, look)
    return draw_ids(picture, view, target, fill=IGNORED)


def fit_masked(
    raw: Any, mask: Any, path: str, spec: Image, mask_spec: Mask, look: Look = PLAIN
) -> tuple[NDArray, UInt8[np.ndarray, "H W"]]:
    """Resize an image and its mask with the same view, sampled once.

    A mask stored in the orientation of the image file is rotated along with the image. RandAugment
    only applies operations that do not move pixels.

    Args:
        raw: A decoded image, an undecoded 16-bit image, or an array ``[C, H, W]``.
        mask: A decoded image, or ids ``[H, W]``.
        path: Name of the sample, for messages.
        spec: Spec of the image.
        mask_spec: Spec of the mask.
        look: Chooses the view and the augmentation.

    Raises:
        DataError: The sizes differ, or the input is not a mask.
    """
    colours = look.rng is not None and look.augment.rand_augment > 0
    mask = upright_mask(raw, mask, path, mask_spec.exif)
    if isinstance(raw, Encoded):
        assert raw.data is not None, path
        deep = read_deep(raw.data, raw.path, spec.channels)
        raw = to_augmented(deep, path) if colours else deep
    size = raw.size if isinstance(raw, Picture) else raw.shape[:0:-1]
    view = choose_view(size, (spec.width, spec.height), look)
    ids = fit_mask(mask, path, mask_spec, view=view)
    if not isinstance(raw, Picture) and not colours:
        return fit_array(raw, spec, view), ids
    picture = raw if isinstance(raw, Picture) else as_picture(raw)
    picture = convert_channels(picture, spec.channels, path)
    if look.rng is not None:
        picture = apply(picture, look.augment, look.rng, keep_shape=True)
    return draw_picture(picture, view, (spec.width, spec.height)), ids


def upright_mask(raw: Any, mask: Any, path: str, lies: MaskTurn = "upright") -> Any:
    """Return the mask in the upright orientation of its image.

    Args:
        raw: A decoded image, an undecoded image, or an array ``[C, H, W]``.
        mask: A decoded image, or ids ``[H, W]``.
        path: Name of the sample, for messages.
        lies: Orientation of the mask where the sizes do not show it.

    Raises:
        DataError: The mask has neither the size of the upright image nor that of the stored one.
    """
    if isinstance(mask, np.ndarray) and mask.ndim != 2:
        read_ids(mask, path)  # raises the error for a wrong shape
    orientation = picture_orientation(raw)
    lies = find_pair_turn(raw, mask, path) or lies
    return turn_array(read_ids(mask, path), orientation) if lies == "stored" else mask


def find_pair_turn(raw: Any, mask: Any, path: str) -> MaskTurn | None:
    """Return the orientation of a mask relative to its image; None if it cannot be determined.

    Args:
        raw: A decoded image, an undecoded image, or an array ``[C, H, W]``.
        mask: A decoded image, or ids ``[H, W]``.
        path: Name of the sample, for messages.

    Raises:
        DataError: The mask has neither the size of the upright image nor that of the stored one.
    """
    if isinstance(raw, Picture):
        size = raw.size
    elif isinstance(raw, Encoded):
        assert raw.data is not None, path
        size = deep_size(raw.data, raw.path)
    else:
        size = (raw.shape[2], raw.shape[1])
    own = mask.size if isinstance(mask, Picture) else (mask.shape[1], mask.shape[0])
    found = find_mask_turn(size, picture_orientation(raw), own, path)
    # A mask with its own EXIF orientation was already rotated when it was decoded.
    turned = isinstance(mask, Picture) and read_orientation(mask) != 1
    return "upright" if turned and found is None else found


def picture_orientation(raw: Any) -> int:
    """Return the EXIF orientation of an image in its file; 1 is upright."""
    if isinstance(raw, Encoded):
        return stored_orientation(raw.data or b"")
    return read_orientation(raw) if isinstance(raw, Picture) else 1


def name_mask_classes(
    folder: Path, sources: Mapping[str, Source], where: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the class names of mask ids from 0, and notes on how they were found.

    Args:
        folder: Folder that may contain ``classes.txt``: one name per line, in the order of the
            ids.
        sources: Sources by split. Without ``classes.txt``, up to 512 training masks are searched
            for the highest id except 255 (ignored), and classes are named by their numbers.
        where: Address of the data, for messages.

    Raises:
        DataError: ``classes.txt`` is invalid; or it does not exist and no id above 0 was found.
    """
    names = read_names(folder / "classes.txt")
    if len(names) > IGNORED:
        raise DataError(
            f"{folder / 'classes.txt'}: names {len(names)} classes; the ids in masks are 0..254, "
            f"so there can be at most {IGNORED}"
        )
    if names:
        return names, ()
    source = sources["train"]
    places = np.unique(np.linspace(0, len(source) - 1, MAX_SEARCHED).round().astype(int))
    stored = set().union(*(_ids_in(source, int(place)) for place in places))
    found = stored - {IGNORED}
    highest = max(found, default=-1)
    if highest < 1:
        drawn = IGNORED in stored and found == {0}
        remedy = "; save masks of 0 and 255 as 0 and 1" if drawn else ""
        raise DataError(
            f"{where}: the highest class id in {len(places)} masks is {highest}, but at least two "
            f"classes are needed; mask values are class ids from 0, and 255 is ignored{remedy}"
        )
    note = f"no classes.txt: {highest + 1} pixel classes, named by their numbers"
    if absent := sorted(set(range(highest)) - found):
        listed = ", ".join(map(str, absent[:8])) + (", ..." if len(absent) > 8 else "")
        note += (
            f"; {len(absent)} of these ids occur in none of the {len(places)} inspected masks, so "
            f"they are never learned ({listed}): number the classes from 0 without gaps"
        )
    return number_classes(highest, where), (note,)


def _ids_in(source: Source, index: int) -> set[int]:
    try:
        raw = _raw_mask(source.read(index))
        ids = read_ids(raw, source.names[index], _axes(raw))
    except DataError:
        # The loader reports and replaces unreadable samples.
        return set()
    return set(np.unique(ids).tolist())


def _raw_mask(sample: Mapping[str, Any]) -> Any:
    return sample.get(MASK_NAME, np.zeros((0, 0), np.uint8))


def _axes(raw: Any) -> int:
    """Return 1 for point ids, 2 otherwise."""
    return 1 if isinstance(raw, np.ndarray) and raw.ndim == 1 else 2


def kept_classes(
    names: Sequence[str], ignore: int | str
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the classes to learn and the ids to ignore.

    Args:
        names: Names of the ids, from 0.
        ignore: A name or an id; ``void`` is allowed even if no class has this name.

    Raises:
        DataError: No class has this name, the id is out of range, or fewer than two classes remain.
    """
    if isinstance(ignore, str):
        if ignore not in names and ignore != "void":
            raise DataError(
                f"class {ignore!r} should be ignored, but the classes are {list(names)}; "
                f"give one of them, or an id"
            )
        found = names.index(ignore) if ignore in names else IGNORED
    else:
        found = ignore
    if not 0 <= found <= IGNORED:
        raise DataError(f"id {found} should be ignored, but the ids in masks are 0..{IGNORED}")
    kept = tuple(name for number, name in enumerate(names) if number != found)
    if len(kept) < 2:
        raise DataError(
            f"the pixel classes are {list(kept)} without the ignored {ignore!r}; at least 2 are "
            f"needed"
        )
    return kept, tuple(sorted({found, IGNORED}))


def find_mask(parts: Mapping[str, Any], picture: Any) -> str | None:
    """Return the ending of the file that may be the mask of an image, or None.

    Args:
        parts: The files of one sample, by ending. A mask ends like one, or is a second PNG.
        picture: The image among them; None if there is no image.
    """
    endings = [e for e in MASK_ENDINGS if e in parts and parts[e] is not picture]
    return endings[0] if picture is not None and endings else None


def holds_ids(data: bytes, path: str) -> bool:
    """Return whether an image file contains ids, not colours; False for a damaged file."""
    try:
        read_ids(read_picture(data, path), path)
    except DataError:
        return False
    return True


def count_pixels(source: Source, spec: NumberedIds, limit: int = MAX_SEARCHED) -> NDArray[np.int64]:
    """Count the pixels or points of each class ``[K]`` in up to ``limit`` samples, spread evenly.

    Args:
        source: Source with masks; unreadable masks are skipped.
        spec: Spec that defines the classes.
        limit: Maximum number of samples to read.
    """
    counts = np.zeros(spec.num_classes, np.int64)
    for place in np.unique(np.linspace(0, len(source) - 1, limit).round().astype(int)):
        try:
            raw = _raw_mask(source.read(int(place)))
            stored = read_ids(raw, "", _axes(raw))
            ids = number_ids(stored, spec, source.names[int(place)])
        except DataError:
            continue
        counts += np.bincount(ids[ids != IGNORED], minlength=spec.num_classes)
    return counts
