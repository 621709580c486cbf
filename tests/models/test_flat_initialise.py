"""Initial weights of the flat systems, and what resizing and depth make of parameters."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from perceivers.adapters.config import PositionConfig, TokenConfig
from perceivers.errors import ConfigError
from perceivers.models import Perceiver, PerceiverIO, create_model
from perceivers.models.flat.trunk import (
    BALANCED,
    PAPER_SIGMA,
    carry_tables,
    check_resizable,
    pin_waves,
)
from perceivers.nn.linear import TRUNCATED_STD
from perceivers.types import Array, Audio, Bytes, Image, ModalitySpec, Video

LEARNED = TokenConfig(positions=PositionConfig(kind="learned", dim=64, project=32))
LAYERS = {"num_latents": 64, "latent_dim": 64, "depth": 1}


def build(init: str, **settings: Any) -> PerceiverIO:
    inputs: dict[str, ModalitySpec] = {"image": Image(16, 16), "text": Bytes(64)}
    settings = {"tokens": {"image": LEARNED}, "mask_tokens": True, "trunk": LAYERS, **settings}
    return create_model("perceiver_io_nano", inputs=inputs, init=init, **settings)


def assert_cut_normal(x: Tensor, sigma: float) -> None:
    """A normal of ``sigma`` cut at two sigma: its deviation, and how far it goes."""
    assert float(x.abs().max()) <= 2 * sigma + 1e-7
    assert abs(float(x.std()) / (sigma * TRUNCATED_STD) - 1) < 0.05
    if x.numel() > 2000:
        assert float(x.abs().max()) > 1.9 * sigma


@pytest.mark.parametrize(("init", "sigma"), [("paper", PAPER_SIGMA), ("balanced", BALANCED)])
def test_learned_arrays_are_cut_normals(init: str, sigma: float) -> None:
    """Under ``paper`` none goes beyond 0.04."""
    state = build(init).state_dict()
    for name in (
        "trunk.latents",
        "inputs.readers.image.positions.source.table",
        "inputs.readers.text.positions.source.table",
        "decoder.queries.text.table",
    ):
        assert_cut_normal(state[name], sigma)
    for name in ("inputs.padding.image", "inputs.mask.text", "decoder.padding.image"):
        assert 0.0 < float(state[name].abs().max()) <= 2 * sigma


def test_input_positions_of_the_first_perceiver_have_sigma_one() -> None:
    settings: dict[str, Any] = {"inputs": {"image": Image(16, 16)}, "tokens": {"image": LEARNED}}
    model = create_model("perceiver_nano", num_classes=3, init="paper", **settings)
    assert_cut_normal(model.state_dict()["inputs.readers.image.positions.source.table"], 1.0)
    assert_cut_normal(model.state_dict()["trunk.latents"], 0.02)


@pytest.mark.parametrize("init", ["paper", "balanced"])
def test_linears_scale_with_their_inputs_and_byte_rows_do_not(init: str) -> None:
    state = build(init).state_dict()
    inner = state["trunk.blocks.0.0.mlp.hidden.weight"]
    assert abs(float(inner.std()) * inner.shape[1] ** 0.5 - 1) < 0.03
    assert_cut_normal(inner, inner.shape[1] ** -0.5 / TRUNCATED_STD)
    outer = state["inputs.readers.image.positions.project.weight"]  # not made up for the cut
    assert_cut_normal(outer, outer.shape[1] ** -0.5)
    assert_cut_normal(state["inputs.readers.text.content.rows.weight"], 1.0)


def test_convolutions_scale_with_their_window() -> None:
    tokens = {"image": TokenConfig(content="conv", dim=64, positions=PositionConfig())}
    settings: dict[str, Any] = {"inputs": {"image": Image(16, 16)}, "num_classes": 3}
    model = create_model("perceiver_io_nano", tokens=tokens, **settings)
    weight = model.state_dict()["inputs.readers.image.content.convs.0.weight"]
    assert_cut_normal(weight, (3 * 7 * 7) ** -0.5)


def test_biases_are_zero_and_norms_the_identity_even_after_training() -> None:
    model = build("paper")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(3.0)
    model.init_weights()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert parameter.eq(1).all(), name
        else:
            assert not parameter.eq(3).any(), name


def test_the_mean_head_and_the_flow_head_start_at_zero(rng: torch.Generator) -> None:
    image = {"image": Image(8, 8)}
    mean = create_model("perceiver_nano", inputs=image, num_classes=3)
    assert not mean(torch.rand(2, 3, 8, 8, generator=rng)).any()
    flow = create_model("perceiver_io_flow_tiny", inputs={"video": Video(2, 8, 8)})
    assert not flow(torch.rand(2, 3, 2, 8, 8, generator=rng)).any()
    query = create_model("perceiver_io_nano", inputs=image, num_classes=3)
    assert query(torch.rand(2, 3, 8, 8, generator=rng)).any()


# -- carrying weights to other sizes ---------------------------------------------------------


def test_only_the_same_modalities_may_be_resized() -> None:
    old: Mapping[str, ModalitySpec] = {"image": Image(8, 8), "text": Bytes(16)}
    check_resizable(old, {"image": Image(4, 12), "text": Bytes(9)})
    others: list[Mapping[str, ModalitySpec]] = [
        {"image": Image(8, 8, 1), "text": Bytes(16)},
        {"image": Array((8, 8), 3), "text": Bytes(16)},
        {"image": Image(8, 8)},
        {"text": Bytes(16), "image": Image(8, 8)},
    ]
    for other in others:
        with pytest.raises(ConfigError, match=r"cannot be resized to .*names, kinds and channels"):
            check_resizable(old, other)
    with pytest.raises(
        ConfigError,
        match=r"texts of 16 bytes has no position embeddings for 17; text positions are cut",
    ):
        check_resizable(old, {"image": Image(8, 8), "text": Bytes(17)})


def test_tables_are_interpolated_or_cut(rng: torch.Generator) -> None:
    state = {"a": torch.randn(4, 3, generator=rng), "b": torch.randn(4, 3, generator=rng)}
    carried = carry_tables(
        state, {"a": ((4,), (2,), False), "b": ((4,), (2,), True), "c": ((4,), (2,), True)}
    )
    halves = state["a"].reshape(2, 2, 3).mean(1)  # linear, the corners at half a cell
    torch.testing.assert_close(carried["a"], halves)
    assert torch.equal(carried["b"], state["b"][:2])
    assert list(carried) == ["a", "b"]


def test_waves_stay_those_of_the_old_grid() -> None:
    free = PositionConfig(kind="fourier", num_bands=3)
    assert pin_waves(free, (8, 6)).max_resolution == (8, 6)
    fixed = PositionConfig(kind="fourier", num_bands=3, max_resolution=(5, 5))
    assert pin_waves(fixed, (8, 6)) is fixed
    learned = PositionConfig(kind="learned", dim=3)
    assert pin_waves(learned, (8, 6)) is learned


def test_a_resized_model_keeps_the_waves_it_was_trained_with() -> None:
    """The corners of the grid have the same places, so they must have the same features."""
    model = create_model("perceiver_nano", inputs={"image": Image(8, 8)}, num_classes=3)
    wide = model.resized({"image": Image(16, 20)})
    before, after = (m.inputs.reader("image").positions(torch.float32)[0] for m in (model, wide))
    assert (len(before), len(after)) == (64, 320)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[-1], after[-1])
    fresh = create_model("perceiver_nano", inputs={"image": Image(16, 20)}, num_classes=3)
    other = fresh.inputs.reader("image").positions(torch.float32)[0]
    assert not torch.allclose(other[0], after[0])


def test_parameters_are_ordered_by_depth() -> None:
    shape = {"num_blocks": 2, "num_reads": 2, "depth": 2, "share_blocks": False}
    settings: dict[str, Any] = {"inputs": {"sound": Audio(40)}, "num_classes": 3}
    model: Perceiver = create_model("perceiver_nano", **settings, trunk=shape)
    depths = model.layer_depths()
    assert set(depths) == {name for name, _ in model.named_parameters()}
    first = {
        "trunk.latents": 1,
        "trunk.reads.0.attention.q.weight": 1,
        "trunk.blocks.0.0.mlp.out.bias": 2,
        "trunk.blocks.0.1.mlp.out.bias": 3,
        "trunk.reads.1.attention.q.weight": 4,
        "trunk.blocks.1.0.mlp.out.bias": 5,
        "trunk.blocks.1.1.mlp.out.bias": 6,
        "head.weight": 7,
    }
    assert {name: depths[name] for name in first} == first
    shared = create_model("perceiver_nano", **settings, trunk={**shape, "share_blocks": True})
    assert shared.layer_depths()["trunk.blocks.0.1.mlp.out.bias"] == 3  # where it is used first
    assert shared.layer_depths()["head.weight"] == 5
    read = create_model("perceiver_io_nano", inputs={"text": Bytes(9)}).layer_depths()
    assert read["inputs.readers.text.content.rows.weight"] == 0
    assert read["decoder.read.attention.q.weight"] == read["decoder.queries.text.table"] == 4


def test_no_module_is_left_without_its_init() -> None:
    """Every kind of module with parameters of its own is in the table of initial weights."""
    known = (nn.Linear, nn.Conv2d, nn.Embedding, nn.LayerNorm, nn.BatchNorm2d, nn.ParameterDict)
    own = {"Trunk", "LearnedPositions", "LearnedQueries", "TiedHead"}
    model = build("paper")
    for module in model.modules():
        if next(module.parameters(recurse=False), None) is not None:
            assert isinstance(module, known) or type(module).__name__ in own, type(module)
