"""Opening files: regular ones only, of a known size, without ever waiting."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from perceivers.errors import CheckpointError, DataError
from perceivers.reading import check_file, open_file, read_file

READERS: list[Callable[[Path], object]] = [check_file, open_file, read_file]


def make_strange(kind: str, folder: Path) -> Path:
    """What is no regular file."""
    path = folder / "x.png"
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    elif kind == "Too many levels of symbolic links":
        path.symlink_to(path)
    elif kind == "embedded null":
        return folder / "x\0.png"
    return path


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    "kind",
    [
        "a pipe",
        "a folder",
        "a device",
        "a socket",
        "Too many levels of symbolic links",
        "No such file or directory",
        "embedded null",
    ],
)
def test_only_regular_files_are_opened(
    kind: str, read: Callable[[Path], object], tmp_path: Path
) -> None:
    path = make_strange(kind, tmp_path)
    with pytest.raises(DataError, match=rf"x.*\.png: cannot be read \(.*{kind}"):
        read(path)


def test_a_regular_file_is_read_through_links(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert read_file(tmp_path / "b") == b"content"
    assert check_file(tmp_path / "b").st_size == 7
    with open_file(str(tmp_path / "b")) as file:
        assert file.read() == b"content"


def test_a_pipe_that_takes_the_files_place_does_not_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"content")
    os.mkfifo(tmp_path / "pipe")
    regular = (tmp_path / "a").stat()
    monkeypatch.setattr(Path, "stat", lambda _: regular)
    with pytest.raises(DataError, match="a pipe"):
        read_file(tmp_path / "pipe")


def test_a_file_beyond_the_limit_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sparse.bin"
    path.touch()
    os.truncate(path, 1 << 40)
    with pytest.raises(CheckpointError, match=r"sparse\.bin: 1,099,511,627,776 bytes, but at most"):
        read_file(path, error=CheckpointError)
    os.truncate(path, 8)
    monkeypatch.setenv("PERCEIVERS_MAX_JSON_BYTES", "8")
    assert read_file(path, limit="json") == bytes(8)
    os.truncate(path, 9)
    with pytest.raises(DataError, match="PERCEIVERS_MAX_JSON_BYTES"):
        read_file(path, limit="json")


def test_a_file_that_states_no_size_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path("/proc/self/status")
    if not path.exists():
        pytest.skip("a system without /proc")
    assert b"Name:" in read_file(path)
    monkeypatch.setenv("PERCEIVERS_MAX_FILE_BYTES", "8")
    with pytest.raises(DataError, match="at most 8 are read"):
        read_file(path)


def test_the_cause_is_what_the_system_says(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_file(tmp_path / "none")
    assert isinstance(caught.value.__cause__, FileNotFoundError)
