"""WebDataset tars, with random access: members are indexed once, then read by their offsets.

They lie on this machine, or on a server (``http://``, ``https://``) that has range requests.

The files of one sample share a key, as a rule the name up to the first dot: a picture, sound, video
or text (``KEY.jpg``, ``KEY.flac``, ``KEY.mp4``, ``KEY.txt``), and ``KEY.cls`` (the class index as
text) or ``KEY.json`` (with a ``label``, or with several entries to choose from). A mask lies beside
its picture as ``KEY.mask.png`` or ``KEY.seg.png``, or as ``KEY.png`` beside a picture of another
kind.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from math import prod
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image as Picture

from perceivers.data.audio_clips import (
    MAX_LOADED,
    MAX_OPENED,
    SILENT,
    Tracks,
    are_known,
    describe_tracks,
    find_tracks,
    is_heard,
    lack_sound,
)
from perceivers.data.containers import has_track, open_stream, wrap_file
from perceivers.data.http_ranges import is_remote
from perceivers.data.labels import (
    DEFAULT_COLUMN,
    JsonEntries,
    index_entries,
    number_entries,
    parse_entries,
    read_names,
)
from perceivers.data.masks import MASK_NAME, find_mask, holds_ids
from perceivers.data.media_kinds import choose_kinds, choose_media, describe_lost, place_members
from perceivers.data.partial import PackedTexts
from perceivers.data.remote import Member, Shard, open_member, open_shards, read_member
from perceivers.data.sources import Encoded, EncodedClip, RawSample
from perceivers.data.system_files import is_system_member
from perceivers.errors import DataError
from perceivers.foreign import decode_text, parse_json, read_int
from perceivers.limits import check_limit
from perceivers.text_names import compose, show_name

MASKS_TRIED = 3
BRACES = re.compile(r"\{([0-9]+)\.\.([0-9]+)\}")


@dataclass(frozen=True, eq=False)
class TarPictures:
    """A source of pictures inside uncompressed tars.

    Args:
        shards: The tars' paths, or what is known of those on servers.
        names: Stable ids, ``SHARD/KEY``.
        members: Member name of each picture.
        places: ``[n, 3]``: index of the shard, offset and size in bytes of each picture.
        labels: Class per picture ``[n]``, or ``[n, T]`` in several columns, or None.
        columns: Class names by label column, where columns were chosen.
        targets: Numbers to be predicted ``[n, T]``, NaN where unknown, or None.
    """

    shards: Sequence[Shard]
    names: PackedTexts
    members: PackedTexts
    places: NDArray[np.int64]
    labels: NDArray[np.int64] | None = None
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    targets: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self.names)

    def encoded(self, index: int) -> Encoded:
        """Return the bytes of one picture."""
        number, offset, size = (int(value) for value in self.places[index])
        shard = self.shards[number]
        path = f"{shard}/{self.members[index]}"
        return Encoded(path, read_member(shard, offset, size, path))

    def read(self, index: int) -> RawSample:
        """Return one whole picture, upright, in its own mode; undecoded if it ``is_deep``."""
        encoded = self.encoded(index)
        return wrap_file("image", encoded.path, encoded.data, has_sound=False)

    def subset(self, indices: NDArray[np.int64]) -> "TarPictures":
        """Return a source of some of the pictures."""
        return replace(
            self,
            names=self.names.take(indices),
            members=self.members.take(indices),
            places=self.places[indices],
            labels=None if self.labels is None else self.labels[indices],
            targets=None if self.targets is None else self.targets[indices],
        )


@dataclass(frozen=True, eq=False)
class TarClips:
    """A source of sounds, videos and texts, and pictures beside them, inside uncompressed tars.

    Args:
        shards: The tars' paths, or what is known of those on servers.
        names: Stable ids, ``SHARD/KEY``.
        kinds: What every sample holds: some of ``image``, ``mask``, ``audio``, ``video`` and
            ``bytes``.
        members: Member names of all samples, for each of ``kinds``.
        places: ``[n, kinds, 3]``: index of the shard, offset and size in bytes of each member.
        tracks: Which videos are also their samples' sounds ``[n]``; None when none is.
        labels: Class per sample ``[n]``, or ``[n, T]`` in several columns, or None.
        columns: Class names by label column, where columns were chosen.
        targets: Numbers to be predicted ``[n, T]``, NaN where unknown, or None.
    """

    shards: Sequence[Shard]
    names: PackedTexts
    kinds: tuple[str, ...]
    members: tuple[PackedTexts, ...]
    places: NDArray[np.int64]
    tracks: Tracks | None = None
    labels: NDArray[np.int64] | None = None
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    targets: NDArray[np.float32] | None = None

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
            has_sound = is_heard(self.tracks, index)
            sample |= wrap_file(kind, encoded.path, encoded.data, has_sound=has_sound)
        return sample

    def subset(self, indices: NDArray[np.int64]) -> "TarClips":
        """Return a source of some of the samples."""
        return replace(
            self,
            names=self.names.take(indices),
            members=tuple(names.take(indices) for names in self.members),
            places=self.places[indices],
            tracks=None if self.tracks is None else self.tracks[indices],
            labels=None if self.labels is None else self.labels[indices],
            targets=None if self.targets is None else self.targets[indices],
        )

    def has_track(self, index: int) -> bool:
        """Tell whether the video of one sample has sound, reading no more of it than needed.

        Raises:
            DataError: It cannot be opened.
        """
        number = self.kinds.index("video")
        shard_number, offset, size = (int(value) for value in self.places[index, number])
        shard = self.shards[shard_number]
        path = f"{shard}/{self.members[number][index]}"
        with (
            open_member(shard, offset, size, path) as file,
            open_stream(file, path) as container,
        ):
            return has_track(container)

    def _load(self, index: int, number: int) -> Encoded:
        """Return the bytes of one member of a sample."""
        shard_number, offset, size = (int(value) for value in self.places[index, number])
        shard = self.shards[shard_number]
        path = f"{shard}/{self.members[number][index]}"
        return Encoded(path, read_member(shard, offset, size, path))


class PartialClips(TarClips):
    """Clips in tars of which some videos have no sound while others have."""

    @cached_property
    def present(self) -> Mapping[str, NDArray[np.bool_]]:
        """Which samples hold each modality ``[n]``."""
        held: dict[str, NDArray[np.bool_]] = dict.fromkeys(self.kinds, np.ones(len(self), np.bool_))
        return held if self.tracks is None else {**held, "audio": self.tracks != SILENT}

    @cached_property
    def is_sure(self) -> bool:
        """Whether all videos were looked at for sound."""
        return are_known([self.tracks])


@dataclass(frozen=True)
class _Sample:
    """The files of one key: where their tar is, all of them, and those that are read, by kind."""

    shard: int
    path: Shard
    key: str
    parts: Mapping[str, Member]
    media: Mapping[str, Member]

    @property
    def id(self) -> str:
        """Name the sample by its tar's name and its key."""
        path = str(self.path)
        return f"{Path(urlsplit(path).path if is_remote(path) else path).name}/{self.key}"

    def load(self, part: str) -> tuple[bytes, str]:
        """Return the bytes of one file, and its path for messages."""
        member = self.parts[part]
        where = f"{self.path}/{member.name}"
        if member.text is not None:
            return member.text.encode(), where
        return read_member(self.path, member.offset, member.size, where), where


def expand_braces(address: str) -> list[str]:
    """Expand every ``{000..012}``, keeping leading zeros.

    Raises:
        DataError: A brace that is no range of numbers, a range that runs down, or too many
            addresses.
    """
    # Texts, and after each but the last the ends of a range.
    first, *rest = BRACES.split(address)
    ranges = list(zip(rest[0::3], rest[1::3], rest[2::3], strict=True))
    if any(brace in text for text in (first, *rest[2::3]) for brace in "{}"):
        raise DataError(
            f"{address!r} has braces that are no range of numbers; write 'x-{{000..012}}.tar'"
        )
    where = f"{address[:80]!r}: the range"
    counted = [(read_int(low, where), read_int(high, where)) for low, high, _ in ranges]
    for low, high in counted:
        if low > high:
            raise DataError(
                f"{address!r}: the range {low}..{high} runs down; write the lower first"
            )
    # Before any is written out.
    check_limit("addresses", prod(high - low + 1 for low, high in counted), repr(address[:80]))
    found = [first]
    for (low, high), (written, _, text) in zip(counted, ranges, strict=True):
        numbers = [f"{number:0{len(written)}d}" for number in range(low, high + 1)]
        found = [f"{start}{number}{text}" for start in found for number in numbers]
    return found


def read_class_names(folder: Path) -> tuple[str, ...]:
    """Return the lines of ``classes.txt`` (line number from 0 = class); none without the file.

    Raises:
        DataError: The file is empty, names a class twice, or is no UTF-8 text.
    """
    return read_names(folder / "classes.txt")


def read_shards(
    paths: Sequence[Path | str],
    classes: Sequence[str],
    labels: Sequence[str] = (),
    known: Mapping[str, tuple[str, ...]] | None = None,
    targets: Sequence[str] = (),
    *,
    bare: bool = False,
) -> tuple[TarPictures | TarClips, list[str]]:
    """Index the samples of some tars.

    Args:
        paths: The tars, in order; those on servers as strings.
        classes: Names of the classes, against which labels are checked; none leaves only the lower
            bound.
        labels: Entries of the ``.json`` files to read as label columns; none reads one plain label
            per sample.
        known: Class names by column, as the training split has them; None takes the sorted values
            that are found.
        targets: Entries of the ``.json`` files to read as numbers to be predicted.
        bare: Read no labels.

    Returns:
        The source, of pictures alone or of clips, and notes on what was left out.

    Raises:
        DataError: A tar that is missing, damaged or compressed, or a label out of range or missing.
        RemoteError: A server that does not answer, or has no range requests.
        ConfigError: A label column that no sample has.
    """
    opened = open_shards([str(path) for path in paths])
    found, lost = _find_samples(opened)
    last = str(paths[-1]).rpartition("/")[2]
    where = str(paths[0]) if len(paths) == 1 else f"{paths[0]} ... {last}"
    found, unmasked = _with_masks(found, where)
    kinds, notes = choose_kinds(found, where)
    notes = [*describe_lost(lost, where), *unmasked, *notes]
    samples = [sample for sample in found if all(kind in sample.media for kind in kinds)]
    values, columns = None, {}
    if labels:
        entries, named = _parse_all(samples)
        values, columns, noted = index_entries(entries, named, labels, known or {}, where)
        notes = [*notes, *noted]
    elif DEFAULT_COLUMN not in targets and not bare:
        # Beside masks, classes.txt names the classes of pixels.
        values = _read_labels(samples, kinds[0], 0 if MASK_NAME in kinds else len(classes))
    numbers = number_entries(*_parse_all(samples), targets, where) if targets else None
    ids = PackedTexts(show_name(sample.id) for sample in samples)
    members = tuple(PackedTexts(s.media[kind].name for s in samples) for kind in kinds)
    places = np.array(
        [[(s.shard, s.media[kind].offset, s.media[kind].size) for kind in kinds] for s in samples],
        np.int64,
    )
    shards = [shard for shard, _ in opened]
    if kinds == ("image",):
        return TarPictures(shards, ids, members[0], places[:, 0], values, columns, numbers), notes
    return TarClips(shards, ids, kinds, members, places, None, values, columns, numbers), notes


def add_tracks(
    sources: Mapping[str, TarPictures | TarClips],
) -> tuple[dict[str, TarPictures | TarClips], list[str]]:
    """Return the splits with their videos as sounds too where there are no others, and notes.

    Args:
        sources: From ``read_shards``.

    Raises:
        DataError: None of the videos that are looked at can be opened.
    """
    found = dict(sources)
    clips = {s: source for s, source in sources.items() if isinstance(source, TarClips)}
    if any("audio" in source.kinds for source in clips.values()):
        return found, []
    films = {s: c for s, c in clips.items() if "video" in c.kinds}
    everything = {split: np.ones(len(source), np.bool_) for split, source in films.items()}
    remote = any(not isinstance(shard, str) for c in films.values() for shard in c.shards)
    tracks = find_tracks(
        everything, lambda s, row: films[s].has_track(row), MAX_LOADED if remote else MAX_OPENED
    )
    if tracks is not None:
        make = PartialClips if lack_sound(tracks.values()) else TarClips
        for split, source in films.items():
            held = {f.name: getattr(source, f.name) for f in fields(source)}
            found[split] = make(**{**held, "tracks": tracks[split]})
    return found, describe_tracks(everything, tracks)


def _parse_all(samples: Sequence[_Sample]) -> tuple[list[JsonEntries], list[str]]:
    """Return the entries of every sample's ``.json``, none where there is none, and its path."""
    entries = [parse_entries(*s.load("json")) if "json" in s.parts else {} for s in samples]
    return entries, [f"{sample.path}/{sample.key}.json" for sample in samples]


def _with_masks(samples: list[_Sample], where: str) -> tuple[list[_Sample], list[str]]:
    """Return samples with masks among what is read, if every picture has one beside it, and notes.

    The first masks say whether they hold ids; one alone may be damaged.
    """
    endings = [find_mask(sample.parts, sample.media.get("image")) for sample in samples]
    pairs = [(s, e) for s, e in zip(samples, endings, strict=True) if "image" in s.media]
    masked = [(sample, ending) for sample, ending in pairs if ending]
    if not any(holds_ids(*sample.load(ending)) for sample, ending in masked[:MASKS_TRIED]):
        return samples, []
    if len(masked) < len(pairs):
        lacking = next(sample.id for sample, ending in pairs if not ending)
        return samples, [
            f"{where}: only {len(masked)} of {len(pairs)} pictures have a mask beside them, so "
            f"masks are not read; without one is {lacking}"
        ]
    return [
        replace(
            sample,
            parts={name: part for name, part in sample.parts.items() if name != ending},
            media={**sample.media, **({MASK_NAME: sample.parts[ending]} if ending else {})},
        )
        for sample, ending in zip(samples, endings, strict=True)
    ], []


def _find_samples(
    opened: Sequence[tuple[Shard, Sequence[Member]]],
) -> tuple[list[_Sample], list[str]]:
    """Return the samples of all tars, and the names of members that are lost."""
    found: list[_Sample] = []
    lost: list[str] = []
    for number, (shard, members) in enumerate(opened):
        grouped, unread = _group_samples(shard, members)
        lost += unread
        found += [_Sample(number, shard, k, p, choose_media(p)) for k, p in grouped.items()]
    return found, lost


def _group_samples(
    shard: Shard, members: Sequence[Member]
) -> tuple[dict[str, dict[str, Member]], list[str]]:
    """Return the members of one tar by key and ending, and the names of those that are lost."""
    kept = [member for member in members if not is_system_member(member.name)]
    places, lost = place_members([member.name for member in kept])
    samples: dict[str, dict[str, Member]] = {}
    for member, (key, ending) in zip(kept, places, strict=True):
        parts = samples.setdefault(compose(key), {})
        if ending in parts:
            raise DataError(
                f"{shard}: holds {member.name!r} twice; keys must be unique within a tar"
            )
        parts[ending] = member
    return samples, lost


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
    value = decode_text(data, where).strip() if part == "cls" else parse_json(data, where)
    if isinstance(value, dict):
        if "label" not in value:
            return None
        value = value["label"]
    # An id of a class may be any number; with names it is the index of one.
    label = read_int(value, f"{where}: the label")
    if num_classes and not 0 <= label < num_classes:
        raise DataError(
            f"{where}: label {label} is out of range; labels are 0..{num_classes - 1} (classes.txt "
            f"has {num_classes} names)"
        )
    return label
