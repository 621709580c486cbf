"""Folders of images, audio, videos and points: by class, by split and class, or unlabelled.

Files of several kinds are paired by their names without extension: ``cat/1.mp4`` and ``cat/1.wav``.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perceivers.data.containers import name_kind
from perceivers.data.joined import Parts, check_pairs, kind_of, pair_paths
from perceivers.data.masks import MASK_NAME, name_mask_classes
from perceivers.data.modality import FOLDER_ENDINGS
from perceivers.data.pictures import is_picture_name
from perceivers.data.row_source import FileCells, Found, Part, RowSource, settle_missing
from perceivers.data.sound_tracks import add_sound
from perceivers.data.system_files import is_system_file, is_system_folder
from perceivers.errors import DataError
from perceivers.text_names import (
    check_class_name,
    compose,
    describe_names,
    group_spellings,
    show_name,
)

ANYTHING = "images, audio, videos or point clouds"

SPLIT_FOLDERS = {
    "train": ("train",),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}


@dataclass(frozen=True)
class FolderSplits:
    """The sources of a folder by split, its class names, and notes."""

    sources: Mapping[str, RowSource]
    classes: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Files:
    """The files of one split, their classes, and the number of files of other types."""

    paths: list[str]
    labels: NDArray[np.int64] | None
    num_stray: int


def read_folder(root: Path) -> FolderSplits:
    """Index the images, audio files, videos and point clouds of a folder.

    Sub-folders named train, val and test are splits. Within a split, sub-folders that contain such
    files are classes, in alphabetical order; a split is unlabelled if files lie directly in it, if
    it has a single sub-folder, or if files lie only further down.

    Raises:
        DataError: No files, an empty class folder, a class that training does not have, or files of
            several kinds of which no two share a name.
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
    if odd := describe_names(Path(p).name for files in found.values() for p in files.paths):
        notes.append(odd)
    if num_stray := sum(files.num_stray for files in found.values()):
        notes.append(f"{num_stray} files that are not {ANYTHING} were ignored")
    present = {kind_of(path) for files in found.values() for path in files.paths}
    kinds = tuple(kind for kind in FOLDER_ENDINGS if kind in present)
    paths = {split: files.paths for split, files in found.items()}
    labels = {split: files.labels for split, files in found.items()}
    if len(kinds) == 1:
        held = {s: {kinds[0]: Part(kinds[0], FileCells(p, kinds[0]))} for s, p in paths.items()}
    else:
        paired = {split: pair_paths(files.paths) for split, files in found.items()}
        every = [parts for samples in paired.values() for parts in samples.values()]
        if missing := check_pairs(every, kinds, root):
            notes.append(missing)
        held = {split: _hold_files(samples, kinds) for split, samples in paired.items()}
        paths = {split: list(samples) for split, samples in paired.items()}
        labels = {split: _pair_labels(files, paired[split]) for split, files in found.items()}
    # Audio files take precedence over the sound tracks of videos.
    parts, told = add_sound(held)
    sources = {
        split: RowSource(parts[split], np.arange(len(p)), _relative(p, root), labels[split])
        for split, p in paths.items()
    }
    return FolderSplits(settle_missing(sources), classes, (*notes, *told))


def _hold_files(samples: Mapping[str, Parts], kinds: Sequence[str]) -> dict[str, Part]:
    """Return a column of files for each kind, from the files of each sample by kind."""
    return {
        kind: Part(kind, FileCells([parts.get(kind, "") for parts in samples.values()], kind))
        for kind in kinds
    }


def _find_splits(root: Path) -> dict[str, Path]:
    """Return the split folders; empty if "train" is a class of vehicles beside other classes."""
    _, children = _list_folder(root)
    # In reverse, so that the first of a split's names wins.
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
    """Return the class names given by sub-folders (empty if unlabelled), and a note."""
    direct, children = _list_folder(folder)
    if direct:
        lie = "files lie directly in the folder"
        return (), f"{lie}, so sub-folders are not classes" if children else f"{lie}: unlabelled"
    if not any(_list_folder(folder / child)[0] for child in children):
        return (), f"no sub-folder contains {ANYTHING} directly: unlabelled"
    if len(children) == 1:
        return (), f"a single sub-folder ({children[0]!r}) makes no classes: unlabelled"
    return tuple(group_spellings(children)), ""


def walk_media(folder: Path) -> tuple[list[str], int]:
    """Return the sorted paths of all media files below a folder, and the number of other files.

    Links to folders are followed, each folder once; hidden files and folders are skipped.
    """
    found: list[str] = []
    num_others, seen = 0, set()
    for here, children, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            children.clear()
            continue
        seen.add(real)
        children[:] = sorted(child for child in children if not is_system_folder(child))
        for name in files:
            if name_kind(name):
                found.append(f"{here}{os.sep}{name}")
            elif not (is_system_file(name) or name.startswith("__")):
                num_others += 1
    return sorted(found), num_others


def _labelled(folder: Path, classes: tuple[str, ...], *, is_train: bool) -> _Files:
    direct, children = _list_folder(folder)
    spellings = group_spellings(children)
    for child in spellings:
        check_class_name(child, f"{show_name(str(folder))}: the name of a class folder")
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
    num_stray = sum(1 for f in folder.iterdir() if f.is_file() and not is_system_folder(f.name))
    for label, name in enumerate(classes):
        if not is_train and name not in spellings:
            continue
        walked = [walk_media(folder / child) for child in spellings[name]]
        found = [path for paths_of_child, _ in walked for path in paths_of_child]
        stray = sum(count for _, count in walked)
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
    paths, num_stray = walk_media(folder)
    if not paths:
        raise DataError(
            f"{folder}: no {ANYTHING} among {num_stray} files; extensions understood: {_endings()}"
        )
    return _Files(paths, None, num_stray)


def _pair_labels(files: _Files, samples: Mapping[str, Parts]) -> NDArray[np.int64] | None:
    """Return the class of each sample; its files lie in one folder, so they have the same."""
    if files.labels is None:
        return None
    known = dict(zip(files.paths, files.labels.tolist(), strict=True))
    firsts = [next(iter(parts.values())) for parts in samples.values()]
    return np.array([known[path] for path in firsts], np.int64)


def _list_folder(folder: Path) -> tuple[list[str], list[str]]:
    """Return the sorted names of media files, and of sub-folders, directly in a folder."""
    try:
        with os.scandir(folder) as scan:
            entries = [entry for entry in scan if not is_system_folder(entry.name)]
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror or error})") from error
    entries.sort(key=lambda entry: entry.name)
    media = [entry.name for entry in entries if name_kind(entry.name) and _is(entry.is_file)]
    return media, [entry.name for entry in entries if _is(entry.is_dir)]


def _is(ask: Callable[[], bool]) -> bool:
    """Check the type of an entry; False for links in a circle, which cannot be checked."""
    try:
        return ask()
    except OSError:
        return False


def _endings() -> str:
    return ", ".join(ending for endings in FOLDER_ENDINGS.values() for ending in endings)


def _relative(paths: Sequence[str], root: Path) -> list[str]:
    """Return escaped paths below a root, with forward slashes on every operating system."""
    return [show_name(Path(os.path.relpath(path, root)).as_posix()) for path in paths]


def _shorten(names: Sequence[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


# -- Folders of images with masks: two sub-folders whose files are paired by name ------------------
#
# ``images/`` beside ``masks/`` (or ``annotations/``, ``labels/``), in one of three layouts: the
# data as a whole, each of ``train/``, ``val/`` and ``test/``, or the splits within both sub-
# folders.

IMAGE_FOLDERS = ("images", "image", "imgs")
MASK_FOLDERS = ("masks", "mask", "annotations", "labels")
MASK_EXTENSION = ".png"
# Endings that some tools append to the names of masks.
MASK_STEM_ENDINGS = ("_mask", "-mask", "_labels", "_L")
Pair = tuple[Path, Path]


def find_mask_folders(root: Path) -> dict[str, Pair]:
    """Return the folders of images and masks by split; empty if there are no such pairs.

    Args:
        root: The data's folder; without split folders, all of it is ``train``.
    """
    whole = _pair(root)
    if whole is not None:
        inside = {s: (whole[0] / name, whole[1] / name) for s, name in _splits(whole[0]).items()}
        found = {s: pair for s, pair in inside.items() if pair[1].is_dir()}
        found = found if "train" in found else {"train": whole}
    else:
        pairs = {split: _pair(root / name) for split, name in _splits(root).items()}
        found = {split: pair for split, pair in pairs.items() if pair is not None}
    if "train" not in found or not any(_list_files(found["train"][1], MASK_EXTENSION)):
        return {}
    return found


def read_mask_folders(root: Path, folders: Mapping[str, Pair]) -> Found:
    """Pair the images and masks of folders.

    Args:
        root: The data's folder, where ``classes.txt`` may name the ids.
        folders: From ``find_mask_folders``.

    Raises:
        DataError: An image without a mask, a mask without an image, or no classes.
    """
    sources = {split: _read_split(root, *pair) for split, pair in folders.items()}
    classes, notes = name_mask_classes(root, sources, str(root))
    return Found(sources, notes=notes, mask_classes=classes)


def _pair(folder: Path) -> Pair | None:
    """Return the sub-folders of images and masks, if a folder has both."""
    images = [folder / name for name in IMAGE_FOLDERS if (folder / name).is_dir()]
    masks = [folder / name for name in MASK_FOLDERS if (folder / name).is_dir()]
    return (images[0], masks[0]) if images and masks else None


def _splits(folder: Path) -> dict[str, str]:
    """Return the names of the split folders in a folder, by split."""
    return {
        split: name
        for split, names in SPLIT_FOLDERS.items()
        for name in names[::-1]
        if (folder / name).is_dir()
    }


def _list_files(folder: Path, ending: str = "") -> dict[str, str]:
    """Return the images below a folder by their paths without extension; hidden ones skipped."""
    found = {}
    for here, children, files in os.walk(folder):
        children[:] = sorted(child for child in children if not is_system_folder(child))
        for name in sorted(files):
            if is_picture_name(name) and name.lower().endswith(ending):
                path = Path(here) / name
                found[compose(path.relative_to(folder).with_suffix("").as_posix())] = str(path)
    return found


def _read_split(root: Path, images: Path, masks: Path) -> RowSource:
    pictures, ids = _list_files(images), _list_files(masks, MASK_EXTENSION)
    for stem in list(ids):
        bare = next(
            (stem.removesuffix(end) for end in MASK_STEM_ENDINGS if stem.endswith(end)), stem
        )
        if stem not in pictures and bare in pictures:
            ids[bare] = ids.pop(stem)
    lonely = sorted(pictures.keys() ^ ids.keys())
    if lonely or not pictures:
        missing = [stem for stem in lonely if stem in pictures]
        what = f"{lonely[0]!r} has no {'mask' if missing else 'picture'}; " if lonely else ""
        raise DataError(
            f"{images} has {len(pictures)} pictures and {masks} {len(ids)} masks ({len(lonely)} "
            f"unpaired): {what}they are paired by their names without extension, masks as .png"
        )
    names = [show_name(Path(os.path.relpath(path, root)).as_posix()) for path in pictures.values()]
    pairs = {stem: {"image": path, MASK_NAME: ids[stem]} for stem, path in pictures.items()}
    return RowSource(_hold_files(pairs, ("image", MASK_NAME)), np.arange(len(pairs)), names)
