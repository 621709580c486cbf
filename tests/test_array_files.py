"""Arrays in files: headers that lie are refused before anything is allocated."""

import io
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from perceivers.errors import CheckpointError, DataError
from perceivers.reading import load_npy, load_npz, parse_npy

VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)


def encode(values: NDArray, shape: str | None = None, kind: str | None = None) -> bytes:
    """The bytes of an ``.npy`` file, whose header may say something else than there is."""
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=True)
    data = buffer.getvalue()
    head, body = data[: data.index(b"\n") + 1], data[data.index(b"\n") + 1 :]
    size = len(head)
    if shape is not None:
        head = head.replace(str(values.shape).encode(), shape.encode())
    if kind is not None:
        head = head.replace(b"<f4", kind.encode())
    return head.rstrip().ljust(size - 1)[: size - 1] + b"\n" + body


def pack(path: Path, members: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> Path:
    """Write a zip file."""
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


LIES = {
    "terabytes": (encode(VALUES, "(999999999999,)"), "takes 3,999,999,999,996 bytes, but only"),
    "more axes": (encode(VALUES, "(9999999, 9999999)"), "48 follow"),
    "one row": (encode(VALUES, "(4, 4)"), "64 bytes, but only 48 follow"),
    "a negative axis": (encode(VALUES, "(-3, 4)"), "declares shape"),
    "wide values": (encode(VALUES, kind="<f8"), "96 bytes, but only 48 follow"),
    "an integer of many digits": (encode(VALUES, f"({'9' * 60},)"), "48 follow"),
    "no shape": (encode(VALUES, "maybe"), "malformed"),
    "nesting": (encode(VALUES, "(" * 60), "EOF in|closed|multi-line"),
    "objects": (encode(np.array([{}])), "Python objects, which are never loaded"),
    "an unknown version": (b"\x93NUMPY\x09\x00" + bytes(64), "version"),
    "nothing": (b"", "magic string"),
    "text": (b"hello world", "magic string"),
    "half a header": (encode(VALUES)[:20], "EOF|header"),
    "half the values": (encode(VALUES)[:-20], "28 follow"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused_without_memory(lie: str, tmp_path: Path) -> None:
    data, reason = LIES[lie]
    path = tmp_path / "x.npy"
    path.write_bytes(data)
    packed = pack(tmp_path / "x.npz", {"a.npy": encode(VALUES), "b.npy": data})
    tracemalloc.start()
    with pytest.raises(
        DataError, match=rf"x\.npy: not an \.npy file of a plain array \(.*({reason})"
    ):
        load_npy(path)
    with pytest.raises(DataError, match=rf"x\.npz: not an \.npz file .*'b\.npy': .*({reason})"):
        load_npz(packed)
    with pytest.raises(CheckpointError, match=rf"here: not an \.npy .*({reason})"):
        parse_npy(data, "here", error=CheckpointError)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10e6


def test_plain_arrays_are_read(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", VALUES)
    np.savez_compressed(tmp_path / "x.npz", a=VALUES, b=np.array("text"), c=np.zeros((0, 3)))
    np.testing.assert_array_equal(load_npy(tmp_path / "x.npy"), VALUES)
    found = load_npz(tmp_path / "x.npz")
    assert list(found) == ["a", "b", "c"]
    np.testing.assert_array_equal(found["a"], VALUES)
    assert str(found["b"]) == "text"
    assert found["c"].shape == (0, 3)
    np.testing.assert_array_equal(parse_npy(encode(np.asfortranarray(VALUES)), "x"), VALUES)


def test_a_zip_that_promises_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.npz", {"a.npy": encode(VALUES)}, zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    # The size of the only member, in the table at the end.
    place = data.rindex(b"PK\x01\x02") + 24
    data[place : place + 4] = (2**32 - 2).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"cannot expand to the 4,294,967,294 that"):
        load_npz(path)


@pytest.mark.parametrize("kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_zip_that_expands_beyond_the_limit_is_refused(
    kind: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERCEIVERS_MAX_ARRAY_BYTES", "1000000")
    values = np.zeros(100_000, np.float64)
    path = pack(tmp_path / "x.npz", {"a.npy": encode(values), "b.npy": encode(values)}, kind)
    with pytest.raises(DataError, match=r"x\.npz: 1,600,256 bytes in .*PERCEIVERS_MAX_ARRAY_BYTES"):
        load_npz(path)
    monkeypatch.setenv("PERCEIVERS_MAX_ARRAY_BYTES", "1600256")
    assert load_npz(path)["b"].shape == (100_000,)
    np.save(tmp_path / "x.npy", np.zeros(200_100))
    with pytest.raises(DataError, match=r"x\.npy: .*1,600,800 bytes in"):
        load_npy(tmp_path / "x.npy")


def test_a_file_that_is_no_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(encode(VALUES))
    with pytest.raises(DataError, match=r"x\.npz: not an \.npz file of plain arrays \(File is not"):
        load_npz(path)
