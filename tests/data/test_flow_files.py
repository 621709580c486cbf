"""Flow files: bytes by hand in both formats, unknown pixels, damage, and what does not fit."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from perceivers.data import flow_pairs
from perceivers.data.flow_pairs import read_flow, write_flow
from perceivers.errors import DataError, InputError

# A measured pair, where FLOW_DATA names a folder that holds it.
RUBBER_WHALE = Path(os.environ.get("FLOW_DATA", "flow")) / "middlebury-rubberwhale" / "flow.flo"
NAN = np.nan
# Two columns, one row: (1.5, -2) and an unknown pixel.
FLO = b"PIEH" + struct.pack("<ii4f", 2, 1, 1.5, -2.0, 1e10, 1e10)


def png(values: np.ndarray, depth: int = 16) -> bytes:
    """Write a colour PNG by hand: no filter, one chunk."""
    height, width = values.shape[:2]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = b"".join(b"\0" + row.astype(f">u{depth // 8}").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


# The same flow as FLO: 32768 + 64 * 1.5, 32768 - 64 * 2, known; then unknown.
KITTI = np.array([[[32864, 32640, 1], [0, 0, 0]]], np.uint16)


def test_a_flo_file_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "a.flo"
    path.write_bytes(FLO)
    flow, valid = read_flow(path)
    assert flow.dtype == np.float32
    np.testing.assert_array_equal(flow, [[[1.5, NAN]], [[-2.0, NAN]]])
    assert valid.tolist() == [[True, False]]
    written = write_flow(tmp_path / "new" / "b.flo", flow)
    assert written.read_bytes() == FLO


def test_a_kitti_picture_by_hand(tmp_path: Path) -> None:
    pytest.importorskip("av")
    path = tmp_path / "a.png"
    path.write_bytes(png(KITTI))
    flow, valid = read_flow(path)
    assert flow.dtype == np.float32
    np.testing.assert_array_equal(flow, [[[1.5, NAN]], [[-2.0, NAN]]])
    assert valid.tolist() == [[True, False]]


@pytest.mark.parametrize(("kind", "tolerance"), [("flo", 1e-6), ("png", 1 / 128)])
def test_what_is_written_is_read_again(tmp_path: Path, kind: str, tolerance: float) -> None:
    if kind == "png":
        pytest.importorskip("av")
    flow = np.random.default_rng(0).uniform(-300, 300, (2, 7, 5))
    flow[0, 2, 3] = NAN
    valid = np.ones((7, 5), bool)
    valid[4, 4] = False
    found, known = read_flow(write_flow(tmp_path / f"a.{kind}", flow, valid))
    valid[2, 3] = False
    assert np.array_equal(known, valid)
    assert np.isnan(found[:, ~valid]).all()
    np.testing.assert_allclose(found[:, valid], flow[:, valid], rtol=1e-6, atol=tolerance)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", r"the file is empty \(0 bytes\)"),
        (b"HEIP" + FLO[4:], r"starts with b'HEIP'; .* starts with b'PIEH'"),
        (FLO[:9], "cut short after 9 bytes"),
        (FLO[:-1], "27 bytes, but 2 x 1 pixels take 28"),
        (FLO + b"\0", "29 bytes, but 2 x 1 pixels take 28"),
        (b"PIEH" + struct.pack("<ii", 0, 1), "0 x 1 pixels"),
        (b"PIEH" + struct.pack("<ii", 1, -1), "1 x -1 pixels"),
        (b"PIEH" + struct.pack("<ii", 1 << 30, 1 << 30), r"1073741824 x .* 1\.\.99999"),
    ],
)
def test_a_damaged_flo_file_is_refused_by_path(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "bad.flo"
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"bad\.flo: .*{reason}"):
        read_flow(path)


def test_a_damaged_picture_and_one_of_eight_bits_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("av")
    path = tmp_path / "bad.png"
    whole = png(np.random.default_rng(0).integers(0, 65536, (20, 30, 3), np.uint16))
    for data in (whole[: len(whole) // 2], b"no picture at all"):
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"bad\.png: cannot be decoded as PNG"):
            read_flow(path)
    path.write_bytes(png(np.zeros((2, 2, 3), np.uint8), depth=8))
    with pytest.raises(DataError, match=r"bad\.png: the image has the format rgb24; .* 16 bits"):
        read_flow(path)


@pytest.mark.parametrize("value", [-513.0, 512.0])
def test_flow_too_long_for_sixteen_bits_is_refused_and_nothing_is_written(
    tmp_path: Path, value: float
) -> None:
    pytest.importorskip("av")
    flow = np.zeros((2, 2, 2))
    flow[1, 0, 0] = value
    with pytest.raises(InputError, match=r"-512\.\.511\.98, write a \.flo"):
        write_flow(tmp_path / "a.png", flow)
    assert not list(tmp_path.iterdir())
    flow[1, 0, 0] = np.sign(value) * 511.9
    assert write_flow(tmp_path / "a.png", flow).exists()


def test_flow_that_means_unknown_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"flow of 2e\+09 pixels"):
        write_flow(tmp_path / "a.flo", np.full((2, 1, 1), -2e9))


def test_without_pyav_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise DataError(f"no {name}")

    monkeypatch.setattr(flow_pairs, "load_library", refuse)
    path = tmp_path / "a.png"
    path.write_bytes(png(KITTI))
    for call in (read_flow, lambda p: write_flow(p, np.zeros((2, 4, 4)))):
        with pytest.raises(DataError, match=r"flow images need PyAV.* \"perceivers\[media\]\""):
            call(path)


def test_shapes_and_extensions_are_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"shape \(3, 4, 4\); it must be \[2, H, W\]"):
        write_flow(tmp_path / "a.flo", np.zeros((3, 4, 4)))
    with pytest.raises(InputError, match=r"valid has shape \(4, 5\) .* must be \(4, 4\)"):
        write_flow(tmp_path / "a.flo", np.zeros((2, 4, 4)), np.ones((4, 5), bool))
    for call in (lambda p: write_flow(p, np.zeros((2, 4, 4))), read_flow):
        with pytest.raises(DataError, match=r"flow files are \.flo or \.png, not '\.jpg'"):
            call(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"none\.flo: cannot be read"):
        read_flow(tmp_path / "none.flo")


@pytest.mark.skipif(not RUBBER_WHALE.exists(), reason="the Middlebury pair is not here")
def test_rubber_whale_s_flow_is_read() -> None:
    flow, valid = read_flow(RUBBER_WHALE)
    assert flow.shape == (2, 388, 584)
    assert 0.95 < valid.mean() < 1.0
    assert np.abs(flow[:, valid]).max() == pytest.approx(4.6, abs=0.05)
