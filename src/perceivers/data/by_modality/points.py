"""Point clouds: fitting, alone or with the classes of their points, and facts about samples.

Legend: P points, C values per point.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from torch import Tensor

from perceivers.data.augment import PLAIN, Look
from perceivers.data.augment_signals import check_points, keep_rows, move_points, turn_points
from perceivers.data.clouds import INSIDE, PointMask, choose_block
from perceivers.data.containers import POINT_EXTENSIONS
from perceivers.data.masks import IGNORED, number_ids, read_ids
from perceivers.data.modality import Cut, Modality, RawFacts, scale_values
from perceivers.data.point_files import common_points, native_points, read_points
from perceivers.data.sources import Encoded, RawSample
from perceivers.errors import DataError
from perceivers.types import ModalitySpec, Points

# A quantile, because a few points may wrongly lie below the floor.
FLOOR_QUANTILE = 0.02
# Cells per side of the histogram that is a feature.
CELLS = 12


def fit_points(raw: Any, path: str, spec: Points, look: Look = PLAIN) -> NDArray:
    """Fit points ``[P, C]``: scaled as the spec says, subsampled in order, padded with NaN rows.

    A file is decoded; if it is a mesh, points are sampled from its surface.

    In training, points are rotated before they are scaled, as if they had been measured that way;
    the rest of the augmentation follows.

    Raises:
        DataError: Fewer points than the spec has, and the spec is not ``ragged``; or a file that
            cannot be decoded.
    """
    if isinstance(raw, Encoded):
        raw = read_points(raw, spec, look.rng)
    return pick_points(raw, path, spec, look)[0]


def pick_points(
    raw: NDArray, path: str, spec: Points, look: Look = PLAIN
) -> tuple[NDArray, NDArray[np.int64]]:
    """Fit points as ``fit_points`` does, and return which ones were chosen.

    Args:
        raw: Points ``[n, C]``.
        path: Name of the sample, for messages.
        spec: Number and scaling of the points.
        look: View and augmentation.

    Returns:
        The points ``[P, C]``, and the row of each in ``raw``, -1 for NaN rows.

    Raises:
        DataError: Fewer points than the spec has, and the spec is not ``ragged``.
    """
    augment, rng = look.augment, look.rng
    changed = rng is not None and augment.changes_points
    cloud = scale_values(raw) if spec.ragged or spec.scale != "none" or changed else raw
    if rng is not None:
        cloud = turn_points(cloud, augment, rng)
    if spec.scale == "unit":
        cloud = scale_cloud(cloud)
    elif spec.scale in {"centre", "floor"}:
        cloud = cloud - find_origin(cloud, floor=spec.scale == "floor")
    if np.issubdtype(cloud.dtype, np.floating):
        cloud = cloud.astype(np.float32, copy=False)
    rows = np.arange(len(cloud))
    if rng is not None:
        rows = keep_rows(cloud, augment, rng, ragged=spec.ragged)
        cloud = move_points(cloud[rows], augment, rng)
    spare = len(cloud) - spec.points
    if spare > 0:
        if rng is None:
            # Evenly spread rows, so that evaluation is deterministic.
            chosen = np.linspace(0, len(cloud) - 1, spec.points).round().astype(np.int64)
        else:
            chosen = np.sort(rng.choice(len(cloud), spec.points, replace=False))
        return cloud[chosen], rows[chosen]
    if spare < 0:
        if not spec.ragged:
            raise DataError(
                f"{path}: {len(cloud)} points, but the spec has {spec.points} and ragged=False; "
                f"set ragged=True, or ask for fewer points"
            )
        rows = np.pad(rows, (0, -spare), constant_values=-1)
        return np.pad(cloud, ((0, -spare), (0, 0)), constant_values=np.nan), rows
    return cloud, rows


def fit_classed(
    sample: RawSample, path: str, specs: Mapping[str, ModalitySpec], look: Look
) -> dict[str, NDArray]:
    """Fit points and their classes, or the points of a tile, with the same rows."""
    clouds = [(name, spec) for name, spec in specs.items() if isinstance(spec, Points)]
    masks = [(name, spec) for name, spec in specs.items() if isinstance(spec, PointMask)]
    if not clouds or not (masks or INSIDE in sample):
        return {}
    name, spec = clouds[0]
    raw = sample[name]
    if isinstance(raw, Encoded):
        raw = read_points(raw, spec, look.rng)
    cloud = np.asarray(raw)
    tiled = INSIDE in sample
    block = choose_block(sample, spec.points, look) if tiled else np.arange(len(cloud))
    values, rows = pick_points(cloud[block], path, spec, look)
    if not masks:
        return {name: values}
    mask_name, mask_spec = masks[0]
    stored = read_ids(np.asarray(sample[mask_name]), path, axes=1)
    if len(stored) != len(cloud) or mask_spec.points != spec.points:
        raise DataError(
            f"{path}: {len(cloud)} points and {len(stored)} classes, read as {spec.points} and "
            f"{mask_spec.points}; every point needs one class"
        )
    classes = number_ids(stored[block], mask_spec, path)
    if tiled and look.rng is None:
        # Points around a tile are scored in their own tiles.
        classes = np.where(np.asarray(sample[INSIDE])[block], classes, IGNORED).astype(np.uint8)
    return {name: values, mask_name: np.append(classes, np.uint8(IGNORED))[rows]}


def find_origin(cloud: NDArray, *, floor: bool) -> NDArray[np.float64]:
    """Return where to centre points ``[P, C]``, as ``[C]``: their mean, or the floor below it.

    Args:
        cloud: The points; rows of NaN are padding.
        floor: Use a low quantile of the last axis, which a few outliers hardly move.
    """
    origin = np.asarray(np.nanmean(cloud, axis=0, dtype=np.float64))
    if floor:
        origin[-1] = np.nanquantile(cloud[:, -1].astype(np.float64), FLOOR_QUANTILE)
    return origin


def scale_cloud(cloud: NDArray) -> NDArray[np.float32]:
    """Centre points ``[P, C]`` at their mean and divide each axis by its largest distance from it.

    Every axis is scaled on its own, into -1..1, because axes may differ in their unit, such as
    pixels and milliseconds; an axis on which all points coincide becomes 0.
    """
    centred = cloud.astype(np.float64) - cloud.mean(axis=0, dtype=np.float64)
    reach = np.abs(centred).max(axis=0)
    # Below this, differences are rounding errors of the mean.
    flat = reach <= 1e-6 * np.abs(cloud).max(axis=0)
    return (np.where(flat, 0.0, centred) / np.where(flat, 1.0, reach)).astype(np.float32)


def native_cloud(raw: NDArray | Encoded, ragged: bool) -> Points:
    """Return the spec of a file, or of points ``[P, C]``."""
    if isinstance(raw, Encoded):
        return native_points(raw)
    points, channels = raw.shape
    return (
        Points(points, channels, ragged=True, scale="unit") if ragged else Points(points, channels)
    )


def common_cloud(found: Sequence[Points]) -> Points:
    """Return a spec that is large enough for most clouds, if these may differ in size."""
    return common_points(found) if found[0].ragged else found[0]


def is_cloud(raw: NDArray, name: str, spec: Points) -> bool:
    """Tell whether an array is points with the channels of a spec."""
    return raw.ndim == 2 and raw.shape[-1] == spec.channels


def inspect(raw: NDArray | Encoded, path: str, cut: Cut) -> RawFacts:
    """Describe a cloud ``[P, C]``, or a mesh from which points will be sampled."""
    points, channels = native_points(raw).raw_shape if isinstance(raw, Encoded) else raw.shape
    return RawFacts({"points": points}, {"values per point": str(channels)})


def summarise(raw: Shaped[Tensor, "B P C"]) -> Float[Tensor, "B D"]:
    """Return a histogram and moments of each cloud; rows with NaN are missing points."""
    rows = []
    for cloud in raw.float():
        real = cloud[torch.isfinite(cloud).all(1)]
        cells = torch.zeros(CELLS * CELLS)
        mean = spread = torch.zeros(cloud.shape[1])
        if len(real):
            low, high = real.amin(0), real.amax(0)
            place = ((real - low) / (high - low).clamp(min=1e-6) * CELLS).long().clamp(0, CELLS - 1)
            second = place[:, min(1, place.shape[1] - 1)]
            cells = torch.bincount(place[:, 0] * CELLS + second, minlength=CELLS * CELLS)
            cells = cells / len(real)
            mean, spread = real.mean(0), real.std(0, correction=0)
        count = torch.tensor([float(len(real))])
        rows.append(torch.cat([cells, mean, spread, count]))
    return torch.stack(rows)


ROW = Modality(
    spec=Points,
    fit=fit_points,
    native=native_cloud,
    merge=common_cloud,
    is_valid=is_cloud,
    is_element=lambda values, spec: np.logical_not(np.isnan(values).any(-1)),
    check_augment=check_points,
    inspect=inspect,
    summarise=summarise,
    mask=PointMask,
    noun="point cloud",
    endings=POINT_EXTENSIONS,
    # Arrays next to other members are as often features as point clouds.
    tar_endings=tuple(ending for ending in POINT_EXTENSIONS if ending != ".npy"),
    decode=lambda path, data: Encoded(path, data, "points"),
    streamed=True,
    words=("points", "cloud", "input"),
)
