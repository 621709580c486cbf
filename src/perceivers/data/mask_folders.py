"""Folders of pictures with masks: two sub-folders whose files are paired by their stems.

``images/`` beside ``masks/`` (or ``annotations/``, ``labels/``), in one of three layouts: the data
as a whole, each of ``train/``, ``val/`` and ``test/``, or the splits within both sub-folders.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from perceivers.data.folders import SPLIT_FOLDERS, ClipFiles
from perceivers.data.masks import MASK_NAME, name_mask_classes
from perceivers.data.pictures import is_picture_name
from perceivers.data.sources import Found
from perceivers.data.system_files import is_system_folder
from perceivers.errors import DataError
from perceivers.text_names import compose, show_name

IMAGE_FOLDERS = ("images", "image", "imgs")
MASK_FOLDERS = ("masks", "mask", "annotations", "labels")
MASK_EXTENSION = ".png"
# What some tools append to the stem of a mask.
MASK_ENDINGS = ("_mask", "-mask", "_labels", "_L")
Pair = tuple[Path, Path]


def find_mask_folders(root: Path) -> dict[str, Pair]:
    """Return the folders of pictures and of masks by split; none where there are no such pairs.

    Args:
        root: The data's folder; without split folders all of it is ``train``.
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
    """Pair the files of the folders.

    Args:
        root: The data's folder, where ``classes.txt`` may name the ids.
        folders: From ``find_mask_folders``.

    Raises:
        DataError: A picture without a mask or a mask without a picture, or no classes.
    """
    sources = {split: _read_split(root, *pair) for split, pair in folders.items()}
    classes, notes = name_mask_classes(root, sources, str(root))
    return Found(sources, notes=notes, mask_classes=classes)


def _pair(folder: Path) -> Pair | None:
    """Return a folder's sub-folders of pictures and masks, if it has both."""
    images = [folder / name for name in IMAGE_FOLDERS if (folder / name).is_dir()]
    masks = [folder / name for name in MASK_FOLDERS if (folder / name).is_dir()]
    return (images[0], masks[0]) if images and masks else None


def _splits(folder: Path) -> dict[str, str]:
    """Return the names of a folder's split folders, by split."""
    return {
        split: name
        for split, names in SPLIT_FOLDERS.items()
        for name in names[::-1]
        if (folder / name).is_dir()
    }


def _list_files(folder: Path, ending: str = "") -> dict[str, str]:
    """Return the pictures below a folder by their paths without ending; hidden ones left out."""
    found = {}
    for here, children, files in os.walk(folder):
        children[:] = sorted(child for child in children if not is_system_folder(child))
        for name in sorted(files):
            if is_picture_name(name) and name.lower().endswith(ending):
                path = Path(here) / name
                found[compose(path.relative_to(folder).with_suffix("").as_posix())] = str(path)
    return found


def _read_split(root: Path, images: Path, masks: Path) -> ClipFiles:
    """Pair the pictures and masks of one split."""
    pictures, ids = _list_files(images), _list_files(masks, MASK_EXTENSION)
    for stem in list(ids):
        bare = next((stem.removesuffix(end) for end in MASK_ENDINGS if stem.endswith(end)), stem)
        if stem not in pictures and bare in pictures:
            ids[bare] = ids.pop(stem)
    lonely = sorted(pictures.keys() ^ ids.keys())
    if lonely or not pictures:
        missing = [stem for stem in lonely if stem in pictures]
        what = f"{lonely[0]!r} has no {'mask' if missing else 'picture'}; " if lonely else ""
        raise DataError(
            f"{images} holds {len(pictures)} pictures and {masks} {len(ids)} masks ({len(lonely)} "
            f"of them alone): {what}they are paired by their names without ending, masks as .png"
        )
    names = [show_name(Path(os.path.relpath(path, root)).as_posix()) for path in pictures.values()]
    paths = [(pictures[stem], ids[stem]) for stem in pictures]
    return ClipFiles(paths, names, ("image", MASK_NAME))
