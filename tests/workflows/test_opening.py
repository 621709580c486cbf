"""Opening a run's data: columns, sizes, modalities, generated and measured frame pairs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.workflows import making

import perceivers as pv
from perceivers.data.flow_pairs import write_flow
from perceivers.errors import ConfigError, DataError
from perceivers.training.config import FlowTrainConfig, TrainConfig, build_config
from perceivers.workflows.opening import data_specs, open_dataset


def config_of(data: Any, kind: type[TrainConfig] = TrainConfig, **settings: Any) -> Any:
    base = {"model": making.NANO, "out": "x", "data": str(data)}
    return build_config(kind, {**base, **settings})


def test_label_columns_and_other_data_are_opened_as_the_run_says(made: Path) -> None:
    config = config_of(made / "texts.csv", labels=["topic", "mood"], val_share=0.25)
    dataset = open_dataset(config)
    assert dict(dataset.columns) == {"topic": ("home", "sky", "wood"), "mood": ("glad", "sad")}
    assert len(dataset.splits["val"]) >= 8
    one = open_dataset(config_of(made / "texts.csv", labels=["mood"]))
    assert one.classes == ("glad", "sad")
    assert not one.columns
    other = open_dataset(config_of(made / "texts.csv"), address=str(made / "moods.csv"))
    assert other.address == str(made / "moods.csv")
    assert other.classes == ("glad", "sad")


def test_sizes_and_modalities_are_as_asked_for(made: Path) -> None:
    data = made / "clips"
    both = config_of(data, inputs={"video": {"frames": 2, "height": 8, "width": 8}})
    specs = data_specs(both, open_dataset(both))
    assert set(specs) == {"video", "audio"}
    assert specs["video"].grid == (2, 8, 8)
    sound = config_of(data, modalities=["audio"], inputs={"audio": {"samples": 64}})
    specs = data_specs(sound, open_dataset(sound))
    assert set(specs) == {"audio"}
    assert specs["audio"].grid == (64,)
    small = config_of(made / "photographs", size=8, channels=1)
    assert data_specs(small, open_dataset(small))["image"].raw_shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inputs": {"txt": {}}}, r"modality 'txt' is asked for, but the data hold \['bytes'\]"),
        ({"modalities": ["audio"]}, r"modality 'audio' is asked for, but the data hold"),
        ({"inputs": {"bytes": {"lenght": 3}}}, r"no setting 'lenght'.*did you mean 'length'\?"),
        ({"inputs": {"bytes": {"length": 0}}}, r"Bytes\.length is 0; it must be at least 1"),
        ({"size": 32}, r"size=32 applies to images, but .* holds \['bytes'\]; set other sizes"),
        ({"channels": 1}, r"channels=1 applies to images"),
    ],
)
def test_what_the_data_do_not_have_is_named(
    made: Path, settings: dict[str, Any], message: str
) -> None:
    config = config_of(made / "texts.csv", **settings)
    with pytest.raises(ConfigError, match=message):
        data_specs(config, open_dataset(config))


def test_pairs_are_generated_at_the_models_size(made: Path) -> None:
    address = f"warps:{made / 'photographs'}"
    config = config_of(address, FlowTrainConfig, max_flow=2.5, repeats=3)
    dataset = open_dataset(config, frame_size=(16, 24))
    photographs = pv.open_data(str(made / "photographs"))
    for split in ("train", "val"):
        times = 3 if split == "train" else 1
        assert len(dataset.splits[split]) == times * len(photographs.splits[split])
    sample: dict[str, Any] = dict(dataset.splits["train"].read(0))
    assert sample["video"].shape == (3, 2, 16, 24)
    assert sample["flow"].shape == (2, 16, 24)
    assert float(np.linalg.norm(sample["flow"], axis=0).max()) <= 2.5 + 1e-5
    assert "warped by up to 2.5 pixels" in dataset.notes[0]
    assert dataset.classes == ()
    seeded = open_dataset(
        config_of(address, FlowTrainConfig, seed=1, max_flow=2.5), frame_size=(16, 24)
    )
    again: dict[str, Any] = dict(seeded.splits["train"].read(0))
    assert not np.array_equal(again["flow"], sample["flow"])


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Two measured pairs of 16 x 20 pixels."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        folder = tmp_path / "pairs" / name
        folder.mkdir(parents=True)
        for number in (1, 2):
            pixels = rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"frame{number}.png")
        write_flow(folder / "flow.flo", rng.standard_normal((2, 16, 20)).astype(np.float32))
    return tmp_path / "pairs"


def test_measured_pairs_are_opened_and_evaluated(pairs: Path, flow_run: pv.Run) -> None:
    dataset = open_dataset(config_of(pairs, FlowTrainConfig), frame_size=(16, 20))
    assert set(dataset.splits) == {"train", "val", "test"}
    assert len(dataset.splits["test"]) == 2
    assert "measured pairs" in dataset.notes[0]
    figures = pv.evaluate(flow_run.path, data=str(pairs)).figures
    flows: list[Any] = [dataset.splits["test"].read(index)["flow"] for index in range(2)]
    lengths = np.linalg.norm(np.stack(flows), axis=1)
    assert figures["epe_of_zero"] == pytest.approx(float(lengths.mean()), rel=1e-5)


def test_measured_pairs_of_another_size_are_evaluated_by_tiles(
    pairs: Path, made: Path, flow_run: pv.Run
) -> None:
    for path in pairs.rglob("frame*.png"):
        with Image.open(path) as picture:
            resized = picture.resize((24, 20))
        resized.save(path)
    for path in pairs.rglob("flow.flo"):
        write_flow(path, np.zeros((2, 20, 24), np.float32))
    figures = pv.evaluate(flow_run.path, data=str(pairs)).figures
    assert figures["epe_of_zero"] == 0.0
    assert 0.0 <= figures["epe"] < 100.0
    assert figures["pairs"] >= 1.0


def test_other_data_are_no_pairs_and_pairs_are_no_other_data(made: Path) -> None:
    config = config_of(made / "texts.csv", FlowTrainConfig)
    with pytest.raises(DataError, match=r"cannot be listed .*use 'warps:"):
        open_dataset(config, frame_size=(16, 20))
    with pytest.raises(DataError, match=r"which only --task flow can use"):
        open_dataset(config_of(f"warps:{made / 'photographs'}"))
