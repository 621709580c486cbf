"""The weights that come with the package: complete, small, free to use, and as good as they say."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import perceivers as pv
from perceivers.checkpoints.catalogue import (
    FOLDER,
    find_own_weights,
    list_own_weights,
    own_names,
)
from perceivers.checkpoints.loading import find_model_folder, load_with_info
from perceivers.errors import CheckpointError
from perceivers.models import list_models

NAMES = (
    "hiera_banking77",
    "hiera_esc10",
    "hiera_trashnet",
    "hiera_trashnet_mae",
    "hip_digits",
    "hip_digits_mae",
)
FREE = ("(MIT)", "(CC-BY-4.0)", "(CC0 and CC-BY, clip by clip)")


def test_all_are_listed_with_what_a_stranger_asks() -> None:
    weights = list_own_weights()
    assert tuple(w.name for w in weights) == tuple(own_names()) == NAMES
    for each in weights:
        assert each.variant in list_models()
        assert each.license == "Apache-2.0"
        assert each.data.endswith(FREE)
        assert each.figures
        assert each.task in {"pretrain", "classify"}
    assert [w.name for w in list_own_weights("hip_*")] == ["hip_digits", "hip_digits_mae"]
    assert [w.name for w in list_own_weights("mae_hiera_nano")] == ["hiera_trashnet_mae"]


def test_together_they_are_no_more_than_seven_megabytes() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 7e6


@pytest.mark.parametrize("name", NAMES)
def test_each_has_a_card_settings_a_curve_and_half_precision(name: str) -> None:
    folder = find_own_weights(name)
    assert folder is not None
    card = (folder / "README.md").read_text()
    assert card.startswith(f"# {name}\n")
    assert "Weights: Apache-2.0" in card
    assert "perceivers " in card.partition("```bash")[2]
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert list(folder.glob("*.yaml"))
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {torch.float16}
    provenance = json.loads((folder / "config.json").read_text())["provenance"]
    assert provenance["parameters"] == sum(p.numel() for p in pv.load(name).parameters())
    # Nothing of the machine they were made on.
    texts = [path.read_text() for path in folder.glob("*") if path.suffix in {".md", ".yaml"}]
    assert not any("/work" in text or "/tmp" in text for text in texts)


def test_they_load_by_their_name_in_single_precision() -> None:
    loaded = load_with_info("hip_digits")
    assert loaded.folder == FOLDER / "hip_digits"
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert loaded.info.classes == tuple("0123456789")


def test_the_classifier_of_digits_is_as_good_as_its_card_says() -> None:
    stated = next(w for w in list_own_weights("hip_digits") if w.name == "hip_digits")
    found = pv.evaluate("hip_digits", data="digits").figures
    assert found["top1"] == pytest.approx(stated.figures["test top1"], abs=0.003)
    assert found["top1"] > 0.96


def test_a_folder_of_the_same_name_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_model_folder("hip_digits") == FOLDER / "hip_digits"
    (tmp_path / "hip_digits").mkdir()
    assert find_model_folder("hip_digits") == FOLDER / "hip_digits"
    (tmp_path / "hip_digits" / "config.yaml").touch()
    with pytest.raises(CheckpointError, match="hip_digits holds no model"):
        find_model_folder("hip_digits")


@pytest.mark.parametrize("name", ["", ".", "..", "../weights/hip_digits", "nothing", "/etc"])
def test_other_names_are_not_found(name: str) -> None:
    assert find_own_weights(name) is None


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(CheckpointError, match=r"--weights.*did you mean 'hip_digits'"):
        load_with_info("hip_digitz")
