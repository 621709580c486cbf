"""Probes: known figures, choices made where they may be, floors beside them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import perceivers as pv
from perceivers.data import Batch, Dataset
from perceivers.errors import ConfigError, DataError
from perceivers.types import Array, Audio, Bytes, Image, Points, Video
from perceivers.workflows.probing import (
    FeatureTable,
    Split,
    assign_roles,
    columns,
    figures_of,
    fit_floor,
    fit_probes,
    probe_column,
    simple_features,
)


def blobs(seed: int, count: int = 60, spread: float = 0.1) -> FeatureTable:
    """Three classes far apart."""
    rng = np.random.default_rng(seed)
    y = np.arange(count) % 3
    centres = np.array([[0, 0], [5, 0], [0, 5]])
    return FeatureTable(
        (centres[y] + spread * rng.standard_normal((count, 2))).astype(np.float32), y
    )


def test_separate_classes_are_told_apart_and_the_floor_is_the_most_common() -> None:
    neighbours, linear = fit_probes(blobs(0), blobs(1), blobs(2), "classes")
    assert neighbours.probe == "k-NN"
    assert neighbours.figures == {"accuracy": 1.0, "macro": 1.0}
    assert linear.figures == {"accuracy": 1.0, "macro": 1.0}
    uneven = FeatureTable(np.zeros((4, 2), np.float32), np.array([1, 1, 1, 0]))
    floor = fit_floor(uneven, uneven, uneven, "classes")
    assert floor.figures == {"accuracy": 0.75, "macro": 0.5}
    assert floor.probe == "majority"


def test_numbers_are_predicted_and_their_mean_explains_nothing() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((90, 3)).astype(np.float32)
    y = 2 * x[:, 0] - x[:, 1] + 4
    fit, choose, report = (FeatureTable(x[i : i + 30], y[i : i + 30]) for i in (0, 30, 60))
    _, linear = fit_probes(fit, choose, report, "numbers")
    assert linear.chosen == {"alpha": 0.01}
    assert linear.figures["r2"] > 0.999
    assert fit_floor(fit, choose, report, "numbers").figures["r2"] <= 0.0


def test_settings_are_chosen_where_they_are_told_and_nowhere_else() -> None:
    """Noise in what is fitted: one neighbour is wrong there, many are right."""
    fit, choose = blobs(0, spread=0.5), blobs(1, spread=0.5)
    noisy = FeatureTable(fit.x, np.where(np.arange(60) % 5 == 0, (fit.y + 1) % 3, fit.y))
    chosen = fit_probes(noisy, choose, choose, "classes")[0].chosen
    assert chosen["k"] > 1
    itself = fit_probes(noisy, noisy, choose, "classes")[0]
    assert itself.chosen["k"] == 1
    assert itself.chosen_figure == 1.0
    assert itself.figures["accuracy"] < 1.0


def test_figures_are_those_counted_by_hand() -> None:
    truth, answers = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    found = figures_of(answers, truth, "classes")
    assert found["accuracy"] == 0.75
    assert found["macro"] == pytest.approx((2 / 3 + 1) / 2)
    numbers = figures_of(np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0]), "numbers")
    assert numbers["r2"] == pytest.approx(1 - 1 / 2)
    assert numbers["mae"] == pytest.approx(1 / 3)


def test_one_class_cannot_be_probed() -> None:
    alike = FeatureTable(np.random.default_rng(0).random((8, 2), np.float32), np.zeros(8, np.int64))
    with pytest.raises(ConfigError, match="all 8 samples to fit have the same class"):
        fit_probes(alike, alike, alike, "classes")


def test_without_a_test_split_validation_chooses_nothing() -> None:
    tables = {"train": blobs(0), "val": blobs(1)}
    names = [str(i) for i in range(60)]
    fit, choose, report = assign_roles(tables, names)
    assert (len(fit.x), len(choose.x)) == (48, 12)
    assert report is tables["val"]
    together = np.concatenate([fit.x, choose.x])
    assert np.array_equal(np.sort(together, 0), np.sort(tables["train"].x, 0))
    assert assign_roles({**tables, "test": blobs(2)}, names)[1] is tables["val"]


def write_arrays(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.slow
def test_a_probe_of_digits_knows_more_than_nothing(tmp_path: Path) -> None:
    """Data without a test split: validation is what figures are of."""
    source = pv.open_data("digits").splits["train"]
    pictures = np.stack([np.asarray(source.read(i)["image"]) for i in range(200)])
    data = write_arrays(tmp_path / "d.npz", image=pictures, label=np.asarray(source.labels)[:200])
    found = pv.probe("hip_digits", data=str(data), out=tmp_path / "probe.json")
    assert json.loads((tmp_path / "probe.json").read_text())["counts"] == found.counts
    assert (found.reported, found.chosen_on) == ("val", "a fifth of train")
    figures = {(row.features, row.probe): row.figures["accuracy"] for row in found.rows}
    assert figures["model", "linear"] > 0.9  # it was trained on these
    assert figures["none", "majority"] < 0.3 < figures["simple", "k-NN"]
    assert set(figures) == {
        ("model", "k-NN"),
        ("model", "linear"),
        ("simple", "k-NN"),
        ("simple", "linear"),
        ("none", "majority"),
    }
    assert found.to_json()["rows"][0]["features"] == "model"


def test_data_without_answers_are_refused(tmp_path: Path) -> None:
    pictures = np.zeros((20, 1, 8, 8), np.uint8)
    with pytest.raises(DataError, match="neither labels nor numbers"):
        pv.probe("hip_digits", data=str(write_arrays(tmp_path / "d.npz", image=pictures)))


def one_batch(name: str, raw: torch.Tensor, **rest: Any) -> Batch:
    return Batch({name: raw}, None, torch.arange(len(raw)), [], **rest)


def test_simple_features_are_small_and_tell_what_they_should() -> None:
    rng = torch.Generator().manual_seed(0)

    def width(name: str, spec: Any, raw: torch.Tensor) -> int:
        found = simple_features(one_batch(name, raw), {name: spec})
        assert found.shape[0] == len(raw)
        assert torch.isfinite(found).all()
        return found.shape[1]

    assert width("image", Image(40, 30, 3), torch.rand(2, 3, 40, 30, generator=rng)) == 3 * 256
    assert width("image", Image(8, 8, 1), torch.rand(2, 1, 8, 8, generator=rng)) == 64
    assert width("video", Video(4, 8, 8, 1), torch.rand(2, 1, 4, 8, 8, generator=rng)) == 128
    assert width("audio", Audio(4000), torch.rand(2, 1, 4000, generator=rng)) == 128
    assert width("audio", Audio(20), torch.rand(2, 1, 20, generator=rng)) == 128
    assert width("array", Array((50, 50), 2), torch.rand(2, 50, 50, 2, generator=rng)) == 1024
    points = torch.rand(2, 30, 3, generator=rng)
    points[1, 10:] = torch.nan
    assert width("points", Points(30, 3, ragged=True), points) == 144 + 3 + 3 + 1
    ids = torch.randint(0, 262, (2, 40), generator=rng)
    assert width("bytes", Bytes(40), ids) == 262 + 512


def test_a_spectrum_tells_a_high_tone_from_a_low_one() -> None:
    times = torch.arange(4000) / 8000
    waves = torch.stack([(6.2832 * hertz * times).sin() for hertz in (200, 2000)]).unsqueeze(1)
    level = simple_features(one_batch("audio", waves), {"audio": Audio(4000)})[:, :64]
    assert level[0].argmax() < level[1].argmax()


def test_what_a_sample_lacks_is_zero() -> None:
    batch = one_batch(
        "image", torch.ones(2, 1, 4, 4), present={"image": torch.tensor([True, False])}
    )
    found = simple_features(batch, {"image": Image(4, 4, 1)})
    assert found.sum(1).tolist() == [16.0, 0.0]


@pytest.mark.slow
def test_several_columns_and_numbers_are_probed_one_by_one() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 4)).astype(np.float32)
    labels = np.stack([(x[:, 0] > 0).astype(np.int64), np.where(x[:, 1] > 0, 1, 0)], 1)
    labels[0, 1] = -1
    targets = x[:, 2:3].copy()
    targets[1] = np.nan
    part = Split({"model": x, "simple": x}, [str(i) for i in range(40)], labels, targets)
    splits = {"train": part, "val": part, "test": part}
    dataset = Dataset("d", {}, (), (), {"colour": ("a", "b"), "size": ("c", "d")}, ("weight",))
    found = {}
    for column, kind, answers in columns(dataset, splits):
        for row in probe_column(column, kind, splits, answers):
            found[row.column, row.features, row.probe] = row
    assert {name for name, *_ in found} == {"colour", "size", "weight"}
    assert found["size", "model", "k-NN"].figures["accuracy"] == 1.0
    assert found["weight", "model", "linear"].figures["r2"] > 0.99
    assert found["weight", "none", "mean"].width == 0
    unknown = {split: np.full(40, -1) for split in splits}
    with pytest.raises(DataError, match="no sample of 'train' has a known value"):
        probe_column("colour", "classes", splits, unknown)
