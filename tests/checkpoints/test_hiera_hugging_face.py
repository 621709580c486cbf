"""Hugging Face folders of Hiera, live: the same numbers in float64, both ways, what is refused.

The four classes are built small with random weights, saved by their own library, converted, and run
side by side.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoints import hiera_making as making
from torch import Tensor

import perceivers as pv
from perceivers.checkpoints import verify as verifying
from perceivers.checkpoints.hiera_files import (
    class_of_hiera,
    hiera_from_hugging_face,
    read_hiera_folder,
)
from perceivers.checkpoints.loading import load_with_info
from perceivers.checkpoints.verify import verify_hiera_folder
from perceivers.errors import CheckpointError, ConfigError, LicenseWarning
from perceivers.models.hiera import Hiera, HieraConfig, HieraHead

transformers = pytest.importorskip("transformers")

SMALL: dict[str, Any] = {
    "embed_dim": 4,
    "num_heads": [2, 4, 8, 16],
    "depths": [1, 2, 1, 1],
    "image_size": [64, 96],
    "mlp_ratio": 2.0,
}
CLASSES: Mapping[str, Mapping[str, Any]] = {
    "HieraForImageClassification": {"num_labels": 5},
    "HieraForPreTraining": {
        "num_query_pool": 2,
        "decoder_hidden_size": 8,
        "decoder_depth": 2,
        "decoder_num_heads": 2,
    },
    "HieraBackbone": {"out_features": ["stage2", "stage4"]},
    "HieraModel": {},
}
STAGES = {"stage1", "stage2", "stage3", "stage4"}
OUTPUTS = {
    "HieraForImageClassification": {*STAGES, "logits"},
    "HieraForPreTraining": {"loss", "prediction"},
    "HieraBackbone": {"stage2", "stage4"},
    "HieraModel": {*STAGES, "pooled"},
}
SHORT = "HieraForImageClassification"


@pytest.fixture(autouse=True)
def _quiet() -> None:
    """Keep that library's progress bars out of the test's output."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def save(name: str, folder: Path, **settings: Any) -> Path:
    """Write a small model of that class, every tensor of which matters."""
    config = transformers.HieraConfig(**{**SMALL, **CLASSES[name], **settings})
    model = getattr(transformers, name)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    return folder


def change(folder: Path, **changes: Any) -> None:
    """Set entries of config.json, or drop them where None."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def rewrite(folder: Path, **tensors: Any) -> None:
    path = folder / "model.safetensors"
    state = {**load_file(path), **tensors}
    save_file({k: v.contiguous() for k, v in state.items() if v is not None}, path)


# -- agreement -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_computes_the_same_in_float64(name: str, tmp_path: Path) -> None:
    folder = save(name, tmp_path / "hf")
    done = pv.convert(folder, tmp_path / "ours", verify=True)
    assert done.is_verified
    assert all(d.largest < 1e-9 for d in done.differences)
    assert {d.output for d in done.differences} == OUTPUTS[name]
    ours = pv.load(tmp_path / "ours")
    narrow = verify_hiera_folder(read_hiera_folder(folder), ours, dtype="float32")
    assert all(d.is_within for d in narrow)
    assert any(d.largest > 0 for d in narrow)


@pytest.mark.parametrize("name", CLASSES)
def test_one_wrong_weight_is_noticed(name: str, tmp_path: Path) -> None:
    read = read_hiera_folder(save(name, tmp_path / "hf"))
    model = hiera_from_hugging_face(read)
    making.flip(model)
    assert not all(d.is_within for d in verify_hiera_folder(read, model))


@pytest.mark.parametrize("name", ["HieraForImageClassification", "HieraForPreTraining"])
def test_an_output_that_is_left_out_is_noticed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = read_hiera_folder(save(name, tmp_path / "hf"))
    model = hiera_from_hugging_face(read)
    whole = verifying.hiera_outputs
    last = sorted(OUTPUTS[name])[0]

    def fewer(*given: Any, **more: Any) -> dict[str, Tensor]:
        return {key: x for key, x in whole(*given, **more).items() if key != last}

    monkeypatch.setattr(verifying, "hiera_outputs", fewer)
    with pytest.raises(CheckpointError, match=r"the reference model .*; they must be the same"):
        verify_hiera_folder(read, model)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        (SHORT, {"masked_unit_attention": [True, False, False, False]}),
        (SHORT, {"patch_size": [3, 5], "patch_padding": [1, 2], "num_channels": 2}),
        (SHORT, {"masked_unit_size": [16, 8], "depths": [1, 1, 1, 2]}),
        ("HieraForPreTraining", {"normalize_pixel_loss": False}),
        ("HieraForPreTraining", {"image_size": [64, 64], "mask_ratio": 0.4}),
        ("HieraBackbone", {"out_features": ["stage1"]}),
    ],
)
def test_settings_of_config_json_are_followed(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    folder = save(name, tmp_path / "hf", **settings)
    if settings.get("num_channels") == 2:
        statistics = {"image_mean": [0.1, 0.2], "image_std": [0.5, 2.0]}
        (folder / "preprocessor_config.json").write_text(json.dumps(statistics))
    assert pv.convert(folder, tmp_path / "ours", verify=True).is_verified
    if "normalize_pixel_loss" in settings:
        assert load_with_info(tmp_path / "ours").info.target == "per-channel"


def test_its_backbone_called_as_it_is_computes_other_maps(tmp_path: Path) -> None:
    """So it is compared with its parts in the right order; if this fails, it was mended."""
    folder = save("HieraBackbone", tmp_path / "hf")
    done = pv.convert(folder, tmp_path / "ours", verify=True)
    assert "skips the reordering of tokens into mask units" in done.notes[0]
    raw = torch.rand(1, 3, 64, 96)
    model = pv.load(tmp_path / "ours")
    theirs = transformers.HieraBackbone.from_pretrained(folder).eval()
    spec = model.config.spec
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (spec.mean, spec.std))
    with torch.no_grad():
        last = theirs((raw - mean) / std).feature_maps[-1]
        ours = model.forward_features(raw).maps[-1]
    assert last.shape == ours.shape
    assert float((last - ours).abs().max()) > 0.01


# -- what travels along, and writing ---------------------------------------------------------------


def test_class_names_licence_and_statistics_travel_along(tmp_path: Path) -> None:
    labels = {i: f"kind {i}" for i in range(5)}
    folder = save(SHORT, tmp_path / "hiera-tiny-224-in1k-hf", id2label=labels)
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1.0, 2.0, 3.0]}
    (folder / "preprocessor_config.json").write_text(json.dumps(statistics))
    said = r"licence forbids commercial use \(CC-BY-NC-4\.0\)"
    with pytest.warns(LicenseWarning, match=said):
        pv.convert(folder, tmp_path / "ours")
    with pytest.warns(LicenseWarning, match=said):
        loaded = load_with_info(tmp_path / "ours")
    assert loaded.info.task == "classify"
    assert loaded.info.classes == tuple(labels.values())
    assert loaded.info.license == "CC-BY-NC-4.0"
    assert loaded.model.config.inputs["image"] == pv.Image(
        64, 96, 3, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0)
    )


@pytest.mark.parametrize("name", CLASSES)
def test_a_folder_goes_there_and_back_bit_by_bit(name: str, tmp_path: Path) -> None:
    folder = save(name, tmp_path / "hf")
    pv.convert(folder, tmp_path / "ours")
    done = pv.convert(tmp_path / "ours", tmp_path / "again", to="hf", verify=True)
    assert done.is_verified
    assert len(done.notes) == (name == "HieraBackbone")
    first, second = (load_file(tmp_path / x / "model.safetensors") for x in ("hf", "again"))
    assert making.equal(first, second)
    again, before = (
        json.loads((tmp_path / x / "config.json").read_text()) for x in ("again", "hf")
    )
    assert again["architectures"] == [name]
    different = {key for key in again if again[key] != before[key]} - {"hidden_size"}
    assert different == set()


def test_models_that_no_class_holds_are_not_written(tmp_path: Path) -> None:
    segments = HieraHead(kind="segmentation", num_outputs=3)
    cases: list[tuple[HieraConfig, str]] = [
        (making.OFFICIAL["video"], r"no class for a Hiera of inputs .*; its classes read images"),
        (HieraConfig(**making.PICTURE, head=segments), r"with head 'segmentation'"),
        (HieraConfig(**making.PICTURE, head=making.CLASSES, feature_norms=(1,)), r"norms=\(1,\)"),
        (making.TIMM["window"], r"positions is 'window' here and 'absolute' there"),
        (HieraConfig(**making.PICTURE, layer_scale=1.0), r"does not support this model: layer_s"),
    ]
    for number, (config, text) in enumerate(cases):
        making.make(config).save_pretrained(tmp_path / str(number))
        with pytest.raises(CheckpointError, match=text):
            pv.convert(tmp_path / str(number), tmp_path / "hf", to="hf")
    assert not (tmp_path / "hf").exists()
    assert class_of_hiera(HieraConfig(**making.PICTURE)) == "HieraModel"


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_that_is_not_named_is_told_by_its_tensors(name: str, tmp_path: Path) -> None:
    folder = save(name, tmp_path / "hf")
    change(folder, architectures=None)
    assert read_hiera_folder(folder).name == name
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"names no class under 'architectures', and the t"):
        read_hiera_folder(folder)


def test_old_pickled_weights_and_a_model_without_pooler_are_read(tmp_path: Path) -> None:
    folder = save("HieraModel", tmp_path / "hf")
    state = load_file(folder / "model.safetensors")
    torch.save({k: x for k, x in state.items() if "pooler" not in k}, folder / "pytorch_model.bin")
    first = hiera_from_hugging_face(read_hiera_folder(folder))
    (folder / "model.safetensors").unlink()
    bare = hiera_from_hugging_face(read_hiera_folder(folder))
    assert isinstance(bare, Hiera)
    assert bare.norm is not None
    assert torch.equal(bare.norm.weight, torch.ones(32))
    different = [
        n for n, x in first.state_dict().items() if not torch.equal(x, bare.state_dict()[n])
    ]
    assert different == ["norm.weight", "norm.bias"]


def test_every_tensor_must_be_used_and_none_may_be_missing(tmp_path: Path) -> None:
    key = "hiera.encoder.stages.2.layers.0.proj.bias"
    folder = save(SHORT, tmp_path / "hf")
    rewrite(folder, **{key: None, "what.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=rf"missing: {key}; unexpected: what\.weight"):
        pv.convert(folder, tmp_path / "ours")
    rewrite(folder, **{key: torch.zeros(3), "what.weight": None})
    with pytest.raises(CheckpointError, match=rf"{key} \(file \(3,\), model \(16,\)\)"):
        pv.convert(folder, tmp_path / "ours")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"hidden_act": "relu"}, r"hidden_act is 'relu'; only 'gelu' is supported"),
        ({"embed_dim_multiplier": 1.5}, r"embed_dim_multiplier is 1\.5; only 2\.0"),
        ({"layer_norm_eps": 1e-5}, r"layer_norm_eps is 1e-05; only 1e-06"),
        ({"num_heads": [2, 2, 4, 4]}, r"num_heads \[2, 2, 4, 4\] do not double"),
        ({"patch_padding": [0, 0]}, r"patch_padding \[0, 0\] is not half of patch_size \[7, 7\]"),
        ({"mlp_ratio": 2.5}, r"mlp_ratio is 2\.5; give a whole number"),
        ({"masked_unit_attention": [False, True]}, r"is \[False, True\]; stages with it must"),
        ({"num_query_pool": 1}, r"2 stages attend inside mask units but only 1 stage changes"),
        ({"image_size": "large"}, r"config\.json does not fit HieraForImageClassification"),
        ({"architectures": ["HieraForVideo"]}, r"class 'HieraForVideo' is unknown; expected"),
    ],
)
def test_what_has_no_counterpart_is_named(
    changes: dict[str, Any], text: str, tmp_path: Path
) -> None:
    folder = save(SHORT, tmp_path / "hf")
    change(folder, **changes)
    with pytest.raises(CheckpointError, match=text):
        pv.convert(folder, tmp_path / "ours")


def test_a_folder_describes_itself(tmp_path: Path) -> None:
    folder = save(SHORT, tmp_path / "hf")
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"hf contains its own config; leave out config="):
        pv.convert(folder, tmp_path / "ours", config=tmp_path / "x.json")
    with pytest.raises(CheckpointError, match=r"To convert a Hugging Face file, give its folder"):
        pv.convert(folder / "model.safetensors", tmp_path / "ours")
