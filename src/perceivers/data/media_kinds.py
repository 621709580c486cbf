"""Detection of media kinds: columns of tables, and members of WebDataset tars."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from perceivers.data.containers import name_kind
from perceivers.data.masks import MASK_ENDINGS, MASK_NAME
from perceivers.data.modality import FOLDER_ENDINGS, NOUNS, TAR_ENDINGS, modalities
from perceivers.data.texts import TEXT_EXTENSION
from perceivers.errors import DataError

TEXT = "text"
# Columns with these names are modalities. Texts are the modality "bytes".
KINDS = {
    "image": "image",
    "audio": "audio",
    "video": "video",
    "points": "points",
    "array": "array",
    MASK_NAME: MASK_NAME,
    TEXT: "bytes",
}
# Cells of these columns may be lists of numbers.
LISTED = ("points", "array", "audio")
# A column is not a modality if none of its first cells looks like a media file.
LOOKED_AT = 1000


def kind_of_name(path: str) -> str | None:
    """Return the media kind of a path by its extension; None if unknown."""
    name = re.split(r"[/\\]", path.partition("?")[0])[-1]
    if name.lower().endswith(TEXT_EXTENSION):
        return "bytes"
    return name_kind(name)


def find_kinds(columns: Mapping[str, Sequence[Any]]) -> tuple[dict[str, str], list[str]]:
    """Return the kind of each modality column, and notes on columns that are only similar to one.

    A column is a modality by its name, unless all cells are numbers; or because all its non-empty
    cells have file extensions of one kind.

    Args:
        columns: Cells by column.
    """
    kinds: dict[str, str] = {}
    notes: list[str] = []
    for name, values in columns.items():
        held = [value for value in values if not is_empty(value)]
        if name.lower() in KINDS:
            if held and not all(is_number(value) for value in held):
                kinds[name] = KINDS[name.lower()]
            elif not held:
                notes.append(f"column {name!r} is empty in every row, so it is left out")
            continue
        first = [_kind_of_cell(value) for value in held[:LOOKED_AT]]
        if not any(first):
            continue
        found = [*first, *map(_kind_of_cell, held[LOOKED_AT:])]
        present = sorted({kind for kind in found if kind is not None})
        if len(present) == 1 and None not in found:
            kinds[name] = present[0]
        elif present:
            odd = held[found.index(None)] if None in found else None
            what = f", but {str(odd)[:40]!r} does not" if None in found else " of several kinds"
            notes.append(
                f"column {name!r} is not a modality: its cells look like files "
                f"({', '.join(present)}){what}"
            )
    return kinds, notes


def name_modalities(kinds: Mapping[str, str]) -> dict[str, str]:
    """Return the modality name of each column.

    A column that is the only one of its kind, or is named after it, becomes that modality. Other
    columns of the same kind, such as a second camera, keep their own names.
    """
    of_kind = list(kinds.values())
    names: dict[str, str] = {}
    for column, kind in kinds.items():
        named = KINDS.get(column.lower()) == kind
        alone = of_kind.count(kind) == 1
        name = kind if named or alone else re.sub(r"\W", "_", column)
        names[column] = name
    return names


def _kind_of_cell(value: Any) -> str | None:
    return kind_of_name(value) if isinstance(value, str) else None


def is_empty(value: Any) -> bool:
    """Return whether a cell is None or blank text."""
    return value is None or (isinstance(value, str) and not value.strip())


def is_number(value: Any) -> bool:
    """Return whether a cell is a number, or text that can be parsed as one."""
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


# -- Which files of a tar's samples are read: the combination of kinds that most samples have ----

MAX_NAMED = 5


@runtime_checkable
class HeldFiles(Protocol):
    """The files of one tar sample."""

    @property
    def key(self) -> str:
        """Common part of the file names."""
        ...

    @property
    def parts(self) -> Mapping[str, Any]:
        """All files by ending."""
        ...

    @property
    def media(self) -> Mapping[str, Any]:
        """The file to read of each kind, see ``choose_media``."""
        ...


def choose_media(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the preferred file of each kind, in the order of its extensions.

    Args:
        parts: The files of one key, by ending.
    """
    return {
        kind: parts[present[0]]
        for kind, extensions in TAR_ENDINGS.items()
        if (present := [e[1:] for e in extensions if e[1:] in parts])
    }


def choose_kinds(found: Sequence[HeldFiles], where: str) -> tuple[tuple[str, ...], list[str]]:
    """Return the most common combination of media kinds, and notes on what is left out.

    Args:
        found: The samples.
        where: The tars, for messages.

    Raises:
        DataError: No sample has a file of a known kind.
    """
    # A text is usually a caption of other media, so it counts only if it is alone.
    held = Counter(
        tuple(k for k in FOLDER_ENDINGS if k in s.media) or ("bytes",) for s in found if s.media
    )
    if not held:
        extensions = Counter(extension for sample in found for extension in sample.parts)
        shown = ", ".join(repr(name) for name, _ in extensions.most_common(MAX_NAMED))
        more = f" and {len(extensions) - MAX_NAMED} more" if len(extensions) > MAX_NAMED else ""
        raise DataError(
            f"{where}: no images, audio, videos or texts; extensions found (from the first dot of "
            f"a name): {shown or 'none'}{more}; supported: "
            f"{', '.join(e for group in TAR_ENDINGS.values() for e in group)}"
        )
    kinds = held.most_common(1)[0][0]
    samples = [sample for sample in found if all(kind in sample.media for kind in kinds)]
    notes: list[str] = []
    if len(samples) < len(found):
        nouns = " and ".join(NOUNS[kind] for kind in kinds)
        ignored = [s.key for s in found if not all(kind in s.media for kind in kinds)]
        shown = ", ".join(ignored[:MAX_NAMED]) + (", ..." if len(ignored) > MAX_NAMED else "")
        notes.append(f"{where}: {len(ignored)} samples without {nouns} were ignored: {shown}")
    for kind in (*TAR_ENDINGS, MASK_NAME):
        count = sum(kind in sample.media for sample in samples)
        if kind not in kinds and count == len(samples):
            kinds = (*kinds, kind)
        elif kind not in kinds and count:
            notes.append(
                f"{where}: only {count} of {len(samples)} samples have {NOUNS[kind]}s, so these "
                f"are ignored"
            )
    for kind in (kind for kind in kinds if kind in TAR_ENDINGS):
        endings = [extension[1:] for extension in TAR_ENDINGS[kind]]
        count = sum(sum(e in sample.parts for e in endings) > 1 for sample in samples)
        if count:
            notes.append(
                f"{where}: {count} samples have several {NOUNS[kind]}s; the one whose extension "
                f"comes first in {', '.join(TAR_ENDINGS[kind])} is read"
            )
    return kinds, notes


# ------------------------------------------------------------------------------------------------
# Which member of a tar belongs to which sample: where the key of a name ends and the ending begins.
#
# Normally at the first dot, as in WebDataset: ``KEY.jpg``, ``KEY.seg.png``, ``KEY.cls``. If the
# rest is not a known ending, either the key contains dots, as in ``photo.v1.2.jpg``, or the ending
# has extra words, as in ``KEY.image.jpg`` next to ``KEY.cls``; the other files with the same stem
# (the part before the first dot) decide which.

LABEL_ENDINGS = ("cls", "json")
LABEL = "label"
# Extra words in an ending that identify a label, as "image" in KEY.image.jpg does an image.
LABEL_WORDS = (LABEL, "class", "target")
MAX_NAMED_KEYS = 3


class Place(NamedTuple):
    """Key of the sample that a member belongs to, and its ending there, in lower case."""

    key: str
    ending: str


def _member_kinds() -> dict[str, str]:
    """Return the kind of each known ending, without its dot."""
    return {
        **dict.fromkeys(LABEL_ENDINGS, LABEL),
        **dict.fromkeys(MASK_ENDINGS, MASK_NAME),
        **{ending[1:]: kind for kind, endings in TAR_ENDINGS.items() for ending in endings},
    }


def _words(kind: str) -> tuple[str, ...]:
    return LABEL_WORDS if kind == LABEL else modalities()[kind].words


class _Dotted(NamedTuple):
    """A name whose known ending starts after a later dot than the first."""

    key: str
    words: str
    ending: str


def place_members(names: Sequence[str]) -> tuple[list[Place], list[str]]:
    """Assign each member to a sample; also return the names of members that cannot be assigned.

    These are files of a known kind whose stem already belongs to another sample, but which do not
    form a sample of their own.

    Args:
        names: Paths of the data files in the tar.
    """
    kinds = _member_kinds()
    places = [_split(name) for name in names]
    dotted = {
        number: found
        for number, place in enumerate(places)
        if place.ending not in kinds and (found := _split_later(names[number], kinds)) is not None
    }
    if not dotted:
        return places, []
    by_stem: dict[str, list[int]] = defaultdict(list)
    for number in dotted:
        by_stem[places[number].key].append(number)
    plain: dict[str, set[str]] = defaultdict(set)
    for stem, ending in places:
        if stem in by_stem and ending in kinds:
            plain[stem].add(ending)
    lost: list[str] = []
    for stem, numbers in by_stem.items():
        moved = _settle({n: dotted[n] for n in numbers}, stem, plain[stem], kinds)
        for number in numbers:
            if number in moved:
                places[number] = moved[number]
            else:
                lost.append(names[number])
    return places, lost


def describe_lost(lost: Sequence[str], where: str) -> list[str]:
    """Return a note on files that belong to no sample.

    Args:
        lost: Names of the files.
        where: The tars.
    """
    if not lost:
        return []
    shown = ", ".join(lost[:MAX_NAMED_KEYS]) + (", ..." if len(lost) > MAX_NAMED_KEYS else "")
    return [
        f"{where}: {len(lost)} files are not read, because their endings (from the first dot) are "
        f"unknown and another sample has the same name: {shown}"
    ]


def _split(name: str) -> Place:
    """Split a path at the first dot of the file name."""
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return Place(f"{folder}{slash}{stem}", ending.lower())


def _split_later(name: str, kinds: Mapping[str, str]) -> _Dotted | None:
    """Split a name before its longest known ending; None if there is none."""
    folder, slash, base = name.rpartition("/")
    stem, *words = base.split(".")
    for count in range(1, len(words)):
        ending = ".".join(words[count:]).lower()
        if ending in kinds:
            said = ".".join(words[:count])
            return _Dotted(f"{folder}{slash}{stem}.{said}", said.lower(), ending)
    return None


def _settle(
    found: Mapping[int, _Dotted], stem: str, plain: set[str], kinds: Mapping[str, str]
) -> dict[int, Place]:
    """Assign the dotted members of one stem to samples; members that cannot be assigned are absent.

    Args:
        found: Names by member number.
        stem: Common part of the names up to the first dot.
        plain: Known endings at the first dot, of the same stem.
        kinds: Kind of each known ending.
    """
    groups: dict[str, set[str]] = defaultdict(set)
    for name in found.values():
        groups[name.key].add(name.ending)
    labelled = not plain.isdisjoint(LABEL_ENDINGS)
    # Files with the same endings as the labelled sample of the stem form a sample too.
    own = {key for key, endings in groups.items() if labelled and endings == plain}
    moved = {n: Place(name.key, name.ending) for n, name in found.items() if name.key in own}
    rest = {n: name for n, name in found.items() if name.key not in own}
    held = {kinds[ending] for ending in plain}
    if not held.isdisjoint(FOLDER_ENDINGS):
        return moved  # the stem is already a complete sample
    by_kind: dict[str, list[int]] = defaultdict(list)
    for number, name in rest.items():
        by_kind[kinds[name.ending]].append(number)
    meant = {kind: _find_meant(kind, numbers, rest) for kind, numbers in by_kind.items()}
    keys = {name.key for name in rest.values()}
    named = any(n is not None and rest[n].words in _words(k) for k, n in meant.items())
    divided = len(keys) > 1 and None not in meant.values()
    if not plain and not named and not divided:
        return {n: Place(name.key, name.ending) for n, name in rest.items()}
    for kind, number in meant.items():
        if number is not None and kind not in held:
            moved[number] = Place(stem, rest[number].ending)
    return moved


def _find_meant(kind: str, numbers: Sequence[int], found: Mapping[int, _Dotted]) -> int | None:
    """Return the only file of a kind, or the only one named after it; None if ambiguous."""
    if len(numbers) == 1:
        return numbers[0]
    called = [number for number in numbers if found[number].words in _words(kind)]
    return called[0] if len(called) == 1 else None
