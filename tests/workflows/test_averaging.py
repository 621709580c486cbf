"""Views averaged: by hand, of films in folders, tars and arrays, and what has no views."""

import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.workflows import making
from torch import Tensor

import perceivers as pv
from perceivers.data import AugmentConfig, Views, open_data
from perceivers.data.fitting import SampleReader
from perceivers.data.writing import write_clip
from perceivers.errors import ConfigError
from perceivers.workflows.comparing import ViewAverage, average_sigmoids, average_softmaxes

VIEWS = Views(temporal=3, spatial=2)
SMALL = {"video": {"frames": 2, "height": 8, "width": 8}}


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films of two classes, 9 frames of 8 x 20, which differ over time and from left to right."""
    root = tmp_path_factory.mktemp("films")
    rng = np.random.default_rng(0)
    for name in ("day", "night"):
        (root / name).mkdir()
        for number in range(6):
            coarse = rng.integers(0, 256, (3, 9, 1, 5), dtype=np.uint8)
            frames = coarse.repeat(8, axis=2).repeat(4, axis=3)
            write_clip(root / name / f"{number}.mp4", frames, 25.0)
    return root


@pytest.fixture(scope="module")
def film_run(films: Path, tmp_path_factory: pytest.TempPathFactory) -> pv.Run:
    out = tmp_path_factory.mktemp("film_run") / "run"
    return making.quietly(
        pv.train, model=making.NANO, data=films, out=out, inputs=SMALL, steps=4, val_share=0.5
    )


def by_hand(run: pv.Run, source: Any) -> Tensor:
    """Mean probabilities ``[n, K]``, view by view and sample by sample."""
    model = run.model()
    reader = SampleReader(source, model.config.data_inputs, AugmentConfig())
    rows = []
    for index in range(len(source)):
        views = [
            model({"video": torch.from_numpy(view["video"].copy())[None]})
            for view in reader.read_views(index, VIEWS.places)
        ]
        rows.append(torch.cat(views).softmax(-1).mean(0))
    return torch.stack(rows).detach()


# -- the mean --------------------------------------------------------------------------------------


def test_softmaxes_are_averaged() -> None:
    logits = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0)) * 3
    expected = logits.softmax(-1).mean(1)
    assert torch.allclose(average_softmaxes(logits).softmax(-1), expected, atol=1e-6)
    assert torch.allclose(average_softmaxes(logits).exp(), expected, atol=1e-6)
    assert not torch.allclose(logits.mean(1).softmax(-1), expected, atol=1e-3)
    huge = torch.tensor([[[1e4, 0.0, -torch.inf], [0.0, 1e4, -torch.inf]]])
    assert average_softmaxes(huge).softmax(-1)[0].tolist() == pytest.approx([0.5, 0.5, 0.0])


def test_sigmoids_are_averaged() -> None:
    logits = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0)) * 3
    expected = logits.sigmoid().mean(1)
    assert torch.allclose(average_sigmoids(logits).sigmoid(), expected, atol=1e-6)
    assert not torch.allclose(logits.mean(1).sigmoid(), expected, atol=1e-3)
    huge = torch.tensor([[[1e4, 1e4], [-1e4, 1e4]]])
    found = average_sigmoids(huge)
    assert found.sigmoid()[0].tolist() == pytest.approx([0.5, 1.0])
    assert found.isfinite().all()


class Two(torch.nn.Module):
    """Answers two questions about numbers, and notes how many come at once."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(outputs={"a": 2, "b": 2})
        self.sizes: list[int] = []

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Answer 0 or 1, and 1 or 0."""
        x = inputs["x"]
        self.sizes.append(len(x))
        return {"a": torch.stack([x, -x], 1), "b": torch.stack([-2 * x, 2 * x], 1)}


@pytest.mark.parametrize(
    ("at_once", "sizes"), [(100, [6]), (4, [4, 2]), (1, [1] * 6), (0, [1] * 6)]
)
def test_several_answers_are_averaged_each_in_pieces_of_a_size(
    at_once: int, sizes: list[int]
) -> None:
    model = Two()
    average = ViewAverage(model, 3, False, at_once)
    x = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0, -1.0])
    found = average({"x": x})
    assert model.sizes == sizes
    assert average.config is model.config
    for name, factor in (("a", 1.0), ("b", -2.0)):
        shares = (2 * factor * x).sigmoid().reshape(2, 3).mean(1)
        assert torch.allclose(found[name].softmax(-1)[:, 0], shares, atol=1e-6)


# -- films -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_figures_are_of_films_and_not_of_views(film_run: pv.Run, films: Path) -> None:
    source = open_data(str(films), val_share=0.5).splits["val"]
    result = pv.evaluate(film_run.path, split="val", views=VIEWS)
    assert result.figures["samples"] == len(source)
    assert source.labels is not None
    expected = torch.zeros(2, 2, dtype=torch.int64)
    for row, label in zip(by_hand(film_run, source), source.labels, strict=True):
        expected[int(label), int(row.argmax())] += 1
    assert result.matrix is not None
    assert torch.equal(result.matrix, expected)
    small = pv.evaluate(film_run.path, split="val", views=VIEWS, batch_size=1, workers=1)
    assert small.figures == result.figures
    kept = json.loads(film_run.folder.results.read_text())["val"]
    assert kept["views"] == "3x2"
    assert kept["confusion"] == expected.tolist()
    pv.evaluate(film_run.path, split="val")
    assert "views" not in json.loads(film_run.folder.results.read_text())["val"]


@pytest.mark.slow
def test_predictions_are_one_per_film_and_the_mean_over_its_views(
    film_run: pv.Run, films: Path
) -> None:
    paths = sorted(films.glob("*/*.mp4"))
    found = list(pv.predict(film_run.path, paths, views=VIEWS, top=2))
    assert [record["file"] for record in found] == [str(path) for path in paths]
    source = open_data(str(films), val_share=0.5).splits["train"]
    expected = {
        str(films / name): row.tolist()
        for name, row in zip(source.names, by_hand(film_run, source), strict=True)
    }
    assert len(expected) == 6
    for record in found:
        if record["file"] in expected:
            shares = {entry["class"]: entry["probability"] for entry in record["top"]}
            assert [shares["day"], shares["night"]] == pytest.approx(
                expected[record["file"]], abs=2e-6
            )
    for size in (1, 13):
        again = list(pv.predict(film_run.path, paths, views=VIEWS, top=2, batch_size=size))
        assert [r["probability"] for r in again] == pytest.approx(
            [r["probability"] for r in found], abs=2e-6
        )
    single = list(pv.predict(film_run.path, paths))
    assert [r["probability"] for r in single] != pytest.approx(
        [r["probability"] for r in found], abs=1e-5
    )


@pytest.mark.slow
def test_tars_have_the_views_of_folders(film_run: pv.Run, films: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("day\nnight\n")
    with tarfile.open(tmp_path / "val-0.tar", "w") as tar:
        for label, name in enumerate(("day", "night")):
            for path in sorted((films / name).glob("*.mp4")):
                tar.add(path, f"{name}{path.stem}.mp4")
                (tmp_path / "label").write_text(str(label))
                tar.add(tmp_path / "label", f"{name}{path.stem}.cls")
    (tmp_path / "train-0.tar").write_bytes((tmp_path / "val-0.tar").read_bytes())
    source = open_data(str(tmp_path)).splits["val"]
    result = pv.evaluate(film_run.path, data=str(tmp_path), split="val", views=VIEWS)
    predicted = by_hand(film_run, source).argmax(-1)
    assert result.matrix is not None
    assert result.matrix.sum(0).tolist() == torch.bincount(predicted, minlength=2).tolist()
    assert result.figures["samples"] == 12


@pytest.mark.slow
def test_ready_clips_of_several_labels_have_views(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (20, 1, 6, 8, 12), np.uint8)
    rows = np.arange(20)
    np.savez(tmp_path / "x.npz", video=video, hue=rows % 3, loud=rows % 2)
    run = making.quietly(
        pv.train,
        task="multilabel",
        model=making.NANO,
        data=tmp_path / "x.npz",
        out=tmp_path / "run",
        labels=["hue", "loud"],
        inputs=SMALL,
    )
    single = pv.evaluate(run.path, split="val").figures
    several = pv.evaluate(run.path, split="val", views=VIEWS).figures
    assert several.keys() == single.keys()
    assert several["loss"] != pytest.approx(single["loss"], rel=1e-6)
    parts = pv.evaluate(run.path, split="val", views=VIEWS, batch_size=1).figures
    assert parts["loss"] == pytest.approx(several["loss"], rel=1e-4)


def test_one_damaged_film_is_one_skipped_sample(
    film_run: pv.Run, films: Path, tmp_path: Path
) -> None:
    good, bad = films / "day" / "0.mp4", tmp_path / "bad.mp4"
    bad.write_bytes(good.read_bytes()[:200])
    found = list(pv.predict(film_run.path, [bad, good, bad], views=VIEWS))
    assert sorted(record["file"] for record in found if "error" in record) == [str(bad)] * 2
    (record,) = [record for record in found if "class" in record]
    assert record["file"] == str(good)


# -- what has no views -----------------------------------------------------------------------------


def test_views_need_a_classifier_and_something_to_look_at(
    film_run: pv.Run,
    mlm_run: pv.Run,
    clip_run: pv.Run,
    flow_run: pv.Run,
    text_run: pv.Run,
    cloud_run: pv.Run,
    made: Path,
) -> None:
    for run, task in ((mlm_run, "mlm"), (clip_run, "autoencode"), (flow_run, "flow")):
        with pytest.raises(ConfigError, match=rf"views are 3x2, but only .* task is {task}; use 1"):
            pv.evaluate(run.path, split="val", views=VIEWS)
    with pytest.raises(ConfigError, match=r"model's task is mlm"):
        list(pv.predict(mlm_run.path, texts=["[MASK]"], views=VIEWS))
    for run, name in ((text_run, "bytes"), (cloud_run, "points")):
        with pytest.raises(ConfigError, match=rf"need videos or audio, .* reads \['{name}'\]"):
            pv.evaluate(run.path, split="val", views=VIEWS)
    with pytest.raises(ConfigError, match=r"views are 3x2, but a text has one view"):
        list(pv.predict(film_run.path, [made / "clips"], texts=["x"], views=VIEWS))
