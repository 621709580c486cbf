"""Ragged point sets in ``.npz`` files: all points concatenated, and where each set begins.

Sets with a class for every point are scenes, which are read in tiles.

Legend: n clouds, P points of one cloud, C values per point.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from perceivers.data.augment import Look
from perceivers.data.labels import (
    IntegerLabels,
    LabelTable,
    check_known,
    index_labels,
    read_targets,
)
from perceivers.data.masks import IGNORED, MASK_NAME, class_table, name_mask_classes
from perceivers.data.row_source import Column, Found, Part, RowSource
from perceivers.data.sources import Names, RawSample, pick
from perceivers.data.splits import carve_validation
from perceivers.errors import DataError
from perceivers.settings import Count, Finite, Positive, Range
from perceivers.types import ModalitySpec, Points

# -- Scenes: large point clouds with a class for every point, read in tiles ------------------------
#
# A scene is divided along its longer side, recursively, until every tile has at most as many points
# as a model reads; loaders take that number from the spec. Evaluation reads each tile with the
# points around it, which are context and not scored, so that every point of a scene counts once.
# Training reads the square around a random point of the tile, so that any position can be the
# centre.
#
# Legend: n scenes, P points of a tile, Q points of a tile and around it, C values per point.

# Key of the mask that separates a tile's own points from those around it.
INSIDE = "inside"
TILE_POINTS = 4096
POINTS_STEP = 8
# A tile is read with this many times its points, so that a square around one of its corners fits.
REACH = 4


@dataclass(frozen=True)
class PointMask(ModalitySpec):
    """Classes of points ``[B, P]``, uint8: 0..K-1, 255 where ignored. A target, never an input.

    Args:
        points: Points P.
        num_classes: Classes K, up to 255.
        ignore: Ids in the files that are not classes; higher ids move down.
    """

    kind: ClassVar[str] = "point_mask"

    points: Count
    num_classes: Annotated[int, Range(1, IGNORED)] = IGNORED
    ignore: tuple[Annotated[int, Range(0, IGNORED)], ...] = (IGNORED,)
    channels: Count = field(default=1, init=False)
    mean: tuple[Finite, ...] = field(default=(), init=False)
    std: tuple[Positive, ...] = field(default=(), init=False)

    @property
    def grid(self) -> tuple[int, ...]:
        """The number of points."""
        return (self.points,)

    @property
    def raw_shape(self) -> tuple[int, ...]:
        """Same as ``grid``: classes have no channel axis."""
        return self.grid

    @property
    def table(self) -> NDArray[np.int64]:
        """Meaning of each id ``[256]`` in a file: a class, 255 (ignored) or -1 (not a class)."""
        return class_table(self.num_classes, self.ignore)


class Tile(NamedTuple):
    """The rows of one scene's points that form a tile, and the index of the scene."""

    scene: int
    rows: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Scenes(Column):
    """Tiles of scenes: each cell gives points, their classes, and which of them are its own.

    Args:
        points: Points of all scenes ``[total, C]``, floats; x and y come first.
        ids: Class of every point ``[total]``, integers, or None.
        spans: ``[n, 2]``: start and end of each scene in ``points``.
        scenes: Stable id per scene.
        tile_points: Maximum number of points of a tile.
    """

    points: NDArray
    ids: NDArray[np.integer] | None
    spans: NDArray[np.int64]
    scenes: Sequence[str]
    tile_points: int = TILE_POINTS

    @cached_property
    def tiles(self) -> Sequence[Tile]:
        """Tiles of all scenes, one scene after the other."""
        return [
            Tile(number, rows)
            for number, (first, end) in enumerate(self.spans)
            for rows in divide_scene(self.points[first:end], self.tile_points)
        ]

    def as_source(self) -> RowSource:
        """Return a source with one sample per tile."""
        kinds = ("points", INSIDE) if self.ids is None else ("points", INSIDE, MASK_NAME)
        count = len(self.tiles)
        return RowSource(
            {kind: Part(kind, self) for kind in kinds},
            np.arange(count),
            Names(count, self.name_tile),
        )

    def name_tile(self, row: int) -> str:
        """Return the id of a tile: the scene's id and the tile's number, ``train.npz/3@17``."""
        scene = self.tiles[row].scene
        return f"{self.scenes[scene]}@{row - self._firsts[scene]}"

    @cached_property
    def _firsts(self) -> Mapping[int, int]:
        """Index of the first tile of each scene."""
        return {tile.scene: row for row, tile in reversed([*enumerate(self.tiles)])}

    def find_present(self) -> NDArray[np.bool_]:
        """Return that no tile is missing ``[n]``."""
        return np.ones(len(self.tiles), np.bool_)

    def load(self, row: int) -> Mapping[str, NDArray]:
        """Return the points ``[Q, C]``, their ids ``[Q]``, and which lie in the tile ``[Q]``.

        The tile's own points come first, then those around it, nearest first.
        """
        tile = self.tiles[row]
        first, end = self.spans[tile.scene]
        scene = self.points[first:end]
        rows = np.concatenate([tile.rows, _around(scene, tile.rows, REACH * self.tile_points)])
        found = {"points": scene[rows], INSIDE: np.arange(len(rows)) < len(tile.rows)}
        return found if self.ids is None else {**found, MASK_NAME: self.ids[first:end][rows]}

    def declare(self, rows: NDArray[np.int64]) -> Mapping[str, ModalitySpec]:
        """Return a spec of up to 4,096 points, centred per tile but not scaled."""
        most = int(np.diff(self.spans, axis=1).max())
        count = min(TILE_POINTS, -(-most // POINTS_STEP) * POINTS_STEP)
        return {"points": Points(count, self.points.shape[1], ragged=True, scale="centre")}

    @property
    def cut_by(self) -> str:
        """The spec of points."""
        return "points"

    @property
    def contents(self) -> Sequence[str]:
        """One id per scene, with its number of points."""
        sizes = np.diff(self.spans, axis=1)[:, 0].tolist()
        return [f"{name}:{size}" for name, size in zip(self.scenes, sizes, strict=True)]

    def cut(self, length: int) -> RowSource:
        """Return a source of the same scenes in tiles of at most ``length`` points."""
        same = length == self.tile_points
        return (self if same else replace(self, tile_points=length)).as_source()

    def divide(self, share: float, address: str) -> tuple[RowSource, RowSource, str]:
        """Set a part aside for validation: whole scenes, or one end of the only one.

        Args:
            share: Fraction of the scenes, or of the points, in 0..1.
            address: Address of the data, for messages.

        Returns:
            Training part, validation part, and a note.

        Raises:
            DataError: There is one scene of one point.
        """
        if len(self.scenes) > 1:
            kept, carved, note = carve_validation(self.scenes, None, share, address)
            return self._some(kept), self._some(carved), note.replace("sample", "scene")
        first, end = self.spans[0]
        size = int(end - first)
        if size < 2:
            raise DataError(
                f"{address}: one scene of 1 point, so none can be set aside for validation; give "
                f"more"
            )
        places = self.points[first:end, :2]
        order = first + np.argsort(places[:, np.ptp(places, axis=0).argmax()], kind="stable")
        cut = size - max(1, round(share * size))
        parts = [
            replace(
                self,
                points=self.points[rows],
                ids=None if self.ids is None else self.ids[rows],
                spans=np.array([[0, len(rows)]]),
            ).as_source()
            for rows in (order[:cut], order[cut:])
        ]
        note = f"val: the {size - cut} of {size} points at one end of the only scene"
        return parts[0], parts[1], note

    def _some(self, chosen: NDArray[np.int64]) -> RowSource:
        spans, scenes = self.spans[chosen], pick(self.scenes, chosen)
        return replace(self, spans=spans, scenes=scenes).as_source()


def divide_scene(scene: NDArray, tile_points: int) -> list[NDArray[np.int64]]:
    """Divide points by x and y into tiles of nearly the same size, at most ``tile_points`` each.

    Args:
        scene: Points ``[P, C]``, at least one, with x and y first (or x alone).
        tile_points: Maximum number of points of a tile, at least 1.

    Returns:
        Sorted rows of each tile; every row is in exactly one tile.
    """
    places = scene[:, :2]
    waiting = [(np.arange(len(scene)), -(-len(scene) // tile_points))]
    tiles = []
    while waiting:
        rows, count = waiting.pop()
        if count == 1:
            tiles.append(np.sort(rows))
            continue
        axis = int(np.ptp(places[rows], axis=0).argmax())
        order = rows[np.argsort(places[rows, axis], kind="stable")]
        cut = len(rows) * (count // 2) // count
        # Rounding down might leave one point too many for the tiles of the second part.
        cut = max(cut, len(rows) - (count - count // 2) * tile_points)
        waiting += [(order[cut:], count - count // 2), (order[:cut], count // 2)]
    return tiles


def choose_block(sample: RawSample, points: int, look: Look) -> NDArray[np.int64]:
    """Return which points of a tile and around it to read.

    Args:
        sample: A tile of a scene.
        points: Maximum number of points.
        look: In training, the points of the square around a random point of the tile; in
            evaluation, the tile's own points, then the nearest around it.
    """
    cloud, inside = np.asarray(sample["points"]), np.asarray(sample[INSIDE])
    if look.rng is None:
        return np.arange(min(points, len(cloud)))
    middle = cloud[int(look.rng.integers(int(inside.sum()))), :2]
    return _nearest(np.abs(cloud[:, :2] - middle).max(axis=1), points)


def _around(scene: NDArray, rows: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Return the rows of the nearest points around a tile, which fill it up to a total."""
    low, high = scene[rows, :2].min(axis=0), scene[rows, :2].max(axis=0)
    # Distance to the tile's rectangle; a square around its centre would miss a long tile's ends.
    away = np.maximum(low - scene[:, :2], scene[:, :2] - high).max(axis=1)
    away[rows] = np.inf
    nearest = _nearest(away, min(total, len(scene)) - len(rows))
    return nearest[np.argsort(away[nearest], kind="stable")]


def _nearest(distances: NDArray, count: int) -> NDArray[np.int64]:
    """Return the rows of the smallest distances, sorted by row."""
    if count >= len(distances):
        return np.arange(len(distances))
    return np.sort(np.argpartition(distances, count)[:count]) if count else np.arange(0)


# -- Ragged point sets ---------------------------------------------------------------------------

OFFSETS = "offsets"
POINT_KEYS = ("points", "xyz", "xyt")
# Keys of point classes, if they have one value per point.
CLASS_KEYS = ("label", MASK_NAME)
# The default spec has enough points for this percentage of the clouds.
WHOLE_PERCENT = 95


@dataclass(frozen=True, eq=False)
class CloudCells(Column):
    """Cells that are point sets of different sizes.

    Args:
        points: Points of all clouds ``[total, C]``, floats.
        spans: ``[n, 2]``: start and end of each cloud in ``points``.
        spec: Preferred spec; None derives it from the sizes.
    """

    points: NDArray
    spans: NDArray[np.int64]
    spec: Points | None = None

    def find_present(self) -> NDArray[np.bool_]:
        """Return that no cloud is missing ``[n]``."""
        return np.ones(len(self.spans), np.bool_)

    def load(self, row: int) -> NDArray:
        """Return one cloud ``[P, C]``, as a view."""
        first, end = self.spans[row]
        return self.points[first:end]

    def declare(self, rows: NDArray[np.int64]) -> Mapping[str, ModalitySpec]:
        """Return the spec, or one that fits 95 % of the clouds and scales each into -1..1."""
        if self.spec is not None:
            return {"points": self.spec}
        sizes = np.diff(self.spans[rows], axis=1)
        most = int(np.ceil(np.percentile(sizes, WHOLE_PERCENT)))
        count = -(-most // POINTS_STEP) * POINTS_STEP
        return {"points": Points(count, self.points.shape[1], ragged=True, scale="unit")}


def hold_clouds(
    cells: CloudCells,
    names: Sequence[str],
    labels: NDArray[np.int64] | None = None,
    targets: NDArray[np.float32] | None = None,
) -> RowSource:
    """Return a source of point sets; see ``hold_arrays`` for the other arguments."""
    parts = {"points": Part("points", cells)}
    return RowSource(parts, np.arange(len(names)), names, labels, targets)


def read_clouds(
    files: Mapping[str, tuple[Path, Mapping[str, NDArray]]],
    chosen: Sequence[str],
    where: str,
    targets: Sequence[str] = (),
    integers: IntegerLabels = "values",
) -> Found:
    """Read the point sets of some splits.

    A file has ``offsets`` ``[n + 1]`` and the points under ``points``, ``xyz`` or ``xyt`` ``[total,
    C]``: cloud i is ``points[offsets[i]:offsets[i + 1]]``. Keys of n values may be chosen as label
    columns. One integer per point under ``label`` or ``mask`` makes the clouds scenes, whose ids
    are named in ``classes.txt``; other keys, such as another value per point, are ignored.

    Args:
        files: Path and arrays by split, including ``train``.
        chosen: Label columns; by default ``label`` if there is one.
        where: Address of the data, for messages.
        targets: Keys of n numbers to predict.
        integers: How to read integers in label columns, as for ``open_data``.

    Raises:
        DataError: Missing keys, offsets that do not divide the points, empty clouds, values that
            are not finite, unknown labels, or point classes in some splits only.
        ConfigError: A label column that does not exist.
    """
    if any(_class_keys(content) for _, content in files.values()) and not (chosen or targets):
        return _read_scenes(files, where)
    clouds: dict[str, RowSource] = {}
    values: dict[str, NDArray] = {}
    tables: dict[str, LabelTable] = {}
    for split, (path, content) in files.items():
        points, spans = read_ragged(path, content)
        names = [f"{path.name}/{row}" for row in range(len(spans))]
        others = {
            key: held
            for key, held in content.items()
            if key != OFFSETS and held.shape == (len(spans),)
        }
        numbers = read_targets(others, targets, names, where)
        values[split] = points
        clouds[split] = hold_clouds(CloudCells(points, spans), names, targets=numbers)
        columns = {k: v.astype(str).tolist() for k, v in others.items() if k not in targets}
        tables[split] = LabelTable(names, columns)
    _check_widths(values, where)
    check_known(clouds["train"].targets, targets, where)
    folder = files["train"][0].parent
    labelling = index_labels(tables, chosen, folder, where, integers=integers)
    sources = {
        split: replace(source, labels=labelling.labels[split]) for split, source in clouds.items()
    }
    return Found(sources, labelling.classes, labelling.notes, labelling.columns, tuple(targets))


def _read_scenes(files: Mapping[str, tuple[Path, Mapping[str, NDArray]]], where: str) -> Found:
    scenes: dict[str, Scenes] = {}
    for split, (path, content) in files.items():
        points, spans = read_ragged(path, content)
        keys = _class_keys(content)
        if len(keys) != 1 or not np.issubdtype(content[keys[0]].dtype, np.integer):
            found = {key: content[key].dtype.name for key in keys}
            raise DataError(
                f"{path}: classes of points are {found or 'missing'}; every split needs one key "
                f"of integers, label or mask, with {len(points)} values: one per point"
            )
        names = [f"{path.name}/{row}" for row in range(len(spans))]
        scenes[split] = Scenes(points, content[keys[0]], spans, names)
    _check_widths({split: held.points for split, held in scenes.items()}, where)
    sources = {split: held.as_source() for split, held in scenes.items()}
    classes, notes = name_mask_classes(files["train"][0].parent, sources, where)
    return Found(sources, notes=notes, mask_classes=classes)


def read_ragged(path: Path, content: Mapping[str, NDArray]) -> tuple[NDArray, NDArray[np.int64]]:
    """Return the points of all clouds ``[total, C]``, and the start and end of each ``[n, 2]``.

    Args:
        path: Path of the file, for messages.
        content: Its arrays.

    Raises:
        DataError: Missing keys, offsets that do not divide the points, empty clouds, or values that
            are not finite.
    """
    points = _check_points(path, content)
    return points, _check_offsets(path, content[OFFSETS], len(points))


def _class_keys(content: Mapping[str, NDArray]) -> list[str]:
    """Return the keys with one class per point, unless that could be one per cloud."""
    total = next((len(content[key]) for key in POINT_KEYS if key in content), -1)
    offsets = content[OFFSETS] if OFFSETS in content else np.zeros(0)
    alike = total == len(offsets) - 1
    return [k for k in CLASS_KEYS if k in content and content[k].shape == (total,) and not alike]


def _check_widths(points: Mapping[str, NDArray], where: str) -> None:
    widths = {split: values.shape[1] for split, values in points.items()}
    if len(set(widths.values())) > 1:
        raise DataError(f"{where}: values per point are {widths}; all splits need the same")


def _check_points(path: Path, content: Mapping[str, NDArray]) -> NDArray:
    found = [key for key in POINT_KEYS if key in content]
    if len(found) != 1 or OFFSETS not in content:
        raise DataError(
            f"{path}: keys are {sorted(content)}; ragged point sets need {OFFSETS!r} and exactly "
            f"one of {', '.join(POINT_KEYS)}"
        )
    points = content[found[0]]
    if points.ndim != 2 or 0 in points.shape or not np.issubdtype(points.dtype, np.floating):
        raise DataError(
            f"{path}: {found[0]!r} has shape {points.shape} and dtype {points.dtype}; it must be "
            f"floats [points, values per point]"
        )
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if len(bad):
        raise DataError(
            f"{path}: {found[0]!r} holds NaN or infinite values in {len(bad)} of {len(points)} "
            f"points, first point {bad[0]}; remove or repair them"
        )
    return points


def _check_offsets(path: Path, offsets: NDArray, num_points: int) -> NDArray[np.int64]:
    """Return the start and end of each cloud ``[n, 2]``."""
    valid = offsets.ndim == 1 and len(offsets) > 1 and np.issubdtype(offsets.dtype, np.integer)
    if not valid or offsets[0] != 0 or offsets[-1] != num_points:
        raise DataError(
            f"{path}: {OFFSETS!r} has shape {offsets.shape} and dtype {offsets.dtype}"
            + (f" and runs from {offsets[0]} to {offsets[-1]}" if valid else "")
            + f"; it must be integers from 0 to {num_points}, the number of points, and one more "
            "than the clouds"
        )
    spans = np.stack([offsets[:-1], offsets[1:]], axis=1).astype(np.int64)
    empty = np.flatnonzero(spans[:, 1] <= spans[:, 0])
    if len(empty):
        first, end = spans[empty[0]]
        raise DataError(
            f"{path}: cloud {empty[0]} runs from point {first} to {end}, so it is empty; every "
            f"cloud needs at least one point"
        )
    return spans
