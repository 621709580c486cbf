"""Which columns of a table are modalities, by their names and by the endings of their cells."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from perceivers.data.containers import EXTENSIONS, POINT_EXTENSIONS, name_kind
from perceivers.data.masks import MASK_ENDINGS, MASK_NAME
from perceivers.data.texts import TEXT_EXTENSION
from perceivers.errors import DataError

TEXT = "text"
# Columns of these names are modalities; what models call texts is "bytes".
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
# A column of which none of the first cells ends like a file holds none.
LOOKED_AT = 1000


def kind_of_name(path: str) -> str | None:
    """Return the kind of the file at a path by its ending; None where it is not known."""
    name = re.split(r"[/\\]", path.partition("?")[0])[-1]
    if name.lower().endswith(TEXT_EXTENSION):
        return "bytes"
    return name_kind(name)


def find_kinds(columns: Mapping[str, Sequence[Any]]) -> tuple[dict[str, str], list[str]]:
    """Return the kind of each column that is a modality, and notes on those that almost are.

    A column is one by its name, unless it holds numbers; or because all of its cells that are not
    empty end like files of one kind.

    Args:
        columns: The cells by column.
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
            what = f"but {str(odd)[:40]!r} is none" if None in found else "of several kinds"
            notes.append(
                f"column {name!r} is no modality: cells end like files ({', '.join(present)}), "
                f"{what}"
            )
    return kinds, notes


def name_modalities(kinds: Mapping[str, str]) -> dict[str, str]:
    """Return the modality that each column becomes.

    The only column of a kind is that kind, and so is a column that is called so; of several, as of
    two cameras, the others keep their names.
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
    """Return the kind of the file that a cell may name."""
    return kind_of_name(value) if isinstance(value, str) else None


def is_empty(value: Any) -> bool:
    """Tell whether a cell holds nothing."""
    return value is None or (isinstance(value, str) and not value.strip())


def is_number(value: Any) -> bool:
    """Tell whether a cell is one number, as such or as text."""
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


# -- Which files of a tar's samples are read: the kinds that most samples hold together ----------

# Arrays beside other members are as often features of them as points.
MEMBERS = {
    **EXTENSIONS,
    "points": tuple(ending for ending in POINT_EXTENSIONS if ending != ".npy"),
    "bytes": (".txt",),
}
MAX_NAMED = 5
NOUNS = {
    "image": "picture",
    "audio": "sound",
    "video": "video",
    "points": "point cloud",
    "bytes": "text",
    MASK_NAME: "mask",
}


@runtime_checkable
class HeldFiles(Protocol):
    """The files of one key: all of them by ending, and those that may be read by kind."""

    @property
    def key(self) -> str:
        """What their names share."""
        ...

    @property
    def parts(self) -> Mapping[str, Any]:
        """All files."""
        ...

    @property
    def media(self) -> Mapping[str, Any]:
        """Of each kind the first that there is."""
        ...


def choose_media(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return of each kind the first file that there is.

    Args:
        parts: The files of one key, by ending.
    """
    return {
        kind: parts[present[0]]
        for kind, extensions in MEMBERS.items()
        if (present := [e[1:] for e in extensions if e[1:] in parts])
    }


def choose_kinds(found: Sequence[HeldFiles], where: str) -> tuple[tuple[str, ...], list[str]]:
    """Return the kinds of files that most samples hold together, and notes on the rest.

    Args:
        found: The samples.
        where: Their tars, for messages.

    Raises:
        DataError: No sample holds a file of a known kind.
    """
    # A text describes other media more often than not, so it decides only where it is alone.
    held = Counter(
        tuple(k for k in EXTENSIONS if k in s.media) or ("bytes",) for s in found if s.media
    )
    if not held:
        extensions = Counter(extension for sample in found for extension in sample.parts)
        shown = ", ".join(repr(name) for name, _ in extensions.most_common(MAX_NAMED))
        more = f" and {len(extensions) - MAX_NAMED} more" if len(extensions) > MAX_NAMED else ""
        raise DataError(
            f"{where}: no pictures, sounds, videos or texts; extensions found (from the first dot "
            f"of a name on): {shown or 'none'}{more}, understood: "
            f"{', '.join(e for group in MEMBERS.values() for e in group)}"
        )
    kinds = held.most_common(1)[0][0]
    samples = [sample for sample in found if all(kind in sample.media for kind in kinds)]
    notes: list[str] = []
    if len(samples) < len(found):
        nouns = " and a ".join(NOUNS[kind] for kind in kinds)
        ignored = [s.key for s in found if not all(kind in s.media for kind in kinds)]
        shown = ", ".join(ignored[:MAX_NAMED]) + (", ..." if len(ignored) > MAX_NAMED else "")
        notes.append(f"{where}: {len(ignored)} samples without a {nouns} were ignored: {shown}")
    for kind in (*MEMBERS, MASK_NAME):
        count = sum(kind in sample.media for sample in samples)
        if kind not in kinds and count == len(samples):
            kinds = (*kinds, kind)
        elif kind not in kinds and count:
            notes.append(
                f"{where}: only {count} of {len(samples)} samples have a {NOUNS[kind]}, so it is "
                f"left out"
            )
    for kind in (kind for kind in kinds if kind in MEMBERS):
        endings = [extension[1:] for extension in MEMBERS[kind]]
        count = sum(sum(e in sample.parts for e in endings) > 1 for sample in samples)
        if count:
            notes.append(
                f"{where}: {count} samples hold several {NOUNS[kind]}s; the one whose extension "
                f"comes first in {', '.join(MEMBERS[kind])} is read"
            )
    return kinds, notes


# ------------------------------------------------------------------------------------------------
# Which member of a tar belongs to which sample: where a name's key ends and its ending begins.
#
# As a rule at the first dot, as in WebDataset: ``KEY.jpg``, ``KEY.seg.png``, ``KEY.cls``. Where
# what follows is no ending that is understood, either the key holds dots, as in
# ``photo.v1.2.jpg``, or the ending says more than it must, as in ``KEY.image.jpg`` beside
# ``KEY.cls``; the files that share the part before the first dot, the stem, say which.

LABEL_ENDINGS = ("cls", "json")
LABEL = "label"
MEMBER_KINDS: Mapping[str, str] = {
    **dict.fromkeys(LABEL_ENDINGS, LABEL),
    **dict.fromkeys(MASK_ENDINGS, MASK_NAME),
    **{ending[1:]: kind for kind, endings in MEMBERS.items() for ending in endings},
}
# What an ending that says more than it must calls the file that is meant.
WORDS: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "img", "rgb", "photo", "picture", "input"),
    "audio": ("audio", "sound", "speech", "input"),
    "video": ("video", "clip", "frames", "input"),
    "points": ("points", "cloud", "input"),
    "bytes": ("text", "caption", "input"),
    MASK_NAME: (MASK_NAME, "seg", "target"),
    LABEL: (LABEL, "class", "target"),
}
MAX_NAMED_KEYS = 3


class Place(NamedTuple):
    """Where a member belongs: its sample's key and its ending there, in lower case."""

    key: str
    ending: str


class _Dotted(NamedTuple):
    """A name whose ending is only understood after another dot than the first."""

    key: str
    words: str
    ending: str


def place_members(names: Sequence[str]) -> tuple[list[Place], list[str]]:
    """Return where each member belongs, and names of those that are lost.

    Lost are files of a kind that is understood which lie beside the sample of their stem, without
    being samples of their own.

    Args:
        names: Paths in the tar, of files that are data.
    """
    places = [_split(name) for name in names]
    dotted = {
        number: found
        for number, place in enumerate(places)
        if place.ending not in MEMBER_KINDS and (found := _split_later(names[number])) is not None
    }
    if not dotted:
        return places, []
    by_stem: dict[str, list[int]] = defaultdict(list)
    for number in dotted:
        by_stem[places[number].key].append(number)
    plain: dict[str, set[str]] = defaultdict(set)
    for stem, ending in places:
        if stem in by_stem and ending in MEMBER_KINDS:
            plain[stem].add(ending)
    lost: list[str] = []
    for stem, numbers in by_stem.items():
        moved = _settle({n: dotted[n] for n in numbers}, stem, plain[stem])
        for number in numbers:
            if number in moved:
                places[number] = moved[number]
            else:
                lost.append(names[number])
    return places, lost


def describe_lost(lost: Sequence[str], where: str) -> list[str]:
    """Say which files belong to no sample.

    Args:
        lost: Their names.
        where: The tars.
    """
    if not lost:
        return []
    shown = ", ".join(lost[:MAX_NAMED_KEYS]) + (", ..." if len(lost) > MAX_NAMED_KEYS else "")
    return [
        f"{where}: {len(lost)} files are not read, because their endings (from the first dot on) "
        f"are not understood and a sample of the same name lies beside them: {shown}"
    ]


def _split(name: str) -> Place:
    """Split a name at the first dot behind its folders."""
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return Place(f"{folder}{slash}{stem}", ending.lower())


def _split_later(name: str) -> _Dotted | None:
    """Split a name before its longest known ending; None without one."""
    folder, slash, base = name.rpartition("/")
    stem, *words = base.split(".")
    for count in range(1, len(words)):
        ending = ".".join(words[count:]).lower()
        if ending in MEMBER_KINDS:
            said = ".".join(words[:count])
            return _Dotted(f"{folder}{slash}{stem}.{said}", said.lower(), ending)
    return None


def _settle(found: Mapping[int, _Dotted], stem: str, plain: set[str]) -> dict[int, Place]:
    """Return where the files of one stem with later endings belong, of those that are not lost.

    Args:
        found: By number of the member.
        stem: What they share up to the first dot.
        plain: Endings at the first dot that are understood, of the same stem.
    """
    groups: dict[str, set[str]] = defaultdict(set)
    for name in found.values():
        groups[name.key].add(name.ending)
    labelled = not plain.isdisjoint(LABEL_ENDINGS)
    # What looks just like the labelled sample of the stem is a sample too.
    own = {key for key, endings in groups.items() if labelled and endings == plain}
    moved = {n: Place(name.key, name.ending) for n, name in found.items() if name.key in own}
    rest = {n: name for n, name in found.items() if name.key not in own}
    held = {MEMBER_KINDS[ending] for ending in plain}
    if not held.isdisjoint(EXTENSIONS):
        return moved  # A sample as it is.
    by_kind: dict[str, list[int]] = defaultdict(list)
    for number, name in rest.items():
        by_kind[MEMBER_KINDS[name.ending]].append(number)
    meant = {kind: _find_meant(kind, numbers, rest) for kind, numbers in by_kind.items()}
    keys = {name.key for name in rest.values()}
    named = any(n is not None and rest[n].words in WORDS[k] for k, n in meant.items())
    divided = len(keys) > 1 and None not in meant.values()
    if not plain and not named and not divided:
        return {n: Place(name.key, name.ending) for n, name in rest.items()}
    for kind, number in meant.items():
        if number is not None and kind not in held:
            moved[number] = Place(stem, rest[number].ending)
    return moved


def _find_meant(kind: str, numbers: Sequence[int], found: Mapping[int, _Dotted]) -> int | None:
    """Return the only file of a kind, or the only one that is called so; None where it is open."""
    if len(numbers) == 1:
        return numbers[0]
    called = [number for number in numbers if found[number].words in WORDS[kind]]
    return called[0] if len(called) == 1 else None
