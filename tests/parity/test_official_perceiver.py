"""Parity with DeepMind's Perceiver code: every stored output, and that each setting counts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import perceivers as pv
from perceivers.checkpoints.haiku_perceiver import (
    config_from_kind,
    haiku_entries,
    model_from_entries,
    params_from_model,
)
from perceivers.checkpoints.names import kind_of, with_flavour
from perceivers.checkpoints.parity import Archive, Difference, read_archive
from perceivers.checkpoints.verify import verify_archive
from perceivers.errors import CheckpointError, ConfigError
from perceivers.models import Output, PerceiverIO, PerceiverIOConfig

GOLDEN = Path(__file__).parents[1] / "golden"
KINDS = {
    "dmr_cls_conv_batchnorm": "image_classes",
    "dmr_cls_fourier_pixels": "image_classes",
    "dmr_cls_learned_conv1x1": "image_classes",
    "dmr_cls_patches_posmlp_add": "image_classes",
    "dmr_composed_classic_perceiver": "classic",
    "dmr_flow": "flow",
    "dmr_mlm": "language",
    "dmr_multimodal_full": "multimodal",
    "dmr_multimodal_nomask": "multimodal",
    "dmr_multimodal_subsampled": "multimodal",
}


def read(name: str) -> Archive:
    return read_archive(GOLDEN / f"{name}.npz")


def describe(archive: Archive) -> Any:
    shapes = {name: array.shape for name, array in archive.inputs.items()}
    return config_from_kind(archive.config, shapes, "x.npz")


def build(archive: Archive, config: Any = None) -> Any:
    arrays = {**archive.params, **archive.state}
    return model_from_entries(config or describe(archive), arrays, "x.npz")


def failures(model: Any, archive: Archive) -> list[Difference]:
    return [d for d in verify_archive(model, archive, "x.npz") if not d.is_within]


# -- outputs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_every_stored_output_is_reproduced(name: str) -> None:
    archive = read(name)
    model = build(archive)
    assert kind_of(model.config) == KINDS[name]
    differences = verify_archive(model, archive, "x.npz")
    assert {d.output for d in differences} == archive.outputs.keys()
    assert [d for d in differences if not d.is_within] == []


@pytest.mark.parametrize("name", KINDS)
def test_one_wrong_parameter_is_noticed(name: str) -> None:
    archive = read(name)
    model = build(archive)
    with torch.no_grad():
        model.trunk.blocks[0][0].mlp.out.bias[0] += 0.01
    assert failures(model, archive)


@pytest.mark.parametrize("name", KINDS)
def test_parameters_go_back_bit_by_bit(name: str) -> None:
    archive = read(name)
    written = params_from_model(build(archive))
    stored = {**archive.params, **archive.state}
    left = {key for key in stored if key.endswith(("_ema:hidden", "_ema:counter"))}
    assert written.keys() == stored.keys() - left
    assert all(np.array_equal(written[key], stored[key]) for key in written)


@pytest.mark.parametrize("name", KINDS)
def test_the_verb_converts_and_verifies(name: str, tmp_path: Path) -> None:
    done = pv.convert(GOLDEN / f"{name}.npz", tmp_path / "x", verify=True)
    assert done.is_verified
    assert done.parameters == sum(array.size for array in read(name).params.values())


@pytest.mark.parametrize("name", ["dmr_cls_fourier_pixels", "dmr_composed_classic_perceiver"])
def test_the_encoder_s_inner_values_are_reproduced(name: str) -> None:
    archive = read(name)
    model = build(archive)
    with np.load(GOLDEN / f"{name}.npz") as stored:
        keys = [k for k in stored.files if k.startswith("inter/") and "cross_atten" in k]
        first = [k for k in keys if "decoder" not in k and "rest" not in k]
        expected = torch.from_numpy(stored[first[0]])
    found = []
    model.trunk.reads[0].register_forward_hook(lambda _m, _a, out: found.append(out.squeeze(1)))
    (spec,) = model.config.inputs.values()
    raw = torch.from_numpy(next(iter(archive.inputs.values())))
    model(raw.movedim(-1, 1) if spec.channels_first else raw)
    allowed = 1e-5 * float(expected.abs().max())
    torch.testing.assert_close(found[0], expected, rtol=0.0, atol=allowed)
    assert not torch.allclose(found[0].roll(1, 1), expected, atol=1e-2)


# -- every setting that the kinds translate is needed ----------------------------------------------


def changed(name: str, **changes: Any) -> list[Difference]:
    """Failures after fields of nested configs were replaced."""
    archive = read(name)
    config = describe(archive)
    for field, values in changes.items():
        old = getattr(config, field)
        if isinstance(old, dict):
            values = {key: replace(entry, **values) for key, entry in old.items()}
        elif isinstance(values, dict):
            values = replace(old, **values)
        config = replace(config, **{field: values})
    return failures(build(archive, config), archive)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("dmr_cls_fourier_pixels", {"trunk": {"activation": "gelu"}}),
        ("dmr_cls_fourier_pixels", {"trunk": {"num_heads": 2}}),
        ("dmr_cls_fourier_pixels", {"trunk": {"num_blocks": 2}}),
        ("dmr_cls_fourier_pixels", {"trunk": {"residual": False}}),
        ("dmr_cls_fourier_pixels", {"decoder": {"residual": False}}),
        ("dmr_cls_learned_conv1x1", {"decoder": {"residual": True}}),
        ("dmr_cls_learned_conv1x1", {"trunk": {"num_cross_heads": 1}}),
        ("dmr_composed_classic_perceiver", {"trunk": {"reads": "at_start"}}),
        ("dmr_flow", {"outputs": {"divide_by": 1.0}}),
        ("dmr_mlm", {"outputs": {"mask_padding": False}}),
        ("dmr_mlm", {"decoder": {"num_heads": 2}}),
    ],
)
def test_every_setting_is_needed(name: str, changes: dict[str, Any]) -> None:
    assert changed(name) == []
    assert changed(name, **changes)


def test_sampled_queries_lie_where_the_release_puts_them() -> None:
    archive = read("dmr_multimodal_subsampled")
    config = describe(archive)
    outputs = {
        name: replace(output, sampled="grid") if output.queries == "positions" else output
        for name, output in config.outputs.items()
    }
    wrong = {d.output for d in failures(build(archive, replace(config, outputs=outputs)), archive)}
    assert wrong == {"audio", "image"}


def test_the_other_library_s_flavour_computes_something_else() -> None:
    for name in ("dmr_cls_learned_conv1x1", "dmr_mlm", "dmr_flow"):
        archive = read(name)
        config = describe(archive)
        assert isinstance(config, PerceiverIOConfig)
        assert with_flavour(config, "official") == config
        assert failures(build(archive, with_flavour(config, "hf")), archive)
    config = describe(read("dmr_cls_conv_batchnorm"))
    assert with_flavour(config, "hf").tokens["image"].padding == "hf"
    text = with_flavour(describe(read("dmr_mlm")), "hf")
    assert text.inputs["bytes"] == pv.Bytes(28, wrap="cls_sep")
    assert not text.outputs["bytes"].mask_padding


# -- refusals --------------------------------------------------------------------------------------


def test_missing_unexpected_and_misshaped_parameters_are_all_listed() -> None:
    archive = read("dmr_flow")
    params = dict(archive.params)
    gone = "image_preprocessor/patches_linear:w"
    wide = "flow_decoder/~/basic_decoder/output:b"
    del params[gone]
    params["what:w"] = np.zeros(3, np.float32)
    params[wide] = np.zeros(3, np.float32)
    with pytest.raises(CheckpointError) as caught:
        build(replace(archive, params=params))
    text = str(caught.value)
    assert f"missing: {gone}" in text
    assert "unexpected: what:w" in text
    assert f"another shape: {wide} (file (3,), model (2,))" in text


def test_a_transposed_weight_of_another_shape_is_refused() -> None:
    archive = read("dmr_flow")
    key = "image_preprocessor/patches_linear:w"
    turned = {**archive.params, key: archive.params[key].T}
    with pytest.raises(CheckpointError, match=r"patches_linear:w \(file \(64, 54\), model \(54, 6"):
        build(replace(archive, params=turned))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("dmr_flow", "num_bands"),
        ("dmr_mlm", "v_channels_decoder"),
        ("dmr_multimodal_full", "mask_probs"),
        ("dmr_composed_classic_perceiver", "repeats"),
        ("dmr_cls_fourier_pixels", "preprocessor"),
    ],
)
def test_nothing_that_decides_is_guessed(name: str, key: str) -> None:
    archive = read(name)
    config = {k: v for k, v in archive.config.items() if k != key}
    with pytest.raises(CheckpointError, match=rf"lacks '{key}', which is required"):
        describe(replace(archive, config=config))


def test_unknown_kinds_and_words_are_refused() -> None:
    archive = read("dmr_cls_fourier_pixels")
    with pytest.raises(
        CheckpointError, match=r"kind 'optical flows' .*did you mean 'optical flow'"
    ):
        config_from_kind({"kind": "optical flows"}, {}, "x")
    bad = {**archive.config, "preprocessor": {**archive.config["preprocessor"], "prep_type": "x"}}
    with pytest.raises(CheckpointError, match=r"prep_type is 'x', not pixels, conv1x1, conv or"):
        describe(replace(archive, config=bad))
    encoder = {**archive.config["encoder"], "cross_attention_shape_for_attn": "x"}
    with pytest.raises(CheckpointError, match=r"cross_attention_shape_for_attn is 'x'"):
        describe(replace(archive, config={**archive.config, "encoder": encoder}))
    with pytest.raises(CheckpointError, match=r"does not give the shape of input 'frames'"):
        config_from_kind(read("dmr_flow").config, {}, "x")
    with pytest.raises(CheckpointError, match=r"'frames' has shape \[2, 3\]; it needs 5 axes"):
        config_from_kind(read("dmr_flow").config, {"frames": [2, 3]}, "x")
    with pytest.raises(CheckpointError, match=r"the model description is invalid: invalid"):
        describe(replace(archive, config={**archive.config, "num_classes": "many"}))


def test_a_bundle_s_outputs_must_be_the_model_s() -> None:
    archive = read("dmr_multimodal_full")
    less = {key: value for key, value in archive.outputs.items() if key != "audio"}
    with pytest.raises(CheckpointError, match=r"stores the outputs \['image', 'label'\]"):
        verify_archive(build(archive), replace(archive, outputs=less), "x.npz")
    training = replace(archive, config={**archive.config, "is_training": True})
    with pytest.raises(CheckpointError, match=r"made in training mode"):
        verify_archive(build(archive), training, "x.npz")
    absent = {key: value for key, value in archive.inputs.items() if key != "images"}
    with pytest.raises(CheckpointError, match=r"lacks input/images; it has \['audio', 'label'\]"):
        verify_archive(build(archive), replace(archive, inputs=absent), "x.npz")


def test_models_of_no_released_kind_have_no_names() -> None:
    config = describe(read("dmr_cls_fourier_pixels"))
    dense = Output(
        queries="positions",
        modality="image",
        channels=1,
        positions=config.tokens["image"].positions,
    )
    with pytest.raises(CheckpointError, match=r"of inputs \['image'\] does not match any"):
        haiku_entries(replace(config, outputs={"dense": dense}))
    wide = replace(config, trunk=replace(config.trunk, share_blocks=False))
    with pytest.raises(CheckpointError, match=r"no name for \['trunk\.blocks\.1"):
        params_from_model(PerceiverIO(wide))


def test_a_bundle_states_its_own_arithmetic(tmp_path: Path) -> None:
    source = GOLDEN / "dmr_flow.npz"
    with pytest.raises(ConfigError, match=r"defines the computation itself; leave out flavour=hf"):
        pv.convert(source, tmp_path / "x", flavour="hf")


def test_written_parameters_are_read_back(tmp_path: Path) -> None:
    """Through files: our folder, Haiku parameters, our folder."""
    pv.convert(GOLDEN / "dmr_cls_conv_batchnorm.npz", tmp_path / "a")
    with pytest.raises(ConfigError, match=r"written to a \.npz file, not to .*; name it b\.npz"):
        pv.convert(tmp_path / "a", tmp_path / "b", to="haiku")
    done = pv.convert(tmp_path / "a", tmp_path / "b.npz", to="haiku")
    assert done.notes == ()
    with pytest.raises(CheckpointError, match=r"b\.npz exists; choose another"):
        pv.convert(tmp_path / "a", tmp_path / "b.npz", to="haiku")
    with np.load(tmp_path / "b.npz") as archive:
        keys = set(archive.files)
        stated = json.loads(str(archive["config_json"]))
    stored = read("dmr_cls_conv_batchnorm")
    assert {f"param/{key}" for key in stored.params} < keys
    assert "state/image_preprocessor/~/conv2_d_downsample/~/batchnorm/~/mean_ema:average" in keys
    assert stated["family"] == "perceiver_io"
    pv.convert(tmp_path / "b.npz", tmp_path / "c")
    first, second = pv.load(tmp_path / "a"), pv.load(tmp_path / "c")
    assert first.config == second.config
    theirs = second.state_dict()
    assert all(torch.equal(x, theirs[name]) for name, x in first.state_dict().items())
