"""Random changes of a point cloud: rotation about an axis, dropped points, scale and jitter.

Each is a line of numpy, applied on the workers to single clouds, whose sizes differ.

Legend: P points, C values per point, of which the first three are x, y, z.
"""

from math import cos, radians, sin

import numpy as np
from numpy.typing import NDArray

from perceivers.data.augment import AugmentConfig
from perceivers.errors import ConfigError
from perceivers.types import Points

# The coordinates that change when points turn about an axis, in the order of a positive angle.
PLANES = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}
# Noise ends after so many deviations, as in PointNet's code (0.05 for 0.01).
JITTER_LIMIT = 5.0


def check_points(augment: AugmentConfig, name: str, spec: Points) -> None:
    """Refuse changes of coordinates where some values are none.

    Args:
        augment: What is to be changed.
        name: The modality, for the message.
        spec: Its spec.

    Raises:
        ConfigError: More than three values per point, a rotation about x or y in the plane, or one
            of single numbers.
    """
    if augment.turn and spec.channels <= max(PLANES[augment.turn_axis]):
        raise ConfigError(
            f"augment.turn about {augment.turn_axis!r} needs "
            f"{max(PLANES[augment.turn_axis]) + 1} coordinates, but {name!r} has "
            f"{spec.channels} channels; {'use turn_axis z' if spec.channels == 2 else 'turn: 0'}"
        )
    moved = augment.turn or augment.jitter or augment.point_scale != (1.0, 1.0)
    if moved and spec.channels > 3:
        raise ConfigError(
            f"augment.turn, point_scale and jitter move points of up to 3 coordinates, but "
            f"{name!r} has {spec.channels} channels, whose others (such as normals) would no "
            f"longer fit; leave them at their defaults, or leave those channels out"
        )


def turn_points(cloud: NDArray, augment: AugmentConfig, rng: np.random.Generator) -> NDArray:
    """Turn points about an axis through their mean.

    Args:
        cloud: Points ``[P, C]``, at least 1, floats; rows of NaN are none, and stay.
        augment: The largest angle and the axis.
        rng: Where the angle comes from; no draw is made when it is 0.
    """
    if not augment.turn:
        return cloud
    angle = radians(rng.uniform(-augment.turn, augment.turn))
    first, second = PLANES[augment.turn_axis]
    turned = cloud.astype(np.float64)
    plane = turned[:, (first, second)]
    middle = np.nanmean(plane, axis=0)
    matrix = np.array([[cos(angle), -sin(angle)], [sin(angle), cos(angle)]])
    turned[:, (first, second)] = (plane - middle) @ matrix.T + middle
    return turned.astype(cloud.dtype)


def drop_points(
    cloud: NDArray, augment: AugmentConfig, rng: np.random.Generator, *, ragged: bool
) -> NDArray:
    """Leave out points, each with the same probability, but never all of them.

    Args:
        cloud: Points ``[P, C]``.
        augment: The largest probability.
        rng: Where the probability and the points come from; no draw is made when it is 0.
        ragged: Return fewer points; otherwise copies of the first one that is kept take the places
            of the others, as in PointNet++.
    """
    return cloud[keep_rows(cloud, augment, rng, ragged=ragged)]


def keep_rows(
    cloud: NDArray, augment: AugmentConfig, rng: np.random.Generator, *, ragged: bool
) -> NDArray[np.int64]:
    """Return the rows that ``drop_points`` returns, for what else is known of each point.

    Args:
        cloud: Points ``[P, C]``.
        augment: The largest probability.
        rng: As there.
        ragged: As there.
    """
    rows = np.arange(len(cloud))
    if not augment.point_drop:
        return rows
    if ragged:
        rows = rows[~np.isnan(cloud).any(axis=1)]
    kept = rng.random(len(rows)) >= rng.uniform(0, augment.point_drop)
    if len(rows) and not kept.any():
        kept[0] = True
    return rows[kept] if ragged else np.where(kept, rows, kept.argmax() if len(rows) else 0)


def move_points(cloud: NDArray, augment: AugmentConfig, rng: np.random.Generator) -> NDArray:
    """Scale points about the origin and add noise to every coordinate.

    Args:
        cloud: Points ``[P, C]``, floats.
        augment: The range of factors, and the deviation of the noise.
        rng: Where they come from; no draw is made for what is off.
    """
    if augment.point_scale != (1.0, 1.0):
        cloud = cloud * np.asarray(rng.uniform(*augment.point_scale), cloud.dtype)
    if augment.jitter:
        noise = rng.standard_normal(cloud.shape).clip(-JITTER_LIMIT, JITTER_LIMIT)
        cloud = cloud + (augment.jitter * noise).astype(cloud.dtype)
    return cloud
