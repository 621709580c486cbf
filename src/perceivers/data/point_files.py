"""Point files: arrays, tables of numbers, and meshes, whose surface is sampled.

``.npy`` and ``.xyz`` have one row per point; all columns are read: coordinates, then any other
values such as normals or intensity. The other formats are decoded by trimesh; only x, y and z are
read. A file with faces is a mesh. Mesh vertices are dense where the surface bends, so points are
sampled uniformly from the surface instead: new ones at every read in training, the same ones in
evaluation.

Legend: P points, C values per point.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from perceivers.data.containers import load_library, open_bytes
from perceivers.data.sources import Encoded
from perceivers.errors import DataError
from perceivers.foreign import read_int
from perceivers.reading import parse_npy
from perceivers.types import Points

# Default number of points sampled from a mesh, as is common on ModelNet.
MESH_POINTS = 1024
# The default spec is large enough for this percentage of clouds, rounded up to the step.
WHOLE_PERCENT = 95
POINTS_STEP = 8
COMMENT = r"(#|//)[^\n]*"


def native_points(clip: Encoded) -> Points:
    """Return the spec of a point file: all points of a cloud, 1024 of a mesh.

    Raises:
        DataError: The file cannot be decoded.
    """
    found = _decode(clip)
    if isinstance(found, np.ndarray):
        return Points(*found.shape, ragged=True, scale="unit")
    return Points(MESH_POINTS, 3, ragged=True, scale="unit")


def common_points(found: Sequence[Points]) -> Points:
    """Return a spec that is large enough for 95 % of the given clouds.

    Args:
        found: Specs from ``native_points``, at least one.
    """
    most = int(np.ceil(np.percentile([spec.points for spec in found], WHOLE_PERCENT)))
    return replace(found[0], points=-(-most // POINTS_STEP) * POINTS_STEP)


def read_points(
    clip: Encoded, spec: Points, rng: np.random.Generator | None = None
) -> Float[np.ndarray, "P C"]:
    """Return all points of a cloud, or ``spec.points`` points sampled from the surface of a mesh.

    Args:
        clip: The file.
        spec: Number of points to sample from a mesh, and values per point of any file.
        rng: Random generator for mesh points; None always samples the same points.

    Raises:
        DataError: The file is damaged, truncated or has no points, values are not finite, or the
            number of values per point differs from the spec.
    """
    found = _decode(clip)
    if not isinstance(found, np.ndarray):
        found = _sample_surface(found, spec.points, rng, clip.path)
    if found.shape[1] != spec.channels:
        raise DataError(
            f"{clip.path}: {found.shape[1]} values per point, but the spec declares "
            f"{spec.channels}; use files with equal counts, or declare channels={found.shape[1]}"
        )
    return found


def _decode(clip: Encoded) -> Any:
    """Return the points of a cloud ``[P, C]``, or a trimesh mesh."""
    with open_bytes(clip) as file:
        data = file.read()
    ending = clip.path.rpartition(".")[2].lower()
    read = {"npy": _read_array, "xyz": _read_table}.get(ending)
    found = read(data, clip.path) if read else _read_mesh(data, ending, clip.path)
    points = found if isinstance(found, np.ndarray) else found.vertices
    if not len(points):
        raise DataError(f"{clip.path}: contains no points; replace the file, or remove it")
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if len(bad):
        raise DataError(
            f"{clip.path}: NaN or infinite values in {len(bad)} of {len(points)} points, first "
            f"point {bad[0]}; remove or repair them"
        )
    return found


def _read_array(data: bytes, path: str) -> NDArray:
    """Read ``.npy``, without pickled objects."""
    values = parse_npy(data, path)
    known = np.issubdtype(values.dtype, np.floating) or np.issubdtype(values.dtype, np.integer)
    if values.ndim != 2 or not values.shape[1] or not known:
        raise DataError(
            f"{path}: shape {values.shape} and dtype {values.dtype}; points must be numbers of "
            f"shape [points, values per point]"
        )
    return values.astype(np.float64 if values.dtype.itemsize > 4 else np.float32)


def _read_table(data: bytes, path: str) -> NDArray:
    """Read ``.xyz``: a line per point, numbers separated by spaces, tabs or commas."""
    try:
        lines = re.sub(COMMENT, "", data.decode()).replace(",", " ").splitlines()
        rows = [line for line in lines if line.strip()]
        values = np.loadtxt(rows, ndmin=2) if rows else np.zeros((0, 3))
    except ValueError as error:
        raise DataError(
            f"{path}: cannot be decoded ({_first_line(error)}); every line must be one point, with "
            f"the same number of values"
        ) from error
    return values


def _read_mesh(data: bytes, ending: str, path: str) -> Any:
    """Decode with trimesh: a mesh, or the vertices ``[P, 3]`` of a file without faces."""
    trimesh = load_library("trimesh")
    # trimesh's parsers raise many exception types, and one damaged file must not end a run.
    try:
        if ending == "off":
            _check_off(data)
        if ending == "ply":
            _check_ply_header(data)
        scene = trimesh.load_scene(io.BytesIO(data), file_type=ending, process=False)
        parts = list(scene.geometry.values())
        found = scene.to_geometry() if len(parts) > 1 else parts[0] if parts else None
        if ending == "ply" and found is not None:
            _check_ply(data, len(found.vertices))
    except Exception as error:
        raise DataError(f"{path}: cannot be decoded ({_first_line(error)})") from error
    vertices = getattr(found, "vertices", None)
    if found is None or vertices is None:
        raise DataError(f"{path}: contains no points; the file is damaged or cut short")
    return found if len(getattr(found, "faces", ())) else np.asarray(vertices, np.float64)


def _check_off(data: bytes) -> None:
    """Check that an ``.off`` file has as many lines as its header states; trimesh accepts fewer."""
    text = re.sub(rb"#[^\n]*", b"", data)
    # In some ModelNet files, the counts follow the word OFF without a line break.
    head = re.match(rb"\s*\w*OFF\s*(\d+)\s+(\d+)\s+\d+", text)
    if head is None:
        raise ValueError("the header is not OFF, then counts of points, faces and edges")
    wanted = _read_count(head[1]) + _read_count(head[2])
    held = sum(bool(line.strip()) for line in text[head.end() :].splitlines())
    if held < wanted:
        raise ValueError(f"it ends after {held} of {wanted} points and faces")


def _check_ply_header(data: bytes) -> None:
    """Reject counts larger than the file, before trimesh allocates memory for them."""
    header = data.partition(b"end_header")[0]
    for name, count in re.findall(rb"element\s+(\S{1,40})\s+(\d+)", header):
        if (promised := _read_count(count)) > len(data):
            what = name.decode(errors="replace")
            raise ValueError(f"its header states {promised} of {what!r} in {len(data)} bytes")


def _read_count(digits: bytes) -> int:
    return read_int(digits.decode(), "a count in the header", low=0)


def _check_ply(data: bytes, count: int) -> None:
    """Check that a ``.ply`` file has as many points as its header states; trimesh accepts fewer."""
    stated = re.search(rb"element vertex (\d+)", data)
    if stated is not None and count < (promised := _read_count(stated[1])):
        raise ValueError(f"it ends after {count} of {promised} points")


def _sample_surface(
    mesh: Any, count: int, rng: np.random.Generator | None, path: str
) -> Float[np.ndarray, "P 3"]:
    """Sample points uniformly by area."""
    area = float(mesh.area)
    if not np.isfinite(area) or area <= 0:
        raise DataError(
            f"{path}: {len(mesh.faces)} faces have an area of {area:g}, from which no points can "
            f"be sampled; repair the mesh, or save its points without faces"
        )
    seed = 0 if rng is None else int(rng.integers(2**63))
    points, _ = load_library("trimesh").sample.sample_surface(mesh, count, seed=seed)
    return np.asarray(points, np.float64)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
