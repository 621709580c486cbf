"""Video files to clips of exactly the shape a spec declares, with the sound of the same moments.

The times of all frames are read from the packets first, once for a long file; then only the frames
from the key frame before the clip to its end are decoded. They are seen as players show them: their
pixels in the shape that they have, and turned or mirrored as the file says.

Legend: C channels, T frames, H W rows and columns, S samples of the spec.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as ImageSpec
from PIL.Image import Image as Picture

from perceivers.data.audio_clips import fit_audio_from, read_rate, read_sound_info
from perceivers.data.augment import PLAIN, Look, View
from perceivers.data.containers import (
    file_version,
    first_stream,
    is_timed,
    load_library,
    open_container,
)
from perceivers.data.drawing import choose_view, draw_view, fit_array
from perceivers.data.pictures import convert_channels
from perceivers.data.rand_augment import as_picture, augment_crop
from perceivers.data.sources import EncodedClip
from perceivers.errors import DataError
from perceivers.types import Audio, Image, Video

# -- When the frames of a video file are shown, read from its packets without decoding -----------
#
# Legend: n frames.

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


# -- Frames of a clip, all of them looked at and changed alike -----------------------------------
#
# Legend: C channels, T frames, H W rows and columns.


class FrameFitter:
    """Fits the frames of one clip, one after the other, to uint8 ``[C, H, W]``.

    View and operations are drawn at the first frame. Operations that look at a picture, such as
    Equalize, look at each frame by itself.

    Args:
        spec: What the clip must look like; 1 (gray) or 3 (RGB) channels.
        look: What is seen of it.
    """

    def __init__(self, spec: Video, look: Look) -> None:
        self._spec, self._look = spec, look
        self._view: View | None = None
        self._seed = 0

    def __call__(self, picture: Picture) -> NDArray[np.uint8]:
        """Crop, change and resize one RGB or gray frame; all frames have the same size."""
        spec, look = self._spec, self._look
        target = (spec.width, spec.height)
        operates = look.rng is not None and look.augment.rand_augment > 0
        if self._view is None:
            self._view = choose_view(picture.size, target, look)
            if look.rng is not None and operates:
                self._seed = int(look.rng.integers(2**63))
        rng = np.random.default_rng(self._seed) if operates else None
        picture, view = augment_crop(picture, self._view, look.augment, rng)
        untouched = view.is_whole and not view.is_turned and not view.flip
        if not untouched or picture.size != target:
            picture = draw_view(picture, view, target)
        if spec.channels == 1:
            return np.asarray(picture.convert("L"))[None]
        return np.asarray(picture).transpose(2, 0, 1)


def fit_frames(frames: NDArray, spec: Video, look: Look = PLAIN) -> NDArray:
    """Fit ready frames: a part of them in order, each cropped and resized.

    The last frame is repeated to fill a spec that is longer. Their rate is not known, so frames
    are consecutive whatever ``spec.frame_rate``. What fits already and is not changed stays as it
    is.

    Args:
        frames: Clip ``[C, T, H, W]`` with the channels of the spec.
        spec: The shape to reach.
        look: What is seen of it.

    Raises:
        ConfigError: RandAugment of other than uint8 frames of 1 or 3 channels.
    """
    spare = frames.shape[1] - spec.frames
    if spare > 0:
        first = look.start(spare + 1)
        frames = frames[:, first : first + spec.frames]
    elif spare < 0:
        frames = np.pad(frames, ((0, 0), (0, -spare), (0, 0), (0, 0)), mode="edge")
    if look.rng is not None and look.augment.rand_augment:
        fit = FrameFitter(spec, look)
        return np.stack([fit(as_picture(frame)) for frame in frames.swapaxes(0, 1)], axis=1)
    channels, count, height, width = frames.shape
    view = choose_view((width, height), (spec.width, spec.height), look)
    stacked = frames.reshape(channels * count, height, width)  # [C * T, H, W]
    flat = Image(spec.height, spec.width, channels * count)
    if frames.dtype == np.int16:
        # Pillow cannot resample 16 bits with a sign.
        fitted = np.rint(fit_array(stacked.astype(np.float32), flat, view)).astype(np.int16)
    else:
        fitted = fit_array(stacked, flat, view)
    return fitted.reshape(channels, count, *flat.grid)


# -- Video files to clips of exactly the shape a spec declares -----------------------------------

# Where the axes of a stored frame point when it is shown: right (x, y), then down (x, y).
TURNS = {
    (0, -1, 1, 0): ImageSpec.Transpose.ROTATE_90,
    (-1, 0, 0, -1): ImageSpec.Transpose.ROTATE_180,
    (0, 1, -1, 0): ImageSpec.Transpose.ROTATE_270,
    (-1, 0, 0, 1): ImageSpec.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): ImageSpec.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): ImageSpec.Transpose.TRANSPOSE,
    (0, -1, -1, 0): ImageSpec.Transpose.TRANSVERSE,
}
# No camera has pixels that are longer; a file that says so is damaged.
MAX_PIXEL_RATIO = 16


def native_video(clip: EncodedClip) -> Video:
    """Describe a video file: all its frames, upright, at its own rate.

    Raises:
        DataError: The file is damaged or holds no video.
    """
    with open_container(clip) as container:
        times = _frame_times(container, clip)
        (frame,) = _decode(container, clip, times, [0])
        width, height = _make_converter(container, clip.path)(frame).size
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
    convert, fit = _make_converter(container, clip.path), FrameFitter(spec, look)
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


def _make_converter(container: Any, path: str) -> Callable[[Any], ImageSpec.Image]:
    """Return a function from frames of one file to RGB pictures as they are to be seen."""
    # One reformatter for all frames: setting it up takes longer than a small frame.
    reformatter = load_library("av").video.reformatter.VideoReformatter()
    ratio = first_stream(container, "video", path).sample_aspect_ratio or 1
    if not 1 / MAX_PIXEL_RATIO <= ratio <= MAX_PIXEL_RATIO:
        raise DataError(
            f"{path}: states pixels {float(ratio):.4g} times as wide as high, which is more than "
            f"{MAX_PIXEL_RATIO} to 1; the file is damaged, encode it again"
        )

    def convert(frame: Any) -> ImageSpec.Image:
        """Convert one frame."""
        width = max(1, round(frame.width * ratio))
        has_alpha = any(component.is_alpha for component in frame.format.components)
        shown = reformatter.reformat(frame, width=width, format="rgba" if has_alpha else "rgb24")
        picture = convert_channels(ImageSpec.fromarray(shown.to_ndarray()), 3, path)
        matrix = frame.side_data.get("DISPLAYMATRIX")
        if matrix is None:
            return picture
        turn = TURNS.get(_find_axes(np.frombuffer(bytes(matrix), np.int32)))
        return picture if turn is None else picture.transpose(turn)

    return convert


def _find_axes(matrix: NDArray[np.int32]) -> tuple[int, int, int, int]:
    """Return where the axes of a frame point, to the nearest quarter turn; as in ``TURNS``."""
    right, down = matrix[0:2].tolist(), matrix[3:5].tolist()

    def sign(value: int) -> int:
        """Return -1, 0 or 1."""
        return (value > 0) - (value < 0)

    if abs(right[0]) >= abs(right[1]):
        return sign(right[0]), 0, 0, sign(down[1])
    return 0, sign(right[1]), sign(down[0]), 0
