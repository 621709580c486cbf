"""Views on the command line: figures and records of whole samples, and refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.cli.conftest import SMALL, Outcome

import perceivers as pv
from perceivers.cli.main import main

Call = Callable[..., Outcome]
Refuse = Callable[..., str]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide pictures of two classes."""
    root = tmp_path_factory.mktemp("wide")
    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (root / name).mkdir()
        for number in range(6):
            values = rng.integers(0, 256, (8, 24), dtype=np.uint8)
            Image.fromarray(values).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def picture_classifier(tmp_path_factory: pytest.TempPathFactory, wide: Path) -> Path:
    """A classifier of them, trained for two steps."""
    out = tmp_path_factory.mktemp("runs") / "wide"
    argv = ["train", "--model", "perceiver_io_nano", "--data", str(wide), "--out", str(out)]
    more = ["--size", "8", "--val_share", "0.3", "--limit", "2", "--quiet"]
    assert main([*argv, *SMALL, *more]) == 0
    return out


@pytest.mark.slow
def test_evaluation_in_several_views_counts_samples(call: Call, picture_classifier: Path) -> None:
    plain = call("evaluate", picture_classifier, "--split", "val")
    several = call("evaluate", picture_classifier, "--split", "val", "--spatial_views", 3)
    assert plain.code == several.code == 0
    assert "views: 1x3 of each sample, probabilities averaged" in several.out
    assert "views" not in plain.out
    counts = [line for line in plain.out.splitlines() if line.startswith("samples: ")]
    assert counts
    assert counts == [line for line in several.out.splitlines() if line.startswith("samples: ")]
    assert json.loads((picture_classifier / "results.json").read_text())["val"]["views"] == "1x3"


def test_predictions_in_several_views_are_one_record_per_file(
    call: Call, picture_classifier: Path, wide: Path
) -> None:
    outcome = call("predict", picture_classifier, wide / "cats", "--spatial_views", 3)
    records = [json.loads(line) for line in outcome.out.splitlines()]
    assert len(records) == 6
    plain = call("predict", picture_classifier, wide / "cats")
    before = [json.loads(line)["probability"] for line in plain.out.splitlines()]
    assert [record["probability"] for record in records] != before


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
@pytest.mark.parametrize(
    ("views", "pattern"),
    [
        (
            ["--temporal_views", 5, "--spatial_views", 3],
            r"views are 5x3, but 5 temporal views need",
        ),
        (["--temporal_views", 0], r"views\.temporal is 0; it must be at least 1"),
        (["--spatial_views", -1], r"views\.spatial is -1"),
        (["--spatial_views", "many"], r"spatial_views.*many"),
        (["--views", 3], r"--views"),
    ],
)
def test_views_that_there_cannot_be_are_refused(
    refuse: Refuse,
    picture_classifier: Path,
    wide: Path,
    verb: str,
    views: list[Any],
    pattern: str,
) -> None:
    files = [wide / "cats"] if verb == "predict" else ["--split", "val"]
    refuse([verb, picture_classifier, *files, *views], pattern)


def test_models_that_do_not_classify_have_no_views(
    refuse: Refuse, clip_run: pv.Run, flow_run: pv.Run, made: Path, tmp_path: Path
) -> None:
    views = ["--temporal_views", 2]
    refuse(["evaluate", clip_run.path, "--split", "val", *views], r"task is autoencode; use 1 temp")
    refuse(["predict", clip_run.path, made / "clips", *views], r"task is autoencode")
    pair = sorted((made / "photographs").glob("*.png"))[:2]
    refuse(["predict", flow_run.path, *pair, *views, "--out", tmp_path / "x"], r"task is flow")
    assert not (tmp_path / "x").exists()


def test_settings_of_erasing_and_copies_are_refused_when_out_of_range(
    refuse: Refuse, wide: Path, tmp_path: Path
) -> None:
    start = ["train", "--model", "perceiver_io_nano", "--data", wide, "--out", tmp_path / "run"]
    refuse([*start, "--size", 8, "--augment.erase", 2], r"augment\.erase is 2\.0; it must be in")
    refuse([*start, "--size", 8, "--augment.copies", 0], r"augment\.copies is 0; it must be at")


@pytest.mark.usefixtures("without_report")
def test_training_with_erasing_and_copies_runs(call: Call, wide: Path, tmp_path: Path) -> None:
    start = ["train", "--model", "perceiver_io_nano", "--data", wide, "--out", tmp_path / "run"]
    augment = ["--augment.erase", 0.25, "--augment.copies", 2, "--augment.flip", "true"]
    outcome = call(*start, *SMALL, "--size", 8, "--limit", 2, *augment)
    assert outcome.code == 0, outcome.err
    assert "copies: 2" in (tmp_path / "run" / "config.yaml").read_text()
