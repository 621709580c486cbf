"""Ragged point sets: ``.npz`` files of all points one after the other, and where each set begins.

With a class for every point they are scenes, which are read in tiles.

Legend: n clouds, P points of one cloud, C values per point.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perceivers.data.labels import IntegerLabels, LabelTable, index_labels
from perceivers.data.masks import MASK_NAME, name_mask_classes
from perceivers.data.scenes import Scenes
from perceivers.data.sources import Found, pick
from perceivers.data.targets import check_known, read_targets
from perceivers.errors import DataError
from perceivers.types import ModalitySpec, Points

OFFSETS = "offsets"
POINT_KEYS = ("points", "xyz", "xyt")
# Keys whose values are classes of points where there is one for each.
CLASS_KEYS = ("label", MASK_NAME)
# The default spec holds this share of the clouds whole.
WHOLE_PERCENT = 95
POINTS_STEP = 8


@dataclass(frozen=True, eq=False)
class Clouds:
    """A source of point sets of different sizes.

    Args:
        points: The points of all clouds ``[total, C]``, floats.
        spans: ``[n, 2]``: where each cloud begins and ends in ``points``.
        names: Stable id per cloud.
        labels: Class per cloud ``[n]``, several columns of them ``[n, T]``, or None.
        spec: How the clouds are best read; None follows from their sizes.
        targets: Numbers to be predicted ``[n, T]``, NaN where unknown, or None.
    """

    points: NDArray
    spans: NDArray[np.int64]
    names: Sequence[str]
    labels: NDArray[np.int64] | None = None
    spec: Points | None = None
    targets: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        """Count the clouds."""
        return len(self.names)

    def read(self, index: int) -> dict[str, NDArray]:
        """Return one cloud ``[P, C]``; a view, no copy."""
        first, end = self.spans[index]
        return {"points": self.points[first:end]}

    def declare(self) -> Mapping[str, ModalitySpec]:
        """Return the spec, or one that holds 95 of 100 clouds whole and scales each into -1..1."""
        if self.spec is not None:
            return {"points": self.spec}
        sizes = np.diff(self.spans, axis=1)
        most = int(np.ceil(np.percentile(sizes, WHOLE_PERCENT)))
        count = -(-most // POINTS_STEP) * POINTS_STEP
        return {"points": Points(count, self.points.shape[1], ragged=True, scale="unit")}

    def subset(self, indices: NDArray[np.int64]) -> "Clouds":
        """Return a source of some of the clouds."""
        labels = None if self.labels is None else self.labels[indices]
        targets = None if self.targets is None else self.targets[indices]
        names, spans = pick(self.names, indices), self.spans[indices]
        return replace(self, spans=spans, names=names, labels=labels, targets=targets)


def read_clouds(
    files: Mapping[str, tuple[Path, Mapping[str, NDArray]]],
    chosen: Sequence[str],
    where: str,
    targets: Sequence[str] = (),
    integers: IntegerLabels = "values",
) -> Found:
    """Read the point sets of some splits.

    A file holds ``offsets`` ``[n + 1]`` and the points under ``points``, ``xyz`` or ``xyt``
    ``[total, C]``: cloud i is ``points[offsets[i]:offsets[i + 1]]``. Keys of n values may be chosen
    as label columns. One integer per point under ``label`` or ``mask`` makes the clouds scenes,
    with the ids of ``classes.txt``; other keys, such as another value per point, are left out.

    Args:
        files: Path and arrays by split; ``train`` is among them.
        chosen: Label columns; none reads ``label`` where there is one.
        where: The data's address, for messages.
        targets: Keys of n numbers to be predicted.
        integers: What integers in label columns are.

    Raises:
        DataError: Missing keys, offsets that do not divide the points, empty clouds, values that
            are not finite, a label that is no class, or classes of points in some splits only.
        ConfigError: A label column that there is not.
    """
    if any(_class_keys(content) for _, content in files.values()) and not (chosen or targets):
        return _read_scenes(files, where)
    clouds: dict[str, Clouds] = {}
    tables: dict[str, LabelTable] = {}
    for split, (path, content) in files.items():
        points, spans = read_ragged(path, content)
        names = [f"{path.name}/{row}" for row in range(len(spans))]
        others = {
            key: values
            for key, values in content.items()
            if key != OFFSETS and values.shape == (len(spans),)
        }
        numbers = read_targets(others, targets, names, where)
        clouds[split] = Clouds(points, spans, names, targets=numbers)
        columns = {k: v.astype(str).tolist() for k, v in others.items() if k not in targets}
        tables[split] = LabelTable(names, columns)
    _check_widths({split: source.points for split, source in clouds.items()}, where)
    check_known(clouds["train"].targets, targets, where)
    folder = files["train"][0].parent
    labelling = index_labels(tables, chosen, folder, where, integers=integers)
    sources = {
        split: replace(source, labels=labelling.labels[split]) for split, source in clouds.items()
    }
    return Found(sources, labelling.classes, labelling.notes, labelling.columns, tuple(targets))


def _read_scenes(files: Mapping[str, tuple[Path, Mapping[str, NDArray]]], where: str) -> Found:
    """Read clouds with a class for every point."""
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
    _check_widths({split: source.points for split, source in scenes.items()}, where)
    classes, notes = name_mask_classes(files["train"][0].parent, scenes, where)
    return Found(scenes, notes=notes, mask_classes=classes)


def read_ragged(path: Path, content: Mapping[str, NDArray]) -> tuple[NDArray, NDArray[np.int64]]:
    """Return the points of all clouds ``[total, C]``, and where each begins and ends ``[n, 2]``.

    Args:
        path: Of the file, for messages.
        content: Its arrays.

    Raises:
        DataError: Missing keys, offsets that do not divide the points, empty clouds, or values
            that are not finite.
    """
    points = _check_points(path, content)
    return points, _check_offsets(path, content[OFFSETS], len(points))


def _class_keys(content: Mapping[str, NDArray]) -> list[str]:
    """Return the keys that hold a class per point, where that is not one per cloud."""
    total = next((len(content[key]) for key in POINT_KEYS if key in content), -1)
    offsets = content[OFFSETS] if OFFSETS in content else np.zeros(0)
    alike = total == len(offsets) - 1
    return [k for k in CLASS_KEYS if k in content and content[k].shape == (total,) and not alike]


def _check_widths(points: Mapping[str, NDArray], where: str) -> None:
    """Refuse splits whose points hold different numbers of values."""
    widths = {split: values.shape[1] for split, values in points.items()}
    if len(set(widths.values())) > 1:
        raise DataError(f"{where}: values per point are {widths}; all splits need the same")


def _check_points(path: Path, content: Mapping[str, NDArray]) -> NDArray:
    """Return the points of all clouds."""
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
    """Return where clouds begin and end ``[n, 2]``."""
    valid = offsets.ndim == 1 and len(offsets) > 1 and np.issubdtype(offsets.dtype, np.integer)
    if not valid or offsets[0] != 0 or offsets[-1] != num_points:
        raise DataError(
            f"{path}: {OFFSETS!r} has shape {offsets.shape} and dtype {offsets.dtype}"
            + (f" and runs from {offsets[0]} to {offsets[-1]}" if valid else "")
            + f"; it must be integers from 0 to the {num_points} points, one more than clouds"
        )
    spans = np.stack([offsets[:-1], offsets[1:]], axis=1).astype(np.int64)
    empty = np.flatnonzero(spans[:, 1] <= spans[:, 0])
    if len(empty):
        first, end = spans[empty[0]]
        raise DataError(
            f"{path}: cloud {empty[0]} runs from point {first} to {end}, so it holds none; every "
            f"cloud needs at least one point"
        )
    return spans
