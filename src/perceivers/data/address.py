"""Data addresses: one string to an opened data set."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from perceivers.data.arrays import Arrays, read_npz
from perceivers.data.dataset import Dataset
from perceivers.data.digits import read_digits
from perceivers.data.folders import PictureFiles, read_folder
from perceivers.data.shards import TarPictures, expand_braces, read_class_names, read_shards
from perceivers.data.sources import Source, number_classes
from perceivers.data.splits import carve_validation
from perceivers.errors import ConfigError, DataError, suggest

ADDRESSES = (
    "'digits' (built in); a folder of class sub-folders of pictures, or with train/, val/, test/ "
    "of those; a folder of unlabelled pictures; a WebDataset tar 'x.tar', a range "
    "'x-{000..012}.tar' or a folder with train*.tar; an '.npz' file with keys such as "
    "'image' and 'label'"
)
AnySource = TypeVar("AnySource", PictureFiles, TarPictures, Arrays)


def open_data(address: str, *, val_share: float = 0.1) -> Dataset:
    """Open data by their address; samples are read later.

    Args:
        address: ``digits``, a folder of pictures, WebDataset tars, or an ``.npz`` file.
        val_share: Share of the training samples, class by class, that is set aside for validation
            when the data have no validation split; between 0 and 1.

    Returns:
        Splits ``train`` and ``val``, and ``test`` when the data have one.

    Raises:
        DataError: The address is not understood, or the data do not keep to their format.
        ConfigError: The share is out of range.
    """
    if not 0 < val_share < 1:
        raise ConfigError(f"val_share is {val_share}; it must lie between 0 and 1, such as 0.1")
    path = Path(address).expanduser()
    if address == "digits":
        splits, classes, note = read_digits()
        return Dataset(address, splits, classes, (note,))
    if "{" in address or address.endswith(".tar"):
        return _open_tars(address, val_share)
    if not address.strip() or not path.exists():
        raise DataError(
            f"data address {address!r}: no such file or folder{suggest(address, ['digits'])}\n"
            f"Addresses: {ADDRESSES}"
        )
    if path.is_dir():
        if any(path.glob("*.tar")):
            return _open_tar_folder(address, path, val_share)
        found = read_folder(path)
        return _finish(address, found.sources, found.classes, found.notes, val_share)
    if path.suffix == ".npz":
        splits, classes = read_npz(path)
        return _finish(address, splits, classes, (), val_share)
    raise DataError(
        f"data address {address!r}: a file of type {path.suffix or 'unknown'!r} is not understood\n"
        f"Addresses: {ADDRESSES}"
    )


def _open_tars(address: str, val_share: float) -> Dataset:
    """Open one tar or a range of them as training data."""
    paths = [Path(path).expanduser() for path in expand_braces(address)]
    return _open_shards(address, {"train": paths}, paths[0].parent, val_share)


def _open_tar_folder(address: str, folder: Path, val_share: float) -> Dataset:
    """Open a folder of tars named by split."""
    tars = sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))
    shards: dict[str, list[Path]] = {}
    for split in ("train", "val", "test"):
        # A word that goes on (trainer.tar) names something else.
        pattern = re.compile(rf"{split}(?![a-z])")
        found = [path for path in tars if pattern.match(path.name)]
        if found:
            shards[split] = found
    if "train" not in shards:
        raise DataError(
            f"{address}: {len(tars)} tars, such as {tars[0].name!r}, but none called train*.tar; "
            f"rename the training tars, or give them as '{folder}/x-{{000..012}}.tar'"
        )
    dataset = _open_shards(address, shards, folder, val_share)
    unused = len(tars) - sum(len(paths) for paths in shards.values())
    if not unused:
        return dataset
    note = f"{unused} tars whose names start with no split (train, val, test) were ignored"
    return Dataset(address, dataset.splits, dataset.classes, (*dataset.notes, note))


def _open_shards(
    address: str, shards: Mapping[str, list[Path]], folder: Path, val_share: float
) -> Dataset:
    """Index tars by split and name their classes."""
    classes = read_class_names(folder)
    sources: dict[str, TarPictures] = {}
    notes: list[str] = []
    for split, paths in shards.items():
        sources[split], found = read_shards(paths, classes)
        notes += found
    labels = {split: source.labels for split, source in sources.items()}
    if any((value is None) != (labels["train"] is None) for value in labels.values()):
        states = {s: "unlabelled" if v is None else "labelled" for s, v in labels.items()}
        raise DataError(f"{address}: splits are {states}; label all of them, or none")
    known = [value for value in labels.values() if value is not None]
    if not known:
        classes = ()
    elif not classes:
        classes = number_classes(max(int(value.max()) for value in known), address)
        notes.append(f"no classes.txt: {len(classes)} classes, named by their numbers")
    return _finish(address, sources, classes, tuple(notes), val_share)


def _finish(
    address: str,
    sources: Mapping[str, AnySource],
    classes: tuple[str, ...],
    notes: tuple[str, ...],
    val_share: float,
) -> Dataset:
    """Carve a validation split when there is none."""
    splits: dict[str, Source] = dict(sources)
    if "val" not in sources:
        train = sources["train"]
        kept, carved, note = carve_validation(train.names, train.labels, val_share, address)
        splits |= {"train": train.subset(kept), "val": train.subset(carved)}
        notes = (*notes, note)
    return Dataset(address, splits, classes, notes)
