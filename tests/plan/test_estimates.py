"""Memory, time and cost by hand."""

import pytest

from perceivers.errors import ConfigError
from perceivers.plan.counting import StepCounts, Weights
from perceivers.plan.estimates import (
    MACHINES,
    estimate_duration,
    estimate_memory,
    find_machine,
    resident_bytes,
    spare_memory,
)

WEIGHTS = Weights(count=10, trained=10, bytes=40, gradient_bytes=40, optimizer_bytes=80)
STEP = StepCounts(batch_size=2, forward=100, step=300, kept=500, peak=600)


def test_memory_is_what_stays_and_the_peak_of_a_step() -> None:
    memory = estimate_memory(WEIGHTS, STEP)
    assert (memory.weights, memory.gradients, memory.optimizer) == (40, 40, 80)
    assert (memory.kept, memory.peak) == (500, 40 + 80 + 600)
    assert estimate_memory(WEIGHTS, STEP, averaged=True).peak == 760
    small = StepCounts(2, 100, 300, 5, 10)
    assert estimate_memory(WEIGHTS, small).peak == 40 + 80 + 40  # gradients, at least


def test_shards_divide_what_stays_and_gather_the_weights() -> None:
    assert resident_bytes(WEIGHTS, averaged=False, shards=4) == 120 / 4 + 40
    memory = estimate_memory(WEIGHTS, STEP, shards=4)
    assert (memory.weights, memory.gradients, memory.optimizer) == (10, 10, 20)
    assert memory.peak == 30 + 40 + 600
    assert spare_memory(WEIGHTS, 1000, shards=4) == pytest.approx(900 - 70)
    assert spare_memory(WEIGHTS, 1000, averaged=True) == pytest.approx(900 - 160)


def test_hours_follow_from_operations_and_speed() -> None:
    run = estimate_duration(
        step=STEP,
        samples=7200,
        batch_size=16,
        rate=15.0,
        devices=10,
        sample_bytes=50.0,
        stored=3600,
        hourly_cost=2.0,
    )
    assert run.operations == 150 * 7200
    assert run.steps == 450
    assert run.hours == pytest.approx(2.0)
    assert run.samples_per_second == pytest.approx(1.0)
    assert run.bandwidth == pytest.approx(50.0)
    assert run.storage == 180_000
    assert run.cost == pytest.approx(40.0)


def test_devices_are_found_by_name() -> None:
    assert find_machine("a100").peak == 312e12
    assert all(name == machine.name for name, machine in MACHINES.items())
    with pytest.raises(ConfigError, match=r"'h10' is not in the table .* --memory and --peak; did"):
        find_machine("h10")
