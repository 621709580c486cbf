"""Pictures of 16 bits per value: nothing rounded, colours, opacity, orientation, mixed batches."""

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perceivers.data import make_eval_loader, open_data
from perceivers.data.augment import AugmentConfig, Look
from perceivers.data.deep_pictures import is_deep, read_deep, to_eight_bits
from perceivers.data.drawing import fit_encoded
from perceivers.data.pictures import read_picture
from perceivers.data.sources import Encoded
from perceivers.errors import DataError
from perceivers.types import Image as ImageSpec

pytest.importorskip("av")
WriteFolder = Callable[[Mapping[str, bytes]], Path]
# PNG's colour types by channels.
COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}


def png(values: np.ndarray, depth: int = 16, extra: bytes = b"") -> bytes:
    """Write a PNG by hand from ``[H, W, C]``."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(f">u{depth // 8}").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, depth, COLOUR_TYPES[channels], 0, 0, 0)
    parts = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff(values: np.ndarray, orientation: int = 1) -> bytes:
    """Write an uncompressed TIFF by hand from uint16 ``[H, W, 3]``."""
    height, width, channels = values.shape
    data = values.astype("<u2").tobytes()
    bits_at = 8 + 2 + 12 * 10 + 4
    short, long = 3, 4
    tags = [
        (256, short, 1, width),
        (257, short, 1, height),
        (258, short, channels, bits_at),
        (259, short, 1, 1),
        (262, short, 1, 2),
        (273, long, 1, bits_at + 2 * channels),
        (274, short, 1, orientation),
        (277, short, 1, channels),
        (278, short, 1, height),
        (279, long, 1, len(data)),
    ]
    fields = b"".join(
        struct.pack("<HHI", tag, kind, count)
        + (struct.pack("<HH", v, 0) if kind == short and count == 1 else struct.pack("<I", v))
        for tag, kind, count, v in tags
    )
    bits = struct.pack(f"<{channels}H", *[16] * channels)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + fields + bytes(4) + bits + data


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 65536, shape).astype(np.uint16)


def test_headers_tell_sixteen_bits() -> None:
    assert is_deep(png(noise(2, 3, 1)))
    assert is_deep(png(noise(2, 3, 4)))
    assert is_deep(tiff(noise(2, 3, 3)))
    assert not is_deep(png(noise(2, 3, 3) >> 8, 8))
    file = io.BytesIO()
    Image.fromarray(np.zeros((2, 2), np.float32)).save(file, "TIFF")
    assert is_deep(file.getvalue())
    for data in (b"", b"II*\0junk", png(noise(2, 2, 1))[:20]):
        assert not is_deep(data)


@pytest.mark.parametrize("encode", [png, tiff])
def test_colours_keep_every_bit(encode: Callable[[np.ndarray], bytes]) -> None:
    values = noise(4, 5, 3)
    found = read_deep(encode(values), "a", 3)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, (values.transpose(2, 0, 1) / 65535).astype(np.float32))
    # What 8 bits leave of it is far away.
    assert np.abs(found - np.round(found * 255) / 255).max() > 1e-3


def test_gray_keeps_every_bit_and_is_repeated() -> None:
    values = np.array([[[0], [1], [2], [257], [65535]]], np.uint16)
    found = read_deep(png(values), "a", 1)
    assert (found[0, 0] * 65535).round(3).tolist() == [0, 1, 2, 257, 65535]
    np.testing.assert_array_equal(read_deep(png(values), "a", 3), np.repeat(found, 3, axis=0))
    opaque = read_deep(png(values), "a", 4)
    assert opaque[3].tolist() == [[1.0] * 5]
    clear = png(values, extra=chunk(b"tRNS", struct.pack(">H", 257)))
    assert read_deep(clear, "a", 4)[3].tolist() == [[1, 1, 1, 0, 1]]
    assert read_deep(clear, "a", 1)[0, 0, 3] == 1.0


def test_colours_become_gray_by_their_lightness() -> None:
    values = np.array([[[65535, 0, 0], [0, 65535, 0], [0, 0, 65535]]], np.uint16)
    found = read_deep(png(values), "a", 1)
    assert found[0, 0] == pytest.approx([0.299, 0.587, 0.114])


def test_transparent_parts_become_white_unless_they_are_kept() -> None:
    values = np.array([[[0, 0, 0, 0], [0, 0, 0, 16384], [1000, 0, 0, 65535]]], np.uint16)
    found = read_deep(png(values), "a", 3)
    assert found[0, 0] == pytest.approx([1, 1 - 16384 / 65535, 1000 / 65535])
    kept = read_deep(png(values), "a", 4)
    assert kept[3, 0] == pytest.approx([0, 16384 / 65535, 1])
    assert kept[0, 0] == pytest.approx([0, 0, 1000 / 65535])
    gray = np.array([[[0, 0], [300, 65535]]], np.uint16)
    assert read_deep(png(gray), "a", 1)[0, 0] == pytest.approx([1, 300 / 65535])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied(orientation: int) -> None:
    values = noise(2, 3, 3)
    found = read_deep(tiff(values, orientation), "a", 3)
    small = Image.fromarray((values[..., 0] >> 8).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    small.save(file, "PNG", exif=exif)
    upright = np.asarray(read_picture(file.getvalue(), "a"))
    assert np.array_equal((found[0] * 65535).round().astype(int) >> 8, upright)


def test_a_fitted_picture_is_cropped_and_resized_in_floats() -> None:
    values = np.zeros((4, 12, 3), np.uint16)
    values[:, 4:8] = 20001
    found = fit_encoded(Encoded("a.png", png(values)), ImageSpec(4, 4))
    assert found.dtype == np.float32
    assert found == pytest.approx(np.full((3, 4, 4), 20001 / 65535), abs=1e-6)
    look = Look(np.random.default_rng(0), AugmentConfig(rand_augment=1, magnitude=1))
    changed = fit_encoded(Encoded("a.png", png(values)), ImageSpec(2, 2), look)
    assert changed.dtype == np.uint8


def test_pictures_of_8_and_16_bits_share_batches(
    write_folder: WriteFolder, encode: Callable[..., bytes]
) -> None:
    deep = np.full((10, 12, 3), 13107, np.uint16)
    flat = np.full((10, 12, 3), 51, np.uint8)
    files = {"a.png": png(deep), "b.png": png(flat, 8), "c.png": png(deep), "d.png": png(flat, 8)}
    data = open_data(str(write_folder(files)), val_share=0.5)
    specs = data.specs(size=8)
    assert specs["image"].mean == pytest.approx((0.2, 0.2, 0.2))
    for split in data.splits.values():
        for batch in make_eval_loader(split, specs, batch_size=4):
            values = batch.inputs["image"]
            full = 1 if values.dtype.is_floating_point else 255
            assert (values / full).numpy() == pytest.approx(0.2, abs=1e-6)


def test_a_pair_of_sound_and_deep_picture_is_read(
    write_folder: WriteFolder, encode_sound: Callable[..., bytes]
) -> None:
    sound = encode_sound(np.zeros((1, 20)))
    files = {
        f"{i}.{e}": d for i in range(4) for e, d in (("png", png(noise(6, 6, 4))), ("wav", sound))
    }
    data = open_data(str(write_folder(files)), val_share=0.5)
    specs = data.specs(overrides={"image": {"channels": 1}})
    (batch,) = make_eval_loader(data.splits["val"], specs, batch_size=4)
    assert batch.inputs["image"].shape[1:] == (1, 64, 64)
    assert batch.inputs["image"].dtype.is_floating_point


def test_damaged_files_and_other_channels_are_named() -> None:
    data = png(noise(30, 30, 3))
    for cut in (data[: len(data) // 2], data[:40]):
        with pytest.raises(DataError, match=r"^x/a\.png: (cannot be decoded|the content)"):
            read_deep(cut, "x/a.png", 3)
    with pytest.raises(DataError, match=r"a\.png: the image has 3 bands, but 2 channels"):
        read_deep(data, "a.png", 2)


def test_eight_bits_are_rounded_from_floats_and_kept_from_integers() -> None:
    assert to_eight_bits(np.array([0, 0.4999 / 255, 0.5001 / 255, 1.2])).tolist() == [0, 0, 1, 255]
    values = np.array([3, 200], np.uint8)
    assert to_eight_bits(values) is values
