"""Kinds of files by name and content, and packages that are missing."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from perceivers.data import containers
from perceivers.data.containers import (
    decode_file,
    file_version,
    is_packed,
    load_library,
    name_kind,
    open_bytes,
    open_sound,
)
from perceivers.data.sources import Encoded
from perceivers.errors import DataError


def read_all(clip: Encoded) -> bytes:
    with open_bytes(clip) as file:
        return file.read()


@pytest.fixture
def _forgetful() -> Iterator[None]:
    load_library.cache_clear()
    yield
    load_library.cache_clear()


def test_names_tell_the_kind() -> None:
    names = ["a.MP4", "b.flac", "c.Jpg", "d.txt", ".e.mp4", "mp3", "f.wav.json", "g.OFF", ".h.ply"]
    assert [name_kind(name) for name in names] == [
        "video",
        "audio",
        "image",
        None,
        None,
        None,
        None,
        "points",
        None,
    ]


@pytest.mark.parametrize(
    ("kind", "by_soundfile"), [("WAV", True), ("FLAC", True), ("AIFF", True), ("MP3", False)]
)
def test_contents_tell_who_reads_a_file(
    encode_sound: Callable[..., bytes], kind: str, by_soundfile: bool
) -> None:
    data = encode_sound(np.zeros((1, 3000)), kind=kind)
    with open_sound(Encoded("x", data, "audio")) as file:
        assert (file is not None) == by_soundfile
    assert is_packed(data[:8]) != by_soundfile


def test_what_soundfile_does_not_know_is_left_to_av(
    encode_video: Callable[..., bytes], numbered: Callable[..., np.ndarray]
) -> None:
    avi = encode_video(numbered(3), kind="avi", codec="mpeg4")
    for data in (encode_video(numbered(2)), avi, b"OggS" + bytes(100), b"x" * 100, b"\xff"):
        with open_sound(Encoded("x", data, "audio")) as file:
            assert file is None
    # A sound that is merely damaged is not.
    with (
        pytest.raises(DataError, match=r"^x: cannot be decoded"),
        open_sound(Encoded("x", b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0", "audio")),
    ):
        pass


@pytest.mark.usefixtures("_forgetful")
@pytest.mark.parametrize("name", ["av", "soundfile", "soxr", "trimesh"])
def test_a_missing_package_is_named_with_the_command(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_library(name).__name__ == name
    load_library.cache_clear()
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError, match=rf"'{name}'.*; run pip install \"perceivers\[media\]\""):
        load_library(name)


def test_a_file_is_decoded_as_far_as_its_kind_requires() -> None:
    assert decode_file("video", "a.mp4", b"x") == Encoded("a.mp4", b"x", "video")
    assert decode_file("audio", "a.mp4", b"x") == Encoded("a.mp4", b"x", "audio")
    text = decode_file("bytes", "a.txt", "hé".encode())
    assert isinstance(text, np.ndarray)
    assert (text.dtype, text.tolist()) == (np.uint8, [104, 195, 169])


def test_small_files_are_read_at_once_and_large_ones_stay_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"x" * 20)
    monkeypatch.setattr(containers, "MAX_READ", 20)
    assert decode_file("video", str(path), None) == Encoded(str(path), b"x" * 20, "video")
    path.write_bytes(b"y" * 21)
    clip = decode_file("video", str(path), None)
    assert clip == Encoded(str(path), None, "video")
    assert isinstance(clip, Encoded)
    assert read_all(clip) == b"y" * 21
    version = file_version(clip)
    assert version is not None
    assert version[:2] == (str(path), 21)
    assert file_version(Encoded("a.mp4", b"x", "video")) is None
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.mp4: the file is empty \(0 bytes\)"):
        read_all(clip)
    path.unlink()
    for read in (
        read_all,
        file_version,
        lambda clip: decode_file("video", clip.path, None),
    ):
        with pytest.raises(DataError, match=r"a\.mp4: cannot be read \(No such file"):
            read(clip)
