"""What training refuses, ``data check`` reports: samples are read as training reads them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perceivers.data import open_data
from perceivers.data.inspecting import inspect_data
from perceivers.workflows.checking import check_data


def draw(folder: Path, values: np.ndarray, count: int = 6) -> None:
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(values).save(folder / name / f"{number}.tif")


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pictures_that_training_refuses_are_not_called_sound(tmp_path: Path, dtype: type) -> None:
    values = np.random.default_rng(0).integers(-100, 100, (12, 12)).astype(dtype)
    draw(tmp_path / "odd", values)
    facts = check_data(str(tmp_path / "odd")).facts
    assert not facts.is_usable
    assert any("training reads none of the samples" in text for text in facts.problems)
    assert "no declared range" in facts.refused
    draw(tmp_path / "plain", values.astype(np.uint8))
    plain = check_data(str(tmp_path / "plain")).facts
    assert plain.is_usable
    assert plain.refused == ""


def test_a_single_sample_that_training_refuses_is_named(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for number in range(8):
        pixels = np.full((8, 8, 3), 20 * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        ids = np.full((8, 8), 7 if number == 3 else number % 2, np.uint8)
        Image.fromarray(ids).save(tmp_path / "masks" / f"{number}.png")
    (tmp_path / "classes.txt").write_text("grass\nsky\n")
    facts = inspect_data(open_data(str(tmp_path)))
    assert facts.num_broken == 1
    assert facts.broken[0].startswith("images/3.png: ")
    assert "ids [7]" in facts.broken[0]
    assert facts.is_usable
