"""Folders of a test split alone."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.workflows import making

from perceivers.data.held_out import open_held_out
from perceivers.errors import DataError


def draw(folder: Path, count: int = 2) -> None:
    rng = np.random.default_rng(len(folder.name))
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(folder / f"{number}.png")


def test_a_folder_of_one_split_is_opened(tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        draw(tmp_path / "test" / name)
    opened = open_held_out(str(tmp_path))
    assert opened is not None
    assert list(opened.splits) == ["test"]
    assert opened.classes == ("cats", "dogs")
    assert len(opened.splits["test"]) == 4
    assert opened.notes[0] == "no training split: test alone"
    # With a training split it is ordinary data.
    for name in ("cats", "dogs"):
        draw(tmp_path / "train" / name)
    assert open_held_out(str(tmp_path)) is None


def test_other_addresses_are_left_alone(tmp_path: Path) -> None:
    making.write_texts(tmp_path / "train.csv")
    assert open_held_out(str(tmp_path)) is None
    assert open_held_out("digits") is None
    assert open_held_out(str(tmp_path / "train.csv")) is None
    # "test" is a class among others here.
    for name in ("test", "cats"):
        draw(tmp_path / "classes" / name)
    assert open_held_out(str(tmp_path / "classes")) is None


def test_splits_of_different_classes_are_refused(tmp_path: Path) -> None:
    for path in ("test/cats", "test/dogs", "val/cats", "val/cows"):
        draw(tmp_path / path)
    with pytest.raises(DataError, match=r"no training split to number classes by"):
        open_held_out(str(tmp_path))
