"""Parity with the official JAX code: each stored model's outputs, gradients, inner values."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from perceivers.checkpoints.haiku import (
    config_from_haiku,
    hip_entries,
    label_places,
    model_from_haiku,
    official_latents,
    state_from_haiku,
    verify_bundle,
)
from perceivers.checkpoints.names import take_from_model
from perceivers.checkpoints.parity import Bundle, Difference, check_bundle, read_archive
from perceivers.errors import CheckpointError
from perceivers.models import HiP

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = sorted(
    path.stem
    for path in GOLDEN.glob("*.npz")
    if path.stem.startswith(("hip3", "hip5", "hipcb", "io_"))
)
WITH_GRADIENTS = [
    "hip3_single_reshape",
    "hip3_two_reshape",
    "hip5_single_reshape",
    "hipcb3_one_label",
    "io_single",
]
FIRST = "hip5_single_reshape"


def read_bundle(path: Path) -> Bundle:
    return check_bundle(read_archive(path), str(path))


def load(name: str) -> tuple[HiP, Bundle]:
    bundle = read_bundle(GOLDEN / f"{name}.npz")
    return convert(bundle), bundle


def convert(bundle: Bundle) -> HiP:
    return model_from_haiku(bundle.params, bundle.model, bundle.kwargs, bundle.datasets)


def failures(differences: list[Difference]) -> list[Difference]:
    return [d for d in differences if not d.is_within and not d.is_empty]


def call_of(bundle: Bundle, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Inputs of the first data set, in the order of the call."""
    dataset, modalities = bundle.datasets[0]
    return {
        name: torch.from_numpy(bundle.inputs[f"{dataset}/{name}"]).to(dtype)
        for name, _ in modalities
    }


def arrays(name: str, prefix: str) -> dict[str, NDArray[Any]]:
    with np.load(GOLDEN / f"{name}.npz") as archive:
        return {k.removeprefix(prefix): archive[k] for k in archive.files if k.startswith(prefix)}


# -- outputs ---------------------------------------------------------------------------------


def test_seventeen_files_are_compared() -> None:
    assert len(FILES) == 17
    assert set(WITH_GRADIENTS) <= set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_every_stored_output_is_reproduced(name: str) -> None:
    model, bundle = load(name)
    differences = verify_bundle(model, bundle)
    assert {d.output for d in differences} == bundle.outputs.keys()
    assert failures(differences) == []
    # The released code cuts the latents of two bundles away altogether; nothing else is empty.
    empty = {d.output for d in differences if d.is_empty}
    assert empty == {key for key, stored in bundle.outputs.items() if stored.size == 0}
    assert all("/latents/" in key for key in empty)
    assert len(empty) < len(differences)


@pytest.mark.parametrize("name", FILES)
def test_parameters_go_back_bit_by_bit(name: str) -> None:
    model, bundle = load(name)
    entries = hip_entries(model.config, label_places(model.config, bundle.datasets))
    written = take_from_model(model, entries)
    assert written.keys() == bundle.params.keys()
    assert all(np.array_equal(written[key].numpy(), bundle.params[key]) for key in written)


@pytest.mark.parametrize("name", FILES)
def test_double_precision_stays_within_the_stored_files_own_rounding(name: str) -> None:
    """The stored float32 outputs are at most this far from the official code in float64."""
    model, bundle = load(name)
    model = model.double()
    config = json.loads(str(arrays(name, "config_json")[""]))
    for dataset, modalities in bundle.datasets:
        inputs = {
            m: torch.from_numpy(bundle.inputs[f"{dataset}/{m}"]).double() for m, _ in modalities
        }
        encoded = model.encode(inputs)
        made = {f"input_reconstruction/{m}": x for m, x in model.reconstruct(encoded).items()}
        cut = official_latents(encoded, model.decode(encoded))
        made |= {f"latents/{m}": x for m, x in cut.items()}
        for key, ours in made.items():
            theirs = torch.from_numpy(bundle.outputs[f"{dataset}/{key}"]).double()
            if theirs.numel():
                gap = float((ours.detach() - theirs).abs().max())
                assert gap <= 1.01 * config["float64_max_abs_diff"], key


@pytest.mark.parametrize("name", FILES)
def test_one_wrong_parameter_is_noticed(name: str) -> None:
    model, bundle = load(name)
    with torch.no_grad():
        model.encoder.blocks[0].read.mlp.out.bias[0] += 0.01  # pyright: ignore[reportAttributeAccessIssue, reportIndexIssue, reportOperatorIssue]
    assert failures(verify_bundle(model, bundle))


def test_dropping_the_skip_connections_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, bundle = load(FIRST)
    assert failures(verify_bundle(model, bundle)) == []
    assert model.decoder is not None
    for block in model.decoder.blocks:
        forward = block.forward
        monkeypatch.setattr(block, "forward", lambda x, skip, forward=forward: forward(x))
    assert failures(verify_bundle(model, bundle))


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("hip3_single_reshape", {"mask_padding": True}),
        ("hip5_two_transpose", {"regroup": "reshape"}),
        ("hip3_activation_argument_ignored", {"activation": "gelu_tanh"}),
        ("hip3_two_unsorted_order", {"deal_over": "declared", "inputs": "sorted"}),
    ],
)
def test_every_quirk_of_the_release_is_needed(name: str, setting: dict[str, Any]) -> None:
    model, bundle = load(name)
    assert failures(verify_bundle(model, bundle)) == []
    if setting.get("inputs") == "sorted":
        setting = {**setting, "inputs": dict(sorted(model.config.inputs.items()))}
    other = HiP(replace(model.config, **setting)).eval()
    other.load_state_dict(model.state_dict())
    assert failures(verify_bundle(other, bundle))


def test_positions_are_projected_by_place_in_the_call() -> None:
    model, bundle = load("hip3_two_posproj")
    project = model.encoder.inputs.project
    assert sorted(project) == ["0", "1"]
    first, second = project["0"].weight, project["1"].weight
    with torch.no_grad():
        kept = first.clone()  # pyright: ignore[reportCallIssue]
        first.copy_(second)  # pyright: ignore[reportCallIssue, reportArgumentType]
        second.copy_(kept)  # pyright: ignore[reportCallIssue]
    assert failures(verify_bundle(model, bundle))


# -- inner values and gradients --------------------------------------------------------------


@pytest.mark.parametrize("name", [FIRST, "hip3_two_reshape", "io_two"])
def test_the_latents_of_every_block_are_reproduced(name: str) -> None:
    model, bundle = load(name)
    inner = arrays(name, "inter/perceiver/")
    encoded = model.encode(call_of(bundle))
    found: list[Any] = list(encoded.levels)
    assert model.decoder is not None
    for block in model.decoder.blocks:
        block.register_forward_hook(lambda _module, _args, out: found.append(out))
    model.decode(encoded)
    assert len(found) == len(model.config.levels)
    for index, ours in enumerate(found):
        theirs = torch.from_numpy(inner[f"block_{index}.__call__"])
        assert ours.shape == theirs.shape
        allowed = 1e-5 * float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=allowed)
        assert not torch.allclose(ours.roll(1, 1 if ours.shape[1] > 1 else 2), theirs, atol=1e-2)


def loss_of(model: HiP, inputs: Mapping[str, Tensor]) -> Tensor:
    """Mean squared error over all elements of all modalities together."""
    predictions = model.reconstruct(model.encode(inputs))
    errors = torch.cat([(predictions[n] - inputs[n]).flatten() for n in inputs])
    return errors.square().mean()


@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_loss_and_every_gradient_are_reproduced(name: str) -> None:
    model, bundle = load(name)
    model = model.double()
    loss = loss_of(model, call_of(bundle, torch.float64))
    stored = float(arrays(name, "loss")[""])
    assert abs(float(loss.detach()) - stored) <= 1e-5 * stored
    loss.backward()
    official = arrays(name, "grad/")
    assert official.keys() == bundle.params.keys()
    converted = state_from_haiku(official, model.config, bundle.datasets)
    assert converted.unexpected == []
    ours = {name: p.grad for name, p in model.named_parameters()}
    assert converted.state.keys() == ours.keys()
    for key, theirs in converted.state.items():
        grad = ours[key]
        assert grad is not None
        check_gradient(key, grad, theirs.double())


def check_gradient(key: str, ours: Tensor, theirs: Tensor) -> None:
    if key.endswith("attention.qkv.bias"):  # the key's third is zero but for rounding
        _, key_part, _ = ours.chunk(3)
        _, key_stored, _ = theirs.chunk(3)
        torch.testing.assert_close(key_part, key_stored, rtol=0.0, atol=1e-6)
        ours, theirs = (torch.cat([x.chunk(3)[0], x.chunk(3)[2]]) for x in (ours, theirs))
    if key.endswith("attention.k.bias"):
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-6)
        return
    allowed = 1e-3 * float(theirs.abs().max())
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=allowed, msg=lambda m: f"{key}: {m}")


@pytest.mark.slow
def test_a_wrong_gradient_is_noticed() -> None:
    model, bundle = load(FIRST)
    inputs = call_of(bundle)
    (2.0 * loss_of(model, inputs)).backward()
    official = state_from_haiku(arrays(FIRST, "grad/"), model.config, bundle.datasets).state
    wrong = []
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None
        try:
            check_gradient(key, parameter.grad, official[key])
        except AssertionError:
            wrong.append(key)
    silent = [name for name, _ in model.named_parameters() if name.endswith("attention.k.bias")]
    assert sorted(wrong + silent) == sorted(official)


# -- refusals --------------------------------------------------------------------------------


@pytest.fixture
def bundle() -> Bundle:
    return read_bundle(GOLDEN / "hip3_two_reshape.npz")


def test_a_missing_argument_is_not_guessed(bundle: Bundle) -> None:
    for name in ("z_index_dim", "num_groups", "num_embedding_channels"):
        kwargs = {key: value for key, value in bundle.kwargs.items() if key != name}
        with pytest.raises(
            CheckpointError, match=rf"HiP arguments lacks '{name}', which is required"
        ):
            config_from_haiku(bundle.model, kwargs, bundle.datasets)


def test_an_unknown_argument_is_refused(bundle: Bundle) -> None:
    with pytest.raises(
        CheckpointError, match=r"HiP has no argument 'z_index_dims'; did you mean 'z_index_dim'\?"
    ):
        config_from_haiku(bundle.model, {**bundle.kwargs, "z_index_dims": [1]}, bundle.datasets)
    with pytest.raises(CheckpointError, match=r"HiP has no argument 'label_modalities'"):
        config_from_haiku(bundle.model, {**bundle.kwargs, "label_modalities": []}, bundle.datasets)


def test_an_unknown_class_is_refused(bundle: Bundle) -> None:
    with pytest.raises(
        CheckpointError, match=r"model 'HIP' is not of this family; expected one of \['HiP'"
    ):
        config_from_haiku("HIP", bundle.kwargs, bundle.datasets)


def test_level_arguments_of_different_lengths_are_refused(bundle: Bundle) -> None:
    with pytest.raises(CheckpointError, match=r"different lengths: .*'depth': 2"):
        config_from_haiku(
            "HiP", {**bundle.kwargs, "num_self_attends_per_block": [2, 3]}, bundle.datasets
        )


def test_two_overrides_of_the_processor_are_refused(bundle: Bundle) -> None:
    both = {"processor_index_dim_train": 4, "processor_index_dim_eval": 8}
    with pytest.raises(CheckpointError, match=r"only one of processor_index_dim_train and"):
        config_from_haiku("HiP", {**bundle.kwargs, **both}, bundle.datasets)


@pytest.mark.parametrize(
    ("override", "latents", "train"),
    [
        ({}, 12, None),
        ({"processor_index_dim_train": 6}, 12, 6),
        ({"processor_index_dim_eval": 18}, 18, 12),
    ],
)
def test_processor_overrides_mean_what_the_release_means(
    bundle: Bundle, override: dict[str, int], latents: int, train: int | None
) -> None:
    config = config_from_haiku("HiP", {**bundle.kwargs, **override}, bundle.datasets)
    middle = config.levels[config.processor]
    assert (middle.num_latents, middle.train_latents) == (latents, train)


def test_settings_that_only_training_shows_are_the_release_s(bundle: Bundle) -> None:
    plain = config_from_haiku("HiP", bundle.kwargs, bundle.datasets)
    assert (plain.dropout_rate, plain.drop_path_rate) == (0.0, 0.0)
    assert (plain.drop_path_rescale, plain.drop_path_schedule) == (False, "constant")
    assert (plain.init, plain.activation) == ("paper", "squared_relu")
    rates = {"dropout_prob": 0.1, "drop_path_rate": 0.2}
    config = config_from_haiku("HiP", {**bundle.kwargs, **rates}, bundle.datasets)
    assert (config.dropout_rate, config.drop_path_rate) == (0.1, 0.2)


def test_missing_unexpected_and_misshaped_parameters_are_all_listed(bundle: Bundle) -> None:
    params = dict(bundle.params)
    del params["perceiver/embedder/~embed/embed_audio:w"]
    params["perceiver/embedder/~embed/embed_video:w"] = np.zeros((3, 8), np.float32)
    params["perceiver/what:w"] = np.zeros((3, 8), np.float32)
    params["perceiver/embedder/~embed/embed_image:b"] = np.zeros(9, np.float32)
    with pytest.raises(CheckpointError) as caught:
        convert(replace(bundle, params=params))
    text = str(caught.value)
    assert "missing ['encoder.inputs.embed.audio.weight']" in text
    assert "perceiver/embedder/~embed/embed_video:w" in text
    assert "perceiver/what:w" in text
    assert "encoder.inputs.embed.image.bias: file (9,), model (8,)" in text


def test_an_incomplete_projection_is_refused(bundle: Bundle) -> None:
    params = dict(bundle.params)
    del params["perceiver/block_0/~/self_attend_id_0/attention/key_linear:w"]
    with pytest.raises(CheckpointError, match=r"needs query, key and value; found 2 of 3"):
        convert(replace(bundle, params=params))


def test_latents_that_do_not_fit_the_groups_are_refused(bundle: Bundle) -> None:
    key = "perceiver/block_0/~/hi_p_cross_attention/query_inputs:pos_embs"
    params = {**bundle.params, key: np.zeros((23, 16), np.float32)}
    with pytest.raises(CheckpointError, match=rf"{key} has 23 rows for 6 groups"):
        convert(replace(bundle, params=params))


def test_one_name_with_two_shapes_is_refused(bundle: Bundle) -> None:
    datasets = (("one", (("x", (2, 10, 3)),)), ("two", (("x", (2, 12, 3)),)))
    with pytest.raises(
        CheckpointError, match=r"modality 'x' of data set 'two' is 12 x 3 here and 10 x 3 elsewhere"
    ):
        config_from_haiku("HiP", bundle.kwargs, datasets)
    same = (("one", (("x", (2, 10, 3)),)), ("two", (("x", (5, 10, 3)),)))
    assert list(config_from_haiku("HiP", bundle.kwargs, same).inputs) == ["x"]


def test_a_label_at_two_places_is_refused() -> None:
    bundle = read_bundle(GOLDEN / "hipcb3_two_modalities_two_labels.npz")
    first = bundle.datasets[0][1]
    turned = (*first[:2], first[3], first[2])
    datasets = (("one", first), ("two", turned))
    with pytest.raises(
        CheckpointError, match=r"label 'label2' is number 2 in one call and 1 in an"
    ):
        convert(replace(bundle, datasets=datasets))


def test_outputs_that_do_not_match_the_model_are_refused(bundle: Bundle) -> None:
    model = convert(bundle)
    key = "ds/input_reconstruction/audio"
    less = {k: v for k, v in bundle.outputs.items() if k != key}
    with pytest.raises(CheckpointError, match=rf"the bundle lacks output/{key}"):
        verify_bundle(model, replace(bundle, outputs=less))
    more = {**bundle.outputs, "ds/other/audio": np.zeros(3, np.float32)}
    with pytest.raises(CheckpointError, match=r"does not compute: \['ds/other/audio'\]"):
        verify_bundle(model, replace(bundle, outputs=more))
    wrong = {**bundle.outputs, key: bundle.outputs[key][:, 1:]}
    with pytest.raises(
        CheckpointError, match=rf"output {key} has shape \(2, 21, 5\), .*\(2, 20, 5\)"
    ):
        verify_bundle(model, replace(bundle, outputs=wrong))


def test_nan_is_never_within_tolerance(bundle: Bundle) -> None:
    model = convert(bundle)
    nn.init.constant_(model.encoder.inputs.embed["audio"].bias, float("nan"))  # pyright: ignore[reportArgumentType]
    assert failures(verify_bundle(model, bundle))
