"""Every task trains and evaluates on a device without float64, such as Apple's GPUs."""

from collections.abc import Iterator

import pytest
import torch
from tests.single_precision import DEVICE, OnDevice, move_model, single_precision
from tests.tasks.every_task import TASKS

from perceivers.tasks import metrics
from perceivers.tasks.base import Task
from perceivers.training.optimizers import WeightAverage


@pytest.fixture(autouse=True)
def _device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(metrics, "SINGLE_PRECISION", {DEVICE.type})
    with single_precision():
        yield


def figures_of(name: str) -> dict[str, float]:
    """Train one step and evaluate; the figures before."""
    task, batch = TASKS[name]()
    task.eval()
    return task.evaluate([batch])


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_nothing_in_float64_is_made_on_the_model_s_device(name: str) -> None:
    expected = figures_of(name)
    task, batch = TASKS[name]()
    move_model(task)
    moved = batch._map(lambda tensor: OnDevice(tensor))
    assert {p.device.type for p in task.parameters()} == {DEVICE.type}
    figures = task.evaluate([moved])
    assert figures == pytest.approx(expected, rel=1e-5)
    average = WeightAverage(task, 0.9)
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-3, foreach=False)
    task.train()
    loss = task(moved, torch.Generator().manual_seed(0)).total
    assert loss.device.type == DEVICE.type
    loss.backward()
    optimizer.step()
    average.update(first=False)
    with average.swapped():
        assert task.evaluate([moved]).keys() == expected.keys()


def test_the_device_is_strict() -> None:
    """What the tests above would find."""
    one = OnDevice(torch.ones(2))
    doubles = [
        lambda: one.double(),
        lambda: one.to("cpu", torch.float64),
        lambda: torch.zeros(2, dtype=torch.float64, device=DEVICE),
        lambda: torch.tensor([1.0], dtype=torch.float64).to(DEVICE),
    ]
    for make in doubles:
        with pytest.raises(TypeError, match="no float64"):
            make()
    with pytest.raises(RuntimeError, match="mixes tensors"):
        torch.add(one, torch.ones(2))
    assert one.to("cpu").double().dtype == torch.float64
    assert torch.zeros(2, device=DEVICE).device.type == DEVICE.type


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classify hip", "regress", "autoencode"])
def test_metrics_that_count_on_the_device_are_found(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "SINGLE_PRECISION", set())
    task: Task
    task, batch = TASKS[name]()
    move_model(task)
    with pytest.raises((TypeError, RuntimeError, NotImplementedError)):
        task.evaluate([batch._map(lambda tensor: OnDevice(tensor))])
