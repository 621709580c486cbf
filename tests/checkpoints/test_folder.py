"""Model folders and run folders: what is saved comes back, bit by bit, with what travels along."""

import json
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import perceivers as pv
from perceivers.checkpoints.loading import compare_states, load_with_info, transfer_encoder
from perceivers.errors import CheckpointError, ConfigError
from perceivers.models import HiP
from perceivers.models.saving import ModelInfo

GOLDEN = Path(__file__).parents[1] / "golden"
INFO = ModelInfo(
    task="classify",
    classes=("cat", "dog", "emu"),
    license="CC0-1.0",
    provenance={"data": "photos/", "step": 7},
    metrics={"val top1": 0.875},
)


def build(seed: int = 0, **settings: Any) -> HiP:
    """A tiny model whose every weight is drawn anew."""
    settings = {"inputs": {"image": pv.Image(4, 6, 2, mean=(0.1, 0.2), std=(0.5, 2.0))}, **settings}
    model = pv.create_model("hip_nano", **settings).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def model() -> HiP:
    return build(num_classes=3)


@pytest.fixture
def pictures(rng: torch.Generator) -> Tensor:
    return torch.randint(0, 256, (2, 2, 4, 6), generator=rng).to(torch.uint8)


@pytest.mark.parametrize("settings", [{"num_classes": 3}, {}, {"labels": ("kind",)}])
def test_a_saved_model_comes_back_bit_by_bit(tmp_path: Path, settings: dict[str, Any]) -> None:
    if "labels" in settings:
        settings = {**settings, "inputs": {"image": pv.Image(4, 6, 2), "kind": pv.Labels(5)}}
    model = build(**settings)
    assert model.save_pretrained(tmp_path / "x") == tmp_path / "x"
    loaded = pv.load(tmp_path / "x")
    assert type(loaded) is HiP
    assert loaded.config == model.config
    assert not loaded.training
    assert equal(loaded.state_dict(), model.state_dict())
    assert not equal(loaded.state_dict(), build(seed=1, **settings).state_dict())


def test_a_loaded_model_computes_the_same_outputs(
    model: HiP, pictures: Tensor, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "x")
    loaded = pv.load(str(tmp_path / "x"))
    assert torch.equal(loaded(pictures), model(pictures))
    with torch.no_grad():
        next(loaded.parameters()).view(-1)[0] += 1.0
    assert not torch.equal(loaded(pictures), model(pictures))


def test_preprocessing_travels_with_the_model(model: HiP, pictures: Tensor, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "x")
    spec = pv.load(tmp_path / "x").config.inputs["image"]
    assert (spec.mean, spec.std) == ((0.1, 0.2), (0.5, 2.0))
    path = tmp_path / "x" / "config.json"
    description = json.loads(path.read_text())
    description["config"]["inputs"]["image"]["mean"] = [0.9, 0.9]
    path.write_text(json.dumps(description))
    assert not torch.equal(pv.load(tmp_path / "x")(pictures), model(pictures))


def test_what_travels_along_comes_back(model: HiP, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "x", info=INFO)
    loaded = load_with_info(tmp_path / "x")
    assert loaded.info == INFO
    assert loaded.info != ModelInfo()
    assert loaded.folder == tmp_path / "x"


def test_entries_of_later_versions_are_ignored(model: HiP, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "x", info=INFO)
    path = tmp_path / "x" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "from_the_future": 1}))
    assert load_with_info(tmp_path / "x").info == INFO


def test_the_model_card_says_what_a_stranger_asks(model: HiP, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "x", info=INFO)
    card = (tmp_path / "x" / "README.md").read_text()
    count = sum(p.numel() for p in model.parameters())
    for fact in (
        f"{count:,} parameters",
        "Licence of the weights: CC0-1.0",
        "Classes (3): cat, dog, emu",
        "data: photos/",
        "| val top1 | 0.875 |",
        '"height": 4',
        "pv.load(",
    ):
        assert fact in card
    model.save_pretrained(tmp_path / "bare")
    assert "Licence of the weights: not stated" in (tmp_path / "bare" / "README.md").read_text()


def test_a_model_is_never_overwritten_silently(model: HiP, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "x")
    before = {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()}
    other = build(seed=1, num_classes=3)
    with pytest.raises(CheckpointError, match=r"already holds a model; .*overwrite=True"):
        other.save_pretrained(tmp_path / "x")
    assert {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()} == before
    other.save_pretrained(tmp_path / "x", overwrite=True)
    assert equal(pv.load(tmp_path / "x").state_dict(), other.state_dict())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with two models, as training leaves it."""
    for seed, name in enumerate(("model", "last")):
        build(seed, num_classes=3).save_pretrained(tmp_path / "run" / name, info=INFO)
    return tmp_path / "run"


def test_a_run_stands_for_its_best_model_or_for_its_last(run: Path) -> None:
    best, last = (build(seed, num_classes=3).state_dict() for seed in (0, 1))
    for address in (run, f"{run}@best", run / "model"):
        assert equal(pv.load(address).state_dict(), best)
    for address in (f"{run}@last", run / "last"):
        assert equal(pv.load(address).state_dict(), last)
    assert not equal(best, last)


def test_an_at_sign_in_a_folder_name_is_no_choice_of_model(model: HiP, tmp_path: Path) -> None:
    folder = tmp_path / "me@home" / "x"
    model.save_pretrained(folder)
    assert equal(pv.load(folder).state_dict(), model.state_dict())


def test_an_address_without_a_model_says_what_was_looked_for(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected 'best' or 'last' after @, not 'lats'"):
        pv.load(f"{run}@lats")
    shutil.rmtree(run / "last")
    with pytest.raises(CheckpointError, match=r"holds no model: looked for .*run/last"):
        pv.load(f"{run}@last")
    with pytest.raises(CheckpointError, match=r"hip_nan is neither .*did you mean 'hip_nano'"):
        pv.load("hip_nan")


def test_a_model_is_loaded_for_another_size(model: HiP, rng: torch.Generator, run: Path) -> None:
    larger = {"image": pv.Image(8, 12, 2, mean=(0.1, 0.2), std=(0.5, 2.0))}
    loaded = pv.load(run, inputs=larger)
    assert loaded(torch.rand(2, 2, 8, 12, generator=rng)).shape == (2, 3)
    ours, theirs = loaded.state_dict(), model.state_dict()
    changed = [name for name in ours if ours[name].shape != theirs[name].shape]
    assert changed == ["encoder.inputs.positions.image.table"]
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name not in changed)
    with pytest.raises(ConfigError, match=r"names, kinds and channels must stay"):
        pv.load(run, inputs={"image": pv.Image(8, 12, 3)})


def test_differences_of_two_sets_of_weights_are_all_named() -> None:
    a = {"same": torch.zeros(2), "shape": torch.zeros(2), "gone": torch.zeros(1)}
    b = {"same": torch.ones(2), "shape": torch.zeros(3), "new": torch.zeros(1)}
    assert compare_states(a, a) == []
    assert compare_states(a, b) == [
        "missing: gone",
        "unexpected: new",
        "another shape: shape (file (3,), model (2,))",
    ]
    many = {f"x{number:02}": torch.zeros(1) for number in range(11)}
    assert compare_states(many, {}) == [f"missing: {', '.join(list(many)[:8])} and 3 more"]


def test_weights_in_another_precision_are_not_silently_taken(model: HiP, tmp_path: Path) -> None:
    """A half-precision file fits; the model stays in float32 with the file's values."""
    model.save_pretrained(tmp_path / "x")
    path = tmp_path / "x" / "model.safetensors"
    save_file({name: value.half() for name, value in load_file(path).items()}, path)
    loaded = pv.load(tmp_path / "x")
    for name, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, model.state_dict()[name].half().float())


def test_an_encoder_is_carried_over_and_the_rest_is_named(model: HiP) -> None:
    source = build(seed=1)
    moved = transfer_encoder(source, model)
    assert all(name.startswith("encoder.") for name in moved.used)
    assert all(name.startswith("decoder.") for name in moved.dropped)
    assert all(name.startswith("head.") for name in moved.fresh)
    text = f"{len(moved.used)} tensors copied, {len(moved.dropped)} dropped (decoder)"
    assert str(moved).startswith(text)
    for name in moved.used:
        assert torch.equal(model.state_dict()[name], source.state_dict()[name])
    other = build(inputs={"image": pv.Image(5, 5, 2)}, num_classes=3)
    with pytest.raises(CheckpointError, match=r"encoders differ at encoder\.inputs\.positions"):
        transfer_encoder(source, other)


# -- released parameters ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hip3_two_posproj", "hipcb3_one_label", "io_two"])
def test_a_haiku_pickle_converts_to_the_same_model_as_its_bundle(tmp_path: Path, name: str) -> None:
    source, tree = GOLDEN / f"{name}.npz", {}
    with np.load(source) as archive:
        stated = str(archive["config_json"])
        for key in archive.files:
            if key.startswith("param/"):
                module, _, leaf = key.removeprefix("param/").rpartition(":")
                tree.setdefault(module, {})[leaf] = archive[key]
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(tree))
    (tmp_path / "x.json").write_text(stated)
    first = pv.convert(source, tmp_path / "a", verify=True)
    second = pv.convert(tmp_path / "x.pkl", tmp_path / "b", config=tmp_path / "x.json")
    assert first.is_verified
    assert not second.is_verified
    assert second.parameters == first.parameters
    ours, theirs = pv.load(tmp_path / "b"), pv.load(tmp_path / "a")
    assert ours.config == theirs.config
    assert equal(ours.state_dict(), theirs.state_dict())
    module = next(iter(tree))
    leaf = next(iter(tree[module]))
    tree[module][leaf] = tree[module][leaf] + 1.0
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(tree))
    pv.convert(tmp_path / "x.pkl", tmp_path / "c", config=tmp_path / "x.json")
    assert not equal(pv.load(tmp_path / "c").state_dict(), theirs.state_dict())


def test_a_converted_model_states_where_it_comes_from(tmp_path: Path) -> None:
    pv.convert(GOLDEN / "io_two.npz", tmp_path / "x")
    info = load_with_info(tmp_path / "x").info
    assert info.provenance["source"] == "io_two.npz"
    assert info.license
    assert "io_two.npz" in (tmp_path / "x" / "README.md").read_text()


def test_a_model_card_shows_class_names_as_text(model: HiP, tmp_path: Path) -> None:
    names = ("<script>x</script>", "[a](http://b)", "c\n# d")
    model.save_pretrained(tmp_path / "x", info=replace(INFO, classes=names))
    card = (tmp_path / "x" / "README.md").read_text()
    assert r"- Classes (3): \<script\>x\</script\>, \[a\](http://b), c # d" in card.splitlines()
    assert load_with_info(tmp_path / "x").info.classes == names
