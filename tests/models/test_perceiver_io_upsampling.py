"""Outputs that transposed convolutions decode: layout, indices, gradients, sizes, refusals."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.models.perceiver_io_making import EXACT, TRUNK, WAVES, Draw, Stir
from torch import Tensor, nn

from perceivers.adapters.config import TokenConfig
from perceivers.adapters.upsampling import GridUpsample
from perceivers.checkpoints.loading import load
from perceivers.errors import ConfigError, InputError
from perceivers.models import DecoderConfig, Output, PerceiverIO, PerceiverIOConfig
from perceivers.nn.patches import space_to_depth
from perceivers.types import Array, Audio, Image, ModalitySpec, Video

INPUTS: dict[str, ModalitySpec] = {
    "image": Image(8, 12, 1),
    "video": Video(4, 8, 4, 2),
    "table": Array((4, 8), 2),
    "sound": Audio(8),
}


def conv(modality: str, patch: tuple[int, ...], channels: int, **settings: Any) -> Output:
    asked = {"queries": "positions", "positions": WAVES, "modality": modality, **settings}
    return Output(patch=patch, channels=channels, head="conv", **asked)


OUTPUTS = {
    "image": conv("image", (4, 4), 3, divide_by=2.0),
    "frames": conv("video", (1, 4, 4), 2),
    "clip": conv("video", (2, 4, 4), 1, sampled="cell"),
    "table": conv("table", (4, 4), 2),
}
SHAPES = {
    "image": (2, 3, 8, 12),
    "frames": (2, 2, 4, 8, 4),
    "clip": (2, 1, 4, 8, 4),
    "table": (2, 4, 8, 2),
}
QUERIES = {"image": 6, "frames": 8, "clip": 4, "table": 2}


def build(stir: Stir, **settings: Any) -> PerceiverIO:
    config = {"inputs": INPUTS, "trunk": TRUNK, "outputs": OUTPUTS, **settings}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return stir(PerceiverIO(PerceiverIOConfig(**config)))


def test_answers_have_the_layout_of_the_raw_signal(stir: Stir, draw: Draw) -> None:
    model = build(stir)
    answers = model(draw(INPUTS))
    assert {name: tuple(x.shape) for name, x in answers.items()} == SHAPES
    assert {name: model.num_queries(name) for name in OUTPUTS} == QUERIES
    assert model.query_grid("clip") == (2, 2, 1)
    others = model(draw(INPUTS))
    assert not any(torch.allclose(answers[name], others[name]) for name in OUTPUTS)


def test_values_are_the_convolutions_of_the_answers_on_their_grid(stir: Stir, draw: Draw) -> None:
    """By hand: a linear head of the identity gives the answers, which are then upsampled."""
    model, raw = build(stir, decoder=DecoderConfig(project=5)), draw(INPUTS)
    encoded = model.encode(raw)
    queries = model.decoder.make_queries("image", encoded.tokens, None, torch.float64)
    answers = model.decoder.answer("image", queries, encoded.latents, None, None)
    assert answers.shape == (2, 6, 5)
    head = model.decoder.heads["image"]
    assert isinstance(head, GridUpsample)
    first, second = head.upsample.convs
    made = second(first(answers.mT.reshape(2, 5, 2, 3)).relu()) / 2.0
    torch.testing.assert_close(model.decode(encoded, "image"), made, **EXACT)
    turned = second(first(answers.mT.reshape(2, 5, 3, 2).mT).relu()) / 2.0
    assert not torch.allclose(turned, made)


def test_frames_that_are_all_asked_for_are_pictures_of_their_own(stir: Stir, draw: Draw) -> None:
    model, raw = build(stir), draw(INPUTS)
    frames, clip = (model.decoder.heads[name] for name in ("frames", "clip"))
    x = torch.randn(1, model.decoder.dim, 3, 2, 1, dtype=torch.float64)
    other = x.clone()
    other[:, :, 2] += 1.0
    apart = [torch.isclose(head(x), head(other)).all() for head in (frames, clip)]
    assert [bool(a) for a in apart] == [False, False]
    torch.testing.assert_close(frames(x)[:, :, :2], frames(other)[:, :, :2], **EXACT)
    assert not torch.allclose(clip(x)[:, :, :4], clip(other)[:, :, :4])
    assert model(raw, outputs=["frames"]).shape == SHAPES["frames"]


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("size", [None, 1, 3])
def test_neither_chunks_nor_indices_change_an_answer(
    stir: Stir, draw: Draw, rng: torch.Generator, name: str, size: int | None
) -> None:
    model, raw = build(stir), draw(INPUTS)
    encoded, patch = model.encode(raw), OUTPUTS[name].patch
    whole = model.decode(encoded, name)
    torch.testing.assert_close(model.decode(encoded, name, chunk_size=size), whole, **EXACT)
    patches = space_to_depth(whole if name != "table" else whole.movedim(-1, 1), patch)
    ids = torch.randint(QUERIES[name], (2, 3), generator=rng)
    picked = model.decode(encoded, name, ids=ids, chunk_size=size)
    for sample in range(2):
        torch.testing.assert_close(picked[sample], patches[sample, ids[sample]], **EXACT)
    shared = model.decode(encoded, name, ids=torch.tensor([1, 0]), chunk_size=size)
    torch.testing.assert_close(shared, patches[:, [1, 0]], **EXACT)
    assert not torch.allclose(shared, patches[:, [0, 1]])


def test_keep_is_for_whole_answers(stir: Stir, draw: Draw) -> None:
    model = build(stir)
    encoded = model.encode(draw(INPUTS))
    whole, keep = model.decode(encoded, "image"), torch.ones(2, 6, dtype=torch.bool)
    torch.testing.assert_close(model.decode(encoded, "image", keep=keep), whole, **EXACT)
    keep[0, 3] = False
    assert not torch.allclose(model.decode(encoded, "image", keep=keep), whole)
    with pytest.raises(InputError, match=r"'image' has a conv head, .* give ids or keep, not both"):
        model.decode(encoded, "image", ids=torch.tensor([0]), keep=keep[:, :1])


def test_every_layer_learns(stir: Stir, draw: Draw) -> None:
    model = build(stir, decoder=DecoderConfig(chunk=3)).train()
    torch.stack([x.square().sum() for x in model(draw(INPUTS)).values()]).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.decoder.heads.parameters())
    first = model.decoder.heads["image"].get_parameter("upsample.convs.0.weight")
    assert (first.shape[0], first.shape[1]) == (model.decoder.dim, 6)


def test_tokens_of_a_convolutional_stem_come_back_at_full_size(stir: Stir, draw: Draw) -> None:
    inputs = {"image": Image(16, 8)}
    stem = {"image": TokenConfig(content="conv", dim=5, positions=WAVES)}
    asked = Output(queries="tokens", modality="image", patch=(4, 4), channels=2, head="conv")
    model = build(stir, inputs=inputs, tokens=stem, outputs={"depth": asked})
    assert model(draw(inputs)).shape == (2, 2, 16, 8)
    with pytest.raises(ConfigError, match=r"'image' lie on a grid \(16, 8\), but patch \(4, 4\) n"):
        build(stir, inputs=inputs, outputs={"depth": asked})


def test_tokens_of_two_frames_answer_patches_of_one(stir: Stir, draw: Draw) -> None:
    """Two values per pixel of a frame of 16 x 8, from 4 x 2 tokens; both kinds of head."""
    inputs = {"video": Video(2, 16, 8)}
    stem = {"video": TokenConfig(content="conv", dim=5, positions=WAVES)}
    ids = torch.tensor([5])
    for head in ("linear", "conv"):
        asked = Output(queries="tokens", modality="video", patch=(4, 4), channels=2)
        model = build(
            stir, inputs=inputs, tokens=stem, outputs={"flow": replace(asked, head=head)}
        ).eval()
        raw = draw(inputs)
        encoded = model.encode(raw)
        whole = model.decode(encoded, "flow")
        assert (model.query_grid("flow"), whole.shape) == ((4, 2), (2, 2, 16, 8))
        assert torch.equal(whole, model(raw))
        # Token 5 is in row 2 and column 1; channels change fastest.
        patch = model.decode(encoded, "flow", ids=ids)[:, 0].reshape(2, 4, 4, 2)
        torch.testing.assert_close(patch.movedim(-1, 1), whole[:, :, 8:12, 4:8], **EXACT)
    wrong = replace(asked, patch=(2, 4, 4))
    with pytest.raises(ConfigError, match=r"patch \(2, 4, 4\) does not divide the grid \(16, 8\)"):
        build(stir, inputs=inputs, tokens=stem, outputs={"flow": wrong})


def test_a_resized_model_upsamples_the_new_grid(stir: Stir, draw: Draw) -> None:
    model = build(stir)
    other: dict[str, ModalitySpec] = {
        **INPUTS,
        "image": Image(16, 4, 1),
        "video": Video(2, 4, 8, 2),
    }
    resized = model.resized(other)
    answers = resized(draw(other))
    assert answers["image"].shape == (2, 3, 16, 4)
    assert answers["clip"].shape == (2, 1, 2, 4, 8)
    with pytest.raises(ConfigError, match=r"patch \(4, 4\) does not divide the grid \(6, 4\)"):
        model.resized({**INPUTS, "image": Image(6, 4, 1)})


def test_json_and_folders_restore_it(stir: Stir, draw: Draw, tmp_path: Any) -> None:
    model = build(stir).float()
    data = json.loads(json.dumps(model.config.to_json()))
    assert data["outputs"]["clip"]["head"] == "conv"
    assert PerceiverIOConfig.from_json(data) == model.config
    model.save_pretrained(tmp_path)
    raw: dict[str, Tensor] = {name: x.float() for name, x in draw(INPUTS).items()}
    loaded = load(tmp_path)(raw)
    assert all(torch.equal(loaded[name], x) for name, x in model(raw).items())


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"patch": (4, 2)}, r"patch \(4, 2\) is not supported by transposed convolutions"),
        (
            {"patch": ()},
            r"patch \(\) is not supported by transposed convolutions; use \(4, 4\)",
        ),
        ({"patch": (4, 0)}, r"output\.patch\[1\] is 0; it must be at least 1"),
        ({"channels": 0}, r"head='conv' needs channels: values per element"),
    ],
)
def test_what_convolutions_cannot_make_is_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        replace(OUTPUTS["image"], **settings)


def test_learned_queries_have_no_grid() -> None:
    with pytest.raises(ConfigError, match=r"a conv head needs queries on the grid of a modality"):
        Output(length=4, dim=3, channels=2, head="conv")


def test_a_patch_must_have_the_axes_of_its_modality() -> None:
    wrong = {"image": conv("image", (1, 4, 4), 1)}
    with pytest.raises(ConfigError, match=r"patch \(1, 4, 4\) does not divide the grid \(8, 12\)"):
        PerceiverIOConfig(inputs=INPUTS, trunk=TRUNK, outputs=wrong)


def test_first_weights_scale_with_what_enters_a_kernel() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PerceiverIO(PerceiverIOConfig(inputs=INPUTS, trunk=TRUNK, outputs=OUTPUTS))
    for module in model.decoder.heads.modules():
        if isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d):
            largest = module.weight.abs().max() * (module.weight[:, 0].numel() ** 0.5)
            assert 1.5 < float(largest.detach()) <= 2.0 + 1e-6  # a normal cut at two sigma
            assert module.bias is not None
            assert not module.bias.any()
