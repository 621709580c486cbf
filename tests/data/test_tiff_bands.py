"""TIFF files of any bands and types: every band is a channel, and only declared opacity is such."""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

import perceivers as pv
from perceivers.data.deep_pictures import (
    count_channels,
    is_deep,
    read_deep,
    read_layout,
    scale_bands,
    to_drawn,
)
from perceivers.data.drawing import fit_encoded
from perceivers.data.inspecting import inspect_data
from perceivers.data.sources import Encoded
from perceivers.errors import DataError
from perceivers.types import Image as ImageSpec

HEIGHT, WIDTH = 6, 8


def values_of(bands: int, dtype: Any = np.uint8, seed: int = 0) -> np.ndarray:
    """Random values ``[H, W, N]`` over the range of their type."""
    rng = np.random.default_rng(seed)
    if np.issubdtype(dtype, np.floating):
        return rng.normal(0, 100, (HEIGHT, WIDTH, bands)).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, (HEIGHT, WIDTH, bands), dtype, endpoint=True)


def tiff(values: np.ndarray, layout: str = "interleaved", **options: Any) -> bytes:
    """Encode values ``[H, W, N]`` in one of the three layouts."""
    file = io.BytesIO()
    if layout == "interleaved":
        tifffile.imwrite(file, values, planarconfig="contig", photometric="minisblack", **options)
    elif layout == "planar":
        planes = values.transpose(2, 0, 1)
        tifffile.imwrite(file, planes, planarconfig="separate", photometric="minisblack", **options)
    elif layout == "pages":
        with tifffile.TiffWriter(file) as writer:
            for band in values.transpose(2, 0, 1):
                writer.write(band, photometric="minisblack", metadata=None, **options)
    else:
        planes = values.transpose(2, 0, 1)
        tifffile.imwrite(file, planes, imagej=True, metadata={"axes": "CYX"}, **options)
    return file.getvalue()


def rgb_tiff(values: np.ndarray, extra: list[str]) -> bytes:
    """Encode RGB and further bands, which are declared as ``extra``."""
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric="rgb", extrasamples=extra, planarconfig="contig")
    return file.getvalue()


@pytest.mark.parametrize("layout", ["interleaved", "planar", "pages"])
@pytest.mark.parametrize("bands", [2, 3, 4, 5, 13])
@pytest.mark.parametrize(
    ("dtype", "scale"), [("uint8", 1), ("uint16", 65535), ("int16", 32768), ("float32", 1)]
)
def test_every_band_is_a_channel(bands: int, layout: str, dtype: str, scale: int) -> None:
    values = values_of(bands, np.dtype(dtype))
    data = tiff(values, layout)
    assert is_deep(data)
    assert count_channels(data, "x") == bands
    found = read_deep(data, "x", bands)
    assert found.dtype == (np.uint8 if dtype == "uint8" else np.float32)
    wanted = values.transpose(2, 0, 1) / scale
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7)
    assert not np.allclose(found, wanted[::-1])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_stacks_of_image_j_are_bands(dtype: str) -> None:
    values = values_of(5, np.dtype(dtype))
    data = tiff(values, "imagej")
    assert count_channels(data, "x") == 5
    scale = 65535 if dtype == "uint16" else 1
    np.testing.assert_allclose(read_deep(data, "x", 5), values.transpose(2, 0, 1) / scale, 1e-6)


@pytest.mark.parametrize("compression", ["zlib", "lzw", "zstd"])
@pytest.mark.parametrize("options", [{}, {"tile": (16, 16)}, {"bigtiff": True}])
def test_compressed_tiled_and_big_files_are_read(compression: str, options: dict[str, Any]) -> None:
    values = values_of(4, np.uint16)
    data = tiff(values, compression=compression, **options)
    np.testing.assert_allclose(read_deep(data, "x", 4), values.transpose(2, 0, 1) / 65535, 1e-6)


def test_infrared_beside_rgb_is_no_opacity() -> None:
    """0.12 in all bands would become 0.71 if the fourth made the picture transparent."""
    flat = np.full((HEIGHT, WIDTH, 4), round(0.12 * 255), np.uint8)
    flat[..., 3] = round(0.33 * 255)
    undeclared = rgb_tiff(flat, ["unspecified"])
    assert count_channels(undeclared, "x") == 4
    found = read_deep(undeclared, "x", 4)
    assert found[:, 0, 0].tolist() == flat[0, 0].tolist()
    with pytest.raises(DataError, match=r"x: the image has 4 bands, but 3 channels are read; us"):
        read_deep(undeclared, "x", 3)
    declared = rgb_tiff(flat, ["unassalpha"])
    assert count_channels(declared, "x") == 3
    shown = fit_encoded(Encoded("x", declared), ImageSpec(HEIGHT, WIDTH, 3))
    assert abs(shown[:, 0, 0].mean() / 255 - 0.71) < 0.01


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
def test_declared_opacity_is_opacity(dtype: Any, kind: str) -> None:
    top = np.iinfo(dtype).max
    values = np.zeros((HEIGHT, WIDTH, 4), dtype)
    values[..., 0], values[..., 3] = (top if kind == "unassalpha" else top // 2), top // 2
    data = rgb_tiff(values, [kind])
    for channels, wanted in ((3, [1.0, 0.5, 0.5]), (4, [1.0, 0.0, 0.0, 0.5])):
        found = fit_encoded(Encoded("x", data), ImageSpec(HEIGHT, WIDTH, channels))
        scaled = found[:, 0, 0] / (255 if found.dtype == np.uint8 else 1)
        np.testing.assert_allclose(scaled, wanted, atol=0.01)


def test_gray_with_declared_opacity_is_gray() -> None:
    values = np.zeros((HEIGHT, WIDTH, 2), np.uint8)
    values[..., 1] = 51
    file = io.BytesIO()
    tifffile.imwrite(
        file, values, photometric="minisblack", extrasamples=["unassalpha"], planarconfig="contig"
    )
    data = file.getvalue()
    assert count_channels(data, "x") == 1
    assert read_deep(data, "x", 1)[0, 0, 0] == 204
    undeclared = tiff(values)
    assert count_channels(undeclared, "x") == 2
    assert read_deep(undeclared, "x", 2)[:, 0, 0].tolist() == [0, 51]


def test_reduced_copies_and_colour_pages_are_no_bands() -> None:
    values = values_of(4)
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(values, planarconfig="contig", photometric="minisblack", metadata=None)
        writer.write(values, planarconfig="contig", photometric="minisblack", subfiletype=1)
    assert count_channels(file.getvalue(), "x") == 4
    file = io.BytesIO()
    pictures = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    pictures[0].save(file, "TIFF", save_all=True, append_images=pictures[1:])
    layout = read_layout(file.getvalue())
    assert layout is not None
    assert (layout.bands, layout.unread, layout.is_plain) == (3, 1, True)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_bands_are_turned_upright(orientation: int) -> None:
    values = values_of(5)
    data = tiff(values, extratags=[(274, "H", 1, orientation, True)])
    turned = {3: np.rot90(values, 2), 6: np.rot90(values, 3), 8: np.rot90(values)}[orientation]
    assert np.array_equal(read_deep(data, "x", 5), turned.transpose(2, 0, 1))


def test_white_is_zero_is_inverted() -> None:
    values = values_of(2, np.uint16)
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for band in values.transpose(2, 0, 1):
            writer.write(band, photometric="miniswhite", metadata=None)
    found = read_deep(file.getvalue(), "x", 2)
    np.testing.assert_allclose(found, 1 - values.transpose(2, 0, 1) / 65535, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[1.0, np.nan]]), r"x: 1 of 2 values are NaN or infinite \(no data\)"),
        (np.array([[1e39]]), r"x: 1 of 1 values are NaN or infinite"),
        (np.array([[-1, 70000]], np.int32), r"x: int32 values in -1\.\.70000 have no declared"),
        (np.array([[1j]]), r"x: complex128 values"),
    ],
)
def test_values_without_a_range_are_refused(values: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        scale_bands(values, "x")


def test_whole_numbers_of_32_bits_that_fit_are_read() -> None:
    assert scale_bands(np.array([0, 65535], np.uint32), "x").tolist() == [0.0, 1.0]


def test_damaged_files_and_wrong_counts_are_named() -> None:
    data = tiff(values_of(5, np.uint16))
    with pytest.raises(DataError, match=r"^x: cannot be decoded|^x: the header"):
        read_deep(data[: len(data) - 200], "x", 5)
    for channels in (1, 3, 4, 13):
        with pytest.raises(DataError, match=rf"x: the image has 5 bands, but {channels} chan"):
            read_deep(data, "x", channels)


def test_headers_that_promise_too_much_are_refused() -> None:
    data = bytearray(tiff(values_of(5)))
    layout = read_layout(bytes(data))
    assert layout is not None
    from perceivers.data.deep_pictures import read_bands

    with pytest.raises(DataError, match=r"x: 10,000,000,000 pixels, but at most"):
        read_bands(bytes(data), layout._replace(size=(100_000, 100_000)), "x")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiff(values_of(5))
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(DataError, match=r"'tifffile', .* pip install \"perceivers\[media\]\""):
        read_deep(data, "x", 5)


def test_bands_are_drawn_stretched() -> None:
    values = values_of(13, np.float32).transpose(2, 0, 1)
    drawn = to_drawn(values)
    assert drawn.shape == (HEIGHT, WIDTH, 3)
    assert drawn.min() == 0
    assert drawn.max() == 255


def write_folder(folder: Path, bands: int, dtype: Any = np.uint16, count: int = 12) -> str:
    """Two classes of pictures, one darker than the other."""
    for number in range(count):
        name = ("field", "water")[number % 2]
        (folder / name).mkdir(parents=True, exist_ok=True)
        values = values_of(bands, dtype, number) // (1 + number % 2)
        (folder / name / f"{number}.tif").write_bytes(tiff(values.astype(dtype)))
    return str(folder)


@pytest.mark.parametrize("bands", [2, 4, 13])
def test_channels_are_those_of_the_data(bands: int, tmp_path: Path) -> None:
    address = write_folder(tmp_path / "x", bands)
    specs = pv.open_data(address).specs()
    assert specs["image"].channels == bands
    assert len(specs["image"].mean) == bands
    # Not those of the first file alone.
    first = tmp_path / "x" / "field" / "0.tif"
    first.write_bytes(tiff(values_of(bands + 1)))
    dataset = pv.open_data(address)
    assert dataset.specs()["image"].channels == bands
    facts = inspect_data(dataset)
    assert facts.num_broken == 1
    said = f"0.tif: the image has {bands + 1} bands, but {bands} channels are read; use channels"
    assert said in facts.broken[0]


def test_the_check_says_what_becomes_of_values(tmp_path: Path) -> None:
    facts = inspect_data(pv.open_data(write_folder(tmp_path / "x", 4, np.int16)))
    assert facts.modalities["image"].values == {
        "channels": {"4": 12},
        "values": {"16 bits, signed, read as -1..1": 12},
    }
