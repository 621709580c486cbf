"""``Dataset.read``: what training gives a model, by modality."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.workflows import making

import perceivers as pv
from perceivers.data.loaders import make_eval_loader
from perceivers.errors import DataError


def test_a_picture_is_cropped_and_in_the_channels_asked_for(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(3):
            pixels = np.zeros((20, 40, 3), np.uint8)
            pixels[:, 10:30] = (255, 0, 0)  # the centre, which the crop keeps
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    data = pv.open_data(str(tmp_path))
    plain = data.read("train", 0, size=10)
    assert plain.keys() == {"image"}
    assert plain["image"].shape == (3, 10, 10)
    assert plain["image"].dtype == np.uint8
    assert plain["image"][0].min() > 200
    assert data.read("train", 0, size=(10, 20), channels=1)["image"].shape == (1, 10, 20)
    with pytest.raises(DataError, match=r"'train' has the samples 0\.\.3, not 4"):
        data.read("train", 4)
    with pytest.raises(DataError, match=r"no 'test' split; it has \['train', 'val'\]"):
        data.read("test", 0)


@pytest.mark.slow
def test_what_is_read_is_what_a_loader_brings(tmp_path: Path) -> None:
    making.write_clips(tmp_path / "clips")
    making.write_clouds(tmp_path / "clouds.npz")
    making.write_texts(tmp_path / "texts.csv")
    for address in ("clips", "clouds.npz", "texts.csv"):
        data = pv.open_data(str(tmp_path / address))
        (batch, *_) = make_eval_loader(data.splits["train"], data.specs(), batch_size=2)
        found = data.read("train", 1)
        assert found.keys() == batch.inputs.keys()
        for name, values in found.items():
            np.testing.assert_array_equal(values, batch.inputs[name][1].numpy())
        assert any(
            not np.array_equal(values, batch.inputs[name][0].numpy(), equal_nan=True)
            for name, values in found.items()
        )


def test_masks_come_with_their_pictures(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for number in range(4):
        ids = np.arange(16, dtype=np.uint8).reshape(4, 4) % 3
        Image.fromarray(np.stack([ids * 80] * 3, -1)).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(ids).save(tmp_path / "masks" / f"{number}.png")
    (tmp_path / "classes.txt").write_text("sky\nvoid\nroad\n")
    found = pv.open_data(str(tmp_path)).read("train", 0, size=4)
    ids = np.arange(16).reshape(4, 4) % 3
    # Void is ignored, and the ids above it move down.
    np.testing.assert_array_equal(found["mask"], np.array([0, 255, 1])[ids])
    np.testing.assert_array_equal(found["image"][0], ids * 80)


def test_a_seed_takes_a_random_view(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("".join(chr(97 + n % 26) for n in range(5000)))
    data = pv.open_data(str(tmp_path / "x.txt"))
    settings: dict[str, Any] = {"overrides": {"bytes": {"length": 8}}}
    views = {data.read("train", 0, seed=seed, **settings)["bytes"].tobytes() for seed in range(9)}
    assert len({data.read("train", 0, **settings)["bytes"].tobytes() for _ in range(3)}) == 1
    assert len(views) > 1
