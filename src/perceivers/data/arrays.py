"""In-memory arrays, such as those of ``.npz`` files whose keys are kinds of modalities."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceivers.data.labels import (
    DEFAULT_COLUMN,
    NO_COLUMNS,
    Chosen,
    Labelling,
    LabelTable,
    check_known,
    index_labels,
    read_targets,
)
from perceivers.data.row_source import ArrayCells, Found, Part, RowSource
from perceivers.data.sources import pick
from perceivers.errors import DataError, suggest
from perceivers.reading import load_npy

# Raw layouts of samples, as defined in types.py; n is the sample axis.
LAYOUTS = {
    "image": "[n, C, H, W]",
    "video": "[n, C, T, H, W]",
    "audio": "[n, C, S]",
    "points": "[n, P, C]",
    "array": "[n, *grid, C]",
}
KEYS = (*LAYOUTS, "label", "classes", "split")
SPLITS = ("train", "val", "test")


def hold_arrays(
    modalities: Mapping[str, NDArray],
    names: Sequence[str],
    labels: NDArray[np.int64] | None = None,
    targets: NDArray[np.float32] | None = None,
) -> RowSource:
    """Return a source whose samples are rows of arrays.

    Args:
        modalities: Arrays ``[n, ...]`` in the raw layouts, by modality.
        names: Stable id of each row.
        labels: Class of each row ``[n]``, ``[n, T]`` for several columns, or None.
        targets: Numbers to predict ``[n, T]``, NaN where unknown, or None.
    """
    parts = {name: Part(name, ArrayCells(values)) for name, values in modalities.items()}
    return RowSource(parts, np.arange(len(names)), names, labels, targets)


def read_arrays(path: Path, content: Mapping[str, NDArray], chosen: Chosen = NO_COLUMNS) -> Found:
    """Read samples, splits and class names from the arrays of an ``.npz`` file.

    Args:
        path: The file, for messages; files of class names may lie next to it.
        content: Its arrays by key.
        chosen: Keys to read as label columns, by default ``label``, and as numbers to predict.

    Raises:
        DataError: Unknown keys, layouts, dtypes or labels, different numbers of rows, or values
            that are not finite.
        ConfigError: A column that the file does not have.
    """
    if chosen.bare:
        content = {key: values for key, values in content.items() if key in LAYOUTS}
    asked = (*chosen.labels, *chosen.targets)
    own = {key: values for key, values in content.items() if key in KEYS}
    others = {key: values for key, values in content.items() if key not in KEYS}
    if others and not asked:
        unknown = min(others)
        raise DataError(
            f"{path}: key {unknown!r} is unknown; keys are {', '.join(KEYS)}"
            + suggest(unknown, KEYS)
            + "; to read other keys, choose them as label columns or as targets"
        )
    modalities = {kind: _check_modality(path, kind, own[kind]) for kind in LAYOUTS if kind in own}
    if not modalities:
        raise DataError(f"{path}: no modality; give at least one of {', '.join(LAYOUTS)}")
    counts = {
        key: len(np.atleast_1d(content[key]))
        for key in content
        if key in asked or (key in own and key != "classes")
    }
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise DataError(f"{path}: rows are {counts}; every key needs the same number, at least 1")
    names = [f"{path.name}/{row}" for row in range(next(iter(counts.values())))]
    columns = {
        key: values
        for key, values in content.items()
        if values.shape == (len(names),) and key not in {*LAYOUTS, "classes", "split"}
    }
    targets = read_targets(columns, chosen.targets, names, str(path))
    check_known(targets, chosen.targets, str(path))
    classed = {key: v for key, v in content.items() if key not in chosen.targets}
    labelling = _read_labels(path, classed, chosen, names)
    everything = hold_arrays(modalities, names, labelling.labels["train"], targets)
    rows = _rows_by_split(path, own.get("split"), len(names))
    splits = {split: everything.subset(places) for split, places in rows.items()}
    if list(splits) == ["train"]:
        splits = {"train": everything}
    return Found(splits, labelling.classes, labelling.notes, labelling.columns, chosen.targets)


def _read_labels(
    path: Path, content: Mapping[str, NDArray], chosen: Chosen, names: Sequence[str]
) -> Labelling:
    """Return the labels of all rows under split ``train``."""
    columns = {
        key: values
        for key, values in content.items()
        if values.shape == (len(names),) and key not in {*LAYOUTS, "classes", "split"}
    }
    folder, asked, stated = path.parent, chosen.labels, {}
    if not set(asked) - {DEFAULT_COLUMN}:
        # A single label column takes its class names from the key ``classes`` only.
        label = content.get(DEFAULT_COLUMN)
        if label is None:
            return Labelling({"train": None})
        columns = {DEFAULT_COLUMN: _check_labels(path, label, len(names))}
        given = tuple(str(name) for name in np.atleast_1d(content.get("classes", np.array([]))))
        folder, asked, stated = None, (DEFAULT_COLUMN,), {DEFAULT_COLUMN: given}
    written = {key: values.astype(str).tolist() for key, values in columns.items()}
    rows = _rows_by_split(path, content.get("split"), len(names))
    tables = {
        split: LabelTable(
            pick(names, places), {key: pick(values, places) for key, values in written.items()}
        )
        for split, places in rows.items()
    }
    found = index_labels(tables, asked, folder, str(path), stated, chosen.integers)
    parts = {split: values for split, values in found.labels.items() if values is not None}
    everything = np.zeros((len(names), *parts["train"].shape[1:]), np.int64)
    for split, values in parts.items():
        everything[rows[split]] = values
    return replace(found, labels={"train": everything})


def read_npy(path: Path) -> NDArray:
    """Return the array ``[n, *grid, C]`` of an ``.npy`` file; ``[n, N]`` gets one channel.

    Raises:
        DataError: The file cannot be read, or is not a plain array of rows.
    """
    values = load_npy(path)
    if values.ndim < 2:
        raise DataError(
            f"{path}: has shape {values.shape}; an .npy file is a modality 'array' "
            f"[n, *grid, C] or [n, N], of n samples"
        )
    return values[..., None] if values.ndim == 2 else values


def _check_modality(path: Path, kind: str, values: NDArray) -> NDArray:
    """Check layout and finiteness, and convert to a dtype that models read."""
    layout = LAYOUTS[kind]
    num_axes = layout.count(",") + 1
    if values.ndim < num_axes if kind == "array" else values.ndim != num_axes:
        raise DataError(f"{path}: {kind!r} has shape {values.shape}; its layout is {layout}")
    if 0 in values.shape[1:]:
        raise DataError(f"{path}: {kind!r} has shape {values.shape}; no axis may be empty")
    integers = {np.dtype(np.uint8)} if kind == "image" else {np.dtype(np.uint8), np.dtype(np.int16)}
    if values.dtype in integers:
        return values
    if not np.issubdtype(values.dtype, np.floating):
        allowed = "uint8 (0..255)" if kind == "image" else "uint8 (0..255), int16"
        raise DataError(
            f"{path}: {kind!r} has dtype {values.dtype}; use {allowed} or float32, and convert "
            f"the values yourself, because their range is not known"
        )
    values = values.astype(np.float32, copy=False)
    bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
    if len(bad):
        raise DataError(
            f"{path}: {kind!r} holds NaN or infinite values in {len(bad)} of {len(values)} rows, "
            f"first row {bad[0]}; remove or repair them"
        )
    return values


def _check_labels(path: Path, labels: NDArray, count: int) -> NDArray:
    whole = np.issubdtype(labels.dtype, np.floating) and np.array_equal(labels, np.rint(labels))
    if labels.shape != (count,) or not (labels.dtype.kind in "iubU" or whole):
        raise DataError(
            f"{path}: 'label' has shape {labels.shape} and dtype {labels.dtype}; it must be one "
            f"integer, or one name, per row"
        )
    return labels.astype(np.int64) if whole else labels


def _rows_by_split(path: Path, split: Any, count: int) -> dict[str, NDArray[np.int64]]:
    """Return the row indices of every split; without ``split``, all rows are ``train``."""
    if split is None:
        return {"train": np.arange(count)}
    split = np.atleast_1d(split).astype(str)
    unknown = sorted(set(split.tolist()) - set(SPLITS))
    if unknown or "train" not in split:
        raise DataError(
            f"{path}: 'split' holds {sorted(set(split.tolist()))}; rows are train, val or test, "
            f"and some must be train"
        )
    return {name: np.flatnonzero(split == name) for name in SPLITS if name in split}
