"""Optimizers: who decays, who learns slower, and what LAMB computes."""

import math
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import pytest
import torch
from torch import nn

from perceivers.adapters.config import PositionConfig, TokenConfig
from perceivers.errors import ConfigError
from perceivers.models import HiP, Output, PerceiverIO, PerceiverIOConfig, create_model
from perceivers.models.flat.trunk import TrunkConfig
from perceivers.training.config import OptimizerConfig, ScheduleConfig
from perceivers.training.optimizers import (
    Muon,
    UnclampedLamb,
    decays,
    make_optimizer,
    muon_matrices,
    parameter_groups,
    schedule_scale,
    set_learning_rate,
    unbiased_rate,
)
from perceivers.types import Image, ModalitySpec, Video

WAVES = PositionConfig(kind="fourier", num_bands=4)


@pytest.fixture
def model() -> HiP:
    return create_model("hip_nano", inputs={"image": Image(8, 8, 1)}, num_classes=3)


def small_perceiver_io() -> PerceiverIO:
    """A classifier with learned positions, latents and one query."""
    tokens = TokenConfig(positions=PositionConfig(kind="learned", dim=8))
    trunk = TrunkConfig(num_latents=4, latent_dim=16, depth=1, num_heads=2)
    return PerceiverIO(
        PerceiverIOConfig(
            inputs={"image": Image(4, 4, 1)},
            tokens={"image": tokens},
            trunk=trunk,
            outputs={"classes": Output(dim=16, channels=3)},
        )
    )


def test_only_weights_of_linears_decay(model: HiP) -> None:
    groups = parameter_groups(model, OptimizerConfig(weight_decay=0.3))
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    linears = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.3 if name in linears else 0.0), name
    assert decay[id(model.encoder.inputs.positions["image"].table)] == 0.0


def test_transposed_convolutions_decay_too() -> None:
    asked: dict[str, Any] = {"queries": "positions", "positions": WAVES, "channels": 1}
    inputs: dict[str, ModalitySpec] = {"image": Image(8, 8, 1), "video": Video(2, 8, 8, 1)}
    patches = {"image": (4, 4), "video": (2, 4, 4)}
    outputs = {n: Output(modality=n, patch=p, head="conv", **asked) for n, p in patches.items()}
    model = create_model("perceiver_io_nano", inputs=inputs, outputs=outputs)
    heads = {n for n, _ in model.named_parameters() if n.startswith("decoder.heads.")}
    assert len(heads) == 8
    assert decays(model) & heads == {name for name in heads if name.endswith("weight")}


def test_every_parameter_is_in_exactly_one_group(model: HiP) -> None:
    groups = parameter_groups(model, OptimizerConfig(layer_decay=0.5))
    found = [id(p) for group in groups for p in group["params"]]
    assert len(found) == len(set(found)) == len(list(model.parameters()))


def test_layer_decay_falls_from_the_head_to_the_inputs(model: HiP) -> None:
    depths = model.layer_depths()
    scale = {}
    for group in parameter_groups(model, OptimizerConfig(layer_decay=0.5)):
        scale |= {id(p): group["lr_scale"] for p in group["params"]}
    named = dict(model.named_parameters())
    last = max(depths.values())
    for name, depth in depths.items():
        factor = 20.0 if name == "encoder.inputs.positions.image.table" else 1.0
        assert scale[id(named[name])] == factor * 0.5 ** (last - depth), name
    assert depths["encoder.inputs.embed.image.weight"] == 0
    assert depths["head.logits.weight"] == last
    assert depths["encoder.blocks.0.read.mlp.out.weight"] == 1
    assert depths["encoder.blocks.0.layers.0.mlp.out.weight"] == 2
    optimizer = make_optimizer(model, OptimizerConfig(layer_decay=0.5, position_lr=1.0))
    set_learning_rate(optimizer, 0.1)
    assert {g["lr"] for g in optimizer.param_groups} == {0.1 * 0.5**k for k in range(last + 1)}


def one_step(model: HiP, lr: float, name: Literal["adamw", "muon"]) -> dict[str, torch.Tensor]:
    """The update of every parameter of a copy of the model, from the same random gradients."""
    model, generator = deepcopy(model), torch.Generator().manual_seed(0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    settings = OptimizerConfig(name=name, weight_decay=0.0, position_lr=1.0)
    optimizer = make_optimizer(
        model, replace(settings, matrix_lr=1.0) if name == "muon" else settings
    )
    set_learning_rate(optimizer, lr)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()
    return {name: p.detach() - before[name] for name, p in model.named_parameters()}


def test_muon_makes_updates_of_matrices_orthogonal_and_leaves_the_rest_to_adamw(
    model: HiP,
) -> None:
    lr = 1e-2
    adamw, muon = one_step(model, lr, "adamw"), one_step(model, lr, "muon")
    matrices = muon_matrices(model)
    assert "encoder.blocks.0.read.attention.q.weight" in matrices
    assert not matrices & {"encoder.inputs.embed.image.weight", "head.logits.weight"}
    for name, update in muon.items():
        if name not in matrices:
            assert torch.equal(update, adamw[name]), name
            continue
        size = lr * 0.2 * max(update.shape) ** 0.5
        stretch = torch.linalg.svdvals(update) / size
        # Five iterations bring singular values near one; only the smallest stay behind.
        assert 0.6 < float(stretch.median()) < 1.3, name
        assert float(stretch.max()) < 1.35, name


def test_muon_goes_on_from_a_saved_state(model: HiP) -> None:
    config = OptimizerConfig(name="muon")
    pairs = [(each, make_optimizer(each, config)) for each in (model, deepcopy(model))]
    for step in range(3):
        for each, optimizer in pairs:
            generator = torch.Generator().manual_seed(step)
            for parameter in each.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
        pairs[1][1].load_state_dict(deepcopy(pairs[0][1].state_dict()))
    for one, other in zip(pairs[0][0].parameters(), pairs[1][0].parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="it came with torch 2.9")
@pytest.mark.parametrize("shape", [(24, 80), (80, 24), (32, 32)])
def test_muon_is_torchs_but_for_the_rounding_of_bf16(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    parameters = [nn.Parameter(start.clone()) for _ in range(2)]
    ours = Muon([{"params": [parameters[0]]}], lr=0.02, momentum=0.9, weight_decay=0.1)
    theirs = torch.optim.Muon(
        [parameters[1]], lr=0.02, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    for _ in range(3):
        gradient = torch.randn(shape, generator=generator)
        for parameter, optimizer in zip(parameters, (ours, theirs), strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    moved = (parameters[1] - start).norm()
    assert float((parameters[0] - parameters[1]).detach().norm() / moved.detach()) < 0.02


def lamb_step(
    start: torch.Tensor, moments: tuple[torch.Tensor, torch.Tensor], decay: float, eps: float
) -> torch.Tensor:
    """One update of the released chain, before the learning rate, from bias-corrected moments."""
    direction = moments[0] / (moments[1].sqrt() + eps) + decay * start
    norms = float(start.norm()), float(direction.norm())
    return direction * (norms[0] / norms[1] if min(norms) > 0 else 1.0)


def test_lamb_is_the_chain_of_the_paper_and_does_not_clamp_weight_norms() -> None:
    """Two steps by hand: Adam's direction, plus decay, scaled to the norm of the weights."""
    start = torch.full((4,), 30.0)  # norm 60, beyond the clamp of 10 that the library has
    gradients = torch.tensor([[1.0, -2.0, 0.5, 4.0], [-1.0, -1.0, 3.0, 0.1]])
    parameter = nn.Parameter(start.clone())
    decay, lr, eps = 0.1, 0.01, 1e-6
    options = {"weight_decouple": False, "adam_debias": True}
    groups = [{"params": [parameter], "weight_decay": decay}]
    optimizer = UnclampedLamb(groups, lr=lr, betas=(0.9, 0.999), **options)
    parameter.grad = gradients[0].clone()
    optimizer.step()
    # After one step the corrected moments are the gradient and its square.
    first = start - lr * lamb_step(start, (gradients[0], gradients[0] ** 2), decay, eps)
    torch.testing.assert_close(parameter.detach(), first, rtol=1e-5, atol=1e-5)
    clamped = start - (start - first) * 10 / 60
    assert not torch.allclose(parameter.detach(), clamped, atol=1e-2)
    parameter.grad = gradients[1].clone()
    optimizer.step()
    mean = (0.09 * gradients[0] + 0.1 * gradients[1]) / (1 - 0.9**2)
    square = (0.000999 * gradients[0] ** 2 + 0.001 * gradients[1] ** 2) / (1 - 0.999**2)
    second = first - lr * lamb_step(first, (mean, square), decay, eps)
    torch.testing.assert_close(parameter.detach(), second, rtol=1e-5, atol=1e-5)
    plain = first - lr * lamb_step(first, (mean * 0.19, square * 0.001999), decay, eps)
    assert not torch.allclose(parameter.detach(), plain, rtol=1e-5, atol=1e-5)


def test_a_rate_starts_at_zero_and_ends_at_its_own() -> None:
    assert unbiased_rate(0.9, 1) == 0.0
    assert unbiased_rate(0.9, 2) == pytest.approx(0.9 * 0.1 / 0.19)
    assert unbiased_rate(0.9, 10_000) == pytest.approx(0.9)


def test_a_resumed_lamb_goes_on_as_if_it_had_not_stopped() -> None:
    def make(values: torch.Tensor) -> tuple[nn.Parameter, UnclampedLamb]:
        parameter = nn.Parameter(values.clone())
        return parameter, UnclampedLamb([parameter], lr=0.1, betas=(0.9, 0.99))

    def step(parameter: nn.Parameter, optimizer: UnclampedLamb, count: int) -> None:
        parameter.grad = torch.tensor([1.0, 2.0, -1.0]) * count
        optimizer.step()

    parameter, optimizer = make(torch.tensor([1.0, -2.0, 3.0]))
    for count in range(3):
        step(parameter, optimizer, count)
    other, resumed = make(parameter.detach())
    resumed.load_state_dict(deepcopy(optimizer.state_dict()))  # else they share moments
    step(parameter, optimizer, 5)
    step(other, resumed, 5)
    assert torch.equal(parameter, other)
    fresh = make(parameter.detach())
    step(*fresh, 5)
    assert fresh[1].param_groups[0]["betas"] != optimizer.param_groups[0]["betas"]


@pytest.mark.parametrize("arrays", [False, True])
def test_the_released_recipe_updates_every_tensor_by_hand(arrays: bool) -> None:
    """Every tensor has its trust ratio, also those without decay; it is 1 where a norm is zero."""
    model = small_perceiver_io()
    options = {"decay_arrays": arrays, "weight_decay": 0.5, "position_lr": 1.0}
    config = OptimizerConfig(name="lamb", lr=0.1, betas=(0.9, 0.999), eps=1e-6, **options)
    optimizer = make_optimizer(model, config)
    set_learning_rate(optimizer, 0.1)
    generator = torch.Generator().manual_seed(0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()
    zero, undecayed = [], []
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        decay = 0.5 if name in decays(model, arrays=arrays) else 0.0
        if decay == 0.0:
            undecayed.append(name)
        if not before[name].any():
            zero.append(name)
        moments = (parameter.grad, parameter.grad**2)
        expected = before[name] - 0.1 * lamb_step(before[name], moments, decay, 1e-6)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-6, msg=name)
    assert any(name.endswith(".bias") for name in zero)
    assert "trunk.latents" not in zero
    assert ("trunk.latents" in undecayed) is not arrays
    norms = [n for n in before if "norm" in n and n.endswith("weight")]
    assert norms
    assert set(norms) <= set(undecayed)
    assert not set(norms) & set(zero)  # their ratio is a real one


def test_arrays_decay_if_asked_for_and_biases_and_norms_never() -> None:
    model = small_perceiver_io()
    maps, everything = decays(model), decays(model, arrays=True)
    added = everything - maps
    assert {name.rpartition(".")[2] for name in added} == {"latents", "table"}
    assert len(added) == 3  # latents, the query and the position table
    never = {name for name, _ in model.named_parameters()} - everything
    owners = dict(model.named_modules())
    assert never
    for name in never:
        owner, _, kind = name.rpartition(".")
        assert kind == "bias" or isinstance(owners[owner], nn.LayerNorm), name
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Embedding(4, 2))
    assert decays(network) == {"0.weight"}
    assert decays(network, arrays=True) == {"0.weight", "2.weight"}


@pytest.mark.parametrize(("name", "default"), [("adamw", 1e-8), ("lamb", 1e-6)])
def test_epsilon_reaches_the_optimizer(
    name: Literal["adamw", "lamb"], default: float, model: HiP
) -> None:
    left_out = make_optimizer(model, OptimizerConfig(name=name))
    given = make_optimizer(model, OptimizerConfig(name=name, eps=3e-5))
    assert {g["eps"] for g in left_out.param_groups} == {default}
    assert {g["eps"] for g in given.param_groups} == {3e-5}


@pytest.mark.parametrize("eps", [0.0, -1e-6, float("nan")])
def test_an_epsilon_that_is_not_positive_is_refused(eps: float) -> None:
    with pytest.raises(ConfigError, match=rf"optimizer.eps is {eps}; it must be .*positive"):
        OptimizerConfig(eps=eps)


def test_lamb_is_built_with_those_options(model: HiP) -> None:
    optimizer = make_optimizer(model, OptimizerConfig(name="lamb"))
    assert isinstance(optimizer, UnclampedLamb)
    assert optimizer.clamp == float("inf")
    assert all(g["adam_debias"] and not g["weight_decouple"] for g in optimizer.param_groups)


def test_cosine_warms_up_linearly_and_ends_at_the_final_share() -> None:
    config = ScheduleConfig(warmup=0.1, final=0.25)
    scales = [schedule_scale(config, step, 100) for step in range(100)]
    assert scales[:10] == [pytest.approx((i + 1) / 10) for i in range(10)]
    assert scales[10] == 1.0
    assert scales[-1] == pytest.approx(0.25)
    expected = 0.25 + 0.75 * 0.5 * (1 + math.cos(math.pi * (54 - 10) / 89))
    assert scales[54] == pytest.approx(expected)
    assert all(a >= b for a, b in pairwise(scales[10:]))


def test_constant_cosine_holds_the_peak_for_its_share() -> None:
    config = ScheduleConfig(name="constant-cosine", warmup=0.0, constant=0.5)
    scales = [schedule_scale(config, step, 100) for step in range(100)]
    assert scales[:51] == [1.0] * 51
    assert scales[51] < 1.0
    assert scales[-1] == pytest.approx(0.0, abs=1e-12)
