"""WebDataset tars of pictures, with random access: members are indexed once, then read by offset.

The files of one sample share a key, the name up to the first dot: ``KEY.jpg`` and ``KEY.cls`` (the
class index as text) or ``KEY.json`` (with a ``label``).
"""

import json
import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image as Picture

from perceivers.data.pictures import PICTURE_EXTENSIONS, read_picture
from perceivers.data.sources import Encoded, pick
from perceivers.errors import DataError

BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True, eq=False)
class TarPictures:
    """A source of pictures inside uncompressed tars.

    Args:
        shards: The tars' paths.
        names: Stable ids, ``SHARD/KEY``.
        members: Member name of each picture.
        places: ``[n, 3]``: index of the shard, offset and size in bytes of each picture.
        labels: Class per picture, or None.
    """

    shards: Sequence[str]
    names: Sequence[str]
    members: Sequence[str]
    places: NDArray[np.int64]
    labels: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self.names)

    def encoded(self, index: int) -> Encoded:
        """Return the bytes of one picture."""
        number, offset, size = (int(value) for value in self.places[index])
        shard = self.shards[number]
        path = f"{shard}/{self.members[index]}"
        return Encoded(path, _read_range(shard, offset, size, path))

    def read(self, index: int) -> dict[str, Picture]:
        """Return one whole picture, upright, in its own mode."""
        encoded = self.encoded(index)
        return {"image": read_picture(encoded.data, encoded.path)}

    def subset(self, indices: NDArray[np.int64]) -> "TarPictures":
        """Return a source of some of the pictures."""
        return TarPictures(
            self.shards,
            pick(self.names, indices),
            pick(self.members, indices),
            self.places[indices],
            None if self.labels is None else self.labels[indices],
        )


@dataclass
class _Index:
    """What has been found in the tars of one split so far."""

    names: list[str] = field(default_factory=list)
    members: list[str] = field(default_factory=list)
    places: list[tuple[int, int, int]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    extensions: set[str] = field(default_factory=set)
    first_unlabelled: str = ""
    num_without: int = 0
    num_several: int = 0


def expand_braces(address: str) -> list[str]:
    """Expand every ``{000..012}``, keeping leading zeros.

    Raises:
        DataError: A brace that is no range of numbers, or a range that runs down.
    """
    match = BRACES.search(address)
    if match is None:
        if "{" in address or "}" in address:
            raise DataError(
                f"{address!r} has braces that are no range of numbers; write 'x-{{000..012}}.tar'"
            )
        return [address]
    first, last = match.groups()
    if int(first) > int(last):
        raise DataError(f"{address!r}: the range {first}..{last} runs down; write the lower first")
    return [
        path
        for number in range(int(first), int(last) + 1)
        for path in expand_braces(
            f"{address[: match.start()]}{number:0{len(first)}d}{address[match.end() :]}"
        )
    ]


def read_class_names(folder: Path) -> tuple[str, ...]:
    """Return the lines of ``classes.txt`` (line number from 0 = class); none without the file.

    Raises:
        DataError: The file is empty, names a class twice, or is no UTF-8 text.
    """
    path = folder / "classes.txt"
    if not path.is_file():
        return ()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names or len(set(names)) != len(names):
        double = sorted({name for name in names if names.count(name) > 1})
        raise DataError(
            f"{path}: {len(names)} class names, repeated: {double}; give one name per line, each "
            f"once"
        )
    return names


def read_shards(paths: Sequence[Path], classes: Sequence[str]) -> tuple[TarPictures, list[str]]:
    """Index the pictures of some tars.

    Args:
        paths: The tars, in order.
        classes: Names of the classes, against which labels are checked; none leaves only the lower
            bound.

    Returns:
        The source, and notes on what was left out.

    Raises:
        DataError: A tar that is missing, damaged or compressed, or a label out of range or missing.
    """
    index = _Index()
    for number, path in enumerate(paths):
        for key, parts in _list_samples(path).items():
            _add_sample(index, number, path, key, parts, len(classes))
    where = str(paths[0]) if len(paths) == 1 else f"{paths[0]} ... {paths[-1].name}"
    if not index.names:
        raise DataError(
            f"{where}: no pictures; extensions found: {sorted(index.extensions)}, understood: "
            f"{', '.join(PICTURE_EXTENSIONS)}"
        )
    if index.labels and index.first_unlabelled:
        raise DataError(
            f"{index.first_unlabelled}: has no label, but {len(index.labels)} other samples have; "
            f"give every sample a .cls (or a .json with a 'label'), or none"
        )
    notes = []
    if index.num_without:
        notes.append(f"{where}: {index.num_without} samples without a picture were ignored")
    if index.num_several:
        notes.append(
            f"{where}: {index.num_several} samples hold several pictures; the one whose extension "
            f"comes first in {', '.join(PICTURE_EXTENSIONS)} is read"
        )
    labels = np.array(index.labels, np.int64) if index.labels else None
    places = np.array(index.places, np.int64)
    shards = [str(path) for path in paths]
    return TarPictures(shards, index.names, index.members, places, labels), notes


def _list_samples(path: Path) -> dict[str, dict[str, tarfile.TarInfo]]:
    """Return the members of one tar by key and extension."""
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        # "r:" refuses compressed tars, in which no offset can be read directly.
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, _, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                if not member.isfile() or not stem:
                    continue
                parts = samples.setdefault(f"{folder}/{stem}" if folder else stem, {})
                if extension.lower() in parts:
                    raise DataError(
                        f"{path}: holds {member.name!r} twice; keys must be unique within a tar"
                    )
                parts[extension.lower()] = member
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except tarfile.TarError as error:
        raise DataError(
            f"{path}: no complete uncompressed tar ({error}); unpack a compressed one, and copy a "
            f"cut one again"
        ) from error
    return samples


def _add_sample(
    index: _Index,
    number: int,
    path: Path,
    key: str,
    parts: dict[str, tarfile.TarInfo],
    num_classes: int,
) -> None:
    """Put one sample into the index, if it has a picture."""
    index.extensions.update(parts)
    pictures = [e for e in (p[1:] for p in PICTURE_EXTENSIONS) if e in parts]
    if not pictures:
        index.num_without += 1
        return
    index.num_several += len(pictures) > 1
    member = parts[pictures[0]]
    index.names.append(f"{path.name}/{key}")
    index.members.append(member.name)
    index.places.append((number, member.offset_data, member.size))
    label = _read_label(path, parts, num_classes)
    if label is None:
        index.first_unlabelled = index.first_unlabelled or f"{path}/{member.name}"
    else:
        index.labels.append(label)


def _read_label(path: Path, parts: dict[str, tarfile.TarInfo], num_classes: int) -> int | None:
    """Return a sample's class; None when it has no label file."""
    member = parts.get("cls") or parts.get("json")
    if member is None:
        return None
    where = f"{path}/{member.name}"
    data = _read_range(str(path), member.offset_data, member.size, where)
    try:
        text = data.decode()
        value = text.strip() if "cls" in parts else json.loads(text)
    except ValueError as error:
        raise DataError(f"{where}: cannot be read as text or JSON ({error})") from error
    if isinstance(value, dict):
        if "label" not in value:
            return None
        value = value["label"]
    if not re.fullmatch(r"-?\d+", str(value)):
        raise DataError(f"{where}: the label is {value!r}; it must be the index of a class, from 0")
    label = int(value)
    if label < 0 or (num_classes and label >= num_classes):
        upper = f"0..{num_classes - 1} (classes.txt has {num_classes} names)"
        raise DataError(
            f"{where}: label {label} is out of range; labels are "
            f"{upper if num_classes else 'class indices from 0'}"
        )
    return label


def _read_range(shard: str, offset: int, size: int, path: str) -> bytes:
    """Return bytes of a file without moving a position that forked workers would share."""
    try:
        file = os.open(shard, os.O_RDONLY)
        try:
            data = os.pread(file, size, offset)
        finally:
            os.close(file)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(data) != size:
        raise DataError(f"{path}: the tar ends after {len(data)} of the member's {size} bytes")
    return data
