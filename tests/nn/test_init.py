"""Initialisers: the spread and the bounds that the papers' schemes promise."""

import torch
from torch import nn

from perceivers.nn.linear import TRUNCATED_STD, init_linears_, truncated_normal_


def test_a_truncated_normal_has_the_deviation_asked_for() -> None:
    weight = truncated_normal_(torch.empty(400, 400), 1 / 20)
    assert abs(float(weight.std()) * 20 - 1.0) < 0.02
    assert float(weight.abs().max()) <= 2 / TRUNCATED_STD / 20
    assert abs(float(weight.mean())) < 1e-3


def test_linears_are_scaled_by_their_inputs_and_norms_are_identity() -> None:
    model = nn.Sequential(nn.Linear(400, 100), nn.LayerNorm(100), nn.Linear(100, 400, bias=False))
    for parameter in model.parameters():
        nn.init.constant_(parameter, 7.0)
    init_linears_(model)
    first, norm, last = model
    assert isinstance(first, nn.Linear)
    assert isinstance(norm, nn.LayerNorm)
    assert isinstance(last, nn.Linear)
    assert abs(float(first.weight.detach().std()) * 20 - 1.0) < 0.02
    assert abs(float(last.weight.detach().std()) * 10 - 1.0) < 0.02
    assert not first.bias.any()
    assert norm.weight.eq(1.0).all()
    assert not norm.bias.any()
