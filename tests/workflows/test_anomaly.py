"""Anomalies: spoilt digits and photographs score higher, and the map says where."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

import perceivers as pv
from perceivers.checkpoints.loading import load_with_info
from perceivers.errors import CheckpointError, ConfigError, DataError
from perceivers.workflows.anomaly import (
    AnomalyRow,
    Scale,
    area,
    check_folder,
    describe,
    error_maps,
    measure,
    pool_errors,
    write_anomalies,
)
from perceivers.workflows.embedding import open_feed

DIGITS = "hip_digits_mae"
FEW = 40


def digits() -> np.ndarray:
    source = pv.open_data("digits").splits["test"]
    return np.stack([np.asarray(source.read(i)["image"])[0] for i in range(FEW)])


def save(folder: Path, pictures: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for number, picture in enumerate(pictures):
        Pillow.fromarray(picture).save(folder / f"{number:02d}.png")


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits as they are, with a square of the opposite brightness, and with swapped halves."""
    root, whole = tmp_path_factory.mktemp("spoilt"), digits()
    pasted = whole.copy()
    pasted[:, 2:5, 3:6] = np.where(whole[:, 2:5, 3:6] < 128, 255, 0)
    swapped = np.concatenate([whole[:, :, 4:], whole[:, :, :4]], 2)
    save(root / "square" / "fine", whole)
    save(root / "square" / "pasted", pasted)
    save(root / "halves" / "fine", whole)
    save(root / "halves" / "swapped", swapped)
    return root


def find(data: Path, **changes: Any) -> Any:
    settings = pv.AnomalySettings(**{"repeats": 4, **changes.pop("settings", {})})
    return pv.find_anomalies(DIGITS, data, normal="fine", settings=settings, **changes)


@pytest.mark.parametrize(("kind", "least"), [("square", 0.95), ("halves", 0.98)])
def test_spoilt_digits_score_higher(spoilt: Path, kind: str, least: float) -> None:
    found = find(spoilt / kind)
    assert len(found.rows) == 2 * FEW
    assert found.auroc is not None
    assert found.auroc > least
    assert found.rows[0].score > found.rows[-1].score
    assert found.reference == 0


def test_the_map_peaks_where_the_square_was_pasted(spoilt: Path) -> None:
    found = find(spoilt / "square", settings={"draw": 30})
    assert len(found.maps) == 30
    inside = 0
    for each in found.maps:
        row, column = np.unravel_index(each.errors["image"].argmax(), (8, 8))
        inside += each.row.known_class == "pasted" and 2 <= row < 5 and 3 <= column < 6
    # 9 of 64 pixels: chance would be 4 of 30.
    assert inside > 24


@pytest.mark.slow
def test_scores_are_relative_to_a_reference_of_the_normal_class(spoilt: Path) -> None:
    quick = {"repeats": 1, "draw": 0}
    plain = find(spoilt / "square", settings=quick)
    relative = find(spoilt / "square", settings=quick, reference="digits")
    assert relative.reference == 512
    by_name = {row.name: row for row in plain.rows}
    fine = [row for row in relative.rows if row.known_class == "fine"]
    assert abs(float(np.median([row.score for row in fine]))) < 1.0
    assert 20 < float(np.median([row.percentile for row in fine])) < 80
    # A linear change: the order stays.
    assert [row.name for row in relative.rows] == [row.name for row in plain.rows]
    assert by_name[fine[0].name].percentile is None
    assert describe(fine[0])["error/image"] == by_name[fine[0].name].errors["image"]


@pytest.mark.slow
def test_a_reference_with_the_class_that_is_normal_is_cut_to_it() -> None:
    settings, loaded = pv.AnomalySettings(repeats=1), load_with_info(DIGITS)
    maker = error_maps(loaded, None, repeats=1, ratio=None, seed=0)
    feed = open_feed(loaded, None, ["digits"], split="val")
    every = measure(loaded, maker, feed, (), settings)
    threes = measure(loaded, maker, feed, ("3",), settings)
    foreign = measure(loaded, maker, feed, ("fine",), settings)
    assert [len(scale.scores) for scale in (every, threes, foreign)] == [179, 18, 179]
    assert every.centre["image"] != threes.centre["image"]


def test_scores_combine_the_modalities_that_a_sample_holds() -> None:
    scale = Scale({"a": 1.0, "b": 10.0}, {"a": 0.5, "b": 2.0}, np.array([0.0, 1.0, 2.0, 4.0]))
    assert scale.combine({"a": 2.0, "b": 10.0}) == 1.0
    assert scale.combine({"a": 2.0, "b": float("nan")}) == 2.0
    assert scale.percentile(1.5) == 50.0
    assert Scale().combine({"a": 2.0, "b": 4.0}) == 3.0
    assert Scale().percentile(3.0) is None


@pytest.mark.slow
def test_the_masks_of_a_seed_are_the_same_in_any_batch(spoilt: Path) -> None:
    quick = {"repeats": 1, "draw": 3}
    one = find(spoilt / "square", settings={"batch_size": 7, **quick})
    other = find(spoilt / "square", settings={"batch_size": 64, **quick})
    seeded = find(spoilt / "square", settings={"seed": 1, **quick})
    scores = [np.array([row.score for row in x.rows]) for x in (one, other, seeded)]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4)
    assert not np.allclose(scores[0], scores[2], rtol=1e-3)
    assert [x.row.name for x in one.maps] == [row.name for row in one.rows[:3]]


@pytest.mark.slow
def test_files_hold_every_score_and_the_maps_of_the_strangest(spoilt: Path, tmp_path: Path) -> None:
    (spoilt / "square" / "fine" / "bad.png").write_bytes(b"no picture")
    try:
        found = find(spoilt / "square", settings={"draw": 2})
    finally:
        (spoilt / "square" / "fine" / "bad.png").unlink()
    assert len(found.skipped) == 1
    assert "bad.png" in found.skipped[0]
    write_anomalies(found, tmp_path / "out")
    lines = (tmp_path / "out" / "scores.jsonl").read_text().splitlines()
    scores = [json.loads(line)["score"] for line in lines]
    assert len(scores) == 2 * FEW
    assert scores == sorted(scores, reverse=True)
    assert (tmp_path / "out" / "scores.csv").read_text().startswith("file,class,score,error/image")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["auroc"] == found.auroc
    assert summary["skipped"] == found.skipped
    maps = sorted((tmp_path / "out").glob("*.npz"))
    assert len(maps) == len(list((tmp_path / "out").glob("*.png"))) == 2
    assert np.load(maps[0])["image"].shape == (8, 8)
    with pytest.raises(ConfigError, match="holds scores already"):
        check_folder(tmp_path / "out", overwrite=False)
    check_folder(tmp_path / "out", overwrite=True)


def draw_things(count: int) -> np.ndarray:
    """Dark discs on a light background, ``[n, 64, 64, 3]``."""
    rng, (y, x) = np.random.default_rng(1), np.mgrid[:64, :64]
    pictures = []
    for _ in range(count):
        row, column, radius = rng.integers(24, 40), rng.integers(24, 40), rng.integers(10, 20)
        light = 150 + 60 * (x + y) / 128
        disc = (y - row) ** 2 + (x - column) ** 2 < radius**2
        pictures.append(np.where(disc[..., None], rng.integers(60, 130, 3), light[..., None]))
    return np.stack(pictures).astype(np.uint8)


def test_a_photograph_is_strange_where_it_was_painted_over(tmp_path: Path) -> None:
    things = draw_things(8)
    painted = things.copy()
    painted[:, 4:20, 40:56] = (250, 20, 20)
    save(tmp_path / "fine", things)
    save(tmp_path / "painted", painted)
    settings = pv.AnomalySettings(repeats=2, draw=8)
    found = pv.find_anomalies("hiera_trashnet_mae", tmp_path, normal="fine", settings=settings)
    assert found.auroc is not None
    assert found.auroc > 0.95
    for each in found.maps:
        errors = each.errors["image"]
        assert each.row.known_class == "painted"
        assert errors[4:20, 40:56].mean() > 3 * errors.mean()


def test_pooling_takes_the_most_wrong_elements() -> None:
    errors = {"x": torch.tensor([[1.0, 4.0, 3.0, 2.0], [torch.nan, 1.0, torch.nan, 3.0]])}
    assert pool_errors(errors, 0.5) == [{"x": 3.5}, {"x": 3.0}]
    assert pool_errors(errors, 1.0) == [{"x": 2.5}, {"x": 2.0}]
    assert pool_errors(errors, 0.01) == [{"x": 4.0}, {"x": 3.0}]
    absent = pool_errors({"x": torch.full((1, 2), torch.nan)}, 0.5)[0]["x"]
    assert np.isnan(absent)


def rows(*pairs: tuple[str, float]) -> list[AnomalyRow]:
    return [AnomalyRow(f"{i}", word, score, None, {}) for i, (word, score) in enumerate(pairs)]


def test_the_area_is_the_share_of_pairs_in_the_right_order() -> None:
    mixed = rows(("good", 1.0), ("bad", 2.0), ("good", 300.0), ("bad", 400.0), ("", 9.0))
    assert area(mixed, ["good"]) == pytest.approx(0.75)
    # Large scores stay apart, and equal ones count half.
    assert area(rows(("good", 100.0), ("bad", 200.0)), ["good"]) == 1.0
    assert area(rows(("good", 5.0), ("bad", 5.0)), ["good"]) == 0.5
    with pytest.raises(DataError, match=r"normal classes are \['fine'\].*\['bad', 'good'\]"):
        area(mixed, ["fine"])


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"top": 0.0}, "top is 0.0"),
        ({"draw": -1}, "draw is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], pattern: str) -> None:
    with pytest.raises(ConfigError, match=pattern):
        pv.AnomalySettings(**changes)


def test_a_classifier_fills_nothing_in() -> None:
    with pytest.raises(CheckpointError, match="does not fill in"):
        pv.find_anomalies("hip_digits", "digits")
