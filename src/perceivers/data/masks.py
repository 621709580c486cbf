"""Masks: a class for every pixel of a picture, drawn with the picture and never blended.

Of a cloud's points (``scenes``) a mask is one id per point.

A mask file is a picture whose values are class ids: grey of 8 bits, or a palette, whose indices
count and not its colours. Once read, ids are numbered through without the ignored ones, which
become 255, as does what lies outside the picture.

Legend: C channels, H W rows and columns.
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
from perceivers.data.sources import EncodedClip, Source, number_classes
from perceivers.errors import DataError
from perceivers.settings import Count, Finite, Positive, Range
from perceivers.types import Image, ModalitySpec

# Name of the modality that holds masks.
MASK_NAME = "mask"
# What a pixel is that has no class; class ids are below.
IGNORED = 255
UNUSED = -1
# In tars, from the surest on.
MASK_ENDINGS = ("mask.png", "seg.png", "png")
ID_MODES = frozenset({"1", "L", "P"})
# Masks that are searched for the highest class where no file names the classes.
MAX_SEARCHED = 512


@dataclass(frozen=True)
class Mask(ModalitySpec):
    """Masks ``[B, H, W]``, uint8: classes 0..K-1, 255 where ignored. A target, never an input.

    Args:
        height: Rows H in pixels.
        width: Columns W in pixels.
        num_classes: Classes K, up to 255.
        ignore: Ids in the files that are no class; the ids above them move down.
        exif: How masks lie beside photographs that EXIF turns, where their sizes do not tell:
            ``upright``, or ``stored`` as the photograph is in its file.
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
        """Classes have no channel axis."""
        return self.grid

    @property
    def table(self) -> NDArray[np.int64]:
        """What each id ``[256]`` in a file stands for: a class, 255 (ignored) or -1 (no class)."""
        return class_table(self.num_classes, self.ignore)


def class_table(num_classes: int, ignore: Sequence[int]) -> NDArray[np.int64]:
    """Return what each id ``[256]`` stands for: a class, 255 (ignored) or -1 (no class).

    Args:
        num_classes: Classes K, up to 255.
        ignore: Ids that are no class; the ids above them move down.
    """
    ids = [number for number in range(IGNORED) if number not in ignore]
    table = np.full(IGNORED + 1, UNUSED)
    table[ids[:num_classes]] = np.arange(min(num_classes, len(ids)))
    table[[IGNORED, *ignore]] = IGNORED
    return table


@runtime_checkable
class NumberedIds(Protocol):
    """What a spec says of the ids that it reads."""

    @property
    def num_classes(self) -> int:
        """Classes K."""
        ...

    @property
    def ignore(self) -> tuple[int, ...]:
        """Ids that are no class."""
        ...

    @property
    def grid(self) -> tuple[int, ...]:
        """Rows and columns, or points."""
        ...

    @property
    def table(self) -> NDArray[np.int64]:
        """What each id stands for."""
        ...


def read_ids(raw: Picture | NDArray, path: str, axes: int = 2) -> NDArray[np.integer]:
    """Return the ids of a mask as they are stored: ``[H, W]``, or ``[P]`` of points.

    Args:
        raw: A decoded picture, or an array of integers.
        path: Names the sample, for messages.
        axes: 2 of a picture, 1 of points.

    Raises:
        DataError: It holds colours or fractions instead of ids.
    """
    if isinstance(raw, Picture):
        if raw.mode not in ID_MODES and not raw.mode.startswith("I"):
            raise DataError(
                f"{path}: the mask has mode {raw.mode!r}, so it holds colours; a mask is a "
                f"grey or palette picture whose values are class ids"
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
    """Return the class of every pixel or point, 255 where it is ignored.

    Args:
        ids: As stored.
        spec: Which ids are classes, and which ignored.
        path: Names the sample, for messages.

    Raises:
        DataError: An id that is neither; names all of them.
    """
    table = spec.table
    inside = (ids >= 0) & (ids <= IGNORED)
    classes = table[np.where(inside, ids, 0)]
    wrong = ~inside | (classes == UNUSED)
    if wrong.any():
        known = np.flatnonzero((table != UNUSED) & (table != IGNORED))
        raise DataError(
            f"{path}: the mask holds the ids {np.unique(ids[wrong])[:8].tolist()}, but the "
            f"{spec.num_classes} classes are {known.min()}..{known.max()} and "
            f"{sorted({*spec.ignore, IGNORED})} are ignored; name every class in classes.txt, "
            f"or repair the mask"
        )
    return classes.astype(np.uint8)


def fit_mask(
    raw: Any, path: str, spec: Mask, look: Look = PLAIN, view: View | None = None
) -> UInt8[np.ndarray, "H W"]:
    """Fit a mask to its spec by nearest neighbours; 255 outside the picture.

    Args:
        raw: A decoded picture, or ids ``[H, W]``.
        path: Names the sample, for messages.
        spec: The shape and the classes.
        look: What is seen of it, where no view is given.
        view: The view of the picture that the mask belongs to.

    Raises:
        DataError: It is no mask, or holds ids that are no class.
    """
    picture = fromarray(number_ids(read_ids(raw, path), spec, path))
    target = (spec.width, spec.height)
    view = view or choose_view(picture.size, target, look)
    return draw_ids(picture, view, target, fill=IGNORED)


def fit_masked(
    raw: Any, mask: Any, path: str, spec: Image, mask_spec: Mask, look: Look = PLAIN
) -> tuple[NDArray, UInt8[np.ndarray, "H W"]]:
    """Fit a picture and its mask to the same view, drawn once; only colours change apart.

    A mask that lies as the picture is stored is turned by its EXIF orientation along with it.
    RandAugment is left with its operations that move nothing.

    Args:
        raw: A decoded picture, an undecoded one of 16 bits, or an array ``[C, H, W]``.
        mask: A decoded picture, or ids ``[H, W]``.
        path: Names the sample, for messages.
        spec: The picture's shape.
        mask_spec: The mask's shape and classes.
        look: What is seen of both.

    Raises:
        DataError: The sizes differ, or it is no mask.
    """
    colours = look.rng is not None and look.augment.rand_augment > 0
    mask = upright_mask(raw, mask, path, mask_spec.exif)
    if isinstance(raw, EncodedClip):
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
    """Return the mask of a picture as the picture is seen.

    Args:
        raw: A decoded picture, an undecoded one, or an array ``[C, H, W]``.
        mask: A decoded picture, or ids ``[H, W]``.
        path: Names the sample, for messages.
        lies: How it lies where sizes do not tell.

    Raises:
        DataError: The mask has neither the picture's size nor that of its file.
    """
    if isinstance(mask, np.ndarray) and mask.ndim != 2:
        read_ids(mask, path)  # says what is wrong
    orientation = picture_orientation(raw)
    lies = find_pair_turn(raw, mask, path) or lies
    return turn_array(read_ids(mask, path), orientation) if lies == "stored" else mask


def find_pair_turn(raw: Any, mask: Any, path: str) -> MaskTurn | None:
    """Return how a mask lies beside its picture; None where nothing tells.

    Args:
        raw: A decoded picture, an undecoded one, or an array ``[C, H, W]``.
        mask: A decoded picture, or ids ``[H, W]``.
        path: Names the sample, for messages.

    Raises:
        DataError: The mask has neither the picture's size nor that of its file.
    """
    if isinstance(raw, Picture):
        size = raw.size
    elif isinstance(raw, EncodedClip):
        assert raw.data is not None, path
        size = deep_size(raw.data, raw.path)
    else:
        size = (raw.shape[2], raw.shape[1])
    own = mask.size if isinstance(mask, Picture) else (mask.shape[1], mask.shape[0])
    found = find_mask_turn(size, picture_orientation(raw), own, path)
    # A mask with an orientation of its own was turned by it when it was decoded.
    turned = isinstance(mask, Picture) and read_orientation(mask) != 1
    return "upright" if turned and found is None else found


def picture_orientation(raw: Any) -> int:
    """Return the EXIF orientation that a picture was stored with; 1 is upright."""
    if isinstance(raw, EncodedClip):
        return stored_orientation(raw.data or b"")
    return read_orientation(raw) if isinstance(raw, Picture) else 1


def name_mask_classes(
    folder: Path, sources: Mapping[str, Source], where: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the ids of masks, from 0, and notes on how they were found.

    Args:
        folder: Where ``classes.txt`` may lie, one name per line, in the order of the ids.
        sources: By split; without such a file up to 512 training masks are searched for the
            highest id, 255 (ignored) left out, and classes are named by their numbers.
        where: The data's address, for messages.

    Raises:
        DataError: The file is damaged; or there is none, and no mask holds two classes.
    """
    names = read_names(folder / "classes.txt")
    if len(names) > IGNORED:
        raise DataError(
            f"{folder / 'classes.txt'}: names {len(names)} classes; masks hold ids 0..254, so at "
            f"most {IGNORED}"
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
        remedy = "; masks of 0 and 255 are to be saved as 0 and 1" if drawn else ""
        raise DataError(
            f"{where}: the highest class id in {len(places)} masks is {highest}, so there are no "
            f"two classes; a mask's values are class ids from 0, and 255 is ignored{remedy}"
        )
    note = f"no classes.txt: {highest + 1} classes of pixels, named by their numbers"
    if absent := sorted(set(range(highest)) - found):
        listed = ", ".join(map(str, absent[:8])) + (", ..." if len(absent) > 8 else "")
        note += (
            f"; {len(absent)} of these ids are in none of the {len(places)} masks looked at, so "
            f"they are never learned ({listed}): number the classes from 0 without gaps"
        )
    return number_classes(highest, where), (note,)


def _ids_in(source: Source, index: int) -> set[int]:
    """Return the ids in a mask; none where it cannot be read."""
    try:
        raw = _raw_mask(source.read(index))
        ids = read_ids(raw, source.names[index], _axes(raw))
    except DataError:
        # An unreadable sample is the loader's business: it is named and replaced there.
        return set()
    return set(np.unique(ids).tolist())


def _raw_mask(sample: Mapping[str, Any]) -> Any:
    """Return the mask of a sample, or an empty one."""
    return sample.get(MASK_NAME, np.zeros((0, 0), np.uint8))


def _axes(raw: Any) -> int:
    """Return 1 for ids of points, 2 for what must be a picture's."""
    return 1 if isinstance(raw, np.ndarray) and raw.ndim == 1 else 2


def kept_classes(
    names: Sequence[str], ignore: int | str
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the classes that are learned, and the ids that are ignored.

    Args:
        names: Of the ids, from 0.
        ignore: A name or an id; ``void`` where there may be no such class.

    Raises:
        DataError: No class has this name, the id is none, or nothing is left to tell apart.
    """
    if isinstance(ignore, str):
        if ignore not in names and ignore != "void":
            raise DataError(
                f"the class {ignore!r} is to be ignored, but the classes are {list(names)}; "
                f"give one of them, or an id"
            )
        found = names.index(ignore) if ignore in names else IGNORED
    else:
        found = ignore
    if not 0 <= found <= IGNORED:
        raise DataError(f"the id {found} is to be ignored, but ids in masks are 0..{IGNORED}")
    kept = tuple(name for number, name in enumerate(names) if number != found)
    if len(kept) < 2:
        raise DataError(
            f"the classes of pixels are {list(kept)} without the ignored {ignore!r}; at least 2 "
            f"are needed"
        )
    return kept, tuple(sorted({found, IGNORED}))


def find_mask(parts: Mapping[str, Any], picture: Any) -> str | None:
    """Return the ending of the file that may be a picture's mask: by its name, or as a second PNG.

    Args:
        parts: The files of one sample, by ending.
        picture: Which of them is the picture; None where there is none.
    """
    endings = [e for e in MASK_ENDINGS if e in parts and parts[e] is not picture]
    return endings[0] if picture is not None and endings else None


def holds_ids(data: bytes, path: str) -> bool:
    """Tell whether a picture file holds ids and not colours; one that is damaged holds none."""
    try:
        read_ids(read_picture(data, path), path)
    except DataError:
        return False
    return True


def count_pixels(source: Source, spec: NumberedIds, limit: int = MAX_SEARCHED) -> NDArray[np.int64]:
    """Count the pixels or points of each class ``[K]`` in up to ``limit`` samples, spread evenly.

    Args:
        source: With masks; those that cannot be read are left out.
        spec: Their classes.
        limit: Samples that are read.
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
