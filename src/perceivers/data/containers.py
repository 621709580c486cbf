"""Media files: known by their extensions, and opened quietly by PyAV or soundfile.

soundfile reads audio where it can, and PyAV all else. That includes MP3, because the MP3 decoder
inside soundfile prints complaints about damaged files to the terminal.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from io import BufferedIOBase, BytesIO
from types import MappingProxyType, ModuleType
from typing import Any

from numpy.typing import NDArray
from PIL.Image import Image as Picture

from perceivers.data.modality import FOLDER_ENDINGS, modalities
from perceivers.data.pictures import read_bytes
from perceivers.data.sources import Encoded
from perceivers.errors import DataError
from perceivers.reading import check_file, open_file

AUDIO_EXTENSIONS = (
    *(".wav", ".flac", ".ogg", ".mp3"),
    *(".aif", ".aiff", ".aifc", ".au", ".caf", ".m4a", ".oga", ".opus"),
)
VIDEO_EXTENSIONS = (".mp4", ".mkv", ".webm", ".avi", ".mov")
POINT_EXTENSIONS = (".off", ".ply", ".npy", ".xyz", ".obj", ".stl")
# libsndfile's error codes for formats and encodings that it does not read.
UNREAD_CODES = {1, 4, 18}
# Containers with a time for every packet, in which seeking works everywhere.
TIMED_FORMATS = ("mov", "matroska")
# Optional packages, and what needs them.
PURPOSES: Mapping[str, str] = MappingProxyType(
    {
        "av": "audio and video files need",
        "soundfile": "audio files need",
        "soxr": "audio files whose sample rate differs from the requested one need",
        "trimesh": "point clouds in .off, .ply, .obj and .stl files need",
    }
)
# Larger audio, video and point files, in bytes, stay on disk until a part of them is decoded.
MAX_READ = 2**23


def name_kind(name: str) -> str | None:
    """Return the kind of a media file, such as ``image``, by its extension; None if unknown."""
    lower = name.lower()
    if name.startswith("."):
        return None
    return next((kind for kind, ends in FOLDER_ENDINGS.items() if lower.endswith(ends)), None)


@cache
def load_library(name: str) -> ModuleType:
    """Import one of the optional packages in ``PURPOSES``.

    Raises:
        DataError: It is not installed.
    """
    try:
        module = import_module(name)
    except ImportError as error:
        raise DataError(
            f"{PURPOSES[name]} the package {name!r}, which cannot be imported ({error}); "
            f'run pip install "perceivers[media]"'
        ) from error
    # Exceptions report damage; FFmpeg's own messages name no file. A level of None is silent
    # already.
    if name == "av" and module.logging.get_level() is not None:
        module.logging.set_level(module.logging.PANIC)
    return module


def is_packed(head: bytes) -> bool:
    """Tell from its first bytes whether a file is MP3, AAC, MP4, Matroska or WebM.

    Args:
        head: At least the first 8 bytes.
    """
    mpeg = head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] >= 0xE0)
    return mpeg or head[4:8] == b"ftyp" or head[:4] == b"\x1a\x45\xdf\xa3"


@contextmanager
def open_bytes(clip: Encoded) -> Iterator[BufferedIOBase]:
    """Open a file, or its bytes if they were loaded, for reading.

    Raises:
        DataError: The file is empty, or cannot be read.
    """
    if clip.data is not None:
        if not clip.data:
            raise DataError(f"{clip.path}: the file is empty (0 bytes)")
        yield BytesIO(clip.data)
        return
    with open_file(clip.path) as file:
        if not os.fstat(file.fileno()).st_size:
            raise DataError(f"{clip.path}: the file is empty (0 bytes)")
        yield file


def file_version(clip: Encoded) -> tuple[str, int, int] | None:
    """Return path, size and modification time of a file; None if its bytes were loaded.

    Facts about the file may be cached as long as these are the same.

    Raises:
        DataError: The file cannot be read.
    """
    if clip.data is not None:
        return None
    status = check_file(clip.path)
    return clip.path, status.st_size, status.st_mtime_ns


@contextmanager
def open_container(clip: Encoded) -> Iterator[Any]:
    """Open a container with PyAV; any of its errors inside the block becomes ``path: reason``.

    Raises:
        DataError: The content is damaged, cut short, or not a known container.
    """
    with open_bytes(clip) as file, open_stream(file, clip.path) as container:
        yield container


@contextmanager
def open_stream(file: BufferedIOBase, path: str) -> Iterator[Any]:
    """Open a container with PyAV, as ``open_container``, from a seekable file object.

    Raises:
        DataError: The content is damaged, cut short, or not a known container.
    """
    av = load_library("av")
    try:
        with av.open(file, metadata_errors="ignore") as container:
            yield container
    except av.error.FFmpegError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(f"{path}: cannot be decoded ({reason})") from error


@contextmanager
def open_sound(clip: Encoded) -> Iterator[Any]:
    """Open an audio file with soundfile, or yield None for PyAV to read it; errors name the file.

    Raises:
        DataError: The content is damaged or cut short.
    """
    with open_bytes(clip) as data:
        head = data.read(8)
        data.seek(0)
        if is_packed(head):
            yield None
            return
        soundfile = load_library("soundfile")
        try:
            file = _try_soundfile(soundfile, data)
            if file is None:
                yield None
                return
            with file:
                yield file
        except soundfile.SoundFileError as error:
            reason = getattr(error, "error_string", "") or "the data are damaged or cut short"
            raise DataError(f"{clip.path}: cannot be decoded ({reason})") from error


def _try_soundfile(soundfile: ModuleType, data: BufferedIOBase) -> Any:
    """Open a file with soundfile; None if it does not support the format."""
    try:
        file = soundfile.SoundFile(data)
    except soundfile.LibsndfileError as error:
        if error.code in UNREAD_CODES:
            return None
        raise
    # MP3 in WAV goes through the noisy decoder too. A WAV that was written to a pipe may state no
    # samples, but PyAV reads all of them.
    if file.subtype.startswith("MPEG") or (file.format.startswith("WAV") and not file.frames):
        file.close()
        return None
    return file


def first_stream(container: Any, kind: str, path: str) -> Any:
    """Return the first stream of a kind, set to decode in a single thread.

    Raises:
        DataError: The container has no stream of this kind that can be decoded.
    """
    streams = [s for s in container.streams if s.type == kind and s.codec_context is not None]
    if not streams:
        held = sorted({stream.type for stream in container.streams})
        raise DataError(
            f"{path}: contains no {kind} that can be decoded; streams found: "
            f"{', '.join(held) or 'none'}"
        )
    if not streams[0].codec_context.is_open:
        # Readers already run in several processes; threads for every short clip only cost time.
        streams[0].codec_context.thread_count = 1
    return streams[0]


def is_timed(container: Any) -> bool:
    """Tell whether a container states the times of its packets."""
    return container.format.name.startswith(TIMED_FORMATS)


def has_track(container: Any) -> bool:
    """Tell whether a video file has a sound track."""
    return any(stream.type == "audio" for stream in container.streams)


def decode_file(kind: str, path: str, data: bytes | None) -> Picture | NDArray | Encoded:
    """Decode one file as far as its kind requires: an image, the bytes of a text, or a clip.

    Args:
        kind: ``image``, ``mask``, ``bytes`` or another kind of files.
        path: Path of the file, for messages and for reading.
        data: Its content; None reads it now, except streamed kinds, such as audio, of more than
            ``MAX_READ`` bytes, which are read when they are decoded.

    Raises:
        DataError: An image cannot be decoded, or a file cannot be read.
    """
    row = modalities()[kind]
    assert row.decode is not None, kind
    if data is None and not (row.streamed and check_file(path).st_size > MAX_READ):
        data = read_bytes(path)
    return row.decode(path, data)
