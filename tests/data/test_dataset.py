"""Specs measured from data."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from perceivers.data import Dataset, open_data
from perceivers.data.arrays import hold_arrays
from perceivers.data.row_source import RowSource
from perceivers.data.sources import RawSample, Source
from perceivers.errors import ConfigError, DataError
from perceivers.types import Audio, Image

WriteFolder = Callable[[Mapping[str, bytes]], Path]
Encode = Callable[..., bytes]


def arrays(**modalities: np.ndarray) -> Dataset:
    count = len(next(iter(modalities.values())))
    source = hold_arrays(modalities, [f"x/{i}" for i in range(count)])
    return Dataset("x", {"train": source, "val": source}, (), ())


def flat(*colours: tuple[int, int, int]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for i, colour in enumerate(colours):
        file = io.BytesIO()
        Pillow.new("RGB", (8, 6), colour).save(file, "PNG")
        found[f"train/{i}.png"] = found[f"val/{i}.png"] = file.getvalue()
    return found


def test_mean_and_deviation_of_pictures_are_those_by_hand(write_folder: WriteFolder) -> None:
    dataset = open_data(str(write_folder(flat((0, 51, 255), (255, 51, 0)))))
    spec = dataset.specs(size=4)["image"]
    assert spec.mean == pytest.approx((0.5, 0.2, 0.5))
    assert spec.std == pytest.approx((0.5, 1.0, 0.5))  # a channel that never changes is left alone
    assert spec.raw_shape == (3, 4, 4)


def test_statistics_are_those_of_the_training_split_after_fitting(
    numpy_rng: np.random.Generator,
) -> None:
    image = numpy_rng.integers(0, 256, (20, 2, 4, 4), np.uint8)
    spec = arrays(image=image).specs()["image"]
    scaled = image / 255.0
    assert spec.mean == pytest.approx(scaled.mean(axis=(0, 2, 3)), rel=1e-5)
    assert spec.std == pytest.approx(scaled.std(axis=(0, 2, 3)), rel=1e-5)
    smaller = arrays(image=image).specs(size=2)["image"]
    assert all(a < b for a, b in zip(smaller.std, spec.std, strict=True))


def test_integers_of_sound_are_measured_in_full_scale() -> None:
    audio = np.array([[[16384, -16384]], [[16384, -16384]]], np.int16)
    assert arrays(audio=audio).specs() == {"audio": Audio(2, 1, mean=(0.0,), std=(0.5,))}


def test_channels_last_modalities_are_measured_per_channel() -> None:
    points = np.array([[[0, 10], [2, 10]]] * 2, np.float32)
    spec = arrays(points=points).specs()["points"]
    assert (spec.mean, spec.std) == ((1.0, 10.0), (1.0, 1.0))


def test_at_most_512_samples_spread_over_the_data_are_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset, seen = arrays(image=np.zeros((2000, 1, 1, 1), np.uint8)), set[int]()
    read = RowSource.read

    def count(self: RowSource, index: int) -> RawSample:
        seen.add(index)
        return read(self, index)

    monkeypatch.setattr(RowSource, "read", count)
    dataset.specs()
    assert len(seen) == 512
    assert {0, 1999} <= seen


def test_the_default_size_is_64_for_files_and_native_for_arrays(
    write_folder: WriteFolder, encode: Encode
) -> None:
    folder = open_data(str(write_folder({f"{i}.png": encode(i) for i in range(2)})))
    assert folder.specs()["image"].raw_shape == (3, 64, 64)
    assert folder.specs(size=(4, 6))["image"].raw_shape == (3, 4, 6)
    digits = open_data("digits")
    assert digits.specs()["image"].raw_shape == (1, 8, 8)
    assert digits.specs(size=16, channels=3)["image"].raw_shape == (3, 16, 16)
    with pytest.raises(ConfigError, match=r"Image\.height is 0"):
        folder.specs(size=0)


def test_pictures_are_gray_only_if_all_are(write_folder: WriteFolder, encode: Encode) -> None:
    files = {f"{i}.png": encode(i, mode="L") for i in range(6)}
    dataset = open_data(str(write_folder(files)), val_share=0.2)
    gray = dataset.specs(size=4)["image"]
    assert (gray.channels, len(gray.mean)) == (1, 1)
    assert dataset.specs(size=4, channels=3)["image"].channels == 3
    first = dataset.splits["train"].names[0]
    assert (
        open_data(str(write_folder({first: encode(9)})), val_share=0.2).specs()["image"].channels
        == 3
    )


def test_unreadable_pictures_do_not_count(write_folder: WriteFolder) -> None:
    files = flat((0, 51, 255), (255, 51, 0))
    dataset = open_data(str(write_folder(files | {"train/2.png": b"x"})))
    assert dataset.specs(size=4)["image"].mean == pytest.approx((0.5, 0.2, 0.5))
    write_folder({"train/0.png": b"", "train/1.png": b""})
    with pytest.raises(DataError, match=r"none of the 3 inspected .*/0\.png: the file is"):
        dataset.specs(size=4)


def test_channels_the_data_cannot_give_are_refused(write_folder: WriteFolder) -> None:
    dataset = open_data(str(write_folder(flat((0, 0, 0), (1, 1, 1)))))
    with pytest.raises(DataError, match=r"the image has 3 bands .* but 2 channels"):
        dataset.specs(channels=2)
    five = arrays(image=np.zeros((2, 5, 4, 4), np.uint8))
    assert five.specs()["image"].channels == 5
    with pytest.raises(DataError, match="arrays of 5 channels, but channels=3 was set"):
        five.specs(channels=3)


def test_measured_specs_are_plain_numbers() -> None:
    spec = open_data("digits").specs()["image"]
    assert isinstance(spec, Image)
    assert repr(spec) == ("Image(height=8, width=8, channels=1, mean=(0.30686,), std=(0.377059,))")


def test_decoded_pictures_are_fitted_to_64_pixels() -> None:
    class Decoded(Source):
        names = ("a",)

        def read(self, index: int) -> Any:
            return {"image": Pillow.new("RGB", (4, 4), (0, 51, 255))}

    source = Decoded()
    spec = Dataset("x", {"train": source, "val": source}, (), ()).specs()["image"]
    assert spec == Image(64, 64, 3, mean=(0.0, 0.2, 1.0), std=(1.0, 1.0, 1.0))
