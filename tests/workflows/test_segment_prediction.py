"""Segmentation from data to files: training, fine-tuning, evaluation, masks of odd sizes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.workflows import making

import perceivers as pv
from perceivers.checkpoints.loading import load_with_info
from perceivers.cli.main import main
from perceivers.errors import CheckpointError, ConfigError, DataError
from perceivers.report.figures.scores import class_colours
from perceivers.workflows.dense_prediction import find_mask_of, predict_masks
from perceivers.workflows.reporting import metrics_section, open_report
from perceivers.workflows.task_table import tasks

NAMES = ("left", "void", "right")


def write_halves(root: Path, count: int = 10, size: tuple[int, int] = (40, 32)) -> Path:
    """Pictures that are dark to the left and light to the right, with a stripe of void between."""
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    width, height = size
    for number in range(count):
        ids = np.zeros((height, width), np.uint8)
        border = int(rng.integers(width // 4, 3 * width // 4))
        ids[:, border:] = 2
        ids[:, border] = 1
        noise = rng.integers(0, 40, (height, width, 3))
        picture = (noise + 200 * (ids == 2)[..., None]).astype(np.uint8)
        Image.fromarray(picture).save(root / "images" / f"p{number}.jpg")
        Image.fromarray(ids).save(root / "masks" / f"p{number}.png")
    (root / "classes.txt").write_text("\n".join(NAMES) + "\n")
    return root


@pytest.fixture(scope="session")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_halves(tmp_path_factory.mktemp("halves") / "data")


@pytest.fixture(scope="session")
def segment_run(halves: Path, runs: Path) -> pv.Run:
    """A Hiera that was trained for a few steps."""
    return making.quietly(
        pv.train,
        task="segment",
        model="hiera_nano",
        data=halves,
        out=runs / "segment",
        inputs={"image": {"height": 32, "width": 32}},
        steps=12,
        eval_every=12,
        batch_size=8,
        optimizer={"lr": 3e-3},
        augment={"flip": False, "crop_scale": (0.6, 1.0)},
    )


def test_void_is_no_class_and_figures_are_saved(segment_run: pv.Run) -> None:
    info = load_with_info(segment_run.path).info
    assert (info.task, info.classes) == ("segment", ("left", "right"))
    assert set(info.metrics) >= {"val miou", "val pixel_accuracy", "val iou/left", "val iou/right"}
    assert info.metrics["val miou"] > 0.6


def test_a_run_is_evaluated_class_by_class(
    segment_run: pv.Run, halves: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = segment_run.evaluate(str(halves), split="train")
    expected = (figures["iou/left"] + figures["iou/right"]) / 2
    assert figures["miou"] == pytest.approx(expected)
    path = str(segment_run.path)
    assert main(["evaluate", path, "--split", "val", "--limit", "1"]) == 0
    printed = capsys.readouterr().out
    assert "iou/left: " in printed
    assert "miou: " in printed


def test_other_classes_are_refused(segment_run: pv.Run, tmp_path: Path) -> None:
    other = write_halves(tmp_path / "other", 4)
    (other / "classes.txt").write_text("left\nmiddle\nright\n")
    with pytest.raises(DataError, match=r"\['left', 'right'\].*\['left', 'middle', 'right'\]"):
        pv.evaluate(segment_run.path, data=str(other), split="val")
    plain = making.write_photographs(tmp_path / "plain")
    with pytest.raises(DataError, match="holds no masks"):
        pv.evaluate(segment_run.path, data=str(plain), split="val")


def test_a_mask_has_the_size_of_its_picture(segment_run: pv.Run, tmp_path: Path) -> None:
    sizes = {"odd": (51, 37), "wide": (120, 21), "tall": (9, 64), "small": (5, 5)}
    for name, size in sizes.items():
        Image.new("RGB", size, (10, 10, 10)).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.jpg").write_bytes(b"x")
    made = {m.file.stem: m for m in predict_masks(segment_run.path, [tmp_path], tmp_path / "out")}
    assert "not an image" in made.pop("broken").error
    for name, size in sizes.items():
        files = made[name]
        assert files.mask is not None
        assert files.overlay is not None
        with Image.open(files.mask) as mask:
            assert (mask.mode, mask.size) == ("P", size)
            assert set(np.unique(np.asarray(mask))) <= {0, 1}
            colours = np.array(mask.getpalette()).reshape(-1, 3)[:2]
            assert np.array_equal(colours, class_colours(2)[:2])
        with Image.open(files.overlay) as overlay:
            assert overlay.size == size
        assert files.shares is not None
        assert sum(files.shares.values()) == pytest.approx(1.0, abs=1e-5)
    assert (tmp_path / "out" / "classes.txt").read_text() == "left\nright\n"


@torch.no_grad()
def test_a_picture_of_the_models_size_is_answered_as_it_is(segment_run: pv.Run) -> None:
    model = load_with_info(segment_run.path).model
    values = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    found = find_mask_of(model, Image.fromarray(values), "a")
    raw = torch.from_numpy(values).permute(2, 0, 1)[None]
    assert np.array_equal(found, model({"image": raw})[0].argmax(0).numpy())


def test_long_pictures_are_covered_from_end_to_end() -> None:
    class Bright(torch.nn.Module):
        """Class 1 where a pixel is light, on 8 x 8 pixels."""

        family = "hiera"
        segmented_modality = "image"
        config = pv.create_model(
            "hiera_nano", inputs={"image": pv.Image(16, 16, 3)}, num_classes=2, head="segmentation"
        ).config

        def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            light = inputs["image"].float().mean(1)
            return torch.stack([120 - light, light - 120], 1) / 20

    values = np.zeros((16, 100, 3), np.uint8)
    values[:, :7] = values[:, 44:52] = values[:, 90:] = 255
    found = find_mask_of(Bright(), Image.fromarray(values), "a")
    assert np.array_equal(found == 1, values[..., 0] > 0)
    turned = find_mask_of(Bright(), Image.fromarray(values.transpose(1, 0, 2)), "a")
    assert np.array_equal(turned, found.T)
    with pytest.raises(DataError, match=r"2000x2 pixels would take \d+ crops"):
        find_mask_of(Bright(), Image.new("RGB", (2000, 2)), "a")


def test_files_are_kept_unless_told_otherwise(segment_run: pv.Run, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / folder / "x.png")
    given = [tmp_path / "a", tmp_path / "b"]
    names = [m.mask.name for m in predict_masks(segment_run.path, given, tmp_path / "o") if m.mask]
    assert names == ["x.png", "x-2.png"]
    with pytest.raises(ConfigError, match="--overwrite"):
        list(predict_masks(segment_run.path, given, tmp_path / "o"))
    assert len(list(predict_masks(segment_run.path, given, tmp_path / "o", overwrite=True))) == 2
    with pytest.raises(ConfigError, match=r"x\.png is an input image"):
        list(predict_masks(segment_run.path, given, tmp_path / "a", overwrite=True))
    with pytest.raises(ConfigError, match="is a file"):
        list(predict_masks(segment_run.path, given, tmp_path / "a" / "x.png"))


def test_other_models_find_no_masks(text_run: pv.Run, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="predicts no masks"):
        list(predict_masks(text_run.path, ["x.png"], tmp_path))


def test_the_command_writes_and_counts(
    segment_run: pv.Run, halves: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"")
    picture = str(halves / "images" / "p0.jpg")
    out = str(tmp_path / "masks")
    assert main(["predict", str(segment_run.path), picture, str(bad), "--out", out]) == 0
    captured = capsys.readouterr()
    assert f"1 images segmented, see {out}" in captured.out
    assert "bad.png: the file is empty" in captured.err
    assert (tmp_path / "masks" / "p0_overlay.png").is_file()


def test_the_report_shows_examples(segment_run: pv.Run) -> None:
    report = open_report(segment_run.folder)
    (section,) = tasks()["segment"].report(report)
    (path, _), *_ = section.figures
    assert path.is_file()
    rows = metrics_section(report).tables[0].rows
    assert any(row[0] == "iou/right" for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "head"),
    [("hip_nano", "full"), ("hip_nano", "bottleneck"), ("perceiver_io_nano", "family")],
)
def test_other_systems_answer_too(halves: Path, tmp_path: Path, model: str, head: str) -> None:
    run = making.quietly(
        pv.train,
        task="segment",
        model=model,
        head=head,
        data=halves,
        out=tmp_path / "run",
        size=16,
        segment={"class_weights": "balanced"},
    )
    metrics = load_with_info(run.path).info.metrics
    assert 0.0 <= metrics["val miou"] <= 1.0
    picture = halves / "images" / "p0.jpg"
    assert all(not m.error for m in predict_masks(run.path, [picture], tmp_path / "out"))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["hiera_nano", "hip_nano"])
def test_pre_trained_encoders_are_taken_over(halves: Path, tmp_path: Path, model: str) -> None:
    before = making.quietly(pv.pretrain, model=model, data=halves, out=tmp_path / "before", size=32)
    after = making.quietly(
        pv.finetune,
        task="segment",
        model=before.path,
        data=halves,
        out=tmp_path / "after",
        optimizer={"lr": 1e-9},
        augment={"flip": True},
    )
    ours, theirs = after.model().state_dict(), before.model().state_dict()
    shared = [n for n in ours if n.startswith("encoder.") and n in theirs]
    assert len(shared) > 5
    for name in shared:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"model": "perceiver_nano"}, ConfigError, "no output per element.*hip.*perceiver_io"),
        ({"head": "full"}, ConfigError, "'pyramid'"),
        ({"segment": {"ignore": "sky"}}, DataError, "'sky' should be ignored"),
    ],
)
def test_what_cannot_be_segmented_is_refused(
    halves: Path, tmp_path: Path, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    plain = {"task": "segment", "model": "hiera_nano", "data": halves, "out": tmp_path / "run"}
    with pytest.raises(error, match=message):
        making.quietly(pv.train, **{**plain, "size": 16, **settings})
    assert not (tmp_path / "run").exists()


def test_rows_of_a_table_may_have_masks(
    halves: Path, tmp_path: Path, write_rows: Callable[[Path, list[str]], Path]
) -> None:
    rows = [f"images/p{n}.jpg,{f'masks/p{n}.png' if n % 3 else ''}" for n in range(10)]
    table = write_rows(halves / "table.csv", ["image,mask", *rows])
    run = making.quietly(
        pv.train, task="segment", model="hiera_nano", data=table, out=tmp_path / "run", size=16,
        val_share=0.4,
    )  # fmt: skip
    metrics = json.loads((run.path / "model" / "config.json").read_text())["metrics"]
    assert "val miou" in metrics


@pytest.fixture
def write_rows() -> Callable[[Path, list[str]], Path]:
    def write(path: Path, rows: list[str]) -> Path:
        path.write_text("\n".join(rows) + "\n")
        return path

    return write


def test_masks_are_not_found_in_tars(segment_run: pv.Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"x\.tar holds samples, .*; unpack it"):
        list(predict_masks(segment_run.path, [tmp_path / "x.tar"], tmp_path / "out"))
