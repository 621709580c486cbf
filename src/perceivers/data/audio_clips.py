"""Decode audio files and sound tracks to waveforms of the shape that a spec declares.

Only the requested part and a little before it are decoded, and resampled if the file has another
sample rate. Files that were cut short are reported as damaged.

Legend: C channels, S samples of the spec.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from io import BufferedIOBase
from itertools import islice
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceivers.data.augment import PLAIN, Look
from perceivers.data.containers import (
    file_version,
    first_stream,
    is_timed,
    open_bytes,
    open_container,
    open_sound,
)
from perceivers.data.resampling import read_resampled, resampled_length
from perceivers.data.sources import Encoded
from perceivers.errors import DataError
from perceivers.types import Audio

# -- Detecting audio files that were cut short: their stated and their actual length ---------------
#
# Decoders read such files as shorter ones, without an error. WAV, AIFF and similar formats state
# the size of their samples in bytes, which libsndfile compares with the file; the last page of a
# complete Ogg file is flagged as the last. The length stated in an MP3 may be wrong, because
# editors keep old headers; but editors cut between frames, so an MP3 that is shorter than stated
# and ends within a frame was cut short. FLAC and containers are checked while they are decoded.

# Writers to pipes cannot go back to write the size; they leave this value, a larger one, or none.
UNSTATED_SIZE = 0x7FFFF000
# Some writers include headers in the stated size.
MAX_MISSING_BYTES = 64
# How libsndfile logs a size, of the samples or of the whole file, that is not the actual one.
WRONG_SIZE = re.compile(
    r"^\s*(?:data|SSND|BODY|Data Size|riff|Riff size)\s*:\s*(\d+)\s*\(should be (\d+)\)",
    re.MULTILINE,
)
# Byte offsets in an Ogg page: flags, end position in samples, stream number, segment count and
# segment table; then the flag of a last page, and the largest page size.
FLAGS_AT, ENDS_AT, STREAM_AT, COUNT_AT, TABLE_AT, LAST_PAGE, MAX_PAGE = 5, 6, 14, 26, 27, 4, 65307
NO_END = 2**64 - 1
# MPEG layer III bit rates in kbit/s by index: MPEG-1, then MPEG-2 and 2.5.
KILOBITS = (
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)
HERTZ = (44100, 48000, 32000)
# Headers that state a length, and how far into the first frame they may begin.
STATING, FIRST_FRAME = (b"Xing", b"Info", b"VBRI"), 64
ID3_HEAD = 10


def check_stated_size(log: str, path: str) -> None:
    """Check that a file contains all samples that its headers state.

    Args:
        log: What libsndfile logged about the headers.
        path: Path of the file, for messages.

    Raises:
        DataError: The file was cut short.
    """
    for size, held in (map(int, found) for found in WRONG_SIZE.findall(log)):
        if size < UNSTATED_SIZE and held < size - MAX_MISSING_BYTES:
            raise DataError(
                f"{path}: ends after {held} of {size} bytes of audio; the file is damaged or cut "
                f"short"
            )


def check_ogg_end(file: BufferedIOBase, path: str) -> int:
    """Return the number of samples in the last page of an Ogg file.

    Args:
        file: The whole file.
        path: Path of the file, for messages.

    Raises:
        DataError: The last page is missing or incomplete, so the file was cut short.
    """
    length = file.seek(0, os.SEEK_END)
    # Twice the page size, because other data may follow the last page.
    file.seek(max(0, length - 2 * MAX_PAGE))
    pages = [b"OggS" + page for page in file.read().split(b"OggS")[1:]]
    page = pages[-1] if pages else b""
    whole = False
    if len(page) > COUNT_AT and page[FLAGS_AT] & LAST_PAGE:
        table = page[TABLE_AT : TABLE_AT + page[COUNT_AT]]
        whole = len(table) == page[COUNT_AT] and len(page) >= TABLE_AT + len(table) + sum(table)
    if not whole:
        raise DataError(
            f"{path}: the last page of audio is missing after {length} bytes; the file is "
            f"damaged or cut short"
        )
    stream = page[STREAM_AT : STREAM_AT + 4]
    ends = [_page_end(p) for p in pages if p[STREAM_AT : STREAM_AT + 4] == stream]
    known = [end for end in ends if end != NO_END]
    return known[-1] - known[-2] if len(known) > 1 else max(known, default=0)


def _page_end(page: bytes) -> int:
    """Return the position in samples at which an Ogg page ends."""
    return int.from_bytes(page[ENDS_AT : ENDS_AT + 8], "little")


def check_mp3_end(
    file: BufferedIOBase, last: bytes, seconds: tuple[float, float], path: str
) -> None:
    """Check that an MP3 which is shorter than stated ends with a complete frame.

    Args:
        file: The whole file, at its start.
        last: Bytes of its last frame.
        seconds: Actual and stated duration.
        path: Path of the file, for messages.

    Raises:
        DataError: The file was cut short.
    """
    if _states_length(file) and len(last) < _frame_size(last):
        raise DataError(
            f"{path}: ends within a frame after {seconds[0]:.2f} of {seconds[1]:.2f} s; the file "
            f"is damaged or cut short"
        )


def _states_length(file: BufferedIOBase) -> bool:
    """Tell whether the first frame of an MP3, after its ID3 tag, states a length."""
    head = file.read(ID3_HEAD)
    size = 0
    if head[:3] == b"ID3":
        # ID3 sizes use 7 bits of each byte.
        size = ID3_HEAD + sum((byte & 127) << 7 * (3 - i) for i, byte in enumerate(head[6:10]))
    file.seek(size)
    first = file.read(FIRST_FRAME)
    return any(word in first for word in STATING)


def _frame_size(frame: bytes) -> int:
    """Return the size in bytes that an MP3 frame header states; 0 if it is invalid."""
    if len(frame) < 4 or frame[0] != 0xFF or frame[1] >> 5 != 7:
        return 0
    version, index = frame[1] >> 3 & 3, frame[2] >> 4
    rate, padding = frame[2] >> 2 & 3, frame[2] >> 1 & 1
    if index == 15 or rate == 3:
        return 0
    first = version == 3
    # MPEG-2 halves the sample rates, MPEG-2.5 halves them again.
    hertz = HERTZ[rate] // (1 if first else 2 if version == 2 else 4)
    return (144 if first else 72) * 1000 * KILOBITS[not first][index] // hertz + padding


# -- Which videos have a sound track, found in their headers when data are opened ------------------
#
# If there are many videos, only some of them are checked, so that data open quickly; the others are
# checked when they are read.
#
# Legend: n samples.

HEARD, SILENT, UNSEEN = 1, 0, -1
# Opening a video takes about a millisecond.
MAX_OPENED = 1024
# Limit where a check loads the whole file, perhaps from a server.
MAX_LOADED = 16
# One of the three codes above for each sample ``[n]``.
Tracks = NDArray[np.int8]


def find_tracks(
    videos: Mapping[str, NDArray[np.bool_]], look: Callable[[str, int], bool], limit: int
) -> dict[str, Tracks] | None:
    """Find which samples have a video with sound, by split; None if no training sample has one.

    Videos that cannot be opened count as having sound, so that reading them reports the error.

    Args:
        videos: Which samples have a video ``[n]``, by split, including ``train``.
        look: Tells whether the video of a sample, given by split and index, has sound.
        limit: Number of videos to check, spread evenly over all.

    Raises:
        DataError: None of the checked videos can be opened; with the first reason.
    """
    places = [(s, int(row)) for s, held in videos.items() for row in np.flatnonzero(held)]
    if not places:
        return None
    found = {s: np.where(held, UNSEEN, SILENT).astype(np.int8) for s, held in videos.items()}
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
            f"none of the {len(reasons)} videos checked can be opened; the first: {reasons[0]}"
        )
    return found if heard else None


def describe_tracks(
    videos: Mapping[str, NDArray[np.bool_]], found: Mapping[str, Tracks] | None
) -> list[str]:
    """Report how many videos are silent while others are not, and how many were not checked.

    Args:
        videos: Which samples have a video ``[n]``, by split.
        found: From ``find_tracks``.
    """
    total = sum(int(held.sum()) for held in videos.values())
    if found is None:
        return []
    silent = sum(int((found[split][held] == SILENT).sum()) for split, held in videos.items())
    unseen = sum(int((codes == UNSEEN).sum()) for codes in found.values())
    if not silent:
        return []
    rest = f"; {unseen} more are checked when they are read" if unseen else ""
    return [f"{silent} of {total - unseen} videos have no sound track: samples without audio{rest}"]


# -- Decoding audio files and sound tracks to the shape of a spec ----------------------------------

# Decoding starts this many seconds early: the first packets of a codec depend on earlier ones.
PREROLL = 0.2
# At low bit rates, the data of an MP3 frame begin up to 511 bytes before its header: half a second
# at 8 kbit/s.
COUNTED_PREROLL = 1.0
# Packet times are rounded, in some containers to 1 ms; only longer gaps, in s, are silence.
MIN_GAP = 0.01
# A track may be this much shorter than stated, in s, because codecs pad their last packet.
MAX_MISSING = 0.2
# Seeking in this format counts packets, which is exact.
COUNTED_FORMAT = "mp3"
# libsndfile seeks exactly in these encodings; in others, such as ALAC, it sometimes does not.
FOUND_ENCODINGS = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW", "OPUS")
CHUNK = 2**16


@dataclass(frozen=True)
class SoundInfo:
    """Facts from the headers of an audio file.

    Args:
        samples: Samples per channel.
        channels: Channels in the file.
        sample_rate: Samples per second in Hz.
        begin: Time of the first sample in seconds, in the container's time.
        by_soundfile: Whether soundfile reads the file, rather than PyAV.
        findable: soundfile can seek up to this sample; later samples are reached by decoding from
            here.
    """

    samples: int
    channels: int
    sample_rate: int
    begin: float = 0.0
    by_soundfile: bool = False
    findable: int = 0


def native_audio(clip: Encoded) -> Audio:
    """Return the spec of an audio file, or of a video's first sound track, from its headers.

    Raises:
        DataError: The file is damaged or contains no audio.
    """
    info = read_sound_info(clip)
    return Audio(info.samples, info.channels, info.sample_rate)


def common_audio(found: Sequence[Audio]) -> Audio:
    """Return one spec for several audio files: the most common rate, and the longest duration.

    The number of channels is that of the first file, or 1 if others cannot be converted to it.

    Args:
        found: Specs from ``native_audio``, at least one.
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


def fit_audio(clip: Encoded, spec: Audio, look: Look = PLAIN) -> NDArray[np.float32]:
    """Decode a part of an audio file, or of the sound track of a video file.

    Mono is repeated to fill more channels, several channels are averaged to mono, and audio that is
    shorter than the spec is padded with zeros at the end. Files of another rate are resampled by
    soxr.

    Args:
        clip: The file.
        spec: Shape and sample rate of the output; a rate of 0 keeps that of each file.
        look: Where the part begins: at random, with one random number whatever the file, or fixed.

    Returns:
        Waveform ``[C, S]``, in -1..1 for files of integers; resampling may overshoot a little.

    Raises:
        DataError: The file is damaged, its channels do not match, or soxr is needed and missing.
    """
    info = read_sound_info(clip)
    total = resampled_length(info.samples, info.sample_rate, read_rate(info, spec))
    spare = max(0, total - spec.samples)
    return _fit_part(clip, info, spec, look.start(spare + 1))


def fit_audio_from(
    clip: Encoded, info: SoundInfo, spec: Audio, seconds: float
) -> NDArray[np.float32]:
    """Decode audio from a given time, with zeros where there is none; otherwise as ``fit_audio``.

    Args:
        clip: The file.
        info: From ``read_sound_info``.
        spec: Shape and sample rate of the output.
        seconds: Start in the container's time, rounded to the nearest sample.

    Raises:
        DataError: The file is damaged, its channels do not match, or soxr is needed and missing.
    """
    return _fit_part(clip, info, spec, round((seconds - info.begin) * read_rate(info, spec)))


def read_rate(info: SoundInfo, spec: Audio) -> int:
    """Return the rate in Hz at which to read a file: the spec's, or the file's own if that is 0."""
    return spec.sample_rate or info.sample_rate


def read_sound_info(clip: Encoded) -> SoundInfo:
    """Return length, channels and rate; only containers without a stated length are scanned.

    Raises:
        DataError: The file is damaged or contains no audio.
    """
    version = file_version(clip)
    return _read_info(clip) if version is None else _remember_info(version)


@lru_cache(maxsize=4096)
def _remember_info(version: tuple[str, int, int]) -> SoundInfo:
    return _read_info(Encoded(version[0], None, "audio"))


def _read_info(clip: Encoded) -> SoundInfo:
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
            f"{info.sample_rate} Hz; the file contains no audio, or is damaged"
        )
    return info


def _read_file_info(file: Any, clip: Encoded) -> SoundInfo:
    """Return soundfile's facts about a file, after checking that it was not cut short."""
    check_stated_size(file.extra_info, clip.path)
    findable = file.frames if file.subtype.startswith(FOUND_ENCODINGS) else 0
    if file.format == "OGG":
        with open_bytes(clip) as data:
            last = check_ogg_end(data, clip.path)
        if file.subtype == "VORBIS":
            # Within the last page, which may be long, libsndfile seeks to wrong samples.
            findable = max(0, file.frames - last - 1)
    return SoundInfo(file.frames, file.channels, file.samplerate, 0.0, True, findable)


def _fit_part(clip: Encoded, info: SoundInfo, spec: Audio, first: int) -> NDArray[np.float32]:
    """Decode ``[first, first + S)`` of a file, with zeros where it has no samples."""
    _check_fit(clip, info, spec)
    rates = info.sample_rate, read_rate(info, spec)
    begin, end = max(0, first), min(resampled_length(info.samples, *rates), first + spec.samples)
    fitted = np.zeros(spec.raw_shape, np.float32)
    if begin < end:
        decode = _read_file if info.by_soundfile else _read_track

        def read(begin: int, end: int) -> NDArray[np.float32]:
            """Decode at the file's own rate, in its own channels or mono."""
            values = decode(clip, info, begin, end)
            if not np.isfinite(values).all():
                raise DataError(f"{clip.path}: holds NaN or infinite samples; write the file again")
            return values.mean(axis=0, keepdims=True) if spec.channels == 1 else values

        fitted[:, begin - first : end - first] = read_resampled(
            read, info.samples, rates, begin, end
        )
    return fitted


def _check_fit(clip: Encoded, info: SoundInfo, spec: Audio) -> None:
    if info.channels != spec.channels and 1 not in {info.channels, spec.channels}:
        raise DataError(
            f"{clip.path}: {info.channels} channels, but the spec declares {spec.channels}; only "
            f"mono is repeated, and channels are only averaged to mono: use {info.channels} or 1"
        )


def _read_file(clip: Encoded, info: SoundInfo, begin: int, end: int) -> NDArray[np.float32]:
    with open_sound(clip) as file:
        place = min(begin, info.findable)
        # Some encodings do not support seeking, not even to the start.
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


def _read_track(clip: Encoded, info: SoundInfo, begin: int, end: int) -> NDArray[np.float32]:
    """Decode samples of a sound track, positioned by the times of its packets."""
    with open_container(clip) as container:
        stream = first_stream(container, "audio", clip.path)
        rate, origin = info.sample_rate, info.begin
        counted = container.format.name == COUNTED_FORMAT
        start = begin / rate - (COUNTED_PREROLL if counted else PREROLL)
        grid = None
        # After a seek, even to the start, MP3 decoders output no audio for some frames.
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
                    f"{clip.path}: the audio changes from {len(values)} to {len(samples)} channels"
                )
            _put(values, samples, place - begin)
            place += samples.shape[1]
            last = max(last, min(place, end))
            if place >= end:
                break
    if last < end - MAX_MISSING * rate:
        raise DataError(
            f"{clip.path}: the audio ends {(end - last) / rate:.2f} s before its stated end; the "
            f"file is damaged or cut short"
        )
    return values


def _find_grid(container: Any, stream: Any, rate: int) -> tuple[int, int, int] | None:
    """Return where frames start if packet times are coarse: offset, step and largest error.

    None if times are exact to the sample, or frames differ in length.
    """
    error = ceil(stream.time_base * rate)
    if error <= 1:
        return None
    lengths = [frame.samples for frame in islice(container.decode(stream), 3)]
    if len(lengths) < 3 or lengths[1] != lengths[2]:
        return None
    return lengths[0] % lengths[1], lengths[1], error


def _snap(stated: int, offset: int, step: int, error: int) -> int:
    """Return the exact start of a frame from its rounded one; unchanged if none is near."""
    place = offset + round((stated - offset) / step) * step
    return place if abs(place - stated) <= error else stated


def _planar_frames(container: Any, stream: Any) -> Any:
    """Decode a stream to float32 frames ``[channels, samples]``."""
    from av import AudioResampler

    resampler = AudioResampler(format="fltp")
    for frame in container.decode(stream):
        yield from resampler.resample(frame)


def _put(values: NDArray[np.float32], samples: NDArray[np.float32], place: int) -> None:
    """Copy samples to a position that may lie partly outside."""
    begin, end = max(0, place), min(values.shape[1], place + samples.shape[1])
    if begin < end:
        values[:, begin:end] = samples[:, begin - place : end - place]


def _begin(stream: Any) -> float:
    """Return the time of a stream's first sample in seconds."""
    return float((stream.start_time or 0) * stream.time_base)


def _length(container: Any, stream: Any, clip: Encoded) -> float:
    """Return the duration of a stream in seconds without decoding it."""
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
    # One kind of MP3 header states the exact length; otherwise the stated length is a guess.
    return stated if stated is not None and abs(stated - found) < MAX_MISSING else found
