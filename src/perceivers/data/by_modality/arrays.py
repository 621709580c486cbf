"""Arrays, labels and masks, which are not resized (except masks, with their images)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceivers.data.augment import PLAIN, Look
from perceivers.data.clouds import PointMask
from perceivers.data.masks import MASK_NAME, Mask, fit_mask, number_ids, read_ids
from perceivers.data.modality import Cut, Modality, RawFacts
from perceivers.data.pictures import read_picture
from perceivers.errors import DataError
from perceivers.types import Array, Labels, ModalitySpec


def keep_array(raw: Any, path: str, spec: ModalitySpec, look: Look = PLAIN) -> NDArray:
    """Return an array, which must already have the shape of its spec.

    Raises:
        DataError: It does not.
    """
    if raw.shape != spec.raw_shape:
        raise DataError(
            f"{path}: {spec.kind} has shape {raw.shape}, but the spec expects {spec.raw_shape}; "
            f"arrays of this kind are not resized"
        )
    return raw


def fit_point_mask(raw: Any, path: str, spec: PointMask, look: Look = PLAIN) -> NDArray[np.uint8]:
    """Map the ids of points that are read without their points to classes.

    Raises:
        DataError: Their number is not that of the spec, or an id is not a class.
    """
    stored = read_ids(raw, path, axes=1)
    if len(stored) != spec.points:
        raise DataError(
            f"{path}: classes of {len(stored)} points, but the spec has {spec.points}; they are "
            f"chosen with their points, so read both"
        )
    return number_ids(stored, spec, path)


def are_ids(raw: NDArray, spec: ModalitySpec) -> bool:
    """Tell whether an array has one integer per element of a spec's grid, of any size."""
    return raw.ndim == len(spec.grid) and np.issubdtype(raw.dtype, np.integer)


def inspect_mask(raw: Any, path: str, cut: Cut) -> RawFacts:
    """Describe class ids per pixel, or per point.

    Raises:
        DataError: These are not ids.
    """
    points = isinstance(raw, np.ndarray) and raw.ndim == 1
    return _measure_mask(read_ids(raw, path, axes=1 if points else 2))


def _measure_mask(raw: NDArray) -> RawFacts:
    """Describe class ids per pixel ``[H, W]``, or per point ``[P]``."""
    found = np.unique(raw)
    flags = ("of one class only",) if len(found) == 1 else ()
    sizes = dict(
        zip(("width", "height") if raw.ndim == 2 else ("points",), raw.shape[::-1], strict=True)
    )
    return RawFacts({**sizes, "classes in it": len(found)}, {}, flags)


ARRAY = Modality(
    spec=Array, fit=keep_array, native=lambda raw, ragged: Array(raw.shape[:-1], raw.shape[-1])
)
LABELS = Modality(spec=Labels, fit=keep_array)
MASK = Modality(
    spec=Mask,
    fit=fit_mask,
    is_valid=lambda raw, name, spec: are_ids(raw, spec),
    inspect=inspect_mask,
    noun=MASK_NAME,
    decode=lambda path, data: read_picture(data, path),
    words=(MASK_NAME, "seg", "target"),
)
POINT_MASK = Modality(
    spec=PointMask, fit=fit_point_mask, is_valid=lambda raw, name, spec: are_ids(raw, spec)
)
