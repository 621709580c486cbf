"""Video files to clips of exactly the shape a spec declares, with the sound of the same moments.

The times of all frames are read from the packets first, once for a long file; then only the frames
from the key frame before the clip to its end are decoded. Pixels are taken to be square.

Legend: C channels, T frames, H W rows and columns, S samples of the spec.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from math import atan2, degrees
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from perceivers.data.audio_clips import fit_audio_from, read_rate, read_sound_info
from perceivers.data.containers import (
    file_version,
    first_stream,
    load_library,
    open_container,
)
from perceivers.data.frame_times import FrameTimes, read_frame_times
from perceivers.data.frames import FrameFitter
from perceivers.data.sources import EncodedClip
from perceivers.data.views import PLAIN, Look
from perceivers.errors import DataError
from perceivers.types import Audio, Video

TURNS = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}


def native_video(clip: EncodedClip) -> Video:
    """Describe a video file: all its frames, upright, at its own rate.

    Raises:
        DataError: The file is damaged or holds no video.
    """
    with open_container(clip) as container:
        times = _frame_times(container, clip)
        (frame,) = _decode(container, clip, times, [0])
        width, height = _make_converter()(frame).size
    return Video(len(times), height, width, 3, frame_rate=float(f"{times.rate:.6g}"))


def fit_video(clip: EncodedClip, spec: Video, look: Look = PLAIN) -> NDArray[np.uint8]:
    """Decode a part of a video file.

    Frames are those nearest to instants at ``spec.frame_rate``, or consecutive ones if that is 0.
    The last frame is repeated to fill a spec that is longer than the file. Every frame shows the
    same box: the largest undistorted one in its middle, where nothing else is asked for.

    Args:
        clip: The file.
        spec: The shape to reach; 1 (gray) or 3 (RGB) channels.
        look: Where the part begins, with one draw whatever the file, and what is seen of every
            frame; or fixed places of both.

    Returns:
        Clip ``[C, T, H, W]``.

    Raises:
        DataError: The file is damaged, holds no video, or its frames change their size; or the spec
            has other channels.
    """
    with open_container(clip) as container:
        times = _frame_times(container, clip)
        return _draw(container, clip, spec, times, _choose_start(times, spec, 0.0, look), look)


def fit_clip(
    clip: EncodedClip,
    video_spec: Video,
    audio_spec: Audio,
    look: Look = PLAIN,
    *,
    sound: EncodedClip | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Decode picture and sound that begin at the same moment, that of a frame.

    The longer of the two spans is placed as in ``fit_video``: in the centre, or at random.

    Args:
        clip: The video file.
        video_spec: As for ``fit_video``.
        audio_spec: As for ``fit_audio``.
        look: Where both begin, with one draw whatever the file, and what is seen of every frame;
            or fixed places of both. Nothing changes the sound.
        sound: A file whose sound begins with the video file; None uses the file's own sound track.

    Returns:
        Clip ``[C, T, H, W]`` and waveform ``[C, S]``.

    Raises:
        DataError: As ``fit_video`` and ``fit_audio``.
    """
    sound = clip if sound is None else sound
    info = read_sound_info(sound)
    with open_container(clip) as container:
        times = _frame_times(container, clip)
        span = audio_spec.samples / read_rate(info, audio_spec)
        first = _choose_start(times, video_spec, span, look)
        video = _draw(container, clip, video_spec, times, first, look)
    seconds = times.seconds[first] - (0.0 if sound is clip else times.seconds[0])
    return video, fit_audio_from(sound, info, audio_spec, float(seconds))


def _frame_times(container: Any, clip: EncodedClip) -> FrameTimes:
    """Return the times of all frames, those of long files once for all."""
    version = file_version(clip)
    return read_frame_times(container, clip.path) if version is None else _remember_times(version)


# Two hours of film take 3 MB.
@lru_cache(maxsize=32)
def _remember_times(version: tuple[str, int, int]) -> FrameTimes:
    """Read the times of a file's frames."""
    clip = EncodedClip(version[0], None, "video")
    with open_container(clip) as container:
        return read_frame_times(container, clip.path)


def _choose_start(times: FrameTimes, spec: Video, span: float, look: Look) -> int:
    """Return the frame to begin at, so that the clip and at least ``span`` seconds fit, if any do.

    Spans may end half a frame late, because times are rounded.
    """
    span = max(span, spec.frames / (spec.frame_rate or times.rate))
    late = times.seconds[-1] + 1.5 / times.rate - span
    fitting = int(np.searchsorted(times.seconds, late, side="right"))
    if not spec.frame_rate:
        fitting = min(fitting, len(times) - spec.frames + 1)
    return look.start(max(1, fitting))


def _draw(
    container: Any, clip: EncodedClip, spec: Video, times: FrameTimes, first: int, look: Look
) -> NDArray[np.uint8]:
    """Decode the frames of a clip and fit them to the spec."""
    if spec.channels not in {1, 3}:
        raise DataError(
            f"{clip.path}: video files give 1 (gray) or 3 (RGB) channels, not {spec.channels}; "
            f"give other counts as arrays in an .npz file"
        )
    if spec.frame_rate:
        chosen = times.nearest(times.seconds[first] + np.arange(spec.frames) / spec.frame_rate)
    else:
        chosen = np.minimum(first + np.arange(spec.frames), len(times) - 1)
    numbers, places = np.unique(chosen, return_inverse=True)
    convert, fit = _make_converter(), FrameFitter(spec, look)
    decoded = _decode(container, clip, times, numbers.tolist())
    frames = [fit(convert(frame)) for frame in decoded]
    return np.stack([frames[place] for place in places], axis=1)


def _decode(
    container: Any, clip: EncodedClip, times: FrameTimes, numbers: list[int]
) -> Iterator[Any]:
    """Yield the frames of some ascending numbers."""
    frames = _decode_from(container, clip.path, times, times.key_before(numbers[0]))
    number, frame = next(frames)
    if number > numbers[0]:  # The container did not go back far enough.
        frames = _decode_from(container, clip.path, times, 0)
        number, frame = next(frames)
    for wanted in numbers:
        while number < wanted:
            number, frame = next(frames)
        if number > wanted:
            raise DataError(
                f"{clip.path}: frame {wanted} of {len(times)} cannot be decoded; the file is "
                f"damaged"
            )
        yield frame


def _decode_from(
    container: Any, path: str, times: FrameTimes, start: int
) -> Iterator[tuple[int, Any]]:
    """Yield numbered frames, checked, from a key frame at or before ``start`` on."""
    stream = first_stream(container, "video", path)
    container.seek(int(times.stamps[start]) if len(times.stamps) else 0, stream=stream)
    size: tuple[int, int] | None = None
    for count, frame in enumerate(container.decode(stream)):
        number = times.find(frame.pts, count)
        if number < start:
            continue  # Shown before the key frame, and lacking what it is made from.
        size = size or (frame.width, frame.height)
        if (frame.width, frame.height) != size:
            raise DataError(
                f"{path}: the size changes from {size[0]}x{size[1]} to "
                f"{frame.width}x{frame.height} at frame {number}; encode the file again at one size"
            )
        if frame.is_corrupt:
            raise DataError(f"{path}: frame {number} is damaged; replace the file")
        yield number, frame
    raise DataError(
        f"{path}: fewer frames can be decoded than the {len(times)} it holds; the file is damaged "
        f"or cut short"
    )


def _make_converter() -> Callable[[Any], Image.Image]:
    """Return a function from frames of one file to RGB pictures, turned as the file says."""
    # One reformatter for all frames: setting it up takes longer than a small frame.
    reformatter = load_library("av").video.reformatter.VideoReformatter()

    def convert(frame: Any) -> Image.Image:
        """Convert one frame."""
        picture = Image.fromarray(reformatter.reformat(frame, format="rgb24").to_ndarray())
        matrix = frame.side_data.get("DISPLAYMATRIX")
        if matrix is None:
            return picture
        # The first row of the rotation; the matrix turns clockwise, Pillow counter-clockwise.
        right, down = np.frombuffer(bytes(matrix), np.int32)[:2].tolist()
        turn = round(-degrees(atan2(down, right)) / 90) * 90 % 360
        return picture.transpose(TURNS[turn]) if turn else picture

    return convert
