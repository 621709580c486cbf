"""Decoding: formats, modes, orientation, damage."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from perceivers.data.augment import centre_view
from perceivers.data.drawing import fit_array, fit_encoded, fit_picture
from perceivers.data.pictures import convert_channels, is_picture_name, read_picture
from perceivers.data.sources import Encoded
from perceivers.errors import DataError
from perceivers.types import Image as ImageSpec


def save(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def fit(data: bytes, spec: ImageSpec) -> np.ndarray:
    return fit_encoded(Encoded("a.png", data), spec)


def gradient(width: int, height: int) -> np.ndarray:
    """Red grows to the right, green downwards."""
    values = np.zeros((height, width, 3), np.uint8)
    values[..., 0] = np.linspace(0, 255, width)[None, :]
    values[..., 1] = np.linspace(0, 255, height)[:, None]
    return values


def test_a_picture_of_the_right_size_keeps_every_value(encode: Callable[..., bytes]) -> None:
    data = encode(3, (12, 10))
    expected = np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1)
    assert np.array_equal(fit(data, ImageSpec(10, 12)), expected)
    assert not np.array_equal(fit(encode(4, (12, 10)), ImageSpec(10, 12)), expected)


def test_the_shorter_side_covers_the_target_and_the_centre_is_kept() -> None:
    values = np.zeros((4, 12, 3), np.uint8)
    values[:, 4:8] = 200
    found = fit(save(Image.fromarray(values)), ImageSpec(4, 4))
    assert np.array_equal(found, np.full((3, 4, 4), 200, np.uint8))
    shifted = fit(save(Image.fromarray(np.roll(values, 2, axis=1))), ImageSpec(4, 4))
    assert not np.array_equal(shifted, found)


def test_shrinking_averages_instead_of_skipping_pixels() -> None:
    values = np.zeros((32, 32), np.uint8)
    values[:, ::2] = 255
    found = fit(save(Image.fromarray(values)), ImageSpec(4, 4, 1))
    assert np.abs(found[:, 1:3, 1:3].astype(int) - 127).max() <= 3
    assert np.asarray(Image.fromarray(values).resize((4, 4), 0)).std() == 0  # sampling: one column
    assert abs(int(np.asarray(Image.fromarray(values).resize((4, 4), 0))[0, 0]) - 127) > 100


def test_a_jpeg_decoded_at_reduced_size_looks_like_the_whole_one() -> None:
    picture = Image.fromarray(gradient(320, 240))
    data = save(picture, "JPEG", quality=95)
    spec = ImageSpec(24, 24)
    reduced = fit(data, spec).astype(int)
    view = centre_view((320, 240), (24, 24))
    whole = fit_picture(read_picture(data, "a"), "a", spec, view).astype(int)
    assert np.abs(reduced - whole).max() <= 3
    assert np.abs(reduced[:, :, ::-1] - whole).max() > 100


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    upright = Image.fromarray(gradient(48, 32))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    data = save(stored, kind, exif=exif, **options)
    found = fit(data, ImageSpec(8, 12)).astype(int)
    expected = fit(save(upright), ImageSpec(8, 12)).astype(int)
    assert read_picture(data, "a").size == (48, 32)
    assert np.abs(found - expected).max() <= 4
    if orientation != 1:
        ignored = fit(save(stored), ImageSpec(8, 12)).astype(int)
        assert np.abs(ignored - expected).max() > 50


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_mode_becomes_the_asked_number_of_channels(mode: str, channels: int) -> None:
    gray = Image.new("L", (6, 4), 255)
    if mode == "I;16":
        picture = Image.fromarray(np.full((4, 6), 65535, np.uint16))
    else:
        picture = gray.convert("RGB").convert(mode)
    data = save(picture, "TIFF" if mode == "CMYK" else "PNG")
    found = fit(data, ImageSpec(4, 6, channels))
    assert found.shape == (channels, 4, 6)
    assert found.dtype == (np.float32 if mode == "I;16" else np.uint8)
    assert found.min() >= (1 if mode == "I;16" else 254)


def test_transparent_parts_become_white_and_half_transparent_ones_mix() -> None:
    values = np.zeros((1, 3, 4), np.uint8)
    values[0, :, 3] = [0, 128, 255]
    data = save(Image.fromarray(values))
    assert fit(data, ImageSpec(1, 3))[0, 0].tolist() == [255, 127, 0]
    assert fit(data, ImageSpec(1, 3, 1))[0, 0].tolist() == [255, 127, 0]
    assert fit(data, ImageSpec(1, 3, 4))[3, 0].tolist() == [0, 128, 255]


def test_a_transparent_palette_entry_becomes_white() -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putdata([0, 1])
    assert fit(save(picture), ImageSpec(1, 2))[:, 0].T.tolist() == [[10, 20, 30], [40, 50, 60]]
    found = fit(save(picture, transparency=0), ImageSpec(1, 2))
    assert found[:, 0].T.tolist() == [[255, 255, 255], [40, 50, 60]]


def test_half_transparent_palettes_and_gray_mix_with_white() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    found = fit(save(palette, transparency=bytes([255, 0])), ImageSpec(1, 2))
    assert found[:, 0].T.tolist() == [[10, 20, 30], [255, 255, 255]]
    gray = Image.fromarray(np.array([[[100, 255], [100, 0], [0, 51]]], np.uint8))
    assert gray.mode == "LA"
    assert fit(save(gray), ImageSpec(1, 3, 1))[0, 0].tolist() == [100, 255, 204]
    assert fit(save(gray), ImageSpec(1, 3, 4))[3, 0].tolist() == [255, 0, 51]
    opaque = Image.fromarray(np.full((1, 1, 3), 7, np.uint8))
    assert fit(save(opaque), ImageSpec(1, 1, 4))[:, 0, 0].tolist() == [7, 7, 7, 255]


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_printing_inks_become_the_colours_they_leave(kind: str) -> None:
    inks = np.zeros((8, 32, 4), np.uint8)
    inks[:, :8, 0], inks[:, 8:16, 1], inks[:, 16:24, 3] = 255, 255, 255
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    data = save(Image.fromarray(inks, "CMYK"), kind, **options)
    found = fit(data, ImageSpec(8, 32))[:, 4, 4::8].T.astype(int)
    # Cyan takes red away, magenta green, black everything; without ink the paper is white.
    expected = [[0, 255, 255], [255, 0, 255], [0, 0, 0], [255, 255, 255]]
    assert np.abs(found - expected).max() <= 3


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_of_several_frames_the_first_is_read(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = save(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 2
    assert fit(data, ImageSpec(8, 8))[:, 0, 0].tolist() == [255, 0, 0]


def test_sixteen_bit_gray_is_scaled_and_not_cut_off() -> None:
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    found = fit(save(Image.fromarray(values)), ImageSpec(1, 4, 1))
    assert found[0, 0].tolist() == [np.float32(v / 65535) for v in values[0].tolist()]
    wide = Image.fromarray(values.astype(np.int32))
    assert np.asarray(convert_channels(wide, 1, "a")).tolist() == [[0, 1, 128, 255]]


def test_values_of_32_bits_are_refused_with_their_range() -> None:
    picture = Image.fromarray(np.array([[-1.5, 70000]], np.float32))
    with pytest.raises(
        DataError, match=r"a\.tif: 32-bit values in -1\.5\.\.70000 have no declared"
    ):
        convert_channels(picture, 3, "a.tif")


def test_a_channel_count_pictures_cannot_have_is_refused() -> None:
    with pytest.raises(DataError, match=r"a\.png: the image has 3 bands .*, but 2 .*\.npz"):
        convert_channels(Image.new("RGB", (2, 2)), 2, "a.png")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_a_truncated_picture_is_refused_by_path(encode: Callable[..., bytes], kind: str) -> None:
    data = encode(0, (64, 64), kind)
    assert fit(data, ImageSpec(8, 8)).shape == (3, 8, 8)
    cut = data[: len(data) // 2]
    with pytest.raises(
        DataError, match=r"^x/a\.jpg: cannot be decoded \(.+\)|^x/a\.jpg: the content"
    ):
        fit_encoded(Encoded("x/a.jpg", cut), ImageSpec(8, 8))
    with pytest.raises(DataError, match=r"^x/a\.jpg: "):
        read_picture(cut, "x/a.jpg")


def test_an_empty_file_and_a_foreign_one_say_what_they_are() -> None:
    with pytest.raises(DataError, match=r"a\.jpg: the file is empty \(0 bytes\)"):
        read_picture(b"", "a.jpg")
    with pytest.raises(DataError, match=r"a\.jpg: the content is not an image in JPEG, PNG"):
        read_picture(b"<html>not found</html>" * 20, "a.jpg")


def test_formats_that_start_foreign_programs_are_not_opened() -> None:
    postscript = save(Image.new("RGB", (4, 4)), "EPS")
    with pytest.raises(DataError, match="the content is not an image"):
        read_picture(postscript, "a.png")


def test_a_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = save(Image.new("L", (40, 40)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1600)
    assert read_picture(data, "a.png").size == (40, 40)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    with pytest.raises(DataError, match=r"a\.png: too many pixels to decode safely .*1600 pixels"):
        read_picture(data, "a.png")


def test_the_number_of_pixels_is_limited_by_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    data = save(Image.new("L", (40, 40)))
    monkeypatch.setenv("PERCEIVERS_MAX_PIXELS", "1599")
    with pytest.raises(DataError, match=r"a\.png: 1,600 pixels, but at most 1,599 are read; set"):
        read_picture(data, "a.png")
    monkeypatch.setenv("PERCEIVERS_MAX_PIXELS", "1600")
    assert read_picture(data, "a.png").size == (40, 40)


def test_a_limit_above_pillows_raises_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    data = save(Image.new("L", (40, 40)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    monkeypatch.setenv("PERCEIVERS_MAX_PIXELS", "999999999")
    assert read_picture(data, "a.png").size == (40, 40)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.JPG", True), ("b.jpeg", True), ("._b.jpeg", False), ("c.txt", False), ("png", False)],
)
def test_pictures_are_known_by_their_extension(name: str, expected: bool) -> None:
    assert is_picture_name(name) is expected


def test_an_array_that_fits_is_passed_through_untouched(numpy_rng: np.random.Generator) -> None:
    array = numpy_rng.random((5, 6, 6), np.float32)
    view = centre_view((6, 6), (6, 6))
    assert fit_array(array, ImageSpec(6, 6, 5), view) is array
    smaller = fit_array(array, ImageSpec(3, 3, 5), centre_view((6, 6), (3, 3)))
    assert smaller.shape == (5, 3, 3)
    assert smaller.dtype == np.float32


def test_enlarging_float_images_keeps_their_range() -> None:
    array = np.zeros((2, 8, 8), np.float32)
    array[:, :, 4:] = 1
    found = fit_array(array, ImageSpec(32, 32, 2), centre_view((8, 8), (32, 32)))
    assert (found.min(), found.max()) == (0, 1)
    raw = np.asarray(Image.fromarray(array[0]).resize((32, 32), Image.Resampling.BICUBIC))
    assert raw.max() > 1  # what bicubic alone gives


def test_one_channel_is_repeated_where_more_are_asked_for(numpy_rng: np.random.Generator) -> None:
    array = numpy_rng.integers(0, 256, (1, 4, 4), np.uint8)
    found = fit_array(array, ImageSpec(4, 4, 3), centre_view((4, 4), (4, 4)))
    assert np.array_equal(found, np.concatenate([array] * 3))


@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
def test_small_jpegs_are_enlarged_and_the_first_of_several_pictures_is_read(kind: str) -> None:
    pictures = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    options = {"save_all": True, "append_images": pictures[1:]} if kind == "MPO" else {}
    found = fit(save(pictures[0], kind, **options), ImageSpec(64, 64))
    assert found.shape == (3, 64, 64)
    assert found[0].min() > 250
    assert found[2].max() < 5
