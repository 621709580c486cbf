"""Which files of a tar's samples are read: the kinds that most samples hold together."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from perceivers.data.containers import EXTENSIONS, POINT_EXTENSIONS
from perceivers.data.masks import MASK_NAME
from perceivers.errors import DataError

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
