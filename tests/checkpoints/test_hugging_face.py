"""Hugging Face folders, live: the same numbers in float64, both ways, and what is refused.

The seven classes are built small with random weights, saved by their own library, converted, and
run side by side.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import perceivers as pv
from perceivers.checkpoints import verify as verifying
from perceivers.checkpoints.hugging_face import model_from_hugging_face, read_hugging_face
from perceivers.checkpoints.loading import load_with_info
from perceivers.checkpoints.verify import load_hugging_face, verify_hugging_face
from perceivers.errors import CheckpointError, ConfigError, LicenseWarning

transformers = pytest.importorskip("transformers")

SMALL = {
    "num_latents": 6,
    "d_latents": 16,
    "num_self_attends_per_block": 2,
    "num_self_attention_heads": 4,
    "num_cross_attention_heads": 1,
    "num_labels": 5,
}
TEXT = {
    "d_model": 16,
    "qk_channels": 8,
    "v_channels": 16,
    "num_cross_attention_heads": 2,
    "max_position_embeddings": 20,
}
CLASSES: Mapping[str, Mapping[str, Any]] = {
    "PerceiverForMaskedLM": TEXT,
    "PerceiverForSequenceClassification": TEXT,
    "PerceiverForImageClassificationLearned": {"image_size": 6, "num_blocks": 2},
    "PerceiverForImageClassificationFourier": {"num_blocks": 2},
    "PerceiverForImageClassificationConvProcessing": {"num_blocks": 2},
    "PerceiverForOpticalFlow": {"train_size": [6, 8], "self_attention_widening_factor": 2},
    "PerceiverForMultimodalAutoencoding": {
        "num_frames": 2,
        "audio_samples_per_frame": 64,
        "output_shape": [1, 2, 16, 12],
        "image_size": 4,
        "output_num_channels": 8,
    },
}
SHORT = "PerceiverForOpticalFlow"
IMAGE = {"size": {"height": 20, "width": 24}, "image_mean": [0.1, 0.2, 0.3]}


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep that library's progress bars out of the test's output."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def save(name: str, folder: Path, **settings: Any) -> Path:
    """Write a small model of that class, every tensor of which matters."""
    config = transformers.PerceiverConfig(**{**SMALL, **CLASSES[name], **settings})
    model = getattr(transformers, name)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.add_(torch.rand_like(buffer))
    model.save_pretrained(folder)
    if "Image" in name:
        (folder / "preprocessor_config.json").write_text(json.dumps(IMAGE))
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


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_every_class_computes_the_same_in_float64(name: str, tmp_path: Path, quiet: None) -> None:
    folder = save(name, tmp_path / "hf")
    done = pv.convert(folder, tmp_path / "ours", verify=True)
    assert done.is_verified
    assert all(d.largest < 1e-9 for d in done.differences)
    names = {"PerceiverForMultimodalAutoencoding": {"audio", "image", "label"}, SHORT: {"flow"}}
    assert {d.output for d in done.differences} == names.get(name, {"logits"})
    narrow = verify_hugging_face(folder, pv.load(tmp_path / "ours"), dtype="float32")
    assert all(d.is_within and d.largest > 0 for d in narrow)


@pytest.mark.parametrize("name", CLASSES)
def test_one_wrong_weight_is_noticed(name: str, tmp_path: Path, quiet: None) -> None:
    folder = save(name, tmp_path / "hf")
    model = model_from_hugging_face(read_hugging_face(folder))
    with torch.no_grad():
        model.trunk.blocks[0][1].attention.qkv.weight[-1, 0] += 1e-3  # pyright: ignore[reportIndexIssue, reportAttributeAccessIssue, reportOperatorIssue]
    assert not all(d.is_within for d in verify_hugging_face(folder, model))


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_the_official_flavour_computes_something_else(name: str, tmp_path: Path) -> None:
    folder = save(name, tmp_path / "hf")
    pv.convert(folder, tmp_path / "ours", flavour="official")
    model = pv.load(tmp_path / "ours")
    assert model.config.trunk.activation == "gelu_tanh"
    assert not all(d.is_within for d in verify_hugging_face(folder, model))
    with pytest.raises(ConfigError, match=r"differs from the Hugging .*verify with flavour=hf"):
        pv.convert(folder, tmp_path / "b", flavour="official", verify=True)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("PerceiverForMaskedLM", {"hidden_act": "gelu_pytorch_tanh", "use_query_residual": False}),
        (SHORT, {"cross_attention_shape_for_attention": "q"}),
        ("PerceiverForImageClassificationFourier", {"cross_attention_widening_factor": 3}),
        ("PerceiverForSequenceClassification", {"qk_channels": None, "v_channels": 16}),
    ],
)
def test_settings_of_config_json_are_followed(
    name: str, settings: dict[str, Any], tmp_path: Path, quiet: None
) -> None:
    folder = save(name, tmp_path / "hf", **settings)
    assert pv.convert(folder, tmp_path / "ours", verify=True).is_verified


def test_the_verification_is_that_library_s_own_precision(tmp_path: Path, quiet: None) -> None:
    folder = save(SHORT, tmp_path / "hf")
    model = model_from_hugging_face(read_hugging_face(folder))
    before = {name: x.clone() for name, x in model.state_dict().items()}
    verify_hugging_face(folder, model)
    after = model.state_dict()
    assert all(after[n].dtype == x.dtype and torch.equal(after[n], x) for n, x in before.items())


# -- what travels along ----------------------------------------------------------------------------


def test_class_names_licence_and_settings_travel_along(tmp_path: Path) -> None:
    labels = {i: f"kind {i}" for i in range(5)}
    folder = save("PerceiverForImageClassificationConvProcessing", tmp_path / "hf", id2label=labels)
    change(folder, attention_probs_dropout_prob=0.1)
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\ntags: x\n---\n# card\n")
    said = r"licence forbids commercial use \(cc-by-nc-4.0\)"
    with pytest.warns(LicenseWarning, match=said):
        pv.convert(folder, tmp_path / "ours")
    with pytest.warns(LicenseWarning, match=said):
        loaded = load_with_info(tmp_path / "ours")
    info = loaded.info
    assert info.task == "classify"
    assert info.classes == tuple(labels.values())
    assert info.license == "cc-by-nc-4.0"
    assert info.provenance["flavour"] == "hf"
    assert info.provenance["left behind"] == "attention_probs_dropout_prob=0.1"
    config = loaded.model.config
    assert config.inputs["image"] == pv.Image(
        20, 24, 3, mean=(0.1, 0.2, 0.3), std=(0.229, 0.224, 0.225)
    )
    assert config.tokens["image"].padding == "hf"


def test_the_licence_of_a_known_repository_is_known(tmp_path: Path) -> None:
    pv.convert(save(SHORT, tmp_path / "optical-flow-perceiver"), tmp_path / "ours")
    assert load_with_info(tmp_path / "ours").info.license == "Apache-2.0"


@pytest.mark.parametrize("name", ["PerceiverForMaskedLM", "PerceiverForSequenceClassification"])
def test_texts_are_wrapped_as_that_library_s_tokenizer_does(name: str, tmp_path: Path) -> None:
    model = model_from_hugging_face(read_hugging_face(save(name, tmp_path / "hf")))
    assert model.config.inputs["bytes"] == pv.Bytes(20, wrap="cls_sep")


# -- writing ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_a_folder_goes_there_and_back_bit_by_bit(name: str, tmp_path: Path, quiet: None) -> None:
    folder = save(name, tmp_path / "hf")
    pv.convert(folder, tmp_path / "ours")
    done = pv.convert(tmp_path / "ours", tmp_path / "again", to="hf", verify=True)
    assert done.notes == ()
    assert done.is_verified
    first, second = (load_file(tmp_path / x / "model.safetensors") for x in ("hf", "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    # Its own class finds nothing missing and nothing to spare; else this raises.
    assert type(load_hugging_face(tmp_path / "again")).__name__ == name


def test_what_that_library_computes_otherwise_is_said(tmp_path: Path) -> None:
    folder = save("PerceiverForImageClassificationConvProcessing", tmp_path / "hf")
    pv.convert(folder, tmp_path / "ours", flavour="official")
    done = pv.convert(tmp_path / "ours", tmp_path / "again", to="hf")
    assert len(done.notes) == 1
    assert "tokens.0.padding is 'same' here and 'hf' there" in done.notes[0]
    assert json.loads((tmp_path / "again" / "config.json").read_text())["hidden_act"] in {
        "gelu_new",
        "gelu_pytorch_tanh",
    }


def test_a_model_of_ours_with_bare_pictures_can_be_written(tmp_path: Path, quiet: None) -> None:
    """Trained here, not released; its class has a place for every setting."""
    model = pv.create_model(
        "perceiver_io_imagenet_fourier",
        inputs={"image": pv.Image(9, 7, 3)},
        num_classes=4,
        trunk={"num_latents": 4, "latent_dim": 16, "depth": 1},
    )
    model.save_pretrained(tmp_path / "ours")
    done = pv.convert(tmp_path / "ours", tmp_path / "hf", to="hf", verify=True)
    assert done.notes == ()
    assert done.is_verified
    loaded = model_from_hugging_face(read_hugging_face(tmp_path / "hf"))
    assert loaded.config.inputs["image"] == pv.Image(9, 7, 3, mean=(0.0,) * 3, std=(1.0,) * 3)


def test_models_that_no_class_holds_are_not_written(tmp_path: Path) -> None:
    image = {"image": pv.Image(8, 8, 3)}
    cases = {
        "perceiver_io_nano": r"tokens\.0\.positions\.num_bands is 16 here and 64 there",
        "perceiver_nano": r"does not support models of family 'perceiver', only of",
        "hip_nano": r"does not support models of family 'hip', only of",
    }
    for name, text in cases.items():
        pv.create_model(name, inputs=image, num_classes=3).save_pretrained(tmp_path / name)
        with pytest.raises(CheckpointError, match=text):
            pv.convert(tmp_path / name, tmp_path / "hf", to="hf")
    assert not (tmp_path / "hf").exists()


def test_a_written_folder_is_never_overwritten_silently(tmp_path: Path) -> None:
    folder = save(SHORT, tmp_path / "hf")
    pv.convert(folder, tmp_path / "ours")
    with pytest.raises(CheckpointError, match=r"already holds a model; .*--overwrite"):
        pv.convert(tmp_path / "ours", folder, to="hf")
    pv.convert(tmp_path / "ours", folder, to="hf", overwrite=True)
    with pytest.raises(ConfigError, match=r"is a model folder of this library already; pass to="):
        pv.convert(tmp_path / "ours", tmp_path / "b")


# -- files -----------------------------------------------------------------------------------------


def test_old_pickled_weights_are_read_the_same(tmp_path: Path) -> None:
    folder = save(SHORT, tmp_path / "hf")
    first = model_from_hugging_face(read_hugging_face(folder)).state_dict()
    state = load_file(folder / "model.safetensors")
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    second = model_from_hugging_face(read_hugging_face(folder)).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    whole = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is not a complete file of wei"):
        read_hugging_face(folder)
    torch.save([state], folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"holds a list, not tensors by name"):
        read_hugging_face(folder)
    torch.save({"x": Path("evil")}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"holds a dict of x, not tensors by name"):
        read_hugging_face(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        read_hugging_face(folder)


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_that_is_not_named_is_told_by_its_tensors(name: str, tmp_path: Path) -> None:
    folder = save(name, tmp_path / "hf")
    change(folder, architectures=None)
    assert read_hugging_face(folder).name == name


def test_every_tensor_must_be_used_and_none_may_be_missing(tmp_path: Path) -> None:
    key = "perceiver.encoder.self_attends.1.mlp.dense2.bias"
    folder = save(SHORT, tmp_path / "hf")
    rewrite(folder, **{key: None, "what.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=rf"missing: {key}; unexpected: what\.weight"):
        pv.convert(folder, tmp_path / "ours")
    rewrite(folder, **{key: torch.zeros(3), "what.weight": None})
    with pytest.raises(CheckpointError, match=rf"{key} \(file \(3,\), model \(16,\)\)"):
        pv.convert(folder, tmp_path / "ours")


def test_keys_of_older_versions_are_tolerated_by_name(tmp_path: Path) -> None:
    folder = save("PerceiverForMaskedLM", tmp_path / "hf")
    places = "perceiver.input_preprocessor.position_ids"
    rewrite(folder, **{places: torch.arange(20)})
    pv.convert(folder, tmp_path / "ours")
    conv = save("PerceiverForImageClassificationConvProcessing", tmp_path / "conv")
    counter = "perceiver.input_preprocessor.convnet.batchnorm.num_batches_tracked"
    rewrite(conv, **{counter: torch.tensor(7)})
    name = "inputs.readers.image.content.norms.0.num_batches_tracked"
    assert model_from_hugging_face(read_hugging_face(conv)).state_dict()[name] == 7
    rewrite(conv, **{counter: None})
    assert model_from_hugging_face(read_hugging_face(conv)).state_dict()[name] == 0


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"vocab_size": 300}, r"vocab_size is 300; texts are bytes here, with exactly 262 ids"),
        ({"architectures": ["PerceiverForMaskedLm"]}, r"did you mean 'PerceiverForMaskedLM'\?"),
        ({"model_type": "bert"}, r"model_type is 'bert'; only 'perceiver' is converted"),
        ({"hidden_act": "gelu_fast2"}, r"hidden_act is 'gelu_fast2'; expected"),
        ({"cross_attention_shape_for_attention": "v"}, r"is 'v', not kv or q"),
        ({"num_latents": "many"}, r"config\.json does not fit PerceiverForMaskedLM"),
        ({"d_latents": 24}, r"another shape: perceiver\.embeddings\.latents \(file \(6, 16\)"),
    ],
)
def test_what_config_json_must_not_say(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    folder = save("PerceiverForMaskedLM", tmp_path / "hf")
    change(folder, **changes)
    with pytest.raises(CheckpointError, match=text):
        pv.convert(folder, tmp_path / "ours")


def test_a_clip_of_two_lengths_and_a_picture_of_no_size_are_refused(tmp_path: Path) -> None:
    clip = save("PerceiverForMultimodalAutoencoding", tmp_path / "clip")
    change(clip, num_frames=3)
    with pytest.raises(CheckpointError, match=r"num_frames is 3, but output_shape .* has 2"):
        pv.convert(clip, tmp_path / "ours")
    image = save("PerceiverForImageClassificationFourier", tmp_path / "image")
    (image / "preprocessor_config.json").write_text('{"size": {"shortest_edge": 224}}')
    with pytest.raises(CheckpointError, match=r"image size is .*give one number, or height and"):
        pv.convert(image, tmp_path / "ours")


def test_a_folder_whose_class_lacks_a_tensor_is_no_reference(tmp_path: Path, quiet: None) -> None:
    folder = save(SHORT, tmp_path / "hf")
    rewrite(folder, **{"perceiver.embeddings.latents": None})
    with pytest.raises(CheckpointError, match=r"does not fit its own class: .*embeddings\.latents"):
        load_hugging_face(folder)


def test_without_that_library_the_remedy_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(SHORT, tmp_path / "hf")
    monkeypatch.setattr(verifying, "find_spec", lambda _name: None)
    with pytest.raises(
        ConfigError, match=r"pip install 'transformers>=4\.50'; converting does not"
    ):
        pv.convert(folder, tmp_path / "ours", verify=True)
    assert pv.convert(folder, tmp_path / "b").parameters > 0
