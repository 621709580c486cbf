"""Label columns of ids from the data to the answers, and in runs that are older than they."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

import perceivers as pv
from perceivers.checkpoints.loading import load_with_info
from perceivers.cli.main import main
from perceivers.errors import DataError

IDS = np.array([3007, 1007, 2007])


def write(path: Path, labels: np.ndarray) -> str:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (len(labels), 1, 8, 8), np.uint8)
    split = np.array(["train", "val", "test"])[np.arange(len(labels)) // 3 % 3]
    np.savez(path, image=images, label=labels, split=split)
    return str(path)


def train(data: str, out: Path, **settings: object) -> pv.Run:
    fixed = {"model": "hip_nano", "steps": 2, "batch_size": 4, "device": "cpu", "quiet": True}
    return pv.train(data=data, out=str(out), **{**fixed, **settings})


@pytest.mark.slow
def test_ids_travel_with_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "x.npz", IDS[np.arange(18) % 3])
    run = train(data, tmp_path / "run")
    assert load_with_info(run.folder.path).info.classes == ("1007", "2007", "3007")
    assert main(["predict", str(tmp_path / "run"), data]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {top["class"] for r in records for top in r["top"]} == {"1007", "2007", "3007"}
    whole = pv.evaluate(run.folder.path, data=data, split="test")
    assert whole.matrix is not None
    assert whole.matrix.sum(1).tolist() == [2, 2, 2]
    some = pv.evaluate(
        run.folder.path, data=write(tmp_path / "y.npz", IDS[np.arange(18) % 2]), split="test"
    )
    assert some.matrix is not None
    assert some.matrix.sum(1).tolist() == [3, 0, 3]
    others = write(tmp_path / "z.npz", np.array([3007, 1007, 5])[np.arange(18) % 3])
    with pytest.raises(DataError, match=r"'2007', '3007'\], but .* \['5', '1007', '3007'\]"):
        pv.evaluate(run.folder.path, data=others, split="test")


@pytest.mark.slow
def test_runs_that_are_older_go_on_with_indices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "x.npz", np.array([0, 3, 1])[np.arange(18) % 3])
    run = train(data, tmp_path / "run", integer_labels="indices", checkpoint_every=1)
    assert load_with_info(run.folder.path).info.classes == ("0", "1", "2", "3")
    settings = yaml.safe_load(run.folder.config.read_text())
    assert settings.pop("integer_labels") == "indices"
    run.folder.config.write_text(yaml.safe_dump({**settings, "steps": 4}))
    matrix = pv.evaluate(run.folder.path, split="test").matrix
    assert matrix is not None
    assert matrix.sum(1).tolist() == [2, 2, 0, 2]
    assert main(["resume", str(tmp_path / "run")]) == 0
    assert "resumes with integer_labels=indices" in capsys.readouterr().err
    assert load_with_info(run.folder.path).info.classes == ("0", "1", "2", "3")
    # A model folder alone names its classes too.
    alone = pv.evaluate(run.folder.best_model, data=data, split="test").matrix
    assert alone is not None
    assert alone.sum(1).tolist() == [2, 2, 0, 2]
