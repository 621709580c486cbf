"""Folders of pictures: class sub-folders, split folders of those, or unlabelled pictures."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image as Picture

from perceivers.data.pictures import PICTURE_EXTENSIONS, is_picture_name, read_bytes, read_picture
from perceivers.data.sources import Encoded, pick
from perceivers.errors import DataError

SPLIT_FOLDERS = {
    "train": ("train",),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}


@dataclass(frozen=True, eq=False)
class PictureFiles:
    """A source of picture files.

    Args:
        paths: Where each picture lies.
        names: Stable ids, relative to the data's folder.
        labels: Class per picture, or None.
    """

    paths: Sequence[str]
    names: Sequence[str]
    labels: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self.paths)

    def encoded(self, index: int) -> Encoded:
        """Return one file's bytes."""
        path = self.paths[index]
        return Encoded(path, read_bytes(path))

    def read(self, index: int) -> dict[str, Picture]:
        """Return one whole picture, upright, in its own mode."""
        encoded = self.encoded(index)
        return {"image": read_picture(encoded.data, encoded.path)}

    def subset(self, indices: NDArray[np.int64]) -> "PictureFiles":
        """Return a source of some of the pictures."""
        labels = None if self.labels is None else self.labels[indices]
        return PictureFiles(pick(self.paths, indices), pick(self.names, indices), labels)


@dataclass(frozen=True)
class FolderSplits:
    """What a folder holds."""

    sources: dict[str, PictureFiles]
    classes: tuple[str, ...]
    notes: tuple[str, ...]


def read_folder(root: Path) -> FolderSplits:
    """Index the pictures of a folder.

    Sub-folders called train, val and test are splits. Within a split, sub-folders that hold
    pictures are classes, in alphabetical order; a split with pictures lying directly in it, with a
    single sub-folder, or with pictures only further down is unlabelled.

    Raises:
        DataError: No pictures, an empty class folder, or a class that training does not have.
    """
    folders = _find_splits(root) or {"train": root}
    train = folders["train"]
    classes, note = find_classes(train)
    notes = [note] if note else []
    sources, num_stray = {}, 0
    for split, folder in folders.items():
        if classes:
            sources[split], stray = _labelled(root, folder, classes, is_train=split == "train")
        else:
            sources[split], stray = _unlabelled(root, folder)
        num_stray += stray
    if num_stray:
        notes.append(f"{num_stray} files that are no pictures were ignored")
    return FolderSplits(sources, classes, tuple(notes))


def _find_splits(root: Path) -> dict[str, Path]:
    """Return the split folders; none where "train" is a class of vehicles beside other classes."""
    _, children = _list_folder(root)
    found = {
        split: root / name
        for split, names in SPLIT_FOLDERS.items()
        for name in names[::-1]
        if name in children
    }
    known = {name for names in SPLIT_FOLDERS.values() for name in names}
    others = any(_list_folder(root / name)[0] for name in children if name not in known)
    return {} if "train" not in found or (others and len(found) == 1) else found


def find_classes(folder: Path) -> tuple[tuple[str, ...], str]:
    """Return the class names a folder's sub-folders stand for (none: unlabelled), and a note."""
    direct, children = _list_folder(folder)
    if direct:
        note = (
            "pictures lie directly in the folder, so sub-folders are not read as classes"
            if children
            else ""
        )
        return (), note or "pictures lie directly in the folder: unlabelled"
    if not any(_list_folder(folder / child)[0] for child in children):
        return (), "no sub-folder holds pictures directly: unlabelled"
    if len(children) == 1:
        return (), f"a single sub-folder ({children[0]!r}) makes no classes: unlabelled"
    return tuple(children), ""


def walk_pictures(folder: Path) -> tuple[list[str], int]:
    """Return the sorted paths of all pictures below a folder, and the number of other files.

    Links to folders are followed, each folder once; hidden files and folders are left out.
    """
    found: list[str] = []
    num_others, seen = 0, set()
    for here, children, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            children.clear()
            continue
        seen.add(real)
        children[:] = sorted(child for child in children if not _is_hidden(child))
        for name in files:
            if is_picture_name(name):
                found.append(f"{here}{os.sep}{name}")
            elif not _is_hidden(name):
                num_others += 1
    return sorted(found), num_others


def _labelled(
    root: Path, folder: Path, classes: tuple[str, ...], *, is_train: bool
) -> tuple[PictureFiles, int]:
    """Index one split's class folders."""
    direct, children = _list_folder(folder)
    for child in children:
        if child not in classes:
            raise DataError(
                f"{folder / child}: class {child!r} is not among the {len(classes)} training "
                f"classes {_shorten(classes)}; every class needs a folder in the training split"
            )
    if direct:
        raise DataError(
            f"{folder / direct[0]}: lies beside class folders ({len(direct)} such pictures); move "
            f"pictures into the folder of their class"
        )
    paths: list[str] = []
    labels: list[int] = []
    num_stray = sum(1 for f in folder.iterdir() if f.is_file() and not _is_hidden(f.name))
    for label, name in enumerate(classes):
        if not is_train and name not in children:
            continue
        found, stray = walk_pictures(folder / name)
        if not found:
            raise DataError(
                f"{folder / name}: class folder without pictures; add some "
                f"({', '.join(PICTURE_EXTENSIONS)}), or remove the folder"
            )
        paths += found
        labels += [label] * len(found)
        num_stray += stray
    if not paths:
        raise DataError(f"{folder}: no class folders; the training classes are {_shorten(classes)}")
    return PictureFiles(paths, _relative(paths, root), np.array(labels, np.int64)), num_stray


def _unlabelled(root: Path, folder: Path) -> tuple[PictureFiles, int]:
    """Index all pictures below a folder."""
    paths, num_stray = walk_pictures(folder)
    if not paths:
        raise DataError(
            f"{folder}: no pictures among {num_stray} files; extensions understood: "
            f"{', '.join(PICTURE_EXTENSIONS)}"
        )
    return PictureFiles(paths, _relative(paths, root)), num_stray


def _list_folder(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of pictures and of sub-folders directly in a folder, sorted."""
    try:
        with os.scandir(folder) as scan:
            entries = [entry for entry in scan if not _is_hidden(entry.name)]
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror or error})") from error
    entries.sort(key=lambda entry: entry.name)
    pictures = [entry.name for entry in entries if entry.is_file() and is_picture_name(entry.name)]
    return pictures, [entry.name for entry in entries if entry.is_dir()]


def _relative(paths: Sequence[str], root: Path) -> list[str]:
    """Return paths below a root with forward slashes, equal on every system."""
    return [Path(os.path.relpath(path, root)).as_posix() for path in paths]


def _is_hidden(name: str) -> bool:
    """Tell whether a name belongs to the system rather than to the data."""
    return name.startswith((".", "__"))


def _shorten(names: Sequence[str], limit: int = 8) -> str:
    """List a few names."""
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
