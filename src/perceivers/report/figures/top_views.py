"""Point clouds from above: which point is seen in every pixel.

Legend: P points, S side of the view in pixels.
"""

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from perceivers.errors import InputError

# Where no point is seen.
NOTHING = -1
# Pixels per point, so that most of them hold one.
FILL = 2
MIN_SIDE, MAX_SIDE = 32, 1024


def choose_side(num_points: int) -> int:
    """Return a side in pixels at which most points of a cloud are seen and most pixels hold one."""
    return int(np.clip(round((FILL * num_points) ** 0.5), MIN_SIDE, MAX_SIDE))


def look_down(cloud: NDArray, side: int) -> Int[np.ndarray, "S S"]:
    """Return the row of the highest point in every pixel, y upwards, -1 where there is none.

    Pixels without a point show that of a neighbour, so that sparse clouds are not speckled.

    Args:
        cloud: Points ``[P, C]`` of at least x and y; rows of NaN are none. Without z later ones
            cover earlier ones.
        side: Pixels S along both sides; the longer one of the cloud fills it.

    Raises:
        InputError: Fewer than two values per point.
    """
    if cloud.ndim != 2 or cloud.shape[1] < 2:
        raise InputError(f"points have shape {cloud.shape}; a view from above needs [P, 2 or more]")
    real = np.flatnonzero(~np.isnan(cloud).any(axis=1))
    seen = np.full((side, side), NOTHING)
    if not len(real):
        return seen
    places = cloud[real, :2].astype(np.float64)
    low, reach = places.min(axis=0), float(np.ptp(places, axis=0).max()) or 1.0
    cells = np.minimum(((places - low) / reach * side).astype(int), side - 1)
    order = (
        np.argsort(cloud[real, 2], kind="stable") if cloud.shape[1] > 2 else np.arange(len(real))
    )
    # The last one written is the highest.
    seen[side - 1 - cells[order, 1], cells[order, 0]] = real[order]
    for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
        moved = np.roll(seen, step, axis)
        edge = 0 if step > 0 else -1
        moved[(edge, slice(None)) if axis == 0 else (slice(None), edge)] = NOTHING
        seen = np.where(seen == NOTHING, moved, seen)
    return seen


def shade_heights(cloud: NDArray, seen: Int[np.ndarray, "S S"]) -> NDArray[np.float32]:
    """Return grey values ``[1, S, S]`` in 0..1 by height, the lowest dark; black without a point.

    Args:
        cloud: Points ``[P, C]``; all have the same shade where there is no z.
        seen: From ``look_down``.
    """
    heights = cloud[:, 2] if cloud.shape[1] > 2 else np.zeros(len(cloud))
    there = heights[seen[seen != NOTHING]]
    if not len(there):
        return np.zeros((1, *seen.shape), np.float32)
    low, high = np.percentile(there, (1, 99))
    shades = 0.15 + 0.85 * np.clip((heights[seen] - low) / max(high - low, 1e-9), 0, 1)
    return np.where(seen == NOTHING, 0.0, shades).astype(np.float32)[None]
