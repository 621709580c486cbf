"""WebDataset tars, with random access: members are indexed once, then read by their offsets.

The files of one sample share a key, the name up to the first dot: a picture, sound, video or text
(``KEY.jpg``, ``KEY.flac``, ``KEY.mp4``, ``KEY.txt``), and ``KEY.cls`` (the class index as text) or
``KEY.json`` (with a ``label``, or with several entries to choose from).
"""

import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image as Picture

from perceivers.data.containers import EXTENSIONS, have_sound, wrap_file
from perceivers.data.json_labels import index_entries, parse_entries
from perceivers.data.labels import read_names
from perceivers.data.pictures import read_picture
from perceivers.data.sources import Encoded, EncodedClip, RawSample, pick
from perceivers.errors import DataError

MEMBERS = {**EXTENSIONS, "bytes": (".txt",)}
NOUNS = {"image": "picture", "audio": "sound", "video": "video", "bytes": "text"}
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True, eq=False)
class TarPictures:
    """A source of pictures inside uncompressed tars.

    Args:
        shards: The tars' paths.
        names: Stable ids, ``SHARD/KEY``.
        members: Member name of each picture.
        places: ``[n, 3]``: index of the shard, offset and size in bytes of each picture.
        labels: Class per picture ``[n]``, or ``[n, T]`` in several columns, or None.
        columns: Class names by label column, where columns were chosen.
    """

    shards: Sequence[str]
    names: Sequence[str]
    members: Sequence[str]
    places: NDArray[np.int64]
    labels: NDArray[np.int64] | None = None
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

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
        return replace(
            self,
            names=pick(self.names, indices),
            members=pick(self.members, indices),
            places=self.places[indices],
            labels=None if self.labels is None else self.labels[indices],
        )


@dataclass(frozen=True, eq=False)
class TarClips:
    """A source of sounds, videos and texts, and pictures beside them, inside uncompressed tars.

    Args:
        shards: The tars' paths.
        names: Stable ids, ``SHARD/KEY``.
        kinds: What every sample holds: some of ``image``, ``audio``, ``video`` and ``bytes``.
        members: Member names of each sample, in the order of ``kinds``.
        places: ``[n, kinds, 3]``: index of the shard, offset and size in bytes of each member.
        has_sound: The videos are also the samples' sounds.
        labels: Class per sample ``[n]``, or ``[n, T]`` in several columns, or None.
        columns: Class names by label column, where columns were chosen.
    """

    shards: Sequence[str]
    names: Sequence[str]
    kinds: tuple[str, ...]
    members: Sequence[tuple[str, ...]]
    places: NDArray[np.int64]
    has_sound: bool = False
    labels: NDArray[np.int64] | None = None
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.names)

    def read(self, index: int) -> RawSample:
        """Return undecoded clips, the bytes of texts ``[L]`` in uint8, and decoded pictures.

        Raises:
            DataError: The bytes cannot be read, or a picture not be decoded.
        """
        sample: dict[str, Picture | NDArray | EncodedClip] = {}
        for number, kind in enumerate(self.kinds):
            encoded = self._load(index, number)
            sample |= wrap_file(kind, encoded.path, encoded.data, has_sound=self.has_sound)
        return sample

    def subset(self, indices: NDArray[np.int64]) -> "TarClips":
        """Return a source of some of the samples."""
        return replace(
            self,
            names=pick(self.names, indices),
            members=pick(self.members, indices),
            places=self.places[indices],
            labels=None if self.labels is None else self.labels[indices],
        )

    def with_sound(self) -> "TarClips":
        """Return the source, its videos also as sounds if there are no others and they have any."""
        if "video" not in self.kinds or "audio" in self.kinds:
            return self
        number = self.kinds.index("video")

        def encoded(index: int) -> EncodedClip:
            """Return the video of one sample."""
            return EncodedClip(*self._load(index, number), "video")

        return replace(self, has_sound=have_sound(len(self), encoded))

    def _load(self, index: int, number: int) -> Encoded:
        """Return the bytes of one member of a sample."""
        shard_number, offset, size = (int(value) for value in self.places[index, number])
        shard = self.shards[shard_number]
        path = f"{shard}/{self.members[index][number]}"
        return Encoded(path, _read_range(shard, offset, size, path))


@dataclass(frozen=True)
class _Sample:
    """The files of one key: where their tar is, all of them, and those that are read, by kind."""

    shard: int
    path: Path
    key: str
    parts: Mapping[str, tarfile.TarInfo]
    media: Mapping[str, tarfile.TarInfo]

    def load(self, part: str) -> tuple[bytes, str]:
        """Return the bytes of one file, and its path for messages."""
        member = self.parts[part]
        where = f"{self.path}/{member.name}"
        return _read_range(str(self.path), member.offset_data, member.size, where), where


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
    return read_names(folder / "classes.txt")


def read_shards(
    paths: Sequence[Path],
    classes: Sequence[str],
    labels: Sequence[str] = (),
    known: Mapping[str, tuple[str, ...]] | None = None,
) -> tuple[TarPictures | TarClips, list[str]]:
    """Index the samples of some tars.

    Args:
        paths: The tars, in order.
        classes: Names of the classes, against which labels are checked; none leaves only the lower
            bound.
        labels: Entries of the ``.json`` files to read as label columns; none reads one plain label
            per sample.
        known: Class names by column, as the training split has them; None takes the sorted values
            that are found.

    Returns:
        The source, of pictures alone or of clips, and notes on what was left out.

    Raises:
        DataError: A tar that is missing, damaged or compressed, or a label out of range or missing.
        ConfigError: A label column that no sample has.
    """
    found = [
        _make_sample(number, path, key, parts)
        for number, path in enumerate(paths)
        for key, parts in _list_samples(path).items()
    ]
    where = str(paths[0]) if len(paths) == 1 else f"{paths[0]} ... {paths[-1].name}"
    kinds, notes = _choose_kinds(found, where)
    samples = [sample for sample in found if all(kind in sample.media for kind in kinds)]
    columns: dict[str, tuple[str, ...]] = {}
    if labels:
        entries = [parse_entries(*s.load("json")) if "json" in s.parts else {} for s in samples]
        names = [f"{sample.path}/{sample.key}.json" for sample in samples]
        values, columns, noted = index_entries(entries, names, labels, known or {}, where)
        notes += noted
    else:
        values = _read_labels(samples, kinds[0], len(classes))
    ids = [f"{sample.path.name}/{sample.key}" for sample in samples]
    members = [tuple(sample.media[kind].name for kind in kinds) for sample in samples]
    places = np.array(
        [
            [(s.shard, s.media[kind].offset_data, s.media[kind].size) for kind in kinds]
            for s in samples
        ],
        np.int64,
    )
    shards = [str(path) for path in paths]
    if kinds == ("image",):
        pictures = [member for (member,) in members]
        return TarPictures(shards, ids, pictures, places[:, 0], values, columns), notes
    clips = TarClips(shards, ids, kinds, members, places, labels=values, columns=columns)
    return clips.with_sound(), notes


def _make_sample(shard: int, path: Path, key: str, parts: Mapping[str, tarfile.TarInfo]) -> _Sample:
    """Choose the files of one key that are read: of each kind the first that there is."""
    media = {
        kind: parts[present[0]]
        for kind, extensions in MEMBERS.items()
        if (present := [e[1:] for e in extensions if e[1:] in parts])
    }
    return _Sample(shard, path, key, parts, media)


def _choose_kinds(found: Sequence[_Sample], where: str) -> tuple[tuple[str, ...], list[str]]:
    """Return the kinds of files that most samples hold together, and notes on the rest."""
    # A text describes other media more often than not, so it decides only where it is alone.
    held = Counter(
        tuple(k for k in EXTENSIONS if k in s.media) or ("bytes",) for s in found if s.media
    )
    if not held:
        extensions = sorted({extension for sample in found for extension in sample.parts})
        raise DataError(
            f"{where}: no pictures, sounds, videos or texts; extensions found: {extensions}, "
            f"understood: {', '.join(e for group in MEMBERS.values() for e in group)}"
        )
    kinds = held.most_common(1)[0][0]
    samples = [sample for sample in found if all(kind in sample.media for kind in kinds)]
    notes: list[str] = []
    if len(samples) < len(found):
        nouns = " and a ".join(NOUNS[kind] for kind in kinds)
        notes.append(f"{where}: {len(found) - len(samples)} samples without a {nouns} were ignored")
    for kind in MEMBERS:
        count = sum(kind in sample.media for sample in samples)
        if kind not in kinds and count == len(samples):
            kinds = (*kinds, kind)
        elif kind not in kinds and count:
            notes.append(
                f"{where}: only {count} of {len(samples)} samples have a {NOUNS[kind]}, so it is "
                f"left out"
            )
    for kind in kinds:
        endings = [extension[1:] for extension in MEMBERS[kind]]
        count = sum(sum(e in sample.parts for e in endings) > 1 for sample in samples)
        if count:
            notes.append(
                f"{where}: {count} samples hold several {NOUNS[kind]}s; the one whose extension "
                f"comes first in {', '.join(MEMBERS[kind])} is read"
            )
    return kinds, notes


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


def _read_labels(
    samples: Sequence[_Sample], kind: str, num_classes: int
) -> NDArray[np.int64] | None:
    """Return the class of every sample, or None if none has one."""
    labels = [_read_label(sample, num_classes) for sample in samples]
    known = [label for label in labels if label is not None]
    if not known:
        return None
    if len(known) < len(labels):
        first = samples[labels.index(None)]
        raise DataError(
            f"{first.path}/{first.media[kind].name}: has no label, but {len(known)} other samples "
            f"have; give every sample a .cls (or a .json with a 'label'), or none"
        )
    return np.array(known, np.int64)


def _read_label(sample: _Sample, num_classes: int) -> int | None:
    """Return a sample's class; None when it has no label file."""
    part = next((part for part in ("cls", "json") if part in sample.parts), None)
    if part is None:
        return None
    data, where = sample.load(part)
    try:
        text = data.decode()
        value = text.strip() if part == "cls" else json.loads(text)
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
