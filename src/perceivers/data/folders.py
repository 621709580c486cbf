"""Folders of pictures, sounds and videos: class sub-folders, split folders of those, or unlabelled.

Files of several kinds are paired by their names without ending: ``cat/1.mp4`` and ``cat/1.wav``.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image as Picture

from perceivers.data.containers import EXTENSIONS, have_sound, name_kind, wrap_file
from perceivers.data.pictures import read_bytes, read_picture
from perceivers.data.sources import Encoded, EncodedClip, RawSample, pick
from perceivers.errors import DataError

NOUNS = {"image": "pictures", "audio": "sounds", "video": "videos"}
ANYTHING = "pictures, sounds or videos"

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


@dataclass(frozen=True, eq=False)
class ClipFiles:
    """A source of sound and video files, and of files of several kinds that belong together.

    Args:
        paths: Where the files of each sample lie, in the order of ``kinds``.
        names: Stable ids, relative to the data's folder.
        kinds: What every sample holds: some of ``image``, ``audio`` and ``video``.
        has_sound: The videos are also the samples' sounds.
        labels: Class per sample ``[n]``, or None.
    """

    paths: Sequence[tuple[str, ...]]
    names: Sequence[str]
    kinds: tuple[str, ...]
    has_sound: bool = False
    labels: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.paths)

    def read(self, index: int) -> RawSample:
        """Return undecoded clips, and decoded pictures.

        Raises:
            DataError: A file cannot be read, or a picture not be decoded.
        """
        sample: dict[str, Picture | NDArray | EncodedClip] = {}
        for kind, path in zip(self.kinds, self.paths[index], strict=True):
            sample |= wrap_file(kind, path, read_bytes(path), has_sound=self.has_sound)
        return sample

    def subset(self, indices: NDArray[np.int64]) -> "ClipFiles":
        """Return a source of some of the samples."""
        return replace(
            self,
            paths=pick(self.paths, indices),
            names=pick(self.names, indices),
            labels=None if self.labels is None else self.labels[indices],
        )


@dataclass(frozen=True)
class FolderSplits:
    """What a folder holds."""

    sources: Mapping[str, PictureFiles | ClipFiles]
    classes: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Files:
    """The files of one split, their classes, and how many other files lie between them."""

    paths: list[str]
    labels: NDArray[np.int64] | None
    num_stray: int


def read_folder(root: Path) -> FolderSplits:
    """Index the pictures, sounds and videos of a folder.

    Sub-folders called train, val and test are splits. Within a split, sub-folders that hold
    such files are classes, in alphabetical order; a split with files lying directly in it, with a
    single sub-folder, or with files only further down is unlabelled.

    Raises:
        DataError: No files, an empty class folder, a class that training does not have, or files of
            several kinds that cannot all be paired.
    """
    folders = _find_splits(root) or {"train": root}
    classes, note = find_classes(folders["train"])
    notes = [note] if note else []
    found = {
        split: _labelled(folder, classes, is_train=split == "train")
        if classes
        else _unlabelled(folder)
        for split, folder in folders.items()
    }
    if num_stray := sum(files.num_stray for files in found.values()):
        notes.append(f"{num_stray} files that are no {ANYTHING} were ignored")
    present = {_kind(path) for files in found.values() for path in files.paths}
    kinds = tuple(kind for kind in EXTENSIONS if kind in present)
    if kinds == ("image",):
        pictures = {
            split: PictureFiles(files.paths, _relative(files.paths, root), files.labels)
            for split, files in found.items()
        }
        return FolderSplits(pictures, classes, tuple(notes))
    clips = {
        split: _pair_files(files, kinds, folders[split], root) for split, files in found.items()
    }
    has_sound = "video" in kinds and "audio" not in kinds and _have_sound(clips["train"])
    heard = {split: replace(source, has_sound=has_sound) for split, source in clips.items()}
    return FolderSplits(heard, classes, tuple(notes))


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
        lie = "files lie directly in the folder"
        return (), f"{lie}, so sub-folders are not classes" if children else f"{lie}: unlabelled"
    if not any(_list_folder(folder / child)[0] for child in children):
        return (), f"no sub-folder holds {ANYTHING} directly: unlabelled"
    if len(children) == 1:
        return (), f"a single sub-folder ({children[0]!r}) makes no classes: unlabelled"
    return tuple(children), ""


def walk_media(folder: Path) -> tuple[list[str], int]:
    """Return the sorted paths of all pictures, sounds and videos below a folder, and count others.

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
            if name_kind(name):
                found.append(f"{here}{os.sep}{name}")
            elif not _is_hidden(name):
                num_others += 1
    return sorted(found), num_others


def _labelled(folder: Path, classes: tuple[str, ...], *, is_train: bool) -> _Files:
    """Find the files of one split's class folders."""
    direct, children = _list_folder(folder)
    for child in children:
        if child not in classes:
            raise DataError(
                f"{folder / child}: class {child!r} is not among the {len(classes)} training "
                f"classes {_shorten(classes)}; every class needs a folder in the training split"
            )
    if direct:
        raise DataError(
            f"{folder / direct[0]}: lies beside class folders ({len(direct)} such files); move "
            f"files into the folder of their class"
        )
    paths: list[str] = []
    labels: list[int] = []
    num_stray = sum(1 for f in folder.iterdir() if f.is_file() and not _is_hidden(f.name))
    for label, name in enumerate(classes):
        if not is_train and name not in children:
            continue
        found, stray = walk_media(folder / name)
        if not found:
            raise DataError(
                f"{folder / name}: class folder without {ANYTHING}; add some ({_endings()}), or "
                f"remove the folder"
            )
        paths += found
        labels += [label] * len(found)
        num_stray += stray
    if not paths:
        raise DataError(f"{folder}: no class folders; the training classes are {_shorten(classes)}")
    return _Files(paths, np.array(labels, np.int64), num_stray)


def _unlabelled(folder: Path) -> _Files:
    """Find all files below a folder."""
    paths, num_stray = walk_media(folder)
    if not paths:
        raise DataError(
            f"{folder}: no {ANYTHING} among {num_stray} files; extensions understood: {_endings()}"
        )
    return _Files(paths, None, num_stray)


def _pair_files(files: _Files, kinds: tuple[str, ...], folder: Path, root: Path) -> ClipFiles:
    """Put files of several kinds together by their paths without ending."""
    if len(kinds) == 1:
        single = [(path,) for path in files.paths]
        return ClipFiles(single, _relative(files.paths, root), kinds, labels=files.labels)
    samples: dict[str, dict[str, str]] = {}
    classes: dict[str, int] = {}
    for number, path in enumerate(files.paths):
        stem, kind = path.rpartition(".")[0], _kind(path)
        parts = samples.setdefault(stem, {})
        if kind in parts:
            raise DataError(
                f"{path}: lies beside {Path(parts[kind]).name!r}; files of several kinds "
                f"are paired by name, so a name may have one file of each kind"
            )
        parts[kind] = path
        classes[stem] = 0 if files.labels is None else int(files.labels[number])
    _check_pairs(samples, kinds, folder)
    paths = [tuple(parts[kind] for kind in kinds) for parts in samples.values()]
    labels = None if files.labels is None else np.array(list(classes.values()), np.int64)
    return ClipFiles(paths, _relative(list(samples), root), kinds, labels=labels)


def _check_pairs(
    samples: Mapping[str, Mapping[str, str]], kinds: tuple[str, ...], folder: Path
) -> None:
    """Refuse a name that lacks a file of some kind."""
    for stem, parts in samples.items():
        missing = [kind for kind in kinds if kind not in parts]
        if missing:
            counts = Counter(kind for held in samples.values() for kind in held)
            held = ", ".join(f"{counts[kind]} {NOUNS[kind]}" for kind in kinds)
            raise DataError(
                f"{folder}: holds {held}; files of several kinds are paired by their names without "
                f"ending, and {os.path.relpath(stem, folder)!r} has no file among the "
                f"{NOUNS[missing[0]]}; add what is missing, or keep one kind"
            )


def _kind(path: str) -> str:
    """Return the kind of a file that was found because it has one."""
    kind = name_kind(path.rpartition(os.sep)[2])
    assert kind is not None, path
    return kind


def _have_sound(source: ClipFiles) -> bool:
    """Tell whether the videos of a source have sound."""
    number = source.kinds.index("video")

    def encoded(index: int) -> EncodedClip:
        """Return the video of one sample."""
        path = source.paths[index][number]
        return EncodedClip(path, read_bytes(path), "video")

    return have_sound(len(source), encoded)


def _list_folder(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of media files and of sub-folders directly in a folder, sorted."""
    try:
        with os.scandir(folder) as scan:
            entries = [entry for entry in scan if not _is_hidden(entry.name)]
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror or error})") from error
    entries.sort(key=lambda entry: entry.name)
    media = [entry.name for entry in entries if entry.is_file() and name_kind(entry.name)]
    return media, [entry.name for entry in entries if entry.is_dir()]


def _endings() -> str:
    """List the file extensions that are understood."""
    return ", ".join(ending for endings in EXTENSIONS.values() for ending in endings)


def _relative(paths: Sequence[str], root: Path) -> list[str]:
    """Return paths below a root with forward slashes, equal on every system."""
    return [Path(os.path.relpath(path, root)).as_posix() for path in paths]


def _is_hidden(name: str) -> bool:
    """Tell whether a name belongs to the system rather than to the data."""
    return name.startswith((".", "__"))


def _shorten(names: Sequence[str], limit: int = 8) -> str:
    """List a few names."""
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
