"""Which videos carry a sound track: looked at in their headers when data are opened.

Of very many videos only some are looked at, so that data open quickly; the others are looked at
when they are read.

Legend: n samples.
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from perceivers.errors import DataError

HEARD, SILENT, UNSEEN = 1, 0, -1
# Opening a video takes about a millisecond.
MAX_OPENED = 1024
# Where a look loads a whole file, perhaps from a server.
MAX_LOADED = 16
# Of each sample ``[n]``, one of the three above.
Tracks = NDArray[np.int8]


def find_tracks(
    films: Mapping[str, NDArray[np.bool_]], look: Callable[[str, int], bool], limit: int
) -> dict[str, Tracks] | None:
    """Tell by split which samples have a video with sound; None where none of training has.

    Videos that cannot be opened count as heard: they are named when they are read.

    Args:
        films: Which samples have a video ``[n]``, by split; ``train`` is among them.
        look: Tells of the video of one sample of a split.
        limit: Videos that are looked at, spread evenly over all.

    Raises:
        DataError: None of those looked at can be opened; the first reason.
    """
    places = [(s, int(row)) for s, held in films.items() for row in np.flatnonzero(held)]
    if not places:
        return None
    found = {s: np.where(held, UNSEEN, SILENT).astype(np.int8) for s, held in films.items()}
    chosen = np.unique(np.linspace(0, len(places) - 1, limit).round().astype(int)).tolist()
    reasons: list[str] = []
    heard = False
    for split, row in (places[number] for number in chosen):
        try:
            has_track = look(split, row)
        except DataError as error:
            reasons.append(str(error))
            has_track = True
        else:
            heard |= has_track and split == "train"
        found[split][row] = HEARD if has_track else SILENT
    if len(reasons) == len(chosen):
        raise DataError(
            f"none of the {len(reasons)} videos looked at can be opened; the first: {reasons[0]}"
        )
    return found if heard else None


def describe_tracks(
    films: Mapping[str, NDArray[np.bool_]], found: Mapping[str, Tracks] | None
) -> list[str]:
    """Say how many videos are silent where others are not, and how many were not looked at.

    Args:
        films: Which samples have a video ``[n]``, by split.
        found: From ``find_tracks``.
    """
    total = sum(int(held.sum()) for held in films.values())
    if found is None:
        return []
    silent = sum(int((found[split][held] == SILENT).sum()) for split, held in films.items())
    unseen = sum(int((codes == UNSEEN).sum()) for codes in found.values())
    if not silent:
        return []
    rest = f"; {unseen} more are looked at when they are read" if unseen else ""
    return [f"{silent} of {total - unseen} videos have no sound track: samples without sound{rest}"]


def is_heard(tracks: Tracks | None, index: int) -> bool | None:
    """Tell whether a sample's video is its sound too; None where that is to be looked at."""
    if tracks is None:
        return False
    return None if tracks[index] == UNSEEN else bool(tracks[index])


def are_known(tracks: Iterable[Tracks | None]) -> bool:
    """Tell whether all videos were looked at."""
    return not any(held is not None and (held == UNSEEN).any() for held in tracks)


def lack_sound(tracks: Iterable[Tracks | None]) -> bool:
    """Tell whether some samples have, or may have, no sound while others have."""
    return any(held is not None and (held != HEARD).any() for held in tracks)
