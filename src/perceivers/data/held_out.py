"""Opening of folders for evaluation that have a test (or validation) split but no training split.

Each split is opened on its own, so classes are numbered within it; callers that know the classes of
the model must renumber them.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from perceivers.data.address import find_split_tars, open_alone, open_tars
from perceivers.data.dataset import Dataset
from perceivers.data.folders import SPLIT_FOLDERS
from perceivers.data.labels import Chosen, IntegerLabels
from perceivers.data.tables import TABLE_EXTENSIONS
from perceivers.data.texts import TEXT_EXTENSION
from perceivers.errors import DataError
from perceivers.text_names import compose

HELD_OUT = ("test", "val")
FILES = (*TABLE_EXTENSIONS, ".npz", TEXT_EXTENSION)


def open_held_out(
    address: str,
    *,
    labels: Sequence[str] = (),
    targets: Sequence[str] = (),
    integer_labels: IntegerLabels = "values",
) -> Dataset | None:
    """Open a folder without a training split; None for any other address.

    Args:
        address: A folder with ``test*.tar``, ``test.csv`` (or another file of that name) or a
            folder ``test``, or the same with ``val``, and nothing of that kind for training.
        labels: Label columns, as for ``open_data``.
        targets: Columns of numbers to predict.
        integer_labels: As for ``open_data``.

    Returns:
        A data set of the splits that exist, which never has ``train``.

    Raises:
        DataError: The data do not follow their format, or splits have different classes.
        ConfigError: A column does not exist.
    """
    folder = Path(address).expanduser()
    chosen = Chosen(
        tuple(map(compose, labels)), tuple(map(compose, targets)), integers=integer_labels
    )
    if not folder.is_dir():
        return None
    chosen.check()
    if tars := find_split_tars(folder):
        if "train" in tars:
            return None
        found = {s: open_tars(str(folder), paths, folder, chosen) for s, paths in tars.items()}
    else:
        parts = _find_parts(folder)
        found = {split: open_alone(str(path), chosen) for split, path in parts.items()}
    if not found:
        return None
    first = next(iter(found.values()))
    for split, other in found.items():
        if (other.classes, other.columns) != (first.classes, first.columns):
            raise DataError(
                f"{address} has no training split to number classes by, and its splits have "
                f"different ones ({next(iter(found))}: {list(first.classes)}, {split}: "
                f"{list(other.classes)}); give the folder of one split as the address"
            )
    notes = (f"no training split: {' and '.join(found)} alone", *first.notes)
    return Dataset(
        address,
        {split: each.sources["train"] for split, each in found.items()},
        first.classes,
        notes,
        first.columns,
        first.targets,
        first.mask_classes,
    )


def _find_parts(folder: Path) -> dict[str, Path]:
    """Return the folder or file of each held-out split; empty if there is a training split."""
    children = [path for path in folder.iterdir() if not path.name.startswith((".", "__"))]
    names = {path.name for path in children if path.is_dir()}
    known = {name for split in HELD_OUT for name in SPLIT_FOLDERS[split]}
    if names and names <= known and not any(_is_data(path) for path in children):
        return {
            split: folder / name
            for split in HELD_OUT
            for name in SPLIT_FOLDERS[split][::-1]
            if name in names
        }
    for ending in FILES:
        files = {split: folder / f"{split}{ending}" for split in ("train", *HELD_OUT)}
        files = {split: path for split, path in files.items() if path.is_file()}
        if files:
            return {} if "train" in files or names else files
    return {}


def _is_data(path: Path) -> bool:
    """Tell whether a file may contain samples: anything but class names and notes."""
    return path.is_file() and not re.fullmatch(
        r"(classes\.txt|readme.*|licen[cs]e.*)", path.name, re.I
    )
