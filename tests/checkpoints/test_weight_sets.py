"""The weights of a model are found wherever a training script keeps them."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.checkpoints import hiera_making as making
from tests.checkpoints.test_hiera_files import state_settings
from torch import Tensor

import perceivers as pv
from perceivers.checkpoints.formats import is_known
from perceivers.checkpoints.hiera_names import hiera_entries
from perceivers.checkpoints.names import take_from_model
from perceivers.checkpoints.torch_files import read_known_weights
from perceivers.cli.main import main
from perceivers.errors import CheckpointError, ConfigError
from perceivers.models.hiera import Hiera

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def model() -> Hiera:
    return making.make(making.OFFICIAL["image"])


@pytest.fixture(scope="module")
def weights(model: Hiera) -> Weights:
    """As the official package names them."""
    return take_from_model(model, hiera_entries(model.config, "official"))


def with_prefix(prefix: str) -> Callable[[Weights], Weights]:
    return lambda weights: {f"{prefix}{name}": tensor for name, tensor in weights.items()}


def compiled_inside(weights: Weights) -> Weights:
    return {name.replace("attn.", "attn._orig_mod."): x for name, x in weights.items()}


WRAPPED: dict[str, tuple[Callable[[Weights], Any], str]] = {
    "ddp": (with_prefix("module."), "'module.' stripped"),
    "compiled": (with_prefix("_orig_mod."), "'_orig_mod.' stripped"),
    "compiled and ddp": (with_prefix("_orig_mod.module."), "'module.' stripped"),
    "ddp and compiled": (with_prefix("module._orig_mod."), "'_orig_mod.' stripped"),
    "compiled inside": (compiled_inside, "'_orig_mod.' stripped"),
    "backbone": (with_prefix("backbone."), "'backbone.' stripped"),
    "lightning": (
        lambda w: {
            "state_dict": {**with_prefix("model.")(w), "loss.weight": torch.ones(2)},
            "hyper_parameters": argparse.Namespace(lr=1.0),
            "epoch": 3,
        },
        "1 tensors without 'model.' are not used: loss.weight",
    ),
    "meta": (
        lambda w: {"model": w, "args": argparse.Namespace(lr=1.0), "epoch": 3},
        "not used: args, epoch",
    ),
    "nested": (
        lambda w: {"checkpoint": {"model": with_prefix("module.net._orig_mod.")(w)}},
        "'net.' stripped",
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_weights_are_converted_and_what_was_stripped_is_said(
    name: str, model: Hiera, weights: Weights, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrap, said = WRAPPED[name]
    torch.save(wrap(weights), tmp_path / "x.ckpt")
    settings = str(state_settings(tmp_path, **making.STATED))
    out = str(tmp_path / "ours")
    assert main(["convert", str(tmp_path / "x.ckpt"), out, "--config", settings]) == 0
    assert said in capsys.readouterr().out
    assert making.equal(pv.load(out).state_dict(), model.state_dict())


def test_prefixes_are_stripped_from_safetensors_too(weights: Weights, tmp_path: Path) -> None:
    save_file(with_prefix("module.")(weights), tmp_path / "x.safetensors")
    found, notes = read_known_weights(tmp_path / "x.safetensors", None, is_known)
    assert sorted(found) == sorted(weights)
    assert notes == ("'module.' stripped from the names",)


def shifted(weights: Weights) -> Weights:
    return {name: tensor + 1 for name, tensor in weights.items()}


AVERAGED: dict[str, tuple[Callable[[Weights], Any], str, str]] = {
    "timm": (lambda w: {"state_dict": w, "state_dict_ema": shifted(w)}, "state_dict", "_ema"),
    "meta": (
        lambda w: {"model": w, "model_ema": with_prefix("module.")(shifted(w))},
        "model",
        "model_ema",
    ),
    "prefixes": (
        lambda w: {"state_dict": {**with_prefix("net.")(w), **with_prefix("ema.")(shifted(w))}},
        "state_dict.net",
        "state_dict.ema",
    ),
}


@pytest.mark.parametrize("name", AVERAGED)
def test_raw_and_averaged_weights_are_named_and_chosen(
    name: str, weights: Weights, tmp_path: Path
) -> None:
    wrap, raw, averaged = AVERAGED[name]
    path = tmp_path / "x.pth"
    torch.save(wrap(weights), path)
    found, notes = read_known_weights(path, None, is_known)
    assert making.equal(found, weights)
    assert f"holds several sets of weights: {raw}" in notes[0]
    assert f"{averaged} (averaged); {raw!r} is read; --weights ema selects" in notes[0]
    assert making.equal(read_known_weights(path, "raw", is_known)[0], weights)
    ema = read_known_weights(path, "ema", is_known)[0]
    assert making.equal(ema, shifted(weights))
    assert not making.equal(ema, weights)


def test_several_models_are_refused_until_one_is_named(weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"student": weights, "teacher": shifted(weights)}, path)
    with pytest.raises(CheckpointError, match=r"sets of weights: student, teacher; choose one by"):
        read_known_weights(path, None, is_known)
    found = read_known_weights(path, "teacher", is_known)[0]
    assert making.equal(found, shifted(weights))
    with pytest.raises(ConfigError, match=r"has no weights 'ema' .* it holds: student, teacher;"):
        read_known_weights(path, "ema", is_known)


def test_weights_are_for_files_that_hold_several_sets(model: Hiera, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "ours")
    with pytest.raises(ConfigError, match=r"holds one set of weights; leave out weights=ema"):
        pv.convert(tmp_path / "ours", tmp_path / "x.pth", to="official", weights="ema")
    bundle = Path(__file__).parents[1] / "golden" / "dmr_mlm.npz"
    with pytest.raises(ConfigError, match=r"holds one set of weights; leave out weights=ema"):
        pv.convert(bundle, tmp_path / "other", weights="ema")


def test_a_file_given_as_a_model_is_told_how_to_become_one(
    weights: Weights, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(weights, tmp_path / "x.pt")
    with pytest.raises(
        CheckpointError,
        match=r"holds no model: it is a file, .* 'perceivers convert .*x\.pt FO",
    ):
        pv.load(tmp_path / "x.pt")
    np.savez(tmp_path / "x.npz", image=np.zeros((8, 1, 8, 8), np.uint8), label=np.arange(8) // 4)
    command = ["finetune", "--model", str(tmp_path / "x.pt"), "--data", str(tmp_path / "x.npz")]
    assert main([*command, "--out", str(tmp_path / "run")]) == 2
    assert "perceivers convert" in capsys.readouterr().err
