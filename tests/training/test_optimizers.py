"""Optimizers: who decays, who learns slower, and what LAMB computes."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from perceivers.models import HiP, create_model
from perceivers.training.config import OptimizerConfig, ScheduleConfig
from perceivers.training.optimizers import (
    UnclampedLamb,
    make_optimizer,
    parameter_groups,
    set_learning_rate,
)
from perceivers.training.schedules import schedule_scale
from perceivers.types import Image


@pytest.fixture
def model() -> HiP:
    return create_model("hip_nano", inputs={"image": Image(8, 8, 1)}, num_classes=3)


def test_only_weights_of_linears_decay(model: HiP) -> None:
    groups = parameter_groups(model, OptimizerConfig(weight_decay=0.3))
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    linears = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.3 if name in linears else 0.0), name
    assert decay[id(model.encoder.inputs.positions["image"].table)] == 0.0


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


def test_lamb_is_the_chain_of_the_paper_and_does_not_clamp_weight_norms() -> None:
    """One step by hand: Adam's direction, plus decay, scaled to the norm of the weights."""
    start = torch.full((4,), 30.0)  # norm 60, beyond the clamp of 10 that the library has
    gradient = torch.tensor([1.0, -2.0, 0.5, 4.0])
    parameter = nn.Parameter(start.clone())
    parameter.grad = gradient.clone()
    betas, decay, lr, eps = (0.9, 0.999), 0.1, 0.01, 1e-6
    options = {"weight_decouple": False, "adam_debias": True}
    groups = [{"params": [parameter], "weight_decay": decay}]
    UnclampedLamb(groups, lr=lr, betas=betas, **options).step()
    direction = (0.1 * gradient) / ((0.001 * gradient.square()).sqrt() + eps) + decay * start
    expected = start - lr * start.norm() / direction.norm() * direction
    torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-5)
    clamped = start - lr * 10.0 / direction.norm() * direction
    assert not torch.allclose(parameter.detach(), clamped, atol=1e-2)


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
