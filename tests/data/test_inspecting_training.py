"""What training refuses, ``data check`` reports: samples are read as training reads them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from perceivers.data import AugmentConfig, Dataset, make_train_loader, open_data
from perceivers.data.inspecting import inspect_data
from perceivers.errors import DataError
from perceivers.workflows.checking import check_data


def draw(folder: Path, values: np.ndarray, count: int = 6) -> None:
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(values).save(folder / name / f"{number}.tif")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.float32])
def test_pictures_are_usable_exactly_where_training_reads_them(tmp_path: Path, dtype: type) -> None:
    values = np.random.default_rng(0).integers(0, 100, (12, 12)).astype(dtype)
    draw(tmp_path, values)
    data = open_data(str(tmp_path))
    try:
        settings = {"batch_size": 2, "seed": 0, "start_step": 0, "num_steps": 1}
        specs = data.training_specs()
        loader = make_train_loader(data.splits["train"], specs, augment=AugmentConfig(), **settings)
        read = len(next(iter(loader))) == 2
    except DataError:
        read = False
    assert check_data(str(tmp_path)).facts.is_usable == read
    assert read or dtype is np.int32


def test_data_that_training_refuses_altogether_are_not_called_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path, np.arange(144, dtype=np.uint8).reshape(12, 12))
    assert check_data(str(tmp_path)).facts.refused == ""

    def refuse(self: Dataset, **settings: Any) -> None:
        raise DataError("no channels that fit")

    monkeypatch.setattr(Dataset, "training_specs", refuse)
    report = check_data(str(tmp_path))
    assert not report.is_usable
    assert report.facts.refused == "no channels that fit"
    assert report.facts.problems[0] == ("training cannot read the samples: no channels that fit")


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
