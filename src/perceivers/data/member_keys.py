"""Which member of a tar belongs to which sample: where a name's key ends and its ending begins.

As a rule at the first dot, as in WebDataset: ``KEY.jpg``, ``KEY.seg.png``, ``KEY.cls``. Where what
follows is no ending that is understood, either the key holds dots, as in ``photo.v1.2.jpg``, or the
ending says more than it must, as in ``KEY.image.jpg`` beside ``KEY.cls``; the files that share the
part before the first dot, the stem, say which.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from perceivers.data.containers import EXTENSIONS
from perceivers.data.masks import MASK_ENDINGS, MASK_NAME
from perceivers.data.member_kinds import MEMBERS

LABEL_ENDINGS = ("cls", "json")
LABEL = "label"
KINDS: Mapping[str, str] = {
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
MAX_NAMED = 3


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
        if place.ending not in KINDS and (found := _split_later(names[number])) is not None
    }
    if not dotted:
        return places, []
    by_stem: dict[str, list[int]] = defaultdict(list)
    for number in dotted:
        by_stem[places[number].key].append(number)
    plain: dict[str, set[str]] = defaultdict(set)
    for stem, ending in places:
        if stem in by_stem and ending in KINDS:
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
    shown = ", ".join(lost[:MAX_NAMED]) + (", ..." if len(lost) > MAX_NAMED else "")
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
        if ending in KINDS:
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
    held = {KINDS[ending] for ending in plain}
    if not held.isdisjoint(EXTENSIONS):
        return moved  # A sample as it is.
    by_kind: dict[str, list[int]] = defaultdict(list)
    for number, name in rest.items():
        by_kind[KINDS[name.ending]].append(number)
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
