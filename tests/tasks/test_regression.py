"""Regression by hand: losses, units, unknown values, and the figures."""

from math import nan, sqrt
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import perceivers as pv
from perceivers.data import Batch
from perceivers.errors import ConfigError, DataError
from perceivers.tasks import Regression, RegressionConfig
from perceivers.tasks.regression import measure_targets

SPREAD = {"age": (40.0, 10.0), "weight": (70.0, 5.0)}


class Fixed(nn.Module):
    """A model that answers as told, in deviations from the mean."""

    family = "fixed"

    def __init__(self, answers: list[list[float]]) -> None:
        super().__init__()
        self.config = pv.create_model(
            "hip_nano", inputs={"image": pv.Image(4, 4, 1)}, num_classes=len(answers[0])
        ).config
        self.answers = nn.Parameter(torch.tensor(answers))

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return the answers."""
        return self.answers[: len(inputs["image"])]


def make_batch(targets: list[list[float]] | None) -> Batch:
    count = len(targets) if targets else 1
    pictures = torch.zeros(count, 1, 4, 4, dtype=torch.uint8)
    held = None if targets is None else torch.tensor(targets)
    return Batch({"image": pictures}, None, torch.arange(count), [], targets=held)


def make_task(answers: list[list[float]], **settings: Any) -> Regression:
    return Regression(Fixed(answers), SPREAD, RegressionConfig(**settings))


def test_targets_are_standardised_by_what_is_known() -> None:
    found = measure_targets(torch.tensor([[1.0, nan], [3.0, 5.0], [nan, 5.0]]), ["a", "b"])
    assert found["a"] == pytest.approx((2.0, 1.0))
    assert found["b"] == pytest.approx((5.0, 1.0))  # never changes
    with pytest.raises(DataError, match=r"'a' has 0 known values"):
        measure_targets(torch.tensor([[nan]]), ["a"])
    with pytest.raises(DataError, match=r"has 2 known .* 1 are finite"):
        measure_targets(torch.tensor([[1.0], [float("inf")]]), ["a"])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # Errors in deviations: 1, 3 (age), 2 (weight); the second weight is unknown.
        ({}, (1 + 9 + 4) / 3),
        ({"loss": "mae"}, (1 + 3 + 2) / 3),
        ({"loss": "huber"}, (0.5 + 2.5 + 1.5) / 3),
        ({"loss": "huber", "delta": 2.0}, (0.5 + (2 * 3 - 2) + 2) / 3),
    ],
)
def test_the_loss_is_over_known_values(
    settings: dict[str, Any], expected: float, rng: torch.Generator
) -> None:
    task = make_task([[1.0, 2.0], [-3.0, 100.0]], **settings)
    losses = task(make_batch([[40.0, 70.0], [40.0, nan]]), rng)
    assert float(losses.total.detach()) == pytest.approx(expected)
    losses.total.backward()
    grad = task.model.answers.grad
    assert float(grad[1, 1]) == 0.0
    assert float(grad[0, 0]) != 0.0


def test_figures_are_in_the_targets_units() -> None:
    # Ages 50, 30, 40, 60 are predicted as 50, 40, 40, 40.
    task = make_task([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    batch = make_batch([[50.0, nan], [30.0, 75.0], [40.0, nan], [60.0, nan]])
    figures = task.evaluate([batch])
    assert figures["mae/age"] == pytest.approx((0 + 10 + 0 + 20) / 4)
    assert figures["rmse/age"] == pytest.approx(sqrt((100 + 400) / 4))
    # Truth: mean 45, squares 25 + 225 + 25 + 225.
    assert figures["r2/age"] == pytest.approx(1 - 500 / 500)
    assert figures["mae/weight"] == pytest.approx(5.0)
    assert "r2/weight" not in figures  # one value has no spread
    assert figures["r2"] == pytest.approx(figures["r2/age"])
    # Two batches, one of them short: the same figures.
    parts = [make_batch([[50.0, nan]]), make_batch([[50.0, nan], [30.0, 75.0]])]
    halves = task.evaluate(parts)
    assert halves["mae/age"] == pytest.approx((0 + 0 + 10) / 3)
    assert halves["loss"] == pytest.approx((0 + 0 + 1 + 1) / 4)


def test_answers_are_restored_to_units() -> None:
    task = make_task([[0.0, 0.0]])
    restored = task.restore(torch.tensor([[1.5, -2.0]]))
    assert restored.tolist() == [[55.0, 60.0]]


def test_what_does_not_fit_is_refused(rng: torch.Generator) -> None:
    with pytest.raises(ConfigError, match=r"3 values, but the targets are \['age', 'weight'\]"):
        Regression(Fixed([[0.0] * 3]), SPREAD, RegressionConfig())
    task = make_task([[0.0, 0.0]])
    with pytest.raises(DataError, match=r"\['age', 'weight'\], but the batch's have shape None"):
        task(make_batch(None), rng)
    with pytest.raises(DataError, match=r"shape \(1, 1\)"):
        task(make_batch([[1.0]]), rng)
    with pytest.raises(ConfigError, match=r"delta is 0\.0"):
        RegressionConfig(delta=0.0)
