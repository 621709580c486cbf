"""Scenes of points with a class each: tiles, blocks, and points and classes chosen together."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perceivers.data import AugmentConfig, make_eval_loader, make_train_loader, open_data
from perceivers.data.augment import Look
from perceivers.data.clouds import PointMask, Scenes, choose_block, divide_scene
from perceivers.data.fits import fit_sample
from perceivers.data.inspecting_samples import measure_sample
from perceivers.data.masks import count_pixels
from perceivers.data.row_source import RowSource
from perceivers.errors import DataError
from perceivers.types import Points

SIZES = (50, 7, 33)
TOTAL = sum(SIZES)
SPEC = Points(16, 3, ragged=True, scale="centre")
MASK = PointMask(16, 2)


def make_content(**changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    points = rng.random((TOTAL, 3)).astype(np.float32) * [100, 40, 1]
    # What a point is can be read off its height, so that points and classes can be compared.
    content = {
        "xyz": points.astype(np.float32),
        "offsets": np.cumsum([0, *SIZES]),
        "label": (points[:, 2] > 0.5).astype(np.uint8),
    }
    return {key: value for key, value in (content | changes).items() if value is not None}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        np.savez(tmp_path / f"{split}.npz", **make_content())
    (tmp_path / "classes.txt").write_text("low\nhigh\n")
    return tmp_path


def make_scenes() -> Scenes:
    content = make_content()
    spans = np.stack([content["offsets"][:-1], content["offsets"][1:]], axis=1)
    return Scenes(content["xyz"], content["label"], spans, ["a", "b", "c"], 16)


@pytest.mark.parametrize("size", [1, 15, 16, 17, 50, 97, 1000])
def test_tiles_are_all_points_once_and_never_too_many(size: int) -> None:
    scene = np.random.default_rng(size).random((size, 3))
    tiles = divide_scene(scene, 16)
    assert len(tiles) == -(-size // 16)
    assert max(map(len, tiles)) <= 16
    assert sorted(np.concatenate(tiles).tolist()) == list(range(size))


def test_tiles_lie_side_by_side() -> None:
    scene = np.stack([np.arange(40.0), np.zeros(40), np.zeros(40)], axis=1)
    rows = sorted(tile.tolist() for tile in divide_scene(scene, 10))
    assert rows == [list(range(first, first + 10)) for first in (0, 10, 20, 30)]


def test_a_folder_of_labelled_points_is_scenes(folder: Path) -> None:
    dataset = open_data(str(folder))
    assert (dataset.classes, dataset.mask_classes) == ((), ("low", "high"))
    spec = dataset.specs()["points"]
    assert isinstance(spec, Points)
    assert (spec.points, spec.ragged, spec.scale) == (56, True, "centre")
    source = dataset.splits["train"]
    assert list(source.names) == ["train.npz/0@0", "train.npz/1@0", "train.npz/2@0"]


def test_evaluation_counts_every_point_once_beside_its_class(folder: Path) -> None:
    source = open_data(str(folder)).splits["val"]
    specs = {"points": SPEC, "mask": MASK}
    counted, high = 0, 0
    for batch in make_eval_loader(source, specs, batch_size=2):
        points, mask = batch.inputs["points"].numpy(), batch.inputs["mask"].numpy()
        assert mask.dtype == np.uint8
        assert np.all(mask[np.isnan(points).any(axis=2)] == 255)
        for cloud, ids in zip(points, mask, strict=True):
            lows, highs = cloud[ids == 0, 2], cloud[ids == 1, 2]
            assert not len(lows) or not len(highs) or lows.max() < highs.min()
        counted += int((mask != 255).sum())
        high += int((mask == 1).sum())
    assert (counted, high) == (TOTAL, int(make_content()["label"].sum()))


def test_training_sees_random_squares_with_their_classes(folder: Path) -> None:
    source = open_data(str(folder)).splits["train"]
    loader = make_train_loader(
        source,
        {"points": SPEC, "mask": MASK},
        batch_size=4,
        seed=0,
        augment=AugmentConfig(point_drop=0.5),
        start_step=0,
        num_steps=8,
    )
    seen = set()
    for batch in loader:
        points, mask = batch.inputs["points"].numpy(), batch.inputs["mask"].numpy()
        assert np.array_equal(mask == 255, np.isnan(points).any(axis=2))
        for cloud, ids in zip(points, mask, strict=True):
            lows, highs = cloud[ids == 0, 2], cloud[ids == 1, 2]
            assert not len(lows) or not len(highs) or lows.max() < highs.min()
            seen.add(cloud.tobytes())
    assert len(seen) > 28


def test_a_block_is_a_square_around_a_point() -> None:
    grid = np.stack(np.meshgrid(np.arange(9.0), np.arange(9.0)), axis=-1).reshape(-1, 2)
    cloud = np.concatenate([grid, np.zeros((81, 1))], axis=1)
    middle = int(np.flatnonzero((grid == 4).all(axis=1))[0])
    cloud[[0, middle]] = cloud[[middle, 0]]
    sample = {"points": cloud, "inside": np.arange(81) < 1}
    rows = choose_block(sample, 25, Look(np.random.default_rng(0)))
    assert np.abs(cloud[rows, :2] - 4).max() == 2
    assert len(rows) == 25


def test_context_is_near_and_not_counted() -> None:
    scenes = make_scenes()
    sample = scenes.as_source().read(0)
    assert len(np.asarray(sample["points"])) == 50
    inside = np.asarray(sample["inside"])
    fitted = fit_sample(sample, "a", {"points": SPEC, "mask": MASK})
    own = int(inside.sum())
    assert own == len(scenes.tiles[0].rows) < 16
    assert np.all(fitted["mask"][:own] < 2)
    assert np.all(fitted["mask"][own:] == 255)
    assert not np.isnan(fitted["points"]).any()
    alone = fit_sample(sample, "a", {"points": SPEC})
    assert np.array_equal(alone["points"], fitted["points"])


def test_centred_points_keep_their_unit() -> None:
    fitted = fit_sample(
        {"points": np.array([[0.0, 5.0, 1.0], [10.0, 5.0, 3.0]])},
        "a",
        {"points": Points(2, 3, scale="centre")},
    )
    assert fitted["points"].tolist() == [[-5, 0, -1], [5, 0, 1]]
    assert fitted["points"].dtype == np.float32


def test_validation_is_whole_scenes_or_one_end(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **make_content())
    dataset = open_data(str(tmp_path / "x.npz"), val_share=0.4)
    parts = [dataset.splits[name].items for name in ("train", "val")]
    assert all(isinstance(part, Scenes) for part in parts)
    scenes = [set(part.scenes) for part in parts if isinstance(part, Scenes)]
    assert scenes[0] | scenes[1] == {f"x.npz/{row}" for row in range(3)}
    assert not scenes[0] & scenes[1]
    whole = make_scenes()
    one = Scenes(whole.points, whole.ids, np.array([[0, 50]]), ["a"], 16)
    *divided, note = one.divide(0.2, "x")
    kept, carved = (part.items for part in divided if isinstance(part, RowSource))
    assert isinstance(kept, Scenes)
    assert isinstance(carved, Scenes)
    assert (len(kept.points), len(carved.points)) == (40, 10)
    assert kept.points[:, 0].max() <= carved.points[:, 0].min()
    assert "10 of 50" in note
    with pytest.raises(DataError, match="1 point"):
        Scenes(whole.points, None, np.array([[0, 1]]), ["a"]).divide(0.2, "x")


def test_wrong_classes_are_named(tmp_path: Path) -> None:
    wrong = {
        "integers": {"label": np.zeros(TOTAL)},
        "one key": {"mask": np.zeros(TOTAL, np.uint8)},
    }
    for rule, changes in wrong.items():
        np.savez(tmp_path / "x.npz", **make_content(**changes))
        with pytest.raises(DataError, match=rule):
            open_data(str(tmp_path / "x.npz"))
    sample = {"points": np.zeros((3, 3)), "mask": np.zeros(2, np.uint8)}
    with pytest.raises(DataError, match="every point needs one class"):
        fit_sample(sample, "a", {"points": SPEC, "mask": MASK})
    with pytest.raises(DataError, match="so read both"):
        fit_sample(sample, "a", {"mask": MASK})
    sample["mask"] = np.array([0, 1, 2])
    with pytest.raises(DataError, match=r"ids \[2\]"):
        fit_sample(sample, "a", {"points": SPEC, "mask": MASK})


def test_tiles_are_described_and_counted() -> None:
    facts = measure_sample(make_scenes().as_source(), 0)
    assert not facts.problem
    assert set(facts.modalities) == {"points", "mask"}
    assert facts.modalities["mask"].numbers == {"points": 50, "classes in it": 2}
    one_tile = Scenes(make_scenes().points, make_scenes().ids, np.array([[0, 50]]), ["a"], 50)
    truth = np.bincount(make_content()["label"][:50])
    assert count_pixels(one_tile.as_source(), MASK).tolist() == truth.tolist()
