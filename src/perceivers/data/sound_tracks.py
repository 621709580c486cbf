"""Sound tracks of videos, as a column of their own beside the videos.

Legend: n rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perceivers.data.audio_clips import (
    HEARD,
    MAX_LOADED,
    MAX_OPENED,
    SILENT,
    UNSEEN,
    Tracks,
    describe_tracks,
    find_tracks,
)
from perceivers.data.containers import has_track, open_container
from perceivers.data.row_source import Column, Part, Raw
from perceivers.data.sources import Encoded


@dataclass(frozen=True, eq=False)
class TrackCells(Column):
    """The sound tracks of videos.

    Args:
        videos: Cells with the video files.
        tracks: Which of them have a sound track ``[n]``.
        assumed: Whether videos that were not checked count as heard until they are read.
    """

    videos: Column
    tracks: Tracks
    assumed: bool = False

    @property
    def is_files(self) -> bool:
        """Whether cells are undecoded files."""
        return True

    def find_present(self) -> NDArray[np.bool_]:
        """Return which videos have, or may have, a sound track ``[n]``."""
        return self.tracks != SILENT

    def are_sure(self, rows: NDArray[np.int64]) -> bool:
        """Return whether some videos were all checked for sound."""
        return self.assumed or not (self.tracks[rows] == UNSEEN).any()

    def locate(self, row: int) -> tuple[Column, int]:
        """Return where the video file is loaded from."""
        return self.videos.locate(row)

    def derive(self, row: int, raw: Raw) -> Raw | None:
        """Return the video file, if it has a sound track.

        Raises:
            DataError: A video that was not checked for sound cannot be opened.
        """
        assert isinstance(raw, Encoded), row
        if self.tracks[row] == UNSEEN:
            with open_container(raw) as container:
                return raw if has_track(container) else None
        return raw


def add_sound(
    parts: Mapping[str, Mapping[str, Part]], *, last: bool = False
) -> tuple[dict[str, dict[str, Part]], list[str]]:
    """Add the sound tracks of videos as ``audio``, and return notes.

    Nothing is added to data with audio, with several video columns, or without sound in training.

    Args:
        parts: Modalities by split, including ``train``.
        last: Add ``audio`` as the last modality; otherwise it follows the videos, unless samples
            may lack a modality.

    Raises:
        DataError: None of the checked videos can be opened.
    """
    found = {split: dict(held) for split, held in parts.items()}
    kinds = {split: [part.kind for part in held.values()] for split, held in parts.items()}
    if any("audio" in held or held.count("video") > 1 for held in kinds.values()):
        return found, []
    cells = {split: held["video"].cells for split, held in parts.items() if "video" in held}
    videos = {split: held.present for split, held in cells.items()}
    limit = MAX_OPENED if all(held.is_local for held in cells.values()) else MAX_LOADED
    tracks = find_tracks(videos, lambda split, row: cells[split].has_track(row), limit)
    if tracks is None:
        return found, []
    everything = [part.cells.present for held in parts.values() for part in held.values()]
    whole = all((held == HEARD).all() for held in tracks.values())
    beside = not last and whole and all(present.all() for present in everything)
    for split, held in cells.items():
        sound = {"audio": Part("audio", TrackCells(held, tracks[split]))}
        before = list(found[split]).index("video") + 1 if beside else len(found[split])
        items = list(found[split].items())
        found[split] = {**dict(items[:before]), **sound, **dict(items[before:])}
    return found, describe_tracks(videos, tracks)
