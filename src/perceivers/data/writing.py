"""Writing of video clips, audio and point clouds as widely supported files."""

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceivers.data.containers import load_library
from perceivers.errors import ConfigError, InputError
from perceivers.files import write_atomic

# -- Video clips and waveforms -------------------------------------------------------------------
#
# Legend: C channels, T frames, H W rows and columns, S samples.

# Samples per AAC packet; the encoder expects frames of this size.
AAC_SAMPLES = 1024
LAYOUTS = {1: "mono", 2: "stereo"}


def write_clip(
    path: Path,
    video: NDArray,
    frame_rate: int | float,
    audio: NDArray | None = None,
    sample_rate: int = 0,
) -> Path:
    """Write a clip as ``.mp4`` (H.264, AAC); on failure, an existing file is kept.

    An odd height or width is padded by repeating the edge, because H.264 stores colour at half
    resolution.

    Args:
        path: Output path.
        video: Frames uint8 ``[C, T, H, W]`` with 1 (gray) or 3 (RGB) channels.
        frame_rate: Frames per second.
        audio: Float waveform ``[C, S]``, clipped to -1..1, with 1 or 2 channels; None writes a clip
            without a soundtrack.
        sample_rate: Sample rate in Hz, one of ``list_sound_rates``.

    Raises:
        InputError: An array has another shape or dtype, or the audio is not finite.
        ConfigError: A rate is not supported.
        DataError: PyAV is not installed.
    """
    video = _prepare_frames(video)
    if not 0.1 <= frame_rate <= 1000:
        raise ConfigError(f"frame_rate is {frame_rate}; it must lie in 0.1..1000 frames per second")
    av = load_library("av")
    if audio is not None:
        audio = _check_wave(audio)
        known = list_sound_rates()
        if sample_rate not in known:
            raise ConfigError(f"sample_rate is {sample_rate} Hz; mp4 takes one of {known}")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        # Both streams must be added before the first packet, which fixes the file's header.
        pictures = container.add_stream(
            "libx264", rate=Fraction(frame_rate).limit_denominator(1001)
        )
        pictures.height, pictures.width = video.shape[2:]
        pictures.pix_fmt = "yuv420p"
        sounds = None
        if audio is not None:
            sounds = container.add_stream("aac", rate=sample_rate)
            sounds.layout = LAYOUTS[len(audio)]
        _write_frames(container, pictures, video)
        if audio is not None:
            _write_sound(container, sounds, audio, sample_rate)
    return write_atomic(path, buffer.getvalue())


def list_sound_rates() -> list[int]:
    """Return the sample rates in Hz that are supported for the audio of an ``.mp4``.

    Raises:
        DataError: PyAV is not installed.
    """
    return sorted(load_library("av").codec.Codec("aac", "w").audio_rates)


def write_wav(path: Path, audio: NDArray, sample_rate: int) -> Path:
    """Write a waveform as 16-bit ``.wav``; on failure, an existing file is kept.

    Args:
        path: Output path.
        audio: Float waveform ``[C, S]``, clipped to -1..1, with 1 or 2 channels.
        sample_rate: Sample rate in Hz.

    Raises:
        InputError: The array has another shape or dtype, or is not finite.
        ConfigError: The rate is below 1.
        DataError: soundfile is not installed.
    """
    audio = _check_wave(audio)
    if sample_rate < 1:
        raise ConfigError(f"sample_rate is {sample_rate} Hz; it must be at least 1")
    buffer = io.BytesIO()
    load_library("soundfile").write(buffer, audio.T, sample_rate, format="WAV", subtype="PCM_16")
    return write_atomic(path, buffer.getvalue())


def _prepare_frames(video: NDArray) -> NDArray[np.uint8]:
    """Check a clip, convert it to three channels, and pad it to an even height and width."""
    if video.ndim != 4 or video.dtype != np.uint8 or video.shape[0] not in {1, 3} or not video.size:
        raise InputError(
            f"the clip has shape {video.shape} and dtype {video.dtype}; write uint8 "
            f"[C, T, H, W] with 1 or 3 channels and at least one frame"
        )
    channels, _, height, width = video.shape
    video = np.pad(video, ((0, 0), (0, 0), (0, height % 2), (0, width % 2)), mode="edge")
    return np.repeat(video, 3, axis=0) if channels == 1 else video


def _check_wave(audio: NDArray) -> NDArray[np.float32]:
    """Check a waveform, and clip it to -1..1."""
    floats = np.issubdtype(audio.dtype, np.floating)
    if audio.ndim != 2 or not floats or audio.shape[0] not in {1, 2} or not audio.size:
        raise InputError(
            f"the audio has shape {audio.shape} and dtype {audio.dtype}; write floats [C, S] in "
            f"-1..1 with 1 or 2 channels and at least one sample"
        )
    if not np.isfinite(audio).all():
        raise InputError("the audio contains NaN or infinite samples; it must be finite")
    return audio.clip(-1.0, 1.0).astype(np.float32)


def _write_frames(container: Any, stream: Any, video: NDArray) -> None:
    from av import VideoFrame

    for number, values in enumerate(video.transpose(1, 2, 3, 0)):  # [T, H, W, C]
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(values), format="rgb24")
        frame.pts = number
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def _write_sound(container: Any, stream: Any, audio: NDArray[np.float32], sample_rate: int) -> None:
    from av import AudioFrame

    for first in range(0, audio.shape[1], AAC_SAMPLES):
        values = np.ascontiguousarray(audio[:, first : first + AAC_SAMPLES])
        frame = AudioFrame.from_ndarray(values, format="fltp", layout=LAYOUTS[len(audio)])
        frame.sample_rate, frame.pts = sample_rate, first
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


# -- Point clouds --------------------------------------------------------------------------------
#
# Legend: P points, C values per point.

AXES = ("x", "y", "z")


def write_ply(path: Path, points: NDArray) -> Path:
    """Write points as binary ``.ply``; on failure, an existing file is kept.

    Args:
        path: Output path.
        points: ``[P, C]``: x, y, z and optional further values, named ``value_3`` onwards. Rows
            that are not finite are padding and are skipped.

    Raises:
        InputError: The array has another shape, or fewer than three values per point.
    """
    if points.ndim != 2 or points.shape[1] < len(AXES):
        raise InputError(f"points have shape {points.shape}; a .ply file needs [P, 3 or more]")
    real = points[np.isfinite(points).all(axis=1)].astype("<f4")
    names = [*AXES, *(f"value_{index}" for index in range(len(AXES), points.shape[1]))]
    header = [
        "ply",
        "format binary_little_endian 1.0",
        f"element vertex {len(real)}",
        *(f"property float {name}" for name in names),
        "end_header",
    ]
    return write_atomic(path, "\n".join(header).encode() + b"\n" + real.tobytes())
