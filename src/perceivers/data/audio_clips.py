"""Sound files and sound tracks to waveforms of exactly the shape a spec declares.

Only the part that is asked for is decoded, and a little around it, and resampled where the file has
another rate. Files that were cut short are reported as damaged.

Legend: C channels, S samples of the spec.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceivers.data.containers import (
    file_version,
    first_stream,
    is_sound_file,
    is_timed,
    open_bytes,
    open_container,
    open_sound,
    read_head,
)
from perceivers.data.resampling import read_resampled, resampled_length
from perceivers.data.sound_ends import check_mp3_end, check_sound_end
from perceivers.data.sources import EncodedClip
from perceivers.data.views import PLAIN, Look
from perceivers.errors import DataError
from perceivers.types import Audio

# Decoding starts this much early, in seconds: a codec's first packets lack what came before them.
PREROLL = 0.2
# Times of packets are rounded, in some containers to 1 ms; only a longer gap, in s, is silence.
MIN_GAP = 0.01
# A track may miss this much of its stated length, in s: codecs fill their last packet.
MAX_MISSING = 0.2
# Finds its places by counting packets, which is exact.
COUNTED_FORMAT = "mp3"


@dataclass(frozen=True)
class SoundInfo:
    """What the headers of a file say.

    Args:
        samples: Samples per channel.
        channels: Channels in the file.
        sample_rate: Samples per second in Hz.
        begin: Time of the first sample in seconds, in the container's time.
    """

    samples: int
    channels: int
    sample_rate: int
    begin: float = 0.0


def native_audio(clip: EncodedClip) -> Audio:
    """Describe a sound file, or the first sound track of a video file, from its headers.

    Raises:
        DataError: The file is damaged or holds no sound.
    """
    info = read_sound_info(clip)
    return Audio(info.samples, info.channels, info.sample_rate)


def common_audio(found: Sequence[Audio]) -> Audio:
    """Return a spec for several sounds: the most common rate, and as long as the longest.

    Args:
        found: What ``native_audio`` says of each, at least one.
    """
    rate, _ = Counter(spec.sample_rate for spec in found).most_common(1)[0]
    lengths = [
        resampled_length(spec.samples, spec.sample_rate or 1, rate or spec.sample_rate or 1)
        for spec in found
    ]
    return replace(found[0], samples=max(lengths), sample_rate=rate)


def fit_audio(clip: EncodedClip, spec: Audio, look: Look = PLAIN) -> NDArray[np.float32]:
    """Decode a part of a sound file, or of the sound track of a video file.

    Mono is repeated to fill more channels, several channels are averaged to mono, and what is
    shorter than the spec is filled with zeros at the end. A file of another rate is resampled by
    soxr.

    Args:
        clip: The file.
        spec: The shape to reach, and the sample rate; 0 reads samples as they are, whatever their
            rate.
        look: Where the part begins: drawn, with one draw whatever the file, or fixed.

    Returns:
        Waveform ``[C, S]``, in -1..1 for files of integers; resampling may overshoot a little.

    Raises:
        DataError: The file is damaged, or its channels do not fit, or soxr is needed and missing.
    """
    info = read_sound_info(clip)
    total = resampled_length(info.samples, info.sample_rate, read_rate(info, spec))
    spare = max(0, total - spec.samples)
    return _fit_part(clip, info, spec, look.start(spare + 1))


def fit_audio_from(
    clip: EncodedClip, info: SoundInfo, spec: Audio, seconds: float
) -> NDArray[np.float32]:
    """Decode the sound from a moment on, silent (zero) where there is none; else as ``fit_audio``.

    Args:
        clip: The file.
        info: What ``read_sound_info`` says of it.
        spec: The shape to reach.
        seconds: Where to begin, in the container's time, to the nearest sample.

    Raises:
        DataError: The file is damaged, or its channels do not fit, or soxr is needed and missing.
    """
    return _fit_part(clip, info, spec, round((seconds - info.begin) * read_rate(info, spec)))


def read_rate(info: SoundInfo, spec: Audio) -> int:
    """Return the rate in Hz at which a file is read: the spec's, or its own where that is 0."""
    return spec.sample_rate or info.sample_rate


def read_sound_info(clip: EncodedClip) -> SoundInfo:
    """Return length, channels and rate; only containers that do not state a length are searched.

    Raises:
        DataError: The file is damaged, or holds no sound.
    """
    version = file_version(clip)
    return _read_info(clip) if version is None else _remember_info(version)


@lru_cache(maxsize=4096)
def _remember_info(version: tuple[str, int, int]) -> SoundInfo:
    """Read what is known of a long file, once."""
    return _read_info(EncodedClip(version[0], None, "audio"))


def _read_info(clip: EncodedClip) -> SoundInfo:
    """Read the headers of a file, and how it ends."""
    if is_sound_file(read_head(clip)):
        with open_sound(clip) as file:
            info = SoundInfo(file.frames, file.channels, file.samplerate)
        with open_bytes(clip) as data:
            check_sound_end(data, clip.path)
    else:
        with open_container(clip) as container:
            stream = first_stream(container, "audio", clip.path)
            rate = stream.codec_context.sample_rate
            samples = round(_length(container, stream, clip) * rate)
            info = SoundInfo(samples, stream.codec_context.channels, rate, _begin(stream))
    if min(info.samples, info.channels, info.sample_rate) < 1:
        raise DataError(
            f"{clip.path}: {info.samples} samples in {info.channels} channels at "
            f"{info.sample_rate} Hz; the file holds no sound, or is damaged"
        )
    return info


def _fit_part(clip: EncodedClip, info: SoundInfo, spec: Audio, first: int) -> NDArray[np.float32]:
    """Decode ``[first, first + S)`` of a file, as far as it goes, into the spec's shape."""
    _check_fit(clip, info, spec)
    rates = info.sample_rate, read_rate(info, spec)
    begin, end = max(0, first), min(resampled_length(info.samples, *rates), first + spec.samples)
    fitted = np.zeros(spec.raw_shape, np.float32)
    if begin < end:
        decode = _read_file if is_sound_file(read_head(clip)) else _read_track

        def read(begin: int, end: int) -> NDArray[np.float32]:
            """Decode samples at the file's rate, in the file's channels or mono."""
            values = decode(clip, begin, end)
            if not np.isfinite(values).all():
                raise DataError(f"{clip.path}: holds NaN or infinite samples; write the file again")
            return values.mean(axis=0, keepdims=True) if spec.channels == 1 else values

        fitted[:, begin - first : end - first] = read_resampled(
            read, info.samples, rates, begin, end
        )
    return fitted


def _check_fit(clip: EncodedClip, info: SoundInfo, spec: Audio) -> None:
    """Compare a file's channels with the spec."""
    if info.channels != spec.channels and 1 not in {info.channels, spec.channels}:
        raise DataError(
            f"{clip.path}: {info.channels} channels, but the spec declares {spec.channels}; only "
            f"mono is repeated, and only to mono is averaged: declare {info.channels} or 1"
        )


def _read_file(clip: EncodedClip, begin: int, end: int) -> NDArray[np.float32]:
    """Decode samples of a WAV, FLAC or Ogg file."""
    with open_sound(clip) as file:
        file.seek(begin)
        values = file.read(end - begin, dtype="float32", always_2d=True)
        if len(values) != end - begin:
            raise DataError(
                f"{clip.path}: ends after {begin + len(values)} of {file.frames} samples; the "
                f"file is damaged or cut short"
            )
    return values.T


def _read_track(clip: EncodedClip, begin: int, end: int) -> NDArray[np.float32]:
    """Decode samples of a sound track, placed by the times of their packets."""
    with open_container(clip) as container:
        stream = first_stream(container, "audio", clip.path)
        rate, origin = stream.codec_context.sample_rate, _begin(stream)
        if is_timed(container) or container.format.name == COUNTED_FORMAT:
            start = max(origin, origin + begin / rate - PREROLL)
            container.seek(int(start / stream.time_base), stream=stream)
        values = np.zeros((stream.codec_context.channels, end - begin), np.float32)
        place, last = 0, begin
        for number, frame in enumerate(_planar_frames(container, stream)):
            if frame.pts is not None:
                stated = round((float(frame.pts * frame.time_base) - origin) * rate)
                if number == 0 or abs(stated - place) > MIN_GAP * rate:
                    place = stated
            samples = frame.to_ndarray()
            if len(samples) != len(values):
                raise DataError(
                    f"{clip.path}: the sound changes from {len(values)} to {len(samples)} channels"
                )
            _put(values, samples, place - begin)
            place += samples.shape[1]
            last = max(last, min(place, end))
            if place >= end:
                break
    if last < end - MAX_MISSING * rate:
        raise DataError(
            f"{clip.path}: the sound ends {(end - last) / rate:.2f} s before its stated end; the "
            f"file is damaged or cut short"
        )
    return values


def _planar_frames(container: Any, stream: Any) -> Any:
    """Decode a stream to frames of float32 ``[channels, samples]``."""
    from av import AudioResampler

    resampler = AudioResampler(format="fltp")
    for frame in container.decode(stream):
        yield from resampler.resample(frame)


def _put(values: NDArray[np.float32], samples: NDArray[np.float32], place: int) -> None:
    """Copy samples to a place that may lie outside."""
    begin, end = max(0, place), min(values.shape[1], place + samples.shape[1])
    if begin < end:
        values[:, begin:end] = samples[:, begin - place : end - place]


def _begin(stream: Any) -> float:
    """Return the time of a stream's first sample in seconds."""
    return float((stream.start_time or 0) * stream.time_base)


def _length(container: Any, stream: Any, clip: EncodedClip) -> float:
    """Return the seconds of sound in a stream, without decoding it."""
    stated = None if stream.duration is None else float(stream.duration * stream.time_base)
    if stated is not None and is_timed(container):
        return stated
    end, last = 0, b""
    for packet in container.demux(stream):
        if packet.pts is not None:
            end = max(end, packet.pts + (packet.duration or 0))
            last = bytes(packet)
    found = float(end * stream.time_base) - _begin(stream)
    counted = container.format.name == COUNTED_FORMAT
    if counted and stated is not None and found < stated - MAX_MISSING:
        with open_bytes(clip) as file:
            check_mp3_end(file, last, (found, stated), clip.path)
    # MP3 states its length to the sample in one kind of header, and otherwise lets it be guessed.
    return stated if stated is not None and abs(stated - found) < MAX_MISSING else found
