"""The average of the weights: by hand, like torch's, lent to the model and taken back."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from perceivers.errors import CheckpointError
from perceivers.training.optimizers import WeightAverage


def test_the_first_update_copies_and_the_next_ones_decay() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, 0.75)
    for step, value in enumerate([8.0, 4.0, 0.0]):
        nn.init.constant_(model.weight, value)
        average.update(first=step == 0)
    assert float(average.parameters["weight"]) == 0.75 * (0.75 * 8.0 + 0.25 * 4.0)


def test_it_equals_torchs_bit_for_bit(rng: torch.Generator) -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7))
    average = WeightAverage(model, 0.99)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    for step in range(5):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=rng))
        average.update(first=step == 0)
        theirs.update_parameters(model)
    expected = dict(theirs.module.named_parameters())
    assert all(torch.equal(average.parameters[n], expected[n]) for n in expected)
    assert not torch.equal(average.parameters["0.weight"], model.state_dict()["0.weight"])


def test_the_model_has_the_average_for_a_while_even_when_an_error_ends_it() -> None:
    model = nn.Linear(2, 2)
    average = WeightAverage(model, 0.5)
    before = model.weight.detach().clone()
    average.parameters["weight"] += 1.0
    expected = average.parameters["weight"].clone()
    with average.swapped():
        assert torch.equal(model.weight, expected)
        assert torch.equal(average.parameters["weight"], before)
    assert torch.equal(model.weight, before)
    with pytest.raises(ZeroDivisionError), average.swapped():
        _ = 1 / 0
    assert torch.equal(model.weight, before)
    assert torch.equal(average.parameters["weight"], expected)


def test_an_average_of_another_model_is_refused() -> None:
    average = WeightAverage(nn.Linear(2, 3), 0.5)
    average.load({"weight": torch.ones(3, 2), "bias": torch.zeros(3)})
    assert torch.equal(average.parameters["weight"], torch.ones(3, 2))
    with pytest.raises(CheckpointError, match=r"weight is \(2, 2\), expected \(3, 2\)"):
        average.load({"weight": torch.ones(2, 2), "bias": torch.zeros(3)})
    with pytest.raises(CheckpointError, match="bias is missing"):
        average.load({"weight": torch.ones(3, 2)})
