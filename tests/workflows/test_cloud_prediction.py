"""Segmentation of points from data to files: training, evaluation, report, labelled clouds."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.workflows import making

import perceivers as pv
from perceivers.checkpoints.loading import load_with_info
from perceivers.cli.main import main
from perceivers.data import open_data
from perceivers.data.clouds import Scenes
from perceivers.errors import ConfigError
from perceivers.report.figures.scores import class_colours
from perceivers.workflows.dense_prediction import find_classes_of, predict_clouds
from perceivers.workflows.evaluation import evaluate

SIZES = (60, 45)
TOTAL = sum(SIZES)


@pytest.fixture(scope="session")
def terrain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes whose upper points are objects, in some unit."""
    folder = tmp_path_factory.mktemp("terrain")
    for seed, split in enumerate(("train", "val", "test")):
        rng = np.random.default_rng(seed)
        points = (rng.random((TOTAL, 3)) * [60, 30, 10]).astype(np.float32)
        labels = (points[:, 2] > 5).astype(np.uint8)
        offsets = np.cumsum([0, *SIZES])
        np.savez(folder / f"{split}.npz", xyz=points, offsets=offsets, label=labels)
    (folder / "classes.txt").write_text("ground\nobject\n")
    return folder


@pytest.fixture(scope="session")
def terrain_run(terrain: Path, runs: Path) -> pv.Run:
    """A Perceiver IO that was trained for a few steps."""
    return making.quietly(
        pv.train,
        task="segment",
        model="perceiver_io_nano",
        data=terrain,
        out=runs / "terrain",
        inputs={"points": {"points": 32}},
        model_options={"decoder": {"residual": True}},
        segment={"class_weights": "balanced"},
        batch_size=8,
        steps=60,
        eval_every=60,
        optimizer={"lr": 0.01},
    )


def test_training_learns_and_every_point_is_counted(terrain_run: pv.Run) -> None:
    found = evaluate(str(terrain_run.path), batch_size=2)
    assert found.figures["miou"] > 0.6
    assert found.figures.keys() >= {"iou/ground", "iou/object", "pixel_accuracy", "loss"}
    whole = evaluate(str(terrain_run.path), batch_size=64).figures
    assert whole["miou"] == pytest.approx(found.figures["miou"], abs=1e-6)
    assert terrain_run.write_report().exists()


def test_a_points_answer_is_that_of_evaluation(terrain: Path, terrain_run: pv.Run) -> None:
    loaded = load_with_info(terrain_run.path)
    source = open_data(str(terrain)).splits["test"].items
    assert isinstance(source, Scenes)
    found = find_classes_of(loaded.model, source)
    assert set(np.unique(found)) <= {0, 1}
    truth = source.ids
    assert truth is not None
    accuracy = evaluate(str(terrain_run.path)).figures["pixel_accuracy"]
    assert float((found == truth).mean()) == pytest.approx(accuracy, abs=1e-6)


def test_files_are_labelled_and_drawn(terrain: Path, terrain_run: pv.Run, tmp_path: Path) -> None:
    cloud = np.load(terrain / "test.npz")["xyz"][: SIZES[0]]
    np.save(tmp_path / "one.npy", cloud)
    (tmp_path / "bad.xyz").write_text("a b c\n")
    files = [tmp_path / "one.npy", tmp_path / "bad.xyz", terrain / "test.npz"]
    out = tmp_path / "out"
    made = list(predict_clouds(load_with_info(terrain_run.path), files, out))
    assert [bool(each.error) for each in made] == [False, True, False]
    one, both = np.load(out / "one.npz"), np.load(out / "test.npz")
    assert np.array_equal(one["points"], cloud)
    assert both["offsets"].tolist() == [0, 60, 105]
    assert np.array_equal(one["label"], both["label"][:60])
    assert sum((made[0].shares or {}).values()) == pytest.approx(1.0, abs=1e-4)
    assert [path.name for path in made[2].views] == ["test-0.png", "test-1.png"]
    with Image.open(out / "one.png") as picture:
        colours = {tuple(row) for row in np.asarray(picture).reshape(-1, 3).tolist()}
    assert colours <= {*map(tuple, class_colours(2)[[0, 1, 255]].tolist())}
    assert len(colours) > 1
    # What was written is data again.
    again = open_data(str(out / "test.npz"))
    assert again.mask_classes == ("ground", "object")


def test_the_command_says_what_it_did(
    terrain: Path, terrain_run: pv.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verb = ["predict", str(terrain_run.path), str(terrain / "test.npz"), "--out", str(tmp_path)]
    assert main(verb) == 0
    assert "2 views from above" in capsys.readouterr().out
    assert main(verb) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*verb, "--overwrite"]) == 0


def test_what_cannot_be_predicted_is_named(
    terrain: Path, terrain_run: pv.Run, tmp_path: Path
) -> None:
    loaded = load_with_info(terrain_run.path)
    np.save(tmp_path / "flat.npy", np.zeros((5, 2), np.float32))
    np.savez(tmp_path / "odd.npz", xyz=np.zeros((5, 3), np.float32))
    made = list(
        predict_clouds(loaded, [tmp_path / "flat.npy", tmp_path / "odd.npz"], tmp_path / "o")
    )
    assert "3" in made[0].error
    assert "offsets" in made[1].error
    for files, out, rule in (
        ([], "o", "nothing to predict"),
        ([tmp_path / "flat.npy"], "flat.npy", "is a file"),
        ([tmp_path / "odd.npz"], ".", "is an input file"),
        ([terrain / "test.npz", terrain / "test.npz"], "o", "would have the same name"),
    ):
        with pytest.raises(ConfigError, match=rule):
            list(predict_clouds(loaded, files, tmp_path / out))
