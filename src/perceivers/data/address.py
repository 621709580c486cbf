"""Data addresses: open the data set that a string names."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from perceivers.data.arrays import read_arrays, read_npy
from perceivers.data.builtin import read_digits, read_selection
from perceivers.data.clouds import OFFSETS, POINT_KEYS, read_clouds
from perceivers.data.dataset import Dataset
from perceivers.data.flow_pairs import WARPS
from perceivers.data.folders import find_mask_folders, read_folder, read_mask_folders
from perceivers.data.http_ranges import is_remote
from perceivers.data.hugging_face import HUGGING_FACE, read_hugging_face
from perceivers.data.joined import SEPARATOR, join_datasets
from perceivers.data.labels import Chosen, IntegerLabels, check_known, settle_integers
from perceivers.data.manifests import names_media, read_tables
from perceivers.data.masks import MASK_NAME, name_mask_classes
from perceivers.data.remote import fetch_beside
from perceivers.data.row_source import Found, RowSource, settle_missing
from perceivers.data.shards import (
    BRACES,
    ShardSamples,
    expand_braces,
    read_class_names,
    read_shards,
)
from perceivers.data.sound_tracks import add_sound
from perceivers.data.sources import UNKNOWN, Source
from perceivers.data.splits import carve_validation
from perceivers.data.system_files import is_system_file
from perceivers.data.tables import TABLE_EXTENSIONS
from perceivers.data.text_sources import (
    find_split_files,
    holds_media,
    holds_texts,
    read_text_folder,
)
from perceivers.data.texts import TEXT_EXTENSION, open_documents
from perceivers.errors import DataError, suggest
from perceivers.reading import load_npz
from perceivers.settings import Part, checked
from perceivers.text_names import compose

# ------------------------------------------------------------------------------------------------
# Local paths in data addresses: make them absolute, and check whether they exist.


def absolute_address(address: str) -> str:
    """Return a data address with absolute paths, which is valid from any working directory.

    Args:
        address: As for ``open_data``; relative paths start at the current folder. Names of built-in
            data, Hugging Face data sets and remote files are unchanged, and so is a path that does
            not exist but resembles a built-in name, probably a misspelling.
    """

    def settle(path: str) -> str:
        is_misspelt = bool(suggest(path, BUILT_IN)) and not _is_there(path)
        return path if is_misspelt else absolute_path(path)

    return change_paths(address, settle)


def is_present(address: str) -> bool:
    """Tell whether all local files and folders in an address exist."""
    found: list[bool] = []

    def look(path: str) -> str:
        found.append(_is_there(path))
        return path

    change_paths(address, look)
    return all(found)


def absolute_path(path: str) -> str:
    """Return an absolute path without resolving symbolic links."""
    return str(Path.cwd() / _expand(path))


def change_paths(address: str, change: Callable[[str], str]) -> str:
    """Apply a function to every local path in an address.

    Args:
        address: As for ``open_data``, optionally with the prefix ``warps:``.
        change: Maps a path to its replacement.
    """
    if address.startswith(WARPS):
        return WARPS + change_paths(address.removeprefix(WARPS), change)
    if SEPARATOR in address and not _exists(address):
        parts = [part.strip() for part in address.split(SEPARATOR)]
        return SEPARATOR.join(change_paths(part, change) for part in parts)
    if address in BUILT_IN or is_remote(address) or not address.strip():
        return address
    if not address.startswith(HUGGING_FACE):
        return change(address)
    rest = address.removeprefix(HUGGING_FACE).strip()
    path, mark, split = (rest, "", "") if _exists(rest) else rest.partition(":")
    # Anything that is not a folder is the name of a data set on the Hub.
    is_folder = _exists(path) or Path(path).is_absolute()
    return f"{HUGGING_FACE}{change(path)}{mark}{split}" if is_folder else address


def _is_there(path: str) -> bool:
    # Of a range of tars, only the first is checked.
    return _exists(path) or _exists(BRACES.sub(lambda match: match[1], path))


def _exists(path: str) -> bool:
    try:
        return _expand(path).exists()
    except OSError:  # the name is too long
        return False


def _expand(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # '~user' with an unknown user
        return Path(path)


# -- Data addresses ------------------------------------------------------------------------------

BUILT_IN = {"digits": read_digits, "selection": read_selection}
ADDRESSES = (
    "'digits' and 'selection' (built in); a folder of images, audio, videos, point clouds or "
    ".txt texts, in class sub-folders or unlabelled, optionally inside train/, val/, test/; a "
    "folder with images/ and masks/; a '.csv', '.jsonl' or '.parquet' table with a column 'text', "
    "or a manifest with columns of files ('image', 'audio', 'video', 'points'); a WebDataset tar "
    "'x.tar', a range 'x-{000..012}.tar' (both also as 'https://host/x.tar') or a folder with "
    "train*.tar; an '.npz' file with keys such as 'image' and 'label', or ragged point sets with "
    "'offsets' and 'xyz'; an '.npy' array; a '.txt' document; a folder with train, val and test "
    "of .csv, .jsonl, .parquet, .txt or ragged .npz; a Hugging Face data set 'hf:NAME'; several of "
    "them joined: 'A + B'"
)


@checked
def open_data(
    address: str,
    *,
    val_share: Part = 0.1,
    labels: Sequence[str] = (),
    targets: Sequence[str] = (),
    integer_labels: IntegerLabels = "values",
) -> Dataset:
    """Open a data set by its address; samples are read lazily.

    Args:
        address: ``digits`` or ``selection``; a folder of images, audio, videos or texts; WebDataset
            tars; an ``.npz`` file; a table of texts or of files; a text document; ``hf:`` and a
            name; or several of these joined by `` + ``, each with its own label column.
        val_share: Fraction of the training samples of each class that is set aside for validation
            when the data have no validation split; between 0 and 1.
        labels: Label columns to read, from data that have columns: a table, keys of an ``.npz``
            file, of JSON lines or of the ``.json`` files in tars. One column gives plain labels
            ``[n]`` and ``classes``, several give ``[n, T]`` and ``columns``; by default the column
            ``label`` is read.
        targets: Columns of numbers to predict, from the same data; an empty value is unknown.
        integer_labels: How to read integers in label columns. ``values``: each distinct integer is
            a class, unless they run from 0 without gaps, which makes them indices; ``indices``:
            they are always class indices.

    Returns:
        Splits ``train`` and ``val``, and ``test`` if the data have one.

    Raises:
        DataError: The address is not understood, or the data do not follow their format.
        ConfigError: The fraction is out of range, or a column does not exist.
    """
    chosen = Chosen(
        tuple(map(compose, labels)), tuple(map(compose, targets)), integers=integer_labels
    )
    chosen.check()
    if SEPARATOR not in address or Path(address).expanduser().exists():
        return _finish(address, _find(address, chosen), val_share)
    chosen.refuse(f"the joined data {address!r}")
    addresses = address.split(SEPARATOR)
    parts = [
        open_data(part.strip(), val_share=val_share, integer_labels=integer_labels)
        for part in addresses
    ]
    return join_datasets(address, addresses, parts)


def open_samples(address: str) -> Mapping[str, Source]:
    """Open data for prediction: no labels are read, and nothing is set aside or reordered.

    Args:
        address: As for ``open_data``, but not joined.

    Returns:
        The splits of the data; ``train`` if they are not split.

    Raises:
        DataError: The address is not understood, or the data do not follow their format.
    """
    return _find(address, Chosen(bare=True)).sources


def _find(address: str, chosen: Chosen) -> Found:
    path = Path(address).expanduser()
    if address in BUILT_IN:
        chosen.refuse(address)
        splits, classes, note = BUILT_IN[address]()
        return Found(splits, classes, (note,))
    if address.startswith(HUGGING_FACE):
        return read_hugging_face(address, chosen)
    if is_remote(address):
        return _find_remote(address, chosen)
    if "{" in address or address.endswith(".tar"):
        paths = [Path(path).expanduser() for path in expand_braces(address)]
        return _find_shards(address, {"train": paths}, paths[0].parent, chosen)
    if not address.strip() or not path.exists():
        raise DataError(
            f"data address {address!r}: no such file or folder{suggest(address, BUILT_IN)}\n"
            f"Addresses: {ADDRESSES}"
        )
    found = _find_in_folder(address, path, chosen) if path.is_dir() else _find_file(path, chosen)
    if found is None:
        raise DataError(
            f"data address {address!r}: files of type {path.suffix or 'unknown'!r} are not "
            f"supported\nAddresses: {ADDRESSES}"
        )
    return found


def _find_remote(address: str, chosen: Chosen) -> Found:
    urls = expand_braces(address)
    if not urlsplit(urls[0]).path.endswith(".tar"):
        raise DataError(
            f"data address {address!r}: only tars are read from servers; name them as "
            f"'http://host/x-{{000..012}}.tar', or copy the data to this machine"
        )
    return _find_shards(address, {"train": urls}, fetch_beside(urls[0], "classes.txt"), chosen)


def _find_in_folder(address: str, folder: Path, chosen: Chosen) -> Found:
    if _list_tars(folder):
        return _find_tar_folder(address, folder, chosen)
    # Next to media files, train.txt, or a train.csv without columns of media, is a list of files
    # rather than data.
    has_media = holds_media(folder)
    for extension in TABLE_EXTENSIONS:
        files = find_split_files(folder, extension)
        if files and (not has_media or names_media(files["train"])):
            return read_tables(files, chosen, address)
    files = {} if has_media else find_split_files(folder, ".npz")
    if files:
        contents = {s: (path, load_npz(path)) for s, path in files.items()}
        return read_clouds(contents, chosen.labels, address, chosen.targets, chosen.integers)
    chosen.refuse(address)
    if not has_media and (find_split_files(folder, TEXT_EXTENSION) or holds_texts(folder)):
        return read_text_folder(folder)
    if masked := find_mask_folders(folder):
        return read_mask_folders(folder, masked)
    found = read_folder(folder)
    return Found(found.sources, found.classes, found.notes)


def _find_file(path: Path, chosen: Chosen) -> Found | None:
    """Return None if no reader supports the file's extension."""
    suffix = path.suffix.lower()
    if suffix == ".npz":
        content = load_npz(path)
        if OFFSETS in content:
            if chosen.bare:
                content = {key: content[key] for key in (OFFSETS, *POINT_KEYS) if key in content}
            files = {"train": (path, content)}
            return read_clouds(files, chosen.labels, str(path), chosen.targets, chosen.integers)
        return read_arrays(path, content, chosen)
    if suffix == ".npy":
        chosen.refuse(str(path))
        return read_arrays(path, {"array": read_npy(path)})
    if suffix in TABLE_EXTENSIONS:
        return read_tables({"train": path}, chosen, str(path))
    if suffix == TEXT_EXTENSION:
        chosen.refuse(str(path))
        return Found({"train": open_documents([path], path.parent)})
    return None


def open_alone(address: str, chosen: Chosen) -> Found:
    """Open the data of a single split; all samples are in split ``train``."""
    return _find(address, chosen)


def open_tars(address: str, paths: Sequence[Path], folder: Path, chosen: Chosen) -> Found:
    """Open the tars of a single split; all samples are in split ``train``.

    Args:
        address: Address of the data, for messages.
        paths: The tars.
        folder: Folder that may contain ``classes.txt``.
        chosen: Columns to read.
    """
    return _find_shards(address, {"train": paths}, folder, chosen)


def find_split_tars(folder: Path) -> dict[str, list[Path]]:
    """Return the tars of a folder whose names start with a split name, by split."""
    tars = _list_tars(folder)
    shards: dict[str, list[Path]] = {}
    for split in ("train", "val", "test"):
        # A longer word is not a split name: trainer.tar is not for training.
        pattern = re.compile(rf"{split}(?![a-z])")
        matching = [path for path in tars if pattern.match(path.name)]
        if matching:
            shards[split] = matching
    return shards


def _find_tar_folder(address: str, folder: Path, chosen: Chosen) -> Found:
    tars, shards = _list_tars(folder), find_split_tars(folder)
    if "train" not in shards:
        raise DataError(
            f"{address}: {len(tars)} tars, such as {tars[0].name!r}, but none called train*.tar; "
            f"rename the training tars, or give them as '{folder}/x-{{000..012}}.tar'"
        )
    found = _find_shards(address, shards, folder, chosen)
    unused = len(tars) - sum(len(paths) for paths in shards.values())
    if not unused:
        return found
    note = f"{unused} tars were ignored: their names do not start with train, val or test"
    return found._replace(notes=(*found.notes, note))


def _list_tars(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.tar") if not is_system_file(path.name))


def _find_shards(
    address: str, shards: Mapping[str, Sequence[Path | str]], folder: Path, chosen: Chosen
) -> Found:
    """Index tars by split, with the names of sample classes and of pixel classes."""
    found = _index_shards(address, shards, folder, chosen)
    if MASK_NAME not in found.sources["train"].kind_by_modality:
        return found
    pixels, noted = name_mask_classes(folder, found.sources, address)
    return found._replace(notes=(*found.notes, *noted), mask_classes=pixels)


def _index_shards(
    address: str, shards: Mapping[str, Sequence[Path | str]], folder: Path, chosen: Chosen
) -> Found:
    """Index tars by split, with the names of sample classes only."""
    labels = chosen.labels
    classes = read_class_names(folder)
    read: dict[str, ShardSamples] = {}
    for split, paths in shards.items():
        # The training split comes first, and determines how classes are numbered.
        known = read["train"].columns if labels and read else None
        read[split] = read_shards(paths, classes, labels, known, chosen.targets, bare=chosen.bare)
    parts, told = add_sound({split: each.source.parts for split, each in read.items()})
    notes = [*(note for each in read.values() for note in each.notes), *told]
    sources = settle_missing(
        {split: replace(each.source, parts=parts[split]) for split, each in read.items()}
    )
    check_known(sources["train"].targets, chosen.targets, address)
    if labels:
        columns = read["train"].columns
        if len(columns) > 1:
            return Found(sources, (), tuple(notes), columns, chosen.targets)
        _check_known(address, labels[0], sources)
        return Found(sources, columns[labels[0]], tuple(notes), targets=chosen.targets)
    found = {split: source.labels for split, source in sources.items()}
    if any((value is None) != (found["train"] is None) for value in found.values()):
        states = {s: "unlabelled" if v is None else "labelled" for s, v in found.items()}
        raise DataError(f"{address}: splits are {states}; label all of them, or none")
    if MASK_NAME in sources["train"].parts:
        classes = ()  # classes.txt names the classes of pixels
    known = {split: value for split, value in found.items() if value is not None}
    if not known:
        classes = ()
    elif not classes:
        values = {split: value.tolist() for split, value in known.items()}
        settled = settle_integers(values, (), address, integers=chosen.integers)
        classes = settled.names
        counted = f"no classes.txt: {len(classes)} classes, named by their numbers"
        notes.append(settled.note or counted)
        sources = {
            split: replace(source, labels=_place(source, settled.places, classes))
            for split, source in sources.items()
        }
    return Found(sources, classes, tuple(notes), targets=chosen.targets)


def _place(
    source: RowSource, places: Mapping[int, int], classes: Sequence[str]
) -> NDArray[np.int64]:
    """Map the labels of a tar's samples to class indices.

    Raises:
        DataError: A label does not occur in training.
    """
    assert source.labels is not None
    found = [places.get(value, UNKNOWN) for value in source.labels.tolist()]
    if UNKNOWN in found:
        row = found.index(UNKNOWN)
        raise DataError(
            f"{source.names[row]}: label {source.labels[row]} is not one of the {len(classes)} "
            f"training classes {', '.join(classes[:8])}{', ...' if len(classes) > 8 else ''}"
        )
    return np.array(found, np.int64)


def _check_known(address: str, column: str, sources: Mapping[str, RowSource]) -> None:
    """Reject samples without a label where there is only one label column."""
    for split, source in sources.items():
        unknown = np.flatnonzero(source.labels == UNKNOWN)
        if len(unknown):
            raise DataError(
                f"{address}: {column} of {source.names[unknown[0]]} and {len(unknown) - 1} other "
                f"samples of {split!r} is missing, or not a training class; give every sample a "
                f"class, or leave these samples out"
            )


def _finish(address: str, found: Found, val_share: float) -> Dataset:
    """Set validation samples aside if the data have no validation split."""
    splits: dict[str, Source] = dict(found.sources)
    notes = found.notes
    lacking = "val" not in splits
    if lacking:
        train = found.sources["train"]
        if train.items is not None:
            splits["train"], splits["val"], note = train.items.divide(val_share, address)
        else:
            kept, carved, note = carve_validation(train.names, train.labels, val_share, address)
            splits |= {"train": train.subset(kept), "val": train.subset(carved)}
        notes = (*notes, note)
    return Dataset(
        address,
        splits,
        found.classes,
        notes,
        found.columns,
        found.targets,
        found.mask_classes,
        lacking,
    )
