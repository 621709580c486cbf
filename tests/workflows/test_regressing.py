"""Regression from a table to numbers in their own unit, with unknown values and a report."""

import csv
import io
import json
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
from perceivers.errors import ConfigError, DataError
from perceivers.models.saving import ModelInfo
from perceivers.workflows.prediction import write_predictions
from perceivers.workflows.reporting import open_report
from perceivers.workflows.task_table import tasks

LIGHT, WARM = 1000.0, -3.0


def write_pictures(root: Path, count: int = 24) -> Path:
    """Grey pictures with their light (about 1000), and a second number that is often unknown."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True)
    lines = ["image,light,warm,mark"]
    for number in range(count):
        value = int(rng.integers(0, 256))
        Image.fromarray(np.full((8, 8), value, np.uint8)).save(root / f"{number}.png")
        warm = f"{WARM + number % 2}" if number % 3 else ""
        lines.append(f"{number}.png,{LIGHT + value},{warm},{number % 2}")
    (root / "table.csv").write_text("\n".join(lines) + "\n")
    return root / "table.csv"


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("numbers") / "data")


@pytest.fixture(scope="session")
def regress_run(table: Path, runs: Path) -> pv.Run:
    """A small HiP that learned how light a picture is."""
    return making.quietly(
        pv.train,
        task="regress",
        model="hip_nano",
        data=table,
        out=runs / "regress",
        targets=["light", "warm"],
        size=8,
        steps=20,
        eval_every=20,
        batch_size=16,
        optimizer={"lr": 3e-3},
    )


def test_mean_and_deviation_travel_with_the_model(regress_run: pv.Run) -> None:
    info = load_with_info(regress_run.path).info
    assert info.task == "regress"
    assert list(info.targets) == ["light", "warm"]
    mean, deviation = info.targets["light"]
    assert LIGHT < mean < LIGHT + 255
    assert 40 < deviation < 110
    assert info.targets["warm"][0] == pytest.approx(WARM + 0.5, abs=0.3)
    assert ModelInfo.from_json(json.loads(json.dumps({"targets": info.targets}))) == ModelInfo(
        targets=info.targets
    )


def test_predictions_are_in_the_targets_unit(
    regress_run: pv.Run, table: Path, tmp_path: Path
) -> None:
    rows = list(csv.DictReader(table.read_text().splitlines()))
    files = [table.parent / row["image"] for row in rows]
    records = list(pv.predict(regress_run.path, files))
    truth = np.array([float(row["light"]) for row in rows])
    found = np.array([record["light"] for record in records])
    # A fifth of the spread; answering with the mean would leave all of it.
    assert np.abs(found - truth).mean() < 0.5 * np.abs(truth - truth.mean()).mean()
    assert set(records[0]) == {"file", "light", "warm"}
    text = write_predictions(records, tmp_path / "out.csv")
    (first, *_) = csv.DictReader(io.StringIO(text))
    assert float(first["light"]) == records[0]["light"]


def test_figures_speak_of_each_target(
    regress_run: pv.Run, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = regress_run.evaluate(split="train")
    assert set(figures) >= {"loss", "mae/light", "rmse/light", "r2/light", "mae/warm"}
    records = list(pv.predict(regress_run.path, [table.parent]))
    assert len(records) == 24
    assert main(["evaluate", str(regress_run.path), "--split", "val", "--limit", "1"]) == 0
    assert "mae/light: " in capsys.readouterr().out


def test_a_model_folder_knows_its_targets(regress_run: pv.Run, table: Path) -> None:
    folder = regress_run.path / "model"
    figures = pv.evaluate(folder, data=str(table), split="train").figures
    assert figures == pytest.approx(regress_run.evaluate(split="train"))


def test_the_report_draws_truth_and_prediction(regress_run: pv.Run) -> None:
    (section,) = tasks()["regress"].report(open_report(regress_run.folder))
    assert (regress_run.folder.figures / "numbers.png").is_file()
    assert "validation samples" in section.text


@pytest.mark.parametrize("model", ["hiera_nano", "perceiver_nano", "perceiver_io_nano"])
def test_every_system_answers_with_numbers(table: Path, tmp_path: Path, model: str) -> None:
    run = making.quietly(
        pv.train,
        task="regress",
        model=model,
        data=table,
        out=tmp_path / "run",
        targets=["light"],
        size=16,
        regress={"loss": "huber"},
    )
    (record,) = pv.predict(run.path, [table.parent / "0.png"])
    assert isinstance(record["light"], float)
    assert "val mae/light" in load_with_info(run.path).info.metrics


def test_trained_latents_are_taken_over(regress_run: pv.Run, table: Path, tmp_path: Path) -> None:
    after = making.quietly(
        pv.finetune,
        task="regress",
        model=regress_run.path,
        data=table,
        out=tmp_path / "after",
        targets=["warm"],
        optimizer={"lr": 1e-9},
    )
    ours, theirs = after.model().state_dict(), regress_run.model().state_dict()
    for name in ours:
        if name.startswith("encoder."):
            torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=0)
    assert list(load_with_info(after.path).info.targets) == ["warm"]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({}, DataError, r"has no targets; .*--targets '\[\"age\"\]'"),
        ({"targets": ["height"]}, ConfigError, "'height'"),
        ({"targets": ["image"]}, ConfigError, "'image'"),
    ],
)
def test_targets_that_are_not_there_are_refused(
    table: Path, tmp_path: Path, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    plain = {"task": "regress", "model": "hip_nano", "data": table, "out": tmp_path / "run"}
    with pytest.raises(error, match=message):
        making.quietly(pv.train, **plain, size=8, **settings)
    assert not (tmp_path / "run").exists()
