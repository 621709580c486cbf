"""Readers of text data: tables with a column ``text``, and folders of text files."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from perceivers.data.containers import name_kind
from perceivers.data.labels import Chosen, check_known, index_labels, read_targets
from perceivers.data.media_kinds import TEXT
from perceivers.data.row_source import FileCells, Found, Part, RowSource
from perceivers.data.system_files import is_system_file, is_system_folder
from perceivers.data.tables import TABLE_EXTENSIONS, Table
from perceivers.data.texts import EMPTY_TEXT, TEXT_EXTENSION, TEXT_SPEC, TextCells, open_documents
from perceivers.errors import DataError, suggest
from perceivers.text_names import check_class_name, group_spellings, show_name

# -- Text tables: the column ``text`` is the text, other columns may be labels -------------------
#
# Texts may be any bytes, including invalid UTF-8.


def read_text_tables(tables: Mapping[str, Table], chosen: Chosen, where: str) -> Found:
    """Read the texts of all splits.

    Args:
        tables: Tables by split, including ``train``. Files with class names are searched in its
            folder.
        chosen: Label columns (empty reads ``label`` if it exists) and target columns.
        where: Address of the data, for messages.

    Raises:
        DataError: A table has no column ``text``, or contains a label that is not a class.
        ConfigError: A column does not exist.
    """
    labelled, texts = {}, {}
    for split, table in tables.items():
        others = {name: values for name, values in table.columns.items() if name != TEXT}
        targets = read_targets(others, chosen.targets, table.places, where)
        hidden = others if chosen.bare else chosen.targets
        labelled[split] = table.label_table(table.places, (TEXT, *hidden), chosen.integers)
        cells = TextCells.join(_encode_texts(table), table.names)
        rows = np.arange(len(table))
        texts[split] = RowSource(
            {"bytes": Part("bytes", cells)}, rows, table.names, targets=targets
        )
    check_known(texts["train"].targets, chosen.targets, where)
    folder = tables["train"].path.parent
    labelling = index_labels(
        labelled, chosen.labels, folder, where, tables["train"].classes, chosen.integers
    )
    sources = {
        split: replace(source, labels=labelling.labels[split]) for split, source in texts.items()
    }
    return Found(
        sources, labelling.classes, labelling.notes, labelling.columns, tuple(chosen.targets)
    )


def _encode_texts(table: Table) -> list[bytes]:
    names = list(table.columns)
    if TEXT not in names and table.path.suffix.lower() != ".jsonl":
        raise DataError(
            f"{table.path}: the header is {names}; the first line must name a column {TEXT!r}, or "
            f"columns of files (image, audio, video, points)" + suggest(TEXT, names)
        )
    encoded = []
    for row, text in enumerate(table.columns.get(TEXT, [None] * len(table))):
        if not isinstance(text, str):
            held = sorted(name for name in names if table.columns[name][row] is not None)
            raise DataError(
                f"{table.places[row]} has {held}; every line must be an object with the text under "
                f"{TEXT!r}, or with files under the names of their kinds (image, audio, video, "
                f"points)"
            )
        encoded.append(encode_cell(text, f"{table.path}: text {table.rows[row]}"))
    return encoded


def encode_cell(text: str, where: str) -> bytes:
    """Return the original bytes of a text that was decoded with ``surrogateescape``.

    Raises:
        DataError: The text contains half of a surrogate pair.
    """
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} contains {text[error.start]!a} at character {error.start}, half of a "
            f"surrogate pair, which UTF-8 cannot encode; remove it"
        ) from error


# -- Folders of ``.txt`` files: documents, class sub-folders of texts, and splits of either ------

SPLITS = ("train", "val", "test")
# Extensions of other data formats; a folder with such files is not a folder of texts.
ARRAY_EXTENSION = ".npy"
OTHER_EXTENSIONS = (*TABLE_EXTENSIONS, ".npz", ".tar", ARRAY_EXTENSION)


def find_split_files(folder: Path, extension: str) -> dict[str, Path]:
    """Return the split files with an extension (``train.csv``, ...); empty without ``train``."""
    found = {split: folder / f"{split}{extension}" for split in SPLITS}
    found = {split: path for split, path in found.items() if path.is_file()}
    return found if "train" in found else {}


def holds_media(folder: Path) -> bool:
    """Return whether a folder contains images, audio, videos or point clouds, recursively.

    Arrays (``.npy``) do not count: next to tables and archives they are often something else.
    """
    names = (path.name for path in walk_files(folder))
    return any(name_kind(name) and not name.lower().endswith(ARRAY_EXTENSION) for name in names)


def holds_texts(folder: Path) -> bool:
    """Return whether a folder contains texts, recursively, and no tables, tars or arrays."""
    names = [path.name for path in walk_files(folder)]
    others = any(name.lower().endswith(OTHER_EXTENSIONS) for name in names)
    return not others and any(is_text_name(name) for name in names)


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield every file in a folder, recursively, except hidden and system files.

    Symbolic links to folders are followed; each folder is visited once.
    """
    seen = set()
    for here, children, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            children.clear()
            continue
        seen.add(real)
        children[:] = sorted(child for child in children if not is_system_folder(child))
        for name in files:
            if not is_system_file(name):
                yield Path(here) / name


def is_text_name(name: str) -> bool:
    """Return whether a file name, without folders, has the text extension and is not hidden."""
    return not name.startswith(".") and name.lower().endswith(TEXT_EXTENSION)


def walk_texts(folder: Path) -> list[Path]:
    """Return the sorted paths of all texts in a folder, recursively, without hidden ones."""
    return sorted(path for path in walk_files(folder) if is_text_name(path.name))


def read_text_folder(root: Path) -> Found:
    """Open the texts of a folder.

    ``train.txt``, ``val.txt`` and ``test.txt`` are documents by split. Otherwise, sub-folders named
    train, val and test are splits. If a split consists of two or more sub-folders of texts, these
    are classes in alphabetical order, and each file is a sample; other texts are unlabelled
    documents, which are read in windows.

    Raises:
        DataError: A file is empty, a split has no texts, or a class does not occur in training.
    """
    files = find_split_files(root, TEXT_EXTENSION)
    if files:
        sources = {split: open_documents([path], root) for split, path in files.items()}
        return Found(sources, notes=_describe({s: [path] for s, path in files.items()}))
    folders = {split: root / split for split in SPLITS if (root / split).is_dir()}
    if "train" not in folders:
        folders = {"train": root}
    classes = find_text_classes(folders["train"])
    if classes:
        labelled = {s: _label_texts(folder, root, classes) for s, folder in folders.items()}
        return Found(labelled, classes)
    paths = {split: walk_texts(folder) for split, folder in folders.items()}
    for split, found in paths.items():
        if not found:
            raise DataError(
                f"{folders[split]}: no texts; add files that end in {TEXT_EXTENSION}, or remove "
                f"the folder"
            )
    documents = {split: open_documents(found, root) for split, found in paths.items()}
    return Found(documents, notes=_describe(paths))


def find_text_classes(folder: Path) -> tuple[str, ...]:
    """Return the names of class sub-folders; empty if the texts are unlabelled."""
    children = sorted(
        path
        for path in folder.iterdir()
        if path.is_dir() and not (is_system_folder(path.name) or path.name.startswith("_"))
    )
    if len(children) < 2 or any(is_text_name(path.name) for path in folder.iterdir()):
        return ()
    return tuple(group_spellings(path.name for path in children if walk_texts(path)))


def _label_texts(folder: Path, root: Path, classes: Sequence[str]) -> RowSource:
    held = find_text_classes(folder)
    for name in held:
        check_class_name(name, f"{show_name(str(folder))}: the name of a class folder")
    strange = sorted(set(held) - set(classes))
    if strange:
        raise DataError(
            f"{folder / strange[0]}: class {strange[0]!r} is not among the {len(classes)} training "
            f"classes {', '.join(classes[:8])}; every class needs a folder in the training split"
        )
    paths: list[Path] = []
    labels: list[int] = []
    children = [path.name for path in sorted(folder.iterdir()) if path.is_dir()]
    spellings = group_spellings(children)
    for label, name in enumerate(classes):
        found = [path for child in spellings.get(name, ()) for path in walk_texts(folder / child)]
        paths += found
        labels += [label] * len(found)
    if not paths:
        raise DataError(f"{folder}: no texts in folders of the classes {', '.join(classes[:8])}")
    names = [show_name(Path(os.path.relpath(path, root)).as_posix()) for path in paths]
    cells = FileCells([str(path) for path in paths], "bytes", EMPTY_TEXT, TEXT_SPEC)
    parts = {"bytes": Part("bytes", cells)}
    return RowSource(parts, np.arange(len(paths)), names, np.array(labels, np.int64))


def _describe(paths: Mapping[str, Sequence[Path]]) -> tuple[str, ...]:
    """Return a note on how documents are read."""
    count = sum(len(found) for found in paths.values())
    return (
        f"{count} unlabelled documents, read in windows of the model's length (counted here in "
        f"windows of 512 bytes)",
    )
