"""Files that are no files, and headers that lie: refused by name, without memory and at once."""

import io
import os
import resource
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from perceivers.data import open_data
from perceivers.data.deep_pictures import read_deep
from perceivers.data.files import read_files
from perceivers.data.flow_pairs import read_flow
from perceivers.data.pictures import read_picture
from perceivers.data.point_files import native_points
from perceivers.data.remote import open_shards, write_shard_index
from perceivers.data.shards import expand_braces
from perceivers.data.sources import Encoded
from perceivers.errors import ConfigError, DataError
from perceivers.types import Image

Encode = Callable[..., bytes]


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """Nothing here may take as much as any header promises."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    # In KiB, and of the whole process at its largest: libraries that are loaded count, too.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000


@pytest.mark.parametrize("ending", ["npz", "npy", "csv", "jsonl", "parquet", "txt", "tar"])
def test_a_pipe_is_no_data(ending: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"x.{ending}")
    with pytest.raises(DataError, match=rf"x\.{ending}: cannot be read \(it is a pipe\)"):
        open_data(str(tmp_path / f"x.{ending}"))


def test_pipes_and_circles_among_pictures_are_unreadable_samples(
    tmp_path: Path, encode: Encode
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.png").write_bytes(encode(0))
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "around").symlink_to(tmp_path / "around")
    paths = sorted(tmp_path.glob("*.png"))
    ((_, batch),) = read_files(paths, {"image": Image(8, 8, 3)}, 8)
    assert sorted(text.rpartition("(")[2].partition(")")[0] for text in batch.bad) == [
        "Too many levels of symbolic links",
        "it is a pipe",
    ]
    assert len(batch.index) == 3
    data = open_data(str(tmp_path), val_share=0.3)
    assert sum(len(source) for source in data.splits.values()) in {4, 5}


def test_a_device_that_a_table_names_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("image,label\n" + "/dev/zero,a\n/dev/zero,b\n" * 2)
    source = open_data(str(tmp_path / "x.csv"), val_share=0.5).splits["train"]
    with pytest.raises(DataError, match=r"/dev/zero: cannot be read \(it is a device\).*line \d"):
        source.read(0)


@pytest.mark.parametrize(
    "address",
    [
        "x-{000..999999999}.tar",
        "x-{0..999999}{0..999999}.tar",
        "{0..9}" * 7 + ".tar",
        "https://example.org/x-{0..99999999}.tar",
    ],
)
def test_ranges_are_counted_before_they_are_written_out(address: str) -> None:
    with pytest.raises(DataError, match=r"addresses, but at most 1,000,000 are read; set PERC"):
        open_data(address)


def test_ranges_of_other_numbers_are_refused() -> None:
    with pytest.raises(DataError, match="it must be a whole number of 64 bits"):
        expand_braces("x-{0.." + "9" * 5000 + "}.tar")
    assert expand_braces("{0..0}" * 3000) == ["0" * 3000]
    with pytest.raises(DataError, match="is descending"):
        expand_braces("x-{3..1}")
    assert len(expand_braces("x-{000..999}{0..9}.tar")) == 10_000


@pytest.mark.parametrize("size", [100_000, 10**30])
def test_a_size_that_no_sample_can_have_is_refused(size: int) -> None:
    with pytest.raises(
        ConfigError, match=r"values in one sample, .* choose a smaller size|must be below 2\*\*63"
    ):
        open_data("digits").specs(size=size)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def make_png(width: int, height: int, depth: int = 8, colour: int = 0) -> bytes:
    """A PNG whose header promises pixels that it does not hold."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


BMP = b"BM" + struct.pack("<IHHI", 54, 0, 0, 54)
BMP += struct.pack("<IiiHHIIiiII", 40, 100_000, 100_000, 1, 24, 0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.png", make_png(100_000, 100_000)),
        ("x.png", make_png(13_400, 13_400)),
        ("x.bmp", BMP),
        ("x.ppm", b"P6 100000 100000 255\n"),
    ],
)
def test_pictures_that_promise_too_many_pixels_are_refused(name: str, data: bytes) -> None:
    with pytest.raises(DataError, match=rf"{name}: too many pixels .*PERCEIVERS_MAX_PIXELS"):
        read_picture(data, name)


def test_deep_pictures_and_flow_that_promise_too_much_are_refused(tmp_path: Path) -> None:
    data = make_png(100_000, 100_000, 16, 2)
    with pytest.raises(DataError, match=r"x\.png: too many pixels"):
        read_deep(data, "x.png", 3)
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(DataError, match=r"x\.png: 10,000,000,000 pixels, but at most"):
        read_flow(tmp_path / "x.png")
    (tmp_path / "x.flo").write_bytes(b"PIEH" + struct.pack("<ii", 99_999, 99_999) + bytes(64))
    with pytest.raises(DataError, match=r"76 bytes, but 99999 x 99999 pixels take 79998400020"):
        read_flow(tmp_path / "x.flo")


PLY = b"ply\nformat %s 1.0\nelement vertex %s\nproperty float x\nproperty float y\n"
PLY += b"property float z\nend_header\n1 2 3\n"
FACES = PLY.replace(b"end_h", b"element face 99999\nend_h")
NINES = b"9" * 5000
NPY = b"\x93NUMPY\1\0\x42\0{'descr': '<f8', 'fortran_order': False, 'shape': (99999999, 99)}\n"


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("x.ply", PLY % (b"ascii", b"999999999999"), "states 999999999999 of 'vertex'"),
        ("x.ply", PLY % (b"binary_little_endian", b"999999999999"), "states 999999999999 of"),
        ("x.ply", PLY % (b"ascii", NINES), "must be a whole number"),
        ("x.ply", FACES % (b"ascii", b"1"), "99999 of"),
        ("x.off", b"OFF\n%s 1 0\n0 0 0\n" % NINES, "must be a whole number"),
        ("x.off", b"OFF\n999999999999 1 0\n0 0 0\n", "it ends after 1 of 1000000000000"),
        ("x.stl", bytes(80) + struct.pack("<I", 4_000_000_000) + bytes(50), "contains no points"),
        ("x.xyz", b"1 2 %s\n" % NINES, "NaN or infinite"),
        ("x.npy", NPY, "its header declares"),
    ],
)  # fmt: skip
def test_points_that_promise_more_than_they_hold_are_refused(
    name: str, data: bytes, reason: str
) -> None:
    with pytest.raises(DataError, match=rf"^{name}: .*{reason}"):
        native_points(Encoded(name, data, "points"))


def make_tar(path: Path, size: bytes, kind: bytes = b"0") -> Path:
    """A tar whose only header states a size, as it is written there."""
    info = tarfile.TarInfo("a.png")
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    head[124:136] = size.ljust(12, b"\0")
    head[156:157] = kind
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    path.write_bytes(bytes(head) + bytes(2048))
    return path


NEGATIVE = b"\xff" * 11 + b"\x00"
HUGE = b"\x80" + (2**80).to_bytes(11, "big")


@pytest.mark.parametrize(
    ("size", "kind"),
    [
        (NEGATIVE, b"0"),
        (NEGATIVE, b"L"),
        (HUGE, b"0"),
        (HUGE, b"L"),
        (HUGE, b"x"),
        (b"77777777777", b"0"),
        (b"77777777777", b"L"),
        (b"77777777777", b"x"),
        (b"77777777777", b"S"),
        (b"nonsense", b"0"),
    ],
)
def test_tars_with_sizes_that_lie_are_refused(size: bytes, kind: bytes, tmp_path: Path) -> None:
    path = make_tar(tmp_path / "x.tar", size, kind)
    with pytest.raises(DataError, match=r"x\.tar"):
        open_data(str(path)).splits["train"].read(0)


@pytest.mark.parametrize(
    "member",
    [
        '["a.png", 0, 99999999999999]',
        '["a.png", -512, 10]',
        '["a.png", 512, -10]',
        '["a.png", 512, 1e999]',
        '["a.png", 99999999999999999999, 1]',
        f'["a.png", {"9" * 5000}, 1]',
        '[["a"], 512, 10]',
        '["a.png", 512, 10, 5]',
        "7",
    ],
)
def test_an_index_that_lies_is_refused_or_not_used(
    member: str, tmp_path: Path, encode: Encode
) -> None:
    data = encode(0)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("a.png", "b.png"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    index = write_shard_index(tmp_path / "x.tar")
    text = index.read_text()
    assert '["a.png", ' in text
    lines = [f"{member}," if line.startswith('["a.png"') else line for line in text.splitlines()]
    index.write_text("\n".join(lines))
    ((_, members),) = open_shards([str(tmp_path / "x.tar")])
    assert len(members) == 2
    source = open_data(str(tmp_path / "x.tar"), val_share=0.5)
    for split in source.splits.values():
        with suppress(DataError):
            split.read(0)


def test_a_text_file_that_is_too_large_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.csv"
    path.touch()
    os.truncate(path, 1 << 42)
    with pytest.raises(DataError, match="set PERCEIVERS_MAX_FILE_BYTES if this size is intended"):
        open_data(str(path))
    arrays = np.zeros((4, 1, 8, 8), np.uint8)
    np.savez(tmp_path / "x.npz", image=arrays)
    monkeypatch.setenv("PERCEIVERS_MAX_ARRAY_BYTES", "300")
    with pytest.raises(DataError, match="set PERCEIVERS_MAX_ARRAY_BYTES if this size is intended"):
        open_data(str(tmp_path / "x.npz"))
