"""The table of formats: one row recognises a source, and a row from outside is like any other."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import perceivers as pv
from perceivers.checkpoints.catalogue import describe_source
from perceivers.checkpoints.formats import (
    FORMATS,
    Built,
    Format,
    Source,
    find_format,
    list_targets,
    register,
)
from perceivers.checkpoints.loading import load_with_info
from perceivers.checkpoints.names import Entry, fill_model, take_from_model
from perceivers.checkpoints.parity import Difference, Precision, compare_live
from perceivers.cli.main import main
from perceivers.errors import CheckpointError, ConfigError
from perceivers.models.entity_set import EntitySet, EntitySetConfig
from perceivers.models.saving import ModelInfo

GOLDEN = Path(__file__).parents[1] / "golden"

# -- A toy format: a folder with the tensors under other names, and matrices transposed ------------


def entries(model: EntitySet) -> list[Entry]:
    return [
        Entry(name, f"toy/{name}", "turned" if x.ndim == 2 else "same")
        for name, x in model.state_dict().items()
    ]


def read(path: Path) -> EntitySet:
    config = json.loads((path / "config.json").read_text())["settings"]
    model = EntitySet(EntitySetConfig.from_json(config))
    fill_model(model, entries(model), load_file(path / "toy.safetensors"), source=str(path))
    return model.eval()


def build_toy(source: Source) -> Built:
    return Built(read(source.path), describe_source(source.path, "toy", None), ("a toy",))


def verify_toy(source: Source, model: Any, dtype: Precision) -> list[Difference]:
    """Compare by what the file holds: each model's sum of every tensor."""
    sums = [
        {name: x.sum().reshape(1) for name, x in each.state_dict().items()}
        for each in (model, read(source.path))
    ]
    return compare_live(sums[0], sums[1], dtype)


def write_toy(model: EntitySet, path: Path, info: ModelInfo) -> list[str]:
    path.mkdir()
    stated = {"model_type": "toy", "settings": model.config.to_json()}
    (path / "config.json").write_text(json.dumps(stated))
    save_file(take_from_model(model, entries(model)), path / "toy.safetensors")
    return ["toys compute nothing"]


TOY = Format(
    name="toy",
    families=("entity_set",),
    tells=lambda source: source.model_type == "toy",
    build=build_toy,
    verify=verify_toy,
    write=write_toy,
    is_folder=True,
)


@pytest.fixture
def toy() -> Iterator[None]:
    register(TOY)
    yield
    FORMATS.remove(TOY)


@pytest.fixture
def model() -> EntitySet:
    torch.manual_seed(0)
    return pv.create_model("entity_set_nano", inputs={"set": pv.Points(5, 3)}).eval()


@pytest.mark.usefixtures("toy")
def test_a_format_from_outside_is_converted_in_and_out(
    model: EntitySet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.save_pretrained(tmp_path / "ours")
    done = pv.convert(tmp_path / "ours", tmp_path / "toy", to="toy", verify=True)
    assert done.is_verified
    assert done.notes == ("toys compute nothing",)
    assert main(["convert", str(tmp_path / "toy"), str(tmp_path / "back"), "--verify"]) == 0
    assert "note: a toy" in capsys.readouterr().out
    loaded = load_with_info(tmp_path / "back")
    assert loaded.info.provenance == {"source": "toy", "converted_from": "toy"}
    assert loaded.model.config == model.config
    again = loaded.model.state_dict()
    assert all(torch.equal(x, again[name]) for name, x in model.state_dict().items())
    with pytest.raises(CheckpointError, match=r"toy already holds a model; choose another folder"):
        pv.convert(tmp_path / "ours", tmp_path / "toy", to="toy")
    for option, text in (("flavour", "hf"), ("weights", "ema")):
        with pytest.raises(ConfigError, match=rf"leave out {option}={text}"):
            pv.convert(tmp_path / "toy", tmp_path / "x", **{option: text})  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match=r"format 'toy' exists already"):
        register(TOY)


@pytest.mark.usefixtures("toy")
def test_a_wrong_weight_of_the_toy_is_noticed(model: EntitySet, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "ours")
    pv.convert(tmp_path / "ours", tmp_path / "toy", to="toy")
    tensors = load_file(tmp_path / "toy" / "toy.safetensors")
    source = Source(tmp_path / "toy")
    assert all(d.is_within or d.is_empty for d in TOY.verify(source, model, "float64"))
    next(iter(tensors.values())).add_(1e-3)
    save_file(tensors, tmp_path / "toy" / "toy.safetensors")
    assert not all(d.is_within for d in TOY.verify(source, model, "float64"))


def test_tensor_names_from_outside_are_found_in_a_training_checkpoint(
    model: EntitySet, tmp_path: Path
) -> None:
    def knows(tensors: Mapping[str, Any]) -> bool:
        return all(name.startswith("toy/") for name in tensors)

    def build(source: Source) -> Built:
        ours = EntitySet(EntitySetConfig.from_json(dict(source.given)))
        fill_model(ours, entries(ours), source.tensors, source=str(source))
        notes = source.found[1] if source.found else ()
        return Built(ours.eval(), describe_source(source.path, "toy", None), notes)

    row = replace(
        TOY,
        title="toys",
        knows=knows,
        tells=lambda source: bool(source.tensors) and knows(source.tensors),
        build=build,
        options=("config", "weights"),
    )
    tensors = take_from_model(model, entries(model))
    saved = {"state_dict": {f"model.{name}": x for name, x in tensors.items()}, "epoch": 3}
    torch.save(saved, tmp_path / "x.ckpt")
    (tmp_path / "x.json").write_text(json.dumps(model.config.to_json()))
    with pytest.raises(CheckpointError, match=r"of no known layout; expected one of official Hier"):
        pv.convert(tmp_path / "x.ckpt", tmp_path / "ours", config=tmp_path / "x.json")
    register(row)
    try:
        done = pv.convert(tmp_path / "x.ckpt", tmp_path / "ours", config=tmp_path / "x.json")
    finally:
        FORMATS.remove(row)
    assert any("'model.' stripped from the names" in note for note in done.notes)
    state = pv.load(tmp_path / "ours").state_dict()
    assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())


def test_without_the_row_the_format_is_unknown(tmp_path: Path) -> None:
    assert "toy" not in list_targets()
    (tmp_path / "config.json").write_text('{"model_type": "toy"}')
    with pytest.raises(CheckpointError, match=r"model_type is 'toy'; only 'perceiver' is conv"):
        find_format(Source(tmp_path))


# -- The table itself ------------------------------------------------------------------------------


# Beginnings of the names of bundles, and their rows. Other files in the folder hold no models.
ROWS = {
    "hip3_": ("haiku", ("hip",)),
    "hip5_": ("haiku", ("hip",)),
    "hipcb3_": ("haiku", ("hip",)),
    "io_": ("haiku", ("hip",)),
    "dmr_cls_": ("haiku", ("perceiver", "perceiver_io")),
    "dmr_composed_": ("haiku", ("perceiver", "perceiver_io")),
    "dmr_mlm": ("haiku", ("perceiver", "perceiver_io")),
    "dmr_multimodal_": ("haiku", ("perceiver", "perceiver_io")),
    "hiera_": ("bundle", ("hiera",)),
}


@pytest.mark.parametrize("start", ROWS)
def test_a_bundle_has_exactly_one_row(start: str) -> None:
    paths = sorted(GOLDEN.glob(f"{start}*.npz"))
    assert paths
    for path in paths:
        source = Source(path)
        found = [(row.name, row.families) for row in FORMATS if row.tells(source)]
        assert found == [ROWS[start]], path


def test_every_library_and_family_has_one_row() -> None:
    pairs = [(row.name, family) for row in FORMATS for family in row.families]
    assert len(pairs) == len(set(pairs))
    assert list_targets() == ("perceivers", "hf", "haiku", "official", "timm")
