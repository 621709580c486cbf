"""HieraDet beside transformers' Sam2HieraDetModel, live in float64, and verified conversions."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import perceivers as pv
from perceivers.checkpoints import sam2 as verifying
from perceivers.checkpoints.names import take_from_model
from perceivers.checkpoints.sam2 import (
    Sam2Weights,
    describe_trunk,
    load_hugging_face_trunk,
    model_from_sam2,
    picture_size,
    sam2_entries,
    split_trunk,
    verify_sam2,
)
from perceivers.errors import CheckpointError, ConfigError
from perceivers.models import HieraDet, HieraDetConfig, create_model
from perceivers.models.hiera_det.config import SAM2_INPUT

transformers = pytest.importorskip("transformers")
sam2 = pytest.importorskip("transformers.models.sam2.modeling_sam2")

# Sizes are those that the reference runs: whole windows of the first stage.
MODELS: dict[str, tuple[dict[str, Any], list[tuple[int, int]]]] = {
    # The release's own structure, narrow; windows of 14 and 7 never fit.
    "released": (
        {
            "dim": 16,
            "num_heads": 2,
            "depths": (1, 2, 3, 2),
            "windows": (8, 4, 14, 7),
            "global_blocks": (4,),
            "position_grid": (7, 7),
        },
        [(64, 64), (61, 93), (128, 160), (224, 224)],
    ),
    # Odd sides: 12, 6, 3, 1 and 28, 14, 7, 3 tokens.
    "odd": (
        {
            "dim": 8,
            "num_heads": 1,
            "depths": (1, 1, 2, 1),
            "windows": (4, 4, 4, 3),
            "global_blocks": (3,),
            "position_grid": (3, 5),
        },
        [(48, 48), (112, 48)],
    ),
    "nano": ({}, [(64, 64), (32, 80)]),
}


def make_trunk(**settings: Any) -> HieraDet:
    """A trunk every weight of which matters."""
    torch.manual_seed(0)
    model = create_model("hiera_det_nano", **{"inputs": SAM2_INPUT, **settings}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


def write_meta(model: HieraDet, path: Path) -> Path:
    taken = take_from_model(model, sam2_entries(model.config, "meta"))
    tensors = {f"image_encoder.trunk.{name}": x for name, x in taken.items()}
    torch.save({"model": {**tensors, "sam_mask_decoder.iou_token.weight": torch.ones(1, 4)}}, path)
    return path


def hugging_face_of(model: HieraDet) -> Any:
    read = Sam2Weights("x", "hf", take_from_model(model, sam2_entries(model.config, "hf")), {})
    return load_hugging_face_trunk(read, model.config)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_every_map_is_the_reference_s(name: str, rng: torch.Generator) -> None:
    settings, sizes = MODELS[name]
    model = make_trunk(**settings)
    theirs = hugging_face_of(model).double()
    model.double()
    mean, std = (x.double().reshape(1, 3, 1, 1) for x in (model.input.mean, model.input.std))
    for size in sizes:
        raw = torch.rand(2, 3, *size, generator=rng, dtype=torch.float64)
        expected = theirs((raw - mean) / std).intermediate_hidden_states
        found = model.forward_features(raw).maps
        assert len(found) == len(expected) == len(model.config.depths)
        for own, other in zip(found, expected, strict=True):
            torch.testing.assert_close(own, other.movedim(-1, 1), rtol=0.0, atol=1e-12)
        fresh = model.forward_features(torch.rand_like(raw)).maps
        assert not torch.allclose(fresh[0], expected[0].movedim(-1, 1))


@torch.no_grad()
def test_the_reference_cannot_run_sizes_that_we_can() -> None:
    """What the documentation says of it: other first grids, and odd sides that lose a window."""
    model = make_trunk(**MODELS["odd"][0])
    theirs = hugging_face_of(model)
    for size in ((52, 48), (80, 48)):
        with pytest.raises(RuntimeError, match=r"must match"):
            theirs(torch.rand(2, 3, *size))
        assert model(torch.rand(2, 3, *size)).isfinite().all()


@pytest.mark.parametrize("size", ["tiny", "small", "base_plus", "large"])
def test_counts_names_and_shapes_are_those_of_the_class(size: str) -> None:
    with torch.device("meta"):
        ours = create_model(f"hiera_det_{size}")
        settings = transformers.Sam2HieraDetConfig(**describe_trunk(ours.config))
        theirs = sam2.Sam2HieraDetModel(settings).state_dict()
        state = ours.state_dict()
        named = {e.theirs: e.turn.back(state[e.ours]) for e in sam2_entries(ours.config, "hf")}
    assert {n: tuple(x.shape) for n, x in named.items()} == {
        n: tuple(x.shape) for n, x in theirs.items()
    }
    assert sum(p.numel() for p in ours.parameters()) == sum(x.numel() for x in theirs.values())


def test_the_tiny_trunk_is_that_library_s_default() -> None:
    with torch.device("meta"):
        described = describe_trunk(create_model("hiera_det_tiny").config)
    default = transformers.Sam2HieraDetConfig()
    assert {key: getattr(default, key) for key in described} == described


# -- conversions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "allowed"), [("float64", 1e-9), ("float32", 1e-3)])
def test_a_file_of_meta_is_verified(tmp_path: Path, dtype: Any, allowed: float) -> None:
    source = write_meta(make_trunk(), tmp_path / "x.pt")
    done = pv.convert(source, tmp_path / "out", verify=True, dtype=dtype)
    assert done.is_verified
    assert [d.output for d in done.differences] == ["stage 0", "stage 1", "stage 2"]
    assert all(d.largest < allowed for d in done.differences)
    assert next(pv.load(tmp_path / "out").parameters()).dtype == torch.float32


@pytest.mark.parametrize("name", ["Sam2Model", "Sam2VisionModel", "Sam2HieraDetModel"])
def test_folders_of_that_library_are_verified(tmp_path: Path, name: str) -> None:
    """Written by its own classes: the names of the keys and of the settings are theirs."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    backbone = transformers.Sam2HieraDetConfig(**describe_trunk(make_trunk().config))
    small: dict[str, Any] = {
        "backbone_channel_list": [128, 64, 32],
        "backbone_feature_sizes": [[64, 64], [32, 32], [16, 16]],
        "fpn_hidden_size": 8,
        "fpn_top_down_levels": [1, 2],
    }
    vision = transformers.Sam2VisionConfig(backbone_config=backbone, **small)
    config = {
        "Sam2Model": lambda: transformers.Sam2Config(vision_config=vision),
        "Sam2VisionModel": lambda: vision,
        "Sam2HieraDetModel": lambda: backbone,
    }[name]()
    torch.manual_seed(0)
    model = getattr(sam2, name)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(tmp_path / "folder")
    done = pv.convert(tmp_path / "folder", tmp_path / "out", verify=True)
    assert done.is_verified
    assert done.parameters == 642_784
    parts = [note.partition(" ")[0] for note in done.notes]
    expected = {
        "Sam2Model": [
            "mask_decoder",
            "no_memory_embedding",
            "prompt_encoder",
            "shared_image_embedding",
            "vision_encoder.neck",
        ],
        "Sam2VisionModel": ["neck"],
        "Sam2HieraDetModel": [],
    }
    assert parts == expected[name]


def test_a_wrong_weight_is_noticed(tmp_path: Path) -> None:
    """Control: one value of one bias."""
    tensors = take_from_model(make_trunk(), sam2_entries(make_trunk().config, "meta"))
    read = split_trunk(tensors, "x")
    model = model_from_sam2(read)
    assert all(d.is_within for d in verify_sam2(read, model))
    with torch.no_grad():
        model.encoder.get_parameter("blocks.2.norm_attention.bias")[0] += 1e-3
    assert [d.is_within for d in verify_sam2(read, model)] == [True, True, False]


def test_weights_that_do_not_fit_the_class_are_refused() -> None:
    trunk = make_trunk()
    tensors = take_from_model(trunk, sam2_entries(trunk.config, "meta"))
    extra = split_trunk({**tensors, "blocks.0.norm9.bias": torch.ones(1)}, "x")
    with pytest.raises(CheckpointError, match=r"x does not fit Sam2HieraDetModel"):
        load_hugging_face_trunk(extra, trunk.config)


def test_without_the_library_there_is_nothing_to_compare_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trunk = make_trunk()
    monkeypatch.setattr(verifying, "find_spec", lambda name: None)
    read = split_trunk(take_from_model(trunk, sam2_entries(trunk.config, "meta")), "x")
    with pytest.raises(
        ConfigError, match=r"pip install 'transformers>=4\.57'; converting does not"
    ):
        verify_sam2(read, trunk)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("hiera_det_tiny", (192, 224)),
        ("hiera_det_large", (192, 224)),
        ("hiera_det_nano", (192, 208)),
    ],
)
def test_the_compared_picture_is_one_that_both_can_run(name: str, size: tuple[int, int]) -> None:
    with torch.device("meta"):
        config = create_model(name, inputs=SAM2_INPUT).config
    assert picture_size(config) == size


def test_a_folder_states_what_it_was_written_with(tmp_path: Path) -> None:
    """Settings other than the defaults arrive: here windows, heads and global blocks."""
    trunk = make_trunk(**MODELS["odd"][0])
    folder = tmp_path / "folder"
    folder.mkdir()
    stated = {"model_type": "sam2_hiera_det_model", **describe_trunk(trunk.config)}
    (folder / "config.json").write_text(json.dumps(stated))
    save_file(
        take_from_model(trunk, sam2_entries(trunk.config, "hf")), folder / "model.safetensors"
    )
    pv.convert(folder, tmp_path / "out")
    loaded: HieraDetConfig = pv.load(tmp_path / "out").config
    assert loaded == trunk.config
