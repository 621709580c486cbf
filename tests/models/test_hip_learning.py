"""Settings of HiP that make raw elements easier to learn from: each does what it says."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import perceivers as pv
from perceivers.masking import MaskKind, draw_mask_plan
from perceivers.models import HiP
from perceivers.models.hip.encoder import gather_slots
from perceivers.models.hip.model import BALANCED
from perceivers.nn.attention import CrossAttention, rotate, use_attention
from perceivers.nn.grouping import morton_order
from perceivers.nn.positions import fourier_rows, rotary_angles

TABLE = "encoder.inputs.positions.image.table"
ALL: dict[str, Any] = {
    "position_init": "fourier",
    "position_product": True,
    "query_product": True,
    "query_residual": True,
    "query_heads": 4,
    "query_elements": True,
    "embed_scale": 0.3,
    "element_order": "morton",
    "element_layers": 2,
    "element_rotary": True,
}


def make(**options: Any) -> HiP:
    inputs = {"image": pv.Image(8, 8, 3)}
    return pv.create_model("hip_nano", inputs=inputs, **options).double().eval()


def reconstruction(model: HiP, pixels: Tensor) -> Tensor:
    """The reconstruction of a model whose last layer, zero at the start, is drawn."""
    assert model.decoder is not None
    weight = model.get_parameter("decoder.readout.unembed.image.weight")
    generator = torch.Generator().manual_seed(1)
    weight.data = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    return model(pixels)["image"]


@pytest.fixture
def pixels(rng: torch.Generator) -> Tensor:
    return torch.rand(2, 3, 8, 8, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("name", ["position_product", "query_product"])
def test_a_product_with_zero_weights_changes_nothing(pixels: Tensor, name: str) -> None:
    plain, changed = make(), make(**{name: True})
    lacking = changed.load_state_dict(plain.state_dict(), strict=False)
    home = "encoder.inputs" if name == "position_product" else "decoder.readout"
    assert lacking.missing_keys == [f"{home}.product.weight"]
    expected = reconstruction(plain, pixels)
    assert not torch.allclose(reconstruction(changed, pixels), expected)
    changed.get_parameter(f"{home}.product.weight").data.zero_()
    torch.testing.assert_close(reconstruction(changed, pixels), expected)


def test_the_residual_adds_the_query(pixels: Tensor) -> None:
    plain, changed = make(), make(query_residual=True)
    changed.load_state_dict(plain.state_dict())
    assert not torch.allclose(reconstruction(changed, pixels), reconstruction(plain, pixels))


def test_queries_read_visible_elements_of_their_group_and_no_hidden_ones(
    pixels: Tensor, rng: torch.Generator
) -> None:
    model = make(**ALL)
    reconstruction(model, pixels)  # draws the last layer
    plan = draw_mask_plan(model.layout(), 2, ratio=0.5, generator=rng)
    packed = model.reconstruct(model.encode({"image": pixels}, plan), plan)["image"]
    dense_plan = plan.to_dense(model.layout())
    dense = model.reconstruct(model.encode({"image": pixels}, dense_plan))["image"]
    share = model.layout().shares[0]
    torch.testing.assert_close(packed, gather_slots(share.split(dense), plan.masked["image"]))
    changed = share.split(model.adapter("image").flatten(pixels)).clone()
    ids = plan.masked["image"].expand(-1, share.num_groups, -1)[..., None].expand(-1, -1, -1, 3)
    changed.scatter_(2, ids, 0.123)
    other = {"image": model.adapter("image").unflatten(share.merge(changed))}
    torch.testing.assert_close(model.reconstruct(model.encode(other, plan), plan)["image"], packed)


def test_queries_start_as_interpolation_between_near_elements() -> None:
    """Attention to elements falls with distance before anything is learned."""
    inputs = {"audio": pv.Audio(512)}
    options = {**ALL, "element_order": "raster", "query_heads": 1, "query_residual": False}
    model = pv.create_model("hip_nano", inputs=inputs, **options).eval()
    signal = 0.01 * torch.randn(1, 1, 512, generator=torch.Generator().manual_seed(0))
    assert model.decoder is not None
    with use_attention(model.decoder.readout, "reference", keep_weights=True) as found:
        model({"audio": signal})
        (weights,) = (module.weights for module in found.values())
    assert weights is not None
    of_elements = weights[0, 0, 0, :, -128:]  # one group: queries x elements
    own = of_elements.diagonal().mean()
    far = of_elements.diagonal(40).mean()
    assert own > 3 * far


def test_a_model_along_the_curve_is_a_raster_model_of_reordered_pixels(pixels: Tensor) -> None:
    raster, curve = make(), make(element_order="morton")
    order = torch.as_tensor(morton_order((8, 8)))
    state = raster.state_dict()
    curve.load_state_dict({**state, TABLE: state[TABLE][order.argsort()]})
    turned = pixels.flatten(2)[..., order].unflatten(2, (8, 8))
    expected = reconstruction(raster, turned).flatten(2)
    found = reconstruction(curve, pixels).flatten(2)[..., order]
    torch.testing.assert_close(found, expected)


def test_learned_positions_start_as_waves_of_the_size_of_noise() -> None:
    model = make(position_init="fourier")
    table = model.get_parameter(TABLE).detach()
    expected = fourier_rows((8, 8), 32).double() * BALANCED * 2**0.5
    torch.testing.assert_close(table, expected, rtol=1e-6, atol=1e-6)
    noise = make().get_parameter(TABLE).detach()
    assert float(table.std()) == pytest.approx(float(noise.std()), rel=0.1)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_model_with_all_settings_resizes_and_survives_saving(
    tmp_path: Any, pixels: Tensor, stride: int
) -> None:
    model = make(**ALL, position_stride=stride)
    expected = reconstruction(model, pixels)
    model.save_pretrained(tmp_path / "model")
    loaded = pv.load(tmp_path / "model").double().eval()
    assert loaded.config == model.config
    torch.testing.assert_close(loaded(pixels)["image"], expected, rtol=1e-5, atol=1e-5)
    larger = model.resized({"image": pv.Image(16, 16, 3)})
    assert larger.get_parameter(TABLE).shape == ((16 // stride) ** 2, 32)
    assert larger(torch.zeros(1, 3, 16, 16, dtype=torch.float64))["image"].shape == (1, 3, 16, 16)


@pytest.mark.parametrize(("layers", "far"), [(1, False), (2, True)])
def test_elements_meet_in_their_group_and_then_across_its_border(
    pixels: Tensor, layers: int, far: bool
) -> None:
    model = make(element_layers=layers)
    assert model.encoder.elements is not None
    for name, weight in model.encoder.elements.named_parameters():
        if name.endswith("out.weight"):  # they start at zero, as if there were no layers
            # Drawn: equal weights shift all channels alike, which layer norms take out again.
            weight.data = torch.randn(
                weight.shape, generator=torch.Generator().manual_seed(2)
            ).double()
    pixels.requires_grad_()
    first = model.forward_features(pixels).levels[0]
    (gradient,) = torch.autograd.grad(first[:, 0].square().sum(), pixels)
    reached = gradient.flatten(2).unflatten(2, (4, 16)).abs().amax((0, 1, 3)) > 1e-6
    # The groups form a ring: the last one meets the first.
    assert reached.tolist() == [True, far, False, far]


def test_layers_among_elements_start_as_if_they_were_not_there(pixels: Tensor) -> None:
    plain, layered = make(), make(element_layers=2)
    state = {k: v for k, v in layered.state_dict().items() if "elements" not in k}
    plain.load_state_dict(state)
    expected = reconstruction(plain, pixels)
    torch.testing.assert_close(reconstruction(layered, pixels), expected)
    last = layered.get_parameter("encoder.elements.layers.0.attention.out.weight")
    last.data = torch.randn(last.shape, generator=torch.Generator().manual_seed(2)).double()
    assert not torch.allclose(reconstruction(layered, pixels), expected)


def test_elements_are_compared_by_place_at_the_start() -> None:
    inputs = {"audio": pv.Audio(512)}
    options = {**ALL, "element_layers": 1, "element_heads": 1}
    model = pv.create_model("hip_nano", inputs=inputs, **options).eval()
    assert model.encoder.elements is not None
    with use_attention(model.encoder.elements, "reference", keep_weights=True) as found:
        model({"audio": torch.zeros(1, 1, 512)})
        (weights,) = (module.weights for module in found.values())
    assert weights is not None
    own, far = weights[0, 0, 0].diagonal().mean(), weights[0, 0, 0].diagonal(40).mean()
    assert own > 3 * far


def test_rotary_scores_depend_on_how_far_apart_tokens_are() -> None:
    grid, pairs = (9,), 4
    angles = rotary_angles(grid, pairs)[None, None].double()
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0)).double()
    q, k = (rotate(each.expand(1, 1, 9, 8), angles, 1)[0, 0] for each in (q, k))
    scores = q @ k.T
    for lag in range(-4, 5):
        along = scores.diagonal(lag)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=0, atol=1e-5)
    assert scores[0, 4] != pytest.approx(float(scores[0, 0]), abs=1e-3)


@pytest.mark.parametrize("kind", ["groupwise", "independent"])
def test_rotary_positions_stay_with_their_elements_when_others_are_left_behind(
    pixels: Tensor, kind: MaskKind
) -> None:
    model = make(element_layers=1, element_rotary=True, element_order="morton")
    for name, weight in model.encoder.named_parameters():
        if "elements" in name and name.endswith("out.weight"):
            weight.data = torch.randn(
                weight.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64
            )
    draws = torch.Generator().manual_seed(0)
    plan = draw_mask_plan(model.layout(), 2, ratio=0.5, kind=kind, generator=draws)
    packed = model.encode({"image": pixels}, plan).processor
    dense = model.encode({"image": pixels}, plan.to_dense(model.layout())).processor
    torch.testing.assert_close(packed, dense)


def test_wider_reads_have_the_width_asked_for() -> None:
    first, *rest = make().config.levels
    wide = replace(first, cross_dim=128, num_cross_heads=4)
    attention = make(levels=(wide, *rest)).get_submodule("encoder.blocks.0.read.attention")
    assert isinstance(attention, CrossAttention)
    widths = (attention.q.out_features, attention.v.out_features)
    assert (*widths, attention.num_heads) == (128, 128, 4)
