"""Folders of pictures and masks, in three layouts, paired by their stems."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from tests.data.test_masks import halves, png

from perceivers.data import open_data
from perceivers.data.folders import find_mask_folders
from perceivers.errors import DataError

Encode = Callable[..., bytes]
WriteFolder = Callable[[Mapping[str, bytes]], Path]


def files(encode: Encode, images: str, masks: str, numbers: range) -> dict[str, bytes]:
    made = {f"{images}/p{i}.jpg": encode(i, kind="JPEG") for i in numbers}
    return made | {f"{masks}/p{i}.png": png(halves() + i % 2) for i in numbers}


def test_two_folders_are_one_split(write_folder: WriteFolder, encode: Encode) -> None:
    root = write_folder(files(encode, "images", "masks", range(10)))
    dataset = open_data(str(root), val_share=0.2)
    assert {split: len(source) for split, source in dataset.splits.items()} == {
        "train": 8,
        "val": 2,
    }
    assert dataset.mask_classes == ("0", "1", "2")
    source = dataset.splits["train"]
    sample = source.read(0)
    number = int(source.names[0].removeprefix("images/p").removesuffix(".jpg"))
    assert np.array_equal(np.asarray(sample["mask"]), halves() + number % 2)


@pytest.mark.parametrize(
    ("images", "masks"),
    [("{}/images", "{}/annotations"), ("images/{}", "labels/{}"), ("{}/imgs", "{}/mask")],
)
def test_splits_lie_above_or_below(
    write_folder: WriteFolder, encode: Encode, images: str, masks: str
) -> None:
    made = {"classes.txt": b"a\nb\nvoid\n"}
    for split, numbers in (("train", range(4)), ("valid", range(4, 6)), ("test", range(6, 9))):
        made |= files(encode, images.format(split), masks.format(split), numbers)
    dataset = open_data(str(write_folder(made)))
    assert {split: len(source) for split, source in dataset.splits.items()} == {
        "train": 4,
        "val": 2,
        "test": 3,
    }
    assert dataset.mask_classes == ("a", "b", "void")


def test_stems_may_end_with_mask(write_folder: WriteFolder, encode: Encode) -> None:
    made = {f"images/{i}.png": encode(i) for i in range(3)}
    made |= {f"masks/{i}_mask.png": png(halves()) for i in range(3)}
    assert len(open_data(str(write_folder(made)), val_share=0.4).splits["train"]) == 2


def test_a_picture_without_a_mask_is_named(write_folder: WriteFolder, encode: Encode) -> None:
    made = files(encode, "images", "masks", range(3)) | {"images/odd.jpg": encode(9, kind="JPEG")}
    with pytest.raises(
        DataError, match=r"4 pictures and .* 3 masks \(1 unpaired\): 'odd' has no mask"
    ):
        open_data(str(write_folder(made)))


def test_other_folders_are_not_masks(write_folder: WriteFolder, encode: Encode) -> None:
    root = write_folder({"images/a.png": encode(0), "labels/a.txt": b"0 0.5 0.5 1 1"})
    assert find_mask_folders(root) == {}
    assert find_mask_folders(write_folder({"cat/a.png": encode(0), "dog/b.png": encode(1)})) == {}
