"""WebDataset tars with random access: members are indexed once, then read by their offsets.

Tars are local, or on a server (``http://``, ``https://``) that supports range requests. The files
of one sample share a key, normally the name up to the first dot: an image, audio, video or text
(``KEY.jpg``, ``KEY.flac``, ``KEY.mp4``, ``KEY.txt``), and ``KEY.cls`` (class index as text) or
``KEY.json`` (with a ``label``, or several entries to choose from). The mask of an image is
``KEY.mask.png`` or ``KEY.seg.png``, or ``KEY.png`` next to an image in another format.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from perceivers.data.containers import has_track, open_stream
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
from perceivers.data.remote import Member, Shard, open_member, open_shards, read_member
from perceivers.data.row_source import Column, Part, RowSource
from perceivers.data.sources import Encoded, PackedTexts
from perceivers.data.system_files import is_system_member
from perceivers.errors import DataError
from perceivers.foreign import decode_text, parse_json, read_int
from perceivers.reading import check_limit
from perceivers.text_names import compose, show_name

MASKS_TRIED = 3
BRACES = re.compile(r"\{([0-9]+)\.\.([0-9]+)\}")


@dataclass(frozen=True, eq=False)
class MemberCells(Column):
    """Cells that are members of uncompressed tars.

    Args:
        shards: Paths of local tars, or descriptions of remote ones.
        members: Name of each member.
        places: ``[n, 3]``: index of the shard, offset and size in bytes of each member.
    """

    shards: Sequence[Shard]
    members: PackedTexts
    places: NDArray[np.int64]

    @property
    def is_files(self) -> bool:
        """Whether cells are undecoded files."""
        return True

    @property
    def is_local(self) -> bool:
        """Whether no tar is on a server."""
        return all(isinstance(shard, str) for shard in self.shards)

    def find_present(self) -> NDArray[np.bool_]:
        """Return that no member is missing ``[n]``."""
        return np.ones(len(self.places), np.bool_)

    def load(self, row: int) -> Encoded:
        """Return one member.

        Raises:
            DataError: The bytes cannot be read.
        """
        shard, offset, size, path = self._find(row)
        return Encoded(path, read_member(shard, offset, size, path))

    def has_track(self, row: int) -> bool:
        """Return whether a video has a sound track, reading no more of the file than needed.

        Raises:
            DataError: The video cannot be opened.
        """
        shard, offset, size, path = self._find(row)
        with (
            open_member(shard, offset, size, path) as file,
            open_stream(file, path) as container,
        ):
            return has_track(container)

    def _find(self, row: int) -> tuple[Shard, int, int, str]:
        """Return the shard of a member, its offset and size in bytes, and its path."""
        number, offset, size = (int(value) for value in self.places[row])
        shard = self.shards[number]
        return shard, offset, size, f"{shard}/{self.members[row]}"


class ShardSamples(NamedTuple):
    """The samples of some tars: a source, class names by chosen label column, and notes."""

    source: RowSource
    columns: Mapping[str, tuple[str, ...]]
    notes: list[str]


@dataclass(frozen=True)
class _Sample:
    """The files of one key: ``parts`` has all files by ending, ``media`` those to read by kind."""

    shard: int
    path: Shard
    key: str
    parts: Mapping[str, Member]
    media: Mapping[str, Member]

    @property
    def id(self) -> str:
        """Id of the sample: file name of the tar, and key."""
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
        DataError: A brace is not a range of numbers, a range is descending, or there are too many
            addresses.
    """
    # split() alternates a text with the two ends of a range.
    first, *rest = BRACES.split(address)
    ranges = list(zip(rest[0::3], rest[1::3], rest[2::3], strict=True))
    if any(brace in text for text in (first, *rest[2::3]) for brace in "{}"):
        raise DataError(
            f"{address!r} has braces that are not a range of numbers; write 'x-{{000..012}}.tar'"
        )
    where = f"{address[:80]!r}: the range"
    counted = [(read_int(low, where), read_int(high, where)) for low, high, _ in ranges]
    for low, high in counted:
        if low > high:
            raise DataError(
                f"{address!r}: the range {low}..{high} is descending; write the lower number first"
            )
    # Checked before expanding, because a huge range would not fit in memory.
    check_limit("addresses", prod(high - low + 1 for low, high in counted), repr(address[:80]))
    found = [first]
    for (low, high), (written, _, text) in zip(counted, ranges, strict=True):
        numbers = [f"{number:0{len(written)}d}" for number in range(low, high + 1)]
        found = [f"{start}{number}{text}" for start in found for number in numbers]
    return found


def read_class_names(folder: Path) -> tuple[str, ...]:
    """Return the class names in ``classes.txt``, one per line; empty if it does not exist.

    Raises:
        DataError: The file is empty, names a class twice, or is not UTF-8 text.
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
) -> ShardSamples:
    """Index the samples of tars.

    Args:
        paths: The tars, in order; remote ones as strings.
        classes: Class names that labels are checked against; empty skips the check.
        labels: Entries of the ``.json`` files to read as label columns; empty reads one plain label
            per sample.
        known: Class names of the training split by column; None uses the sorted values found.
        targets: Entries of the ``.json`` files to read as numbers to predict.
        bare: Do not read labels.

    Raises:
        DataError: A tar is missing, damaged or compressed, or a label is out of range or missing.
        RemoteError: A server does not respond, or does not support range requests.
        ConfigError: No sample has a label column.
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
        # With masks, classes.txt names pixel classes, so labels are not checked against it.
        values = _read_labels(samples, kinds[0], 0 if MASK_NAME in kinds else len(classes))
    numbers = number_entries(*_parse_all(samples), targets, where) if targets else None
    ids = PackedTexts(show_name(sample.id) for sample in samples)
    shards = [shard for shard, _ in opened]
    parts = {kind: Part(kind, _hold_members(shards, samples, kind)) for kind in kinds}
    source = RowSource(parts, np.arange(len(samples)), ids, values, numbers)
    return ShardSamples(source, columns, notes)


def _hold_members(shards: Sequence[Shard], samples: Sequence[_Sample], kind: str) -> MemberCells:
    """Return the column of one kind."""
    members = [(sample.shard, sample.media[kind]) for sample in samples]
    places = np.array([(shard, m.offset, m.size) for shard, m in members], np.int64)
    return MemberCells(shards, PackedTexts(m.name for _, m in members), places)


def _parse_all(samples: Sequence[_Sample]) -> tuple[list[JsonEntries], list[str]]:
    """Return the entries in each sample's ``.json`` (empty without one), and the paths."""
    entries = [parse_entries(*s.load("json")) if "json" in s.parts else {} for s in samples]
    return entries, [f"{sample.path}/{sample.key}.json" for sample in samples]


def _with_masks(samples: list[_Sample], where: str) -> tuple[list[_Sample], list[str]]:
    """Add masks to the media of samples, if every image has one; otherwise return a note.

    The first few masks are tested for class ids, because a single one may be damaged.
    """
    endings = [find_mask(sample.parts, sample.media.get("image")) for sample in samples]
    pairs = [(s, e) for s, e in zip(samples, endings, strict=True) if "image" in s.media]
    masked = [(sample, ending) for sample, ending in pairs if ending]
    if not any(holds_ids(*sample.load(ending)) for sample, ending in masked[:MASKS_TRIED]):
        return samples, []
    if len(masked) < len(pairs):
        lacking = next(sample.id for sample, ending in pairs if not ending)
        return samples, [
            f"{where}: only {len(masked)} of {len(pairs)} images have a mask, so masks are not "
            f"read; one without a mask is {lacking}"
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
    """Return the samples of all tars, and the names of members that belong to no sample."""
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
    """Return the members of a tar by key and ending, and names of those without a sample."""
    kept = [member for member in members if not is_system_member(member.name)]
    places, lost = place_members([member.name for member in kept])
    samples: dict[str, dict[str, Member]] = {}
    for member, (key, ending) in zip(kept, places, strict=True):
        parts = samples.setdefault(compose(key), {})
        if ending in parts:
            raise DataError(
                f"{shard}: contains {member.name!r} twice; keys must be unique within a tar"
            )
        parts[ending] = member
    return samples, lost


def _read_labels(
    samples: Sequence[_Sample], kind: str, num_classes: int
) -> NDArray[np.int64] | None:
    """Return the class of every sample, or None if no sample has one."""
    labels = [_read_label(sample, num_classes) for sample in samples]
    known = [label for label in labels if label is not None]
    if not known:
        return None
    if len(known) < len(labels):
        first = samples[labels.index(None)]
        raise DataError(
            f"{first.path}/{first.media[kind].name}: has no label, but {len(known)} other samples "
            f"have one; give every sample a .cls (or a .json with a 'label'), or none of them"
        )
    return np.array(known, np.int64)


def _read_label(sample: _Sample, num_classes: int) -> int | None:
    """Return the class of a sample; None without a label."""
    part = next((part for part in ("cls", "json") if part in sample.parts), None)
    if part is None:
        return None
    data, where = sample.load(part)
    value = decode_text(data, where).strip() if part == "cls" else parse_json(data, where)
    if isinstance(value, dict):
        if "label" not in value:
            return None
        value = value["label"]
    # Without class names, a label may be any integer; with names, it is an index into them.
    label = read_int(value, f"{where}: the label")
    if num_classes and not 0 <= label < num_classes:
        raise DataError(
            f"{where}: label {label} is out of range; labels are 0..{num_classes - 1} (classes.txt "
            f"has {num_classes} names)"
        )
    return label
