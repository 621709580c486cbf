"""Files of points: arrays, tables of numbers, and meshes, whose surface is sampled.

``.npy`` and ``.xyz`` hold a row per point, and all their columns are read: coordinates, and after
them whatever else is known of a point, such as normals or intensity. Of the other formats, which
trimesh decodes, x, y and z are read and nothing else. A file with faces is a mesh: its vertices lie
where a surface bends and not where it is, so points are drawn from the surface instead, evenly by
area: other ones at every reading in training, always the same in evaluation.

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

from perceivers.array_files import parse_npy
from perceivers.data.containers import load_library, open_bytes
from perceivers.data.sources import EncodedClip
from perceivers.errors import DataError
from perceivers.foreign import read_int
from perceivers.types import Points

# Points that are read of a mesh where nothing else is asked for, as common on ModelNet.
MESH_POINTS = 1024
# The default spec holds this share of the clouds whole, in rows that are a multiple of the step.
WHOLE_PERCENT = 95
POINTS_STEP = 8
COMMENT = r"(#|//)[^\n]*"


def native_points(clip: EncodedClip) -> Points:
    """Describe a file of points: all of a cloud, 1024 of a mesh.

    Raises:
        DataError: The file cannot be decoded.
    """
    found = _decode(clip)
    if isinstance(found, np.ndarray):
        return Points(*found.shape, ragged=True, scale="unit")
    return Points(MESH_POINTS, 3, ragged=True, scale="unit")


def common_points(found: Sequence[Points]) -> Points:
    """Return a spec that holds 95 of 100 of some clouds whole.

    Args:
        found: What ``native_points`` says of each, at least one.
    """
    most = int(np.ceil(np.percentile([spec.points for spec in found], WHOLE_PERCENT)))
    return replace(found[0], points=-(-most // POINTS_STEP) * POINTS_STEP)


def read_points(
    clip: EncodedClip, spec: Points, rng: np.random.Generator | None = None
) -> Float[np.ndarray, "P C"]:
    """Return all points of a cloud, or as many from the surface of a mesh as the spec has.

    Args:
        clip: The file.
        spec: How many points a mesh gives, and how many values each point has.
        rng: Chooses points of a mesh, with one draw; None always takes the same.

    Raises:
        DataError: The file is damaged, cut short, holds no points or values that are not finite;
            or other values per point than the spec.
    """
    found = _decode(clip)
    if not isinstance(found, np.ndarray):
        found = _sample_surface(found, spec.points, rng, clip.path)
    if found.shape[1] != spec.channels:
        raise DataError(
            f"{clip.path}: {found.shape[1]} values per point, but the spec declares "
            f"{spec.channels}; all files need the same, or declare channels={found.shape[1]}"
        )
    return found


def _decode(clip: EncodedClip) -> Any:
    """Return the points of a cloud ``[P, C]``, or a mesh."""
    with open_bytes(clip) as file:
        data = file.read()
    ending = clip.path.rpartition(".")[2].lower()
    read = {"npy": _read_array, "xyz": _read_table}.get(ending)
    found = read(data, clip.path) if read else _read_mesh(data, ending, clip.path)
    points = found if isinstance(found, np.ndarray) else found.vertices
    if not len(points):
        raise DataError(f"{clip.path}: holds no points; replace the file, or leave it out")
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if len(bad):
        raise DataError(
            f"{clip.path}: NaN or infinite values in {len(bad)} of {len(points)} points, first "
            f"point {bad[0]}; remove or repair them"
        )
    return found


def _read_array(data: bytes, path: str) -> NDArray:
    """Read ``.npy``; nothing pickled."""
    values = parse_npy(data, path)
    known = np.issubdtype(values.dtype, np.floating) or np.issubdtype(values.dtype, np.integer)
    if values.ndim != 2 or not values.shape[1] or not known:
        raise DataError(
            f"{path}: shape {values.shape} and dtype {values.dtype}; points are floats "
            f"[points, values per point]"
        )
    return values.astype(np.float64 if values.dtype.itemsize > 4 else np.float32)


def _read_table(data: bytes, path: str) -> NDArray:
    """Read ``.xyz``: a line per point, numbers divided by spaces, tabs or commas."""
    try:
        lines = re.sub(COMMENT, "", data.decode()).replace(",", " ").splitlines()
        rows = [line for line in lines if line.strip()]
        values = np.loadtxt(rows, ndmin=2) if rows else np.zeros((0, 3))
    except ValueError as error:
        raise DataError(
            f"{path}: cannot be decoded ({_first_line(error)}); every line is one point, with the "
            f"same count of numbers"
        ) from error
    return values


def _read_mesh(data: bytes, ending: str, path: str) -> Any:
    """Read what trimesh knows: a mesh, or the vertices of a file without faces ``[P, 3]``."""
    trimesh = load_library("trimesh")
    # Its parsers raise whatever they trip over, so nothing narrower keeps one damaged file from
    # ending a run.
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
        raise DataError(f"{path}: holds no points; the file is damaged or cut short")
    return found if len(getattr(found, "faces", ())) else np.asarray(vertices, np.float64)


def _check_off(data: bytes) -> None:
    """Require the lines that the header of an ``.off`` file promises; trimesh takes fewer."""
    text = re.sub(rb"#[^\n]*", b"", data)
    # The word OFF has a line of its own, or, in part of ModelNet, none.
    head = re.match(rb"\s*\w*OFF\s*(\d+)\s+(\d+)\s+\d+", text)
    if head is None:
        raise ValueError("the header is not OFF, then counts of points, faces and edges")
    wanted = _read_count(head[1]) + _read_count(head[2])
    held = sum(bool(line.strip()) for line in text[head.end() :].splitlines())
    if held < wanted:
        raise ValueError(f"it ends after {held} of {wanted} points and faces")


def _check_ply_header(data: bytes) -> None:
    """Refuse counts beyond the bytes there are, before anybody makes room for them."""
    header = data.partition(b"end_header")[0]
    for name, count in re.findall(rb"element\s+(\S{1,40})\s+(\d+)", header):
        if (promised := _read_count(count)) > len(data):
            what = name.decode(errors="replace")
            raise ValueError(f"its header promises {promised} of {what!r} in {len(data)} bytes")


def _read_count(digits: bytes) -> int:
    return read_int(digits.decode(), "a count in the header", low=0)


def _check_ply(data: bytes, count: int) -> None:
    """Require the points that the header of a ``.ply`` file promises; trimesh takes fewer."""
    stated = re.search(rb"element vertex (\d+)", data)
    if stated is not None and count < (promised := _read_count(stated[1])):
        raise ValueError(f"it ends after {count} of {promised} points")


def _sample_surface(
    mesh: Any, count: int, rng: np.random.Generator | None, path: str
) -> Float[np.ndarray, "P 3"]:
    """Draw points from a surface, evenly by area."""
    area = float(mesh.area)
    if not np.isfinite(area) or area <= 0:
        raise DataError(
            f"{path}: {len(mesh.faces)} faces have an area of {area:g}, from which no points can "
            f"be drawn; repair the mesh, or save its points without faces"
        )
    seed = 0 if rng is None else int(rng.integers(2**63))
    points, _ = load_library("trimesh").sample.sample_surface(mesh, count, seed=seed)
    return np.asarray(points, np.float64)


def _first_line(error: Exception) -> str:
    """Say in one line what a parser tripped over."""
    return str(error).partition("\n")[0] or type(error).__name__
