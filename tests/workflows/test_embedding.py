"""Features: of every family, of files and data sets, the same in memory and on disk."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from tests.workflows import making

import perceivers as pv
from perceivers.checkpoints.loading import load_with_info
from perceivers.data import Batch, Dataset, Source
from perceivers.errors import ConfigError, DataError, RunError
from perceivers.types import Audio, Image
from perceivers.workflows.embedding import are_files, feed_dataset, pooled_features, write_features

BOTH = {"image": Image(8, 8, 1), "audio": Audio(32)}


def batch_of(specs: dict[str, Any], size: int, **rest: Any) -> Batch:
    rng = torch.Generator().manual_seed(0)
    inputs = {n: torch.rand(size, *spec.raw_shape, generator=rng) for n, spec in specs.items()}
    return Batch(inputs, None, torch.arange(size), [], **rest)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "specs", "flat"),
    [
        ("hip_nano", BOTH, 16 * 128),
        ("perceiver_nano", BOTH, 32 * 64),
        ("perceiver_io_nano", BOTH, 32 * 64),
        ("hiera_nano", {"image": Image(32, 32, 3)}, 4 * 128),
        ("hiera_det_tiny", {"image": Image(64, 64, 3)}, 2 * 2 * 768),
    ],
)
def test_every_family_has_features(name: str, specs: dict[str, Any], flat: int) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = (
        {"num_classes": 2} if name in {"perceiver_nano", "perceiver_io_nano"} else {}
    )
    model = pv.create_model(name, inputs=specs, **options).eval()
    batch = batch_of(specs, 3)
    rows = {pool: pooled_features(model, batch, pool) for pool in ("mean", "max", "flat")}
    width = rows["mean"].shape[1]
    assert rows["mean"].dtype == torch.float32
    assert rows["flat"].shape == (3, flat)
    unpooled = rows["flat"].unflatten(1, (-1, width))
    assert torch.allclose(unpooled.mean(1), rows["mean"], atol=1e-6)
    assert torch.equal(unpooled.amax(1), rows["max"])
    assert not torch.allclose(rows["mean"][0], rows["mean"][1], rtol=1e-3)


@pytest.mark.parametrize("name", ["hip_nano", "perceiver_io_nano"])
def test_what_a_sample_lacks_is_not_looked_at(name: str) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"num_classes": 2} if name == "perceiver_io_nano" else {}
    model = pv.create_model(name, inputs=BOTH, **options).eval()
    held = {"image": torch.tensor([True, True]), "audio": torch.tensor([True, False])}
    batch = batch_of(BOTH, 2, present=held)
    first = pooled_features(model, batch, "mean")
    batch.inputs["audio"] = torch.ones_like(batch.inputs["audio"])
    second = pooled_features(model, batch, "mean")
    assert not torch.allclose(first[0], second[0], rtol=1e-3)
    assert torch.allclose(first[1], second[1], atol=1e-6)


def test_cells_of_a_hiera_come_row_by_row() -> None:
    """With local attention only, a change in one corner reaches one cell."""
    torch.manual_seed(0)
    model = pv.create_model("hiera_nano", inputs={"image": Image(32, 32, 3)}, local_stages=3).eval()
    batch = batch_of({"image": Image(32, 32, 3)}, 1)
    before = pooled_features(model, batch, "flat").unflatten(1, (4, 128))
    batch.inputs["image"][:, :, 2:10, 22:30] = 0.0  # upper right, away from the seams
    after = pooled_features(model, batch, "flat").unflatten(1, (4, 128))
    changed = (before - after).abs().amax(2)[0] > 1e-5
    assert changed.tolist() == [False, True, False, False]


def test_a_data_set_comes_with_labels_splits_and_classes() -> None:
    found = pv.embed("hip_digits", "digits", split="val")
    assert found.features.shape == (179, 128)
    assert found.features.dtype == np.float32
    assert found.labels is not None
    assert found.labels.shape == (179,)
    assert found.classes == tuple("0123456789")
    assert set(found.splits) == {"val"}
    assert found.names[0].startswith("digits/")


def test_files_are_read_and_bad_ones_named(tmp_path: Path) -> None:
    making.write_photographs(tmp_path / "a", 2)
    (tmp_path / "a" / "bad.png").write_bytes(b"no")
    found = pv.embed("hip_digits", [tmp_path / "a" / "0.png", tmp_path / "a"], batch_size=2)
    assert len(found.features) == 3
    assert np.allclose(found.features[0], found.features[1])
    assert found.names[2].endswith("1.png")
    assert found.labels is None
    assert found.splits == ["", "", ""]
    assert len(found.skipped) == 1
    assert "bad.png" in found.skipped[0]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".npz", ".csv"])
def test_a_file_holds_what_memory_does(tmp_path: Path, suffix: str) -> None:
    memory = pv.embed("hip_digits", "digits", split="val")
    out = tmp_path / "deep" / f"features{suffix}"
    done = write_features("hip_digits", "digits", out, split="val", batch_size=50)
    assert (done.count, done.width) == (179, 128)
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    if suffix == ".npz":
        with np.load(out) as file:
            np.testing.assert_allclose(file["features"], memory.features, rtol=1e-4, atol=1e-5)
            assert file["names"].tolist() == memory.names
            assert file["labels"].tolist() == np.asarray(memory.labels).tolist()
            assert file["classes"].tolist() == list(memory.classes)
            assert (str(file["model"]), str(file["pool"])) == ("hip_digits", "mean")
    else:
        rows = list(csv.DictReader(out.read_text().splitlines()))
        assert [row["name"] for row in rows] == memory.names
        assert float(rows[3]["f127"]) == pytest.approx(float(memory.features[3, 127]), abs=1e-4)
        assert rows[0]["class"] == memory.classes[np.asarray(memory.labels)[0]]
    with pytest.raises(ConfigError, match="exists; pass --overwrite"):
        write_features("hip_digits", "digits", out)


def test_a_failure_leaves_no_half_written_file(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        write_features("hip_digits", tmp_path / "nowhere", tmp_path / "f.npz")
    assert list(tmp_path.iterdir()) == []


def test_a_single_folder_is_a_data_set_and_several_paths_are_files(tmp_path: Path) -> None:
    making.write_photographs(tmp_path / "a", 1)
    picture, folder = str(tmp_path / "a" / "0.png"), str(tmp_path / "a")
    assert are_files([picture], None)
    assert are_files([folder, folder], None)
    assert not are_files([folder], None)
    assert are_files([folder], None, ("image",))
    assert not are_files([folder], None, ("audio",))
    assert not are_files([picture], "test")
    assert not are_files(["digits"], None, ("image",))


@dataclass
class Mixed(Source):
    """Three samples of two modalities, the second without sound."""

    names: Sequence[str] = ("a", "b", "c")
    labels: Any = field(default_factory=lambda: np.array([0, 1, -1]))

    @property
    def present(self) -> Any:
        """Which samples have each modality."""
        return {"image": np.array([True, True, True]), "audio": np.array([True, False, True])}

    def read(self, index: int) -> dict[str, np.ndarray]:
        """Return what the sample holds."""
        sample: dict[str, Any] = {"image": np.full((1, 8, 8), 40 * index, np.uint8)}
        if index != 1:
            sample["audio"] = np.full((1, 32), 0.1 * index, np.float32)
        return sample


def test_samples_may_lack_modalities() -> None:
    torch.manual_seed(0)
    model = pv.create_model("hip_nano", inputs=BOTH).eval()
    source: Any = Mixed()
    dataset = Dataset("mixed", {"train": source, "val": source}, ("x", "y"), ())
    feed = feed_dataset(dataset, BOTH, list(BOTH), "val", 2, 0)
    portions = list(feed.read())
    assert [portion.classes for portion in portions] == [["x", "y"], [""]]
    rows = torch.cat([pooled_features(model, portion.batch, "mean") for portion in portions])
    assert rows.shape == (3, 128)
    assert torch.isfinite(rows).all()
    with pytest.raises(DataError, match="has no 'test' split"):
        feed_dataset(dataset, BOTH, list(BOTH), "test", 2, 0)


def test_what_cannot_be_is_refused(tmp_path: Path, mlm_run: pv.Run) -> None:
    with pytest.raises(ConfigError, match="pool 'sum' is unknown"):
        pv.embed("hip_digits", "digits", pool="sum")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="batch_size is 0"):
        pv.embed("hip_digits", "digits", batch_size=0)
    with pytest.raises(ConfigError, match=r"features are written as \.npz or \.csv"):
        write_features("hip_digits", "digits", tmp_path / "f.parquet")
    with pytest.raises(RunError, match="without a run; give a data address"):
        pv.embed("hip_digits")
    # The run's own data, of texts.
    own = pv.embed(mlm_run.path, split="val")
    assert own.features.shape[1] == load_with_info(mlm_run.path).model.config.trunk.latent_dim


def test_a_picture_of_another_size_is_fitted_as_for_prediction(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 20), dtype=np.uint8)
    Pillow.fromarray(pixels).save(tmp_path / "p.png")
    assert pv.embed("hip_digits", tmp_path / "p.png").features.shape == (1, 128)
