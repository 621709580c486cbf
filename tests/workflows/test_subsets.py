"""Every combination of modalities, against evaluation of data that really lack the others."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import perceivers as pv
from perceivers.data import Batch
from perceivers.errors import ConfigError
from perceivers.workflows.evaluation import evaluate_subsets, restrict


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound that tells two classes apart, and pictures that do not."""
    rng = np.random.default_rng(0)
    label = np.arange(40) % 2
    sound = rng.normal(0, 0.1, (40, 1, 16)).astype(np.float32) + label[:, None, None]
    pictures = rng.integers(0, 255, (40, 1, 4, 4), np.uint8)
    path = tmp_path_factory.mktemp("data") / "both.npz"
    np.savez(path, audio=sound, image=pictures, label=label)
    return path


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return pv.train(
        task="classify",
        model="perceiver_io_nano",
        data=str(data),
        out=str(tmp_path_factory.mktemp("runs") / "run"),
        steps=60,
        batch_size=8,
        eval_every=60,
        modality_dropout=0.4,
        quiet=True,
    )


def test_every_combination_is_evaluated(run: Any) -> None:
    subsets = evaluate_subsets(run.path, split="train")
    both, *alone = [set(each.modalities) for each in subsets]
    assert both == {"audio", "image"}
    assert alone in ([{"audio"}, {"image"}], [{"image"}, {"audio"}])
    whole = pv.evaluate(run.path, split="train").figures
    assert subsets[0].figures["top1"] == whole["top1"]
    assert list(pv.evaluate(run.path, split="train", subsets=True).subsets) == subsets
    with pytest.raises(ConfigError, match="--subsets evaluates one view per sample"):
        pv.evaluate(run.path, subsets=True, views=pv.Views(spatial=2))
    found = {each.modalities: each for each in subsets}
    assert found["audio",].samples == whole["samples"]
    assert found["audio",].figures["top1"] > 0.9  # the sound alone suffices,
    assert found["image",].figures["top1"] < 0.8  # the pictures do not


def test_restricted_samples_hold_some_modalities_and_empty_ones_are_left_out() -> None:
    inputs = {"a": torch.arange(3.0)[:, None], "b": torch.zeros(3, 1)}
    held = {"a": torch.tensor([True, False, True])}
    batch = Batch(inputs, torch.tensor([5, 6, 7]), torch.arange(3), [], present=held)
    (cut,) = restrict([batch], ["a"], ["a", "b"])
    assert cut.inputs["a"].flatten().tolist() == [0.0, 2.0]
    assert cut.labels is not None
    assert cut.labels.tolist() == [5, 7]
    assert {n: x.tolist() for n, x in cut.present.items()} == {"a": [True] * 2, "b": [False] * 2}
    nothing = Batch(inputs, None, torch.arange(3), [], present={"a": torch.zeros(3) > 0})
    assert list(restrict([nothing], ["a"], ["a", "b"])) == []


def test_a_single_modality_has_no_combinations(tmp_path: Path) -> None:
    model = pv.create_model("perceiver_io_nano", inputs={"image": pv.Image(8, 8, 1)}, num_classes=2)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"reads 1 modalities \(image\).* 2 to 6"):
        evaluate_subsets(tmp_path / "model")


def test_modality_dropout_is_checked_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"reads only \['image'\]"):
        pv.train(
            model="perceiver_io_nano", data="digits", out=str(out), modality_dropout=0.5, quiet=True
        )
    assert not out.exists()
