"""Photographs that EXIF turns, and their masks: turned along, as they are, or counted."""

import io
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image, ImageOps

import perceivers as pv
from perceivers.data.augment import AugmentConfig
from perceivers.data.fitting import SampleReader
from perceivers.data.inspecting import inspect_data
from perceivers.data.masks import Mask
from perceivers.data.pictures import read_orientation, turn_array, turn_picture
from perceivers.errors import DataError
from perceivers.types import Image as ImageSpec

Lies = Literal["upright", "stored"]
ORIENTATION = 0x0112


def stored_ids(width: int, height: int) -> np.ndarray:
    """Class 1 in one corner: different from all its turned and mirrored copies."""
    ids = np.zeros((height, width), np.uint8)
    ids[: height // 2, : width // 4] = 1
    return ids


def photograph(ids: np.ndarray, orientation: int, kind: str = "JPEG") -> bytes:
    """A bright picture where the class is 1, stored as its ids are."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    file = io.BytesIO()
    Image.fromarray(ids * 200).convert("RGB").save(file, kind, exif=exif, quality=100)
    return file.getvalue()


def png(ids: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(ids).save(file, "PNG")
    return file.getvalue()


def write_pairs(
    folder: Path, orientation: int, size: tuple[int, int], lies: Lies, layout: str = "folder"
) -> str:
    """Write ten pairs; masks lie upright, or as the photographs are stored."""
    ids = stored_ids(*size)
    mask = png(ids if lies == "stored" else np.ascontiguousarray(turn_array(ids, orientation)))
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for number in range(10):
        (folder / "images" / f"{number}.jpg").write_bytes(photograph(ids, orientation))
        (folder / "masks" / f"{number}.png").write_bytes(mask)
    if layout == "folder":
        return str(folder)
    rows = [f"images/{n}.jpg,masks/{n}.png" for n in range(10)]
    (folder / "x.csv").write_text("\n".join(["image,mask", *rows]) + "\n")
    return str(folder / "x.csv")


def agreement(address: str, size: int, lies: Lies = "upright") -> float:
    """Return the fraction of pixels whose class is that of their brightness, as training reads."""
    source = pv.open_data(address).splits["train"]
    specs = {"image": ImageSpec(size, size, 1), "mask": Mask(size, size, 2, exif=lies)}
    sample = SampleReader(source, specs, AugmentConfig())(0)
    bright = sample["image"][0] > 100
    return float((bright == (sample["mask"] == 1)).mean())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_arrays_are_turned_as_pictures_are(orientation: int) -> None:
    ids = stored_ids(8, 6)
    opened = Image.open(io.BytesIO(photograph(ids, orientation, "PNG")))
    wanted = np.asarray(ImageOps.exif_transpose(opened).convert("L")) > 0
    assert np.array_equal(turn_array(ids, orientation) == 1, wanted)
    turn_picture(opened)
    assert read_orientation(opened) == orientation
    assert np.array_equal(np.asarray(opened.convert("L")) > 0, wanted)


@pytest.mark.parametrize("layout", ["folder", "table"])
@pytest.mark.parametrize("lies", ["upright", "stored"])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_where_only_one_size_fits_the_mask_is_taken_so(
    orientation: int, lies: Lies, layout: str, tmp_path: Path
) -> None:
    address = write_pairs(tmp_path / "x", orientation, (48, 32), lies, layout)
    # Whatever the setting says, the sizes tell.
    assert agreement(address, 32) > 0.97
    assert agreement(address, 32, "stored") > 0.97


@pytest.mark.parametrize(
    ("orientation", "size"), [(6, (32, 32)), (3, (48, 32)), (2, (48, 32)), (4, (48, 32))]
)
@pytest.mark.parametrize("lies", ["upright", "stored"])
def test_where_sizes_do_not_tell_the_setting_does(
    orientation: int, size: tuple[int, int], lies: Lies, tmp_path: Path
) -> None:
    address = write_pairs(tmp_path / "x", orientation, size, lies)
    other: Lies = "stored" if lies == "upright" else "upright"
    assert agreement(address, 32, lies) > 0.97
    assert agreement(address, 32, other) < 0.9


def test_a_mask_of_neither_size_is_refused(tmp_path: Path) -> None:
    address = write_pairs(tmp_path / "x", 6, (48, 32), "stored")
    (tmp_path / "x" / "masks" / "0.png").write_bytes(png(stored_ids(48, 30)))
    source = pv.open_data(address).splits["train"]
    specs = {"image": ImageSpec(32, 32, 1), "mask": Mask(32, 32, 2)}
    reader = SampleReader(source, specs, AugmentConfig())
    index = list(source.names).index("images/0.jpg")
    with pytest.raises(DataError, match=r"32x48 .*\(stored 48x32, rotated by EXIF\).* mask 48x30"):
        reader(index)


@pytest.mark.parametrize(
    ("orientation", "size", "said"),
    [
        (6, (48, 32), "10 are stored like their images, and are rotated with them"),
        (3, (48, 32), "10 may be stored upright or like their images"),
        (6, (32, 32), "segment.exif_masks says which, upright by default"),
    ],
)
def test_the_check_counts_how_masks_lie(
    orientation: int, size: tuple[int, int], said: str, tmp_path: Path
) -> None:
    address = write_pairs(tmp_path / "x", orientation, size, "stored")
    problems = inspect_data(pv.open_data(address)).problems
    assert any(said in problem for problem in problems), problems
    upright = write_pairs(tmp_path / "y", 1, size, "stored")
    assert not any("EXIF" in text for text in inspect_data(pv.open_data(upright)).problems)
