"""Point clouds to ``.ply`` files that viewers open.

Legend: P points, C values per point.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perceivers.errors import InputError
from perceivers.files import write_atomic

AXES = ("x", "y", "z")


def write_ply(path: Path, points: NDArray) -> Path:
    """Write points as binary ``.ply``; an old file survives failure.

    Args:
        path: Where to write.
        points: ``[P, C]`` of at least x, y and z; further values are named ``value_3`` onwards.
            Rows with NaN are no points and are left out.

    Raises:
        InputError: Another shape, or fewer than three values per point.
    """
    if points.ndim != 2 or points.shape[1] < len(AXES):
        raise InputError(f"points have shape {points.shape}; a .ply file needs [P, 3 or more]")
    real = points[np.isfinite(points).all(axis=1)].astype("<f4")
    names = [*AXES, *(f"value_{index}" for index in range(len(AXES), points.shape[1]))]
    header = [
        "ply",
        "format binary_little_endian 1.0",
        f"element vertex {len(real)}",
        *(f"property float {name}" for name in names),
        "end_header",
    ]
    return write_atomic(path, "\n".join(header).encode() + b"\n" + real.tobytes())
