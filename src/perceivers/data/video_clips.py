"""Decoding of video files into clips of the shape in a spec, with synchronous audio.

The times of all frames are read from the packets first, once for a long file; then only frames from
the key frame before the clip up to its end are decoded. Frames look as in a player: the pixel
aspect ratio, rotation and mirroring stated in the file are applied.

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
from perceivers.data.sources import Encoded
from perceivers.errors import DataError
from perceivers.types import Audio, Image, Video

# -- Presentation times of the frames of a video file, read from packets without decoding --------
#
# Legend: n frames.

# An intact file may end up to this many seconds before its stated end.
MAX_MISSING = 0.5
# Maximum factor between the stated and the measured frame rate for the stated one to be used.
MAX_OFF = 1.05


@dataclass(frozen=True)
class FrameTimes:
    """Presentation times of the frames of one file, in presentation order.

    Args:
        seconds: Time of each frame ``[n]`` in the container's time, ascending.
        rate: Frames per second.
        stamps: The same times in units of the stream ``[n]``; empty if the container (such as AVI)
            does not store times, so that frames are counted from the first.
        keys: Indices of the frames where decoding can begin, ascending.
    """

    seconds: NDArray[np.float64]
    rate: float
    stamps: NDArray[np.int64]
    keys: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.seconds)

    def nearest(self, instants: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the index of the frame nearest to each time in seconds; ties go to the earlier."""
        middles = (self.seconds[1:] + self.seconds[:-1]) / 2
        # The tolerance makes ties exact despite rounded times.
        return np.searchsorted(middles, instants - 1e-6 / self.rate).astype(np.int64)

    def key_before(self, number: int) -> int:
        """Return the last key frame at or before ``number``."""
        earlier = self.keys[self.keys <= number]
        return int(earlier[-1]) if len(earlier) else 0

    def find(self, stamp: int | None, count: int) -> int:
        """Return the index of a decoded frame; -1 if no frame has its time.

        Args:
            stamp: Time of the frame in units of the stream.
            count: Number of frames decoded before it, which is its index if there are no stamps.
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
        raise DataError(f"{path}: the video has no frames; the file is damaged or cut short")
    if is_timed(container):
        _check_end(container, stream, num_packets, end, path)
        stated = sorted((stamp, is_key) for stamp, is_key in found if stamp is not None)
        if len({stamp for stamp, _ in stated}) == len(found):
            return _stated_times(stream, stated)
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    if not rate:
        raise DataError(f"{path}: has neither frame times nor a frame rate; encode it as .mp4")
    none = np.zeros(0, np.int64)
    return FrameTimes(np.arange(len(found)) / rate, rate, none, np.zeros(1, np.int64))


def _stated_times(stream: Any, stated: list[tuple[int, bool]]) -> FrameTimes:
    """Return frame times from sorted packet times."""
    stamps = np.array([stamp for stamp, _ in stated], np.int64)
    seconds = (stamps * float(stream.time_base)).astype(np.float64)
    rate = float(stream.average_rate or 0)
    # The rate of a single frame does not matter.
    measured = (len(stated) - 1) / (seconds[-1] - seconds[0]) if len(stated) > 1 else rate or 1.0
    if not 1 / MAX_OFF <= rate / measured <= MAX_OFF:
        # With a variable frame rate, the stated rate can be wrong; use the measured average.
        rate = float(measured)
    keys = np.flatnonzero([is_key for _, is_key in stated]).astype(np.int64)
    return FrameTimes(seconds, rate, stamps, keys)


def _check_end(container: Any, stream: Any, num_packets: int, end: float, path: str) -> None:
    """Check that the file is as long as its header states."""
    if num_packets < stream.frames:
        raise DataError(
            f"{path}: ends after {num_packets} of {stream.frames} frames; the file was cut short"
        )
    stated = (container.duration or 0) / 1e6
    if end < stated - MAX_MISSING:
        raise DataError(f"{path}: ends after {end:.2f} of {stated:.2f} s; the file was cut short")


# -- Cropping and augmentation, equal for all frames of a clip -----------------------------------
#
# Legend: C channels, T frames, H W rows and columns.


class FrameFitter:
    """Fits the frames of one clip, one after the other, to uint8 ``[C, H, W]``.

    The view and the operations are sampled at the first frame. Operations that depend on image
    content, such as Equalize, use each frame's own content.

    Args:
        spec: Spec of the clip; 1 (gray) or 3 (RGB) channels.
        look: Chooses the view and the augmentation.
    """

    def __init__(self, spec: Video, look: Look) -> None:
        self._spec, self._look = spec, look
        self._view: View | None = None
        self._seed = 0

    def __call__(self, picture: Picture) -> NDArray[np.uint8]:
        """Crop, augment and resize one RGB or gray frame; all frames must have the same size."""
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
    """Fit an array of frames: select consecutive frames, crop and resize them.

    The last frame is repeated if the spec is longer. The frame rate of arrays is unknown, so
    ``spec.frame_rate`` is ignored.

    Args:
        frames: Clip ``[C, T, H, W]`` with the channels of the spec.
        spec: Spec with the output shape.
        look: Chooses the start, the view and the augmentation.

    Raises:
        ConfigError: RandAugment is set, but frames are not uint8 with 1 or 3 channels.
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
        # Pillow cannot resample signed 16-bit values.
        fitted = np.rint(fit_array(stacked.astype(np.float32), flat, view)).astype(np.int16)
    else:
        fitted = fit_array(stacked, flat, view)
    return fitted.reshape(channels, count, *flat.grid)


# -- Decoding of video files into clips of the shape in a spec -----------------------------------

# By direction of a stored frame's axes on the screen: right (x, y), then down (x, y).
TURNS = {
    (0, -1, 1, 0): ImageSpec.Transpose.ROTATE_90,
    (-1, 0, 0, -1): ImageSpec.Transpose.ROTATE_180,
    (0, 1, -1, 0): ImageSpec.Transpose.ROTATE_270,
    (-1, 0, 0, 1): ImageSpec.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): ImageSpec.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): ImageSpec.Transpose.TRANSPOSE,
    (0, -1, -1, 0): ImageSpec.Transpose.TRANSVERSE,
}
# No camera has a larger pixel aspect ratio; such a file is damaged.
MAX_PIXEL_RATIO = 16


def native_video(clip: Encoded) -> Video:
    """Return the spec of a video file: all frames, upright, at the native frame rate.

    Raises:
        DataError: The file is damaged or has no video.
    """
    with open_container(clip) as container:
        times = _frame_times(container, clip)
        (frame,) = _decode(container, clip, times, [0])
        width, height = _make_converter(container, clip.path)(frame).size
    return Video(len(times), height, width, 3, frame_rate=float(f"{times.rate:.6g}"))


def fit_video(clip: Encoded, spec: Video, look: Look = PLAIN) -> NDArray[np.uint8]:
    """Decode a clip from a video file.

    Frames are the nearest ones to times at ``spec.frame_rate``, or consecutive ones if it is 0. The
    last frame is repeated if the spec is longer than the file. All frames have the same crop: by
    default the largest centre crop with the aspect ratio of the spec.

    Args:
        clip: The file.
        spec: Spec with the output shape; 1 (gray) or 3 (RGB) channels.
        look: Chooses the start of the clip, the view and the augmentation.

    Returns:
        Clip ``[C, T, H, W]``.

    Raises:
        DataError: The file is damaged, has no video, or the frame size changes; or the spec has
            another number of channels.
    """
    with open_container(clip) as container:
        times = _frame_times(container, clip)
        return _draw(container, clip, spec, times, _choose_start(times, spec, 0.0, look), look)


def fit_clip(
    clip: Encoded,
    video_spec: Video,
    audio_spec: Audio,
    look: Look = PLAIN,
    *,
    sound: Encoded | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Decode video and audio that start at the same time, the time of a frame.

    The start is chosen as in ``fit_video``, for the longer of the two spans.

    Args:
        clip: The video file.
        video_spec: See ``fit_video``.
        audio_spec: See ``fit_audio``.
        look: Chooses the common start, the view and the augmentation of frames; audio is not
            augmented.
        sound: An audio file that starts together with the video; None uses the soundtrack.

    Returns:
        Clip ``[C, T, H, W]`` and waveform ``[C, S]``.

    Raises:
        DataError: See ``fit_video`` and ``fit_audio``.
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


def _frame_times(container: Any, clip: Encoded) -> FrameTimes:
    """Return the times of all frames, cached for files that stay on disk."""
    version = file_version(clip)
    return read_frame_times(container, clip.path) if version is None else _remember_times(version)


# Two hours of video take 3 MB.
@lru_cache(maxsize=32)
def _remember_times(version: tuple[str, int, int]) -> FrameTimes:
    clip = Encoded(version[0], None, "video")
    with open_container(clip) as container:
        return read_frame_times(container, clip.path)


def _choose_start(times: FrameTimes, spec: Video, span: float, look: Look) -> int:
    """Choose the first frame so that the clip and ``span`` seconds fit into the file, if possible.

    The span may exceed the end by half a frame, because times are rounded.
    """
    span = max(span, spec.frames / (spec.frame_rate or times.rate))
    late = times.seconds[-1] + 1.5 / times.rate - span
    fitting = int(np.searchsorted(times.seconds, late, side="right"))
    if not spec.frame_rate:
        fitting = min(fitting, len(times) - spec.frames + 1)
    return look.start(max(1, fitting))


def _draw(
    container: Any, clip: Encoded, spec: Video, times: FrameTimes, first: int, look: Look
) -> NDArray[np.uint8]:
    if spec.channels not in {1, 3}:
        raise DataError(
            f"{clip.path}: video files give 1 (gray) or 3 (RGB) channels, not {spec.channels}; "
            f"for other counts, use arrays in an .npz file"
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


def _decode(container: Any, clip: Encoded, times: FrameTimes, numbers: list[int]) -> Iterator[Any]:
    """Yield the frames at ascending indices."""
    frames = _decode_from(container, clip.path, times, times.key_before(numbers[0]))
    number, frame = next(frames)
    if number > numbers[0]:  # the container did not seek back far enough
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
    """Yield checked frames with their indices, starting at frame ``start``, a key frame."""
    stream = first_stream(container, "video", path)
    container.seek(int(times.stamps[start]) if len(times.stamps) else 0, stream=stream)
    size: tuple[int, int] | None = None
    for count, frame in enumerate(container.decode(stream)):
        number = times.find(frame.pts, count)
        if number < start:
            continue  # precedes the key frame and refers to frames that were not decoded
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
        f"{path}: fewer than its {len(times)} frames can be decoded; the file is damaged or cut "
        f"short"
    )


def _make_converter(container: Any, path: str) -> Callable[[Any], ImageSpec.Image]:
    """Return a function that converts frames of one file to RGB images as a player shows them."""
    # One reformatter for all frames: creating it takes longer than converting a small frame.
    reformatter = load_library("av").video.reformatter.VideoReformatter()
    ratio = first_stream(container, "video", path).sample_aspect_ratio or 1
    if not 1 / MAX_PIXEL_RATIO <= ratio <= MAX_PIXEL_RATIO:
        raise DataError(
            f"{path}: states a pixel aspect ratio of {float(ratio):.4g}, beyond "
            f"{MAX_PIXEL_RATIO} to 1; the file is damaged, encode it again"
        )

    def convert(frame: Any) -> ImageSpec.Image:
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
    """Return a key of ``TURNS``: the axes of a display matrix to the nearest quarter turn."""
    right, down = matrix[0:2].tolist(), matrix[3:5].tolist()

    def sign(value: int) -> int:
        return (value > 0) - (value < 0)

    if abs(right[0]) >= abs(right[1]):
        return sign(right[0]), 0, 0, sign(down[1])
    return 0, sign(right[1]), sign(down[0]), 0
