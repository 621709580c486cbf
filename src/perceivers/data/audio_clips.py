"""Sound files and sound tracks to waveforms of exactly the shape a spec declares.

Only the part that is asked for is decoded, and a little around it, and resampled where the file has
another rate. Files that were cut short are reported as damaged.

Legend: C channels, S samples of the spec.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceivers.data.containers import (
    file_version,
    first_stream,
    is_timed,
    open_bytes,
    open_container,
    open_sound,
)
from perceivers.data.resampling import read_resampled, resampled_length
from perceivers.data.sound_ends import check_mp3_end, check_ogg_end, check_stated_size
from perceivers.data.sources import EncodedClip
from perceivers.data.views import PLAIN, Look
from perceivers.errors import DataError
from perceivers.types import Audio

# Decoding starts this much early, in seconds: a codec's first packets lack what came before them.
PREROLL = 0.2
# Frames of an MP3 of few bits begin up to 511 bytes before their header: half a second at 8 kHz.
COUNTED_PREROLL = 1.0
# Times of packets are rounded, in some containers to 1 ms; only a longer gap, in s, is silence.
MIN_GAP = 0.01
# A track may miss this much of its stated length, in s: codecs fill their last packet.
MAX_MISSING = 0.2
# Finds its places by counting packets, which is exact.
COUNTED_FORMAT = "mp3"
# Of these encodings libsndfile finds every sample; others, as ALAC, it sometimes misses.
FOUND_ENCODINGS = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW", "OPUS")
CHUNK = 2**16


@dataclass(frozen=True)
class SoundInfo:
    """What the headers of a file say.

    Args:
        samples: Samples per channel.
        channels: Channels in the file.
        sample_rate: Samples per second in Hz.
        begin: Time of the first sample in seconds, in the container's time.
        by_soundfile: The file is read by soundfile, not by PyAV.
        findable: Up to this sample soundfile finds its place; what comes later is decoded from
            here on.
    """

    samples: int
    channels: int
    sample_rate: int
    begin: float = 0.0
    by_soundfile: bool = False
    findable: int = 0


def native_audio(clip: EncodedClip) -> Audio:
    """Describe a sound file, or the first sound track of a video file, from its headers.

    Raises:
        DataError: The file is damaged or holds no sound.
    """
    info = read_sound_info(clip)
    return Audio(info.samples, info.channels, info.sample_rate)


def common_audio(found: Sequence[Audio]) -> Audio:
    """Return a spec for several sounds: the most common rate, and as long as the longest.

    The channels are those of the first, or 1 where some have others that cannot be read as these.

    Args:
        found: What ``native_audio`` says of each, at least one.
    """
    rate, _ = Counter(spec.sample_rate for spec in found).most_common(1)[0]
    lengths = [
        resampled_length(spec.samples, spec.sample_rate or 1, rate or spec.sample_rate or 1)
        for spec in found
    ]
    channels = found[0].channels
    if any(spec.channels not in {1, channels} for spec in found):
        channels = 1
    return replace(found[0], samples=max(lengths), channels=channels, sample_rate=rate)


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
    with open_sound(clip) as file:
        info = None if file is None else _read_file_info(file, clip)
    if info is None:
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


def _read_file_info(file: Any, clip: EncodedClip) -> SoundInfo:
    """Return what soundfile says of a file, and require that it is whole."""
    check_stated_size(file.extra_info, clip.path)
    findable = file.frames if file.subtype.startswith(FOUND_ENCODINGS) else 0
    if file.format == "OGG":
        with open_bytes(clip) as data:
            last = check_ogg_end(data, clip.path)
        if file.subtype == "VORBIS":
            # In the last page, which may be long, libsndfile takes another sample for the one
            # that is asked for.
            findable = max(0, file.frames - last - 1)
    return SoundInfo(file.frames, file.channels, file.samplerate, 0.0, True, findable)


def _fit_part(clip: EncodedClip, info: SoundInfo, spec: Audio, first: int) -> NDArray[np.float32]:
    """Decode ``[first, first + S)`` of a file, as far as it goes, into the spec's shape."""
    _check_fit(clip, info, spec)
    rates = info.sample_rate, read_rate(info, spec)
    begin, end = max(0, first), min(resampled_length(info.samples, *rates), first + spec.samples)
    fitted = np.zeros(spec.raw_shape, np.float32)
    if begin < end:
        decode = _read_file if info.by_soundfile else _read_track

        def read(begin: int, end: int) -> NDArray[np.float32]:
            """Decode samples at the file's rate, in the file's channels or mono."""
            values = decode(clip, info, begin, end)
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


def _read_file(clip: EncodedClip, info: SoundInfo, begin: int, end: int) -> NDArray[np.float32]:
    """Decode samples of a file that soundfile reads."""
    with open_sound(clip) as file:
        place = min(begin, info.findable)
        # Not all encodings can be sought in, not even to their beginning.
        if place:
            file.seek(place)
        while place < begin:
            skipped = len(file.read(min(CHUNK, begin - place), dtype="float32"))
            if not skipped:
                break
            place += skipped
        values = file.read(end - begin, dtype="float32", always_2d=True)
        if len(values) != end - begin:
            raise DataError(
                f"{clip.path}: ends after {place + len(values)} of {info.samples} samples; the "
                f"file is damaged or cut short"
            )
    return values.T


def _read_track(clip: EncodedClip, info: SoundInfo, begin: int, end: int) -> NDArray[np.float32]:
    """Decode samples of a sound track, placed by the times of their packets."""
    with open_container(clip) as container:
        stream = first_stream(container, "audio", clip.path)
        rate, origin = info.sample_rate, info.begin
        counted = container.format.name == COUNTED_FORMAT
        start = begin / rate - (COUNTED_PREROLL if counted else PREROLL)
        grid = None
        # After a seek, to the beginning too, MP3 decoders give no sound for some frames.
        if start > 0 and (counted or is_timed(container)):
            grid = _find_grid(container, stream, rate)
            container.seek(int((origin + start) / stream.time_base), stream=stream)
        values = np.zeros((stream.codec_context.channels, end - begin), np.float32)
        place, last = 0, begin
        for number, frame in enumerate(_planar_frames(container, stream)):
            if frame.pts is not None:
                stated = round((float(frame.pts * frame.time_base) - origin) * rate)
                if number == 0 or abs(stated - place) > MIN_GAP * rate:
                    place = stated if grid is None else _snap(stated, *grid)
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


def _find_grid(container: Any, stream: Any, rate: int) -> tuple[int, int, int] | None:
    """Return where frames begin in a container of coarse times: offset, step and largest error.

    None where times are exact to the sample, or frames differ in length.
    """
    error = ceil(stream.time_base * rate)
    if error <= 1:
        return None
    lengths = [frame.samples for frame in islice(container.decode(stream), 3)]
    if len(lengths) < 3 or lengths[1] != lengths[2]:
        return None
    return lengths[0] % lengths[1], lengths[1], error


def _snap(stated: int, offset: int, step: int, error: int) -> int:
    """Return the place of a frame whose stated place is rounded; as stated where it fits none."""
    place = offset + round((stated - offset) / step) * step
    return place if abs(place - stated) <= error else stated


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
