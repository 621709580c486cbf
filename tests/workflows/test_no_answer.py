"""Finite weights whose answers overflow: no verb takes NaN for a class, a feature or a picture."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import perceivers as pv
from perceivers.errors import DataError
from perceivers.models.saving import ModelInfo
from perceivers.workflows.dense_prediction import find_mask_of
from perceivers.workflows.embedding import embed
from perceivers.workflows.evaluation import evaluate
from perceivers.workflows.prediction import predict

HUGE = 1e36


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        for number in range(4):
            path = tmp_path / "data" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), 40 * number + 9, np.uint8)).save(path)
    return tmp_path / "data"


def save(folder: Path, scale: float) -> Path:
    """A classifier whose weights are finite, and far too large with a large scale."""
    torch.manual_seed(0)
    model = pv.create_model("hip_nano", inputs={"image": pv.Image(8, 8, 1)}, num_classes=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return model.save_pretrained(folder, info=ModelInfo(task="classify", classes=("a", "b")))


def test_predict_says_which_files_have_no_answer(pictures: Path, tmp_path: Path) -> None:
    records = list(predict(save(tmp_path / "huge", HUGE), [pictures]))
    assert len(records) == 8
    assert {tuple(record) for record in records} == {("file", "error")}
    assert "contains NaN or infinity" in records[0]["error"]
    sound = list(predict(save(tmp_path / "sound", 1.0), [pictures]))
    assert {tuple(record) for record in sound} == {("file", "class", "probability", "top")}


def test_no_figure_and_no_feature_is_made_of_nan(pictures: Path, tmp_path: Path) -> None:
    huge, sound = save(tmp_path / "huge", HUGE), save(tmp_path / "sound", 1.0)
    figures: Any = {
        m: evaluate(m, data=str(pictures), split="train").figures for m in (huge, sound)
    }
    assert not np.isfinite(figures[huge]["top1"])
    assert 0.0 <= figures[sound]["top1"] <= 1.0
    with pytest.raises(DataError, match=r"\.png: the model's output contains NaN or infinity"):
        embed(huge, [pictures])
    assert np.isfinite(embed(sound, [pictures]).features).all()


def test_a_mask_is_not_made_of_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.tasks.test_segmentation import build

    model = build("hip")
    picture = Image.fromarray(np.zeros((16, 16, 3), np.uint8))
    assert find_mask_of(model, picture, "x.png").shape == (16, 16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(HUGE)
    with pytest.raises(DataError, match=r"x\.png: the model's output contains NaN"):
        find_mask_of(model, picture, "x.png")
