"""When the frames of a video file are shown, read from its packets without decoding.

Legend: n frames.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceivers.data.containers import first_stream, is_timed
from perceivers.errors import DataError

# A healthy file may end this much, in seconds, before its stated end.
MAX_MISSING = 0.5
# How far a stated rate may be off, as a factor, and still be that of the frames.
MAX_OFF = 1.05


@dataclass(frozen=True)
class FrameTimes:
    """The frames of one file in the order they are shown.

    Args:
        seconds: When each frame is shown ``[n]``, ascending, in the container's time.
        rate: Frames per second.
        stamps: The same times in the units of the stream ``[n]``; none where the container does
            not state them, as AVI: its frames are counted from the first.
        keys: Numbers of the frames at which decoding can begin, ascending.
    """

    seconds: NDArray[np.float64]
    rate: float
    stamps: NDArray[np.int64]
    keys: NDArray[np.int64]

    def __len__(self) -> int:
        """Count the frames."""
        return len(self.seconds)

    def nearest(self, instants: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the number of the frame nearest to each instant in seconds; the earlier of two."""
        middles = (self.seconds[1:] + self.seconds[:-1]) / 2
        # Halves of rounded times are no exact ties.
        return np.searchsorted(middles, instants - 1e-6 / self.rate).astype(np.int64)

    def key_before(self, number: int) -> int:
        """Return the last frame, not after ``number``, at which decoding can begin."""
        earlier = self.keys[self.keys <= number]
        return int(earlier[-1]) if len(earlier) else 0

    def find(self, stamp: int | None, count: int) -> int:
        """Return the number of a decoded frame, -1 if there is none at its time.

        Args:
            stamp: Its time in the units of the stream.
            count: Frames decoded before it, which is its number where times are not stated.
        """
        if not len(self.stamps):
            return count
        if stamp is None:
            return -1
        place = int(np.searchsorted(self.stamps, stamp))
        return place if place < len(self.stamps) and self.stamps[place] == stamp else -1


def read_frame_times(container: Any, path: str) -> FrameTimes:
    """Read the times of all frames; the container is at its end afterwards.

    Raises:
        DataError: There is no video, or the file ends before its stated end.
    """
    stream = first_stream(container, "video", path)
    found: list[tuple[int | None, bool]] = []
    num_packets, end = 0, 0.0
    for packet in container.demux():
        if not packet.size:
            continue
        if packet.is_corrupt:
            raise DataError(f"{path}: a part of the content is missing; the file was cut short")
        if packet.pts is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream_index == stream.index:
            num_packets += 1
            if not packet.is_discard:
                found.append((packet.pts, packet.is_keyframe))
    if not found:
        raise DataError(f"{path}: the video holds no frames; the file is damaged or cut short")
    if is_timed(container):
        _check_end(container, stream, num_packets, end, path)
        stated = sorted((stamp, is_key) for stamp, is_key in found if stamp is not None)
        if len({stamp for stamp, _ in stated}) == len(found):
            return _stated_times(stream, stated)
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    if not rate:
        raise DataError(f"{path}: states neither times nor a rate of its frames; encode it as .mp4")
    none = np.zeros(0, np.int64)
    return FrameTimes(np.arange(len(found)) / rate, rate, none, np.zeros(1, np.int64))


def _stated_times(stream: Any, stated: list[tuple[int, bool]]) -> FrameTimes:
    """Return the times of sorted packets."""
    stamps = np.array([stamp for stamp, _ in stated], np.int64)
    seconds = (stamps * float(stream.time_base)).astype(np.float64)
    rate = float(stream.average_rate or 0)
    # The rate of a single frame is of no consequence.
    measured = (len(stated) - 1) / (seconds[-1] - seconds[0]) if len(stated) > 1 else rate or 1.0
    if not 1 / MAX_OFF <= rate / measured <= MAX_OFF:
        # Frames that are shown for different times have no rate that a header could state.
        rate = float(measured)
    keys = np.flatnonzero([is_key for _, is_key in stated]).astype(np.int64)
    return FrameTimes(seconds, rate, stamps, keys)


def _check_end(container: Any, stream: Any, num_packets: int, end: float, path: str) -> None:
    """Compare what was found with what the header states."""
    if num_packets < stream.frames:
        raise DataError(
            f"{path}: ends after {num_packets} of {stream.frames} frames; the file was cut short"
        )
    stated = (container.duration or 0) / 1e6
    if end < stated - MAX_MISSING:
        raise DataError(f"{path}: ends after {end:.2f} of {stated:.2f} s; the file was cut short")
