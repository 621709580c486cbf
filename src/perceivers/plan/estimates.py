"""From the counts of a step to memory, hours, bandwidth, storage and cost."""

from dataclasses import dataclass

from perceivers.plan.counting import StepCounts, Weights

# Of a device's memory; the rest is for the driver, the allocator's gaps and communication.
USABLE = 0.9
SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Args:
        weights: Parameters, and their moving average if there is one.
        gradients: Of the parameters.
        optimizer: The optimizer's moments.
        kept: What the forward pass leaves for the backward pass.
        peak: The most at one time, all together.
    """

    weights: float
    gradients: float
    optimizer: float
    kept: float
    peak: float


@dataclass(frozen=True)
class Duration:
    """Time and what follows from it.

    Args:
        operations: Of the whole run.
        steps: Optimizer steps.
        samples_per_second: Of all devices together.
        hours: Of the whole run.
        bandwidth: Bytes per second that all loaders read together; 0 if samples have no known size.
        storage: Bytes of the data; 0 likewise.
        cost: Devices x hours x price.
    """

    operations: float
    steps: int
    samples_per_second: float
    hours: float
    bandwidth: float
    storage: float
    cost: float


def resident_bytes(weights: Weights, *, averaged: bool, shards: int) -> float:
    """Return what stays on a device between steps: weights, their average, and moments.

    Args:
        weights: Of the model.
        averaged: Whether a moving average of the weights is kept.
        shards: Devices that divide all of it among them (FSDP); 1 for one device or DDP. A copy of
            all weights is then counted beside, as the most that is gathered at one time.
    """
    held = weights.bytes * (2 if averaged else 1) + weights.optimizer_bytes
    return held if shards == 1 else held / shards + weights.bytes


def estimate_memory(
    weights: Weights, step: StepCounts, *, averaged: bool = False, shards: int = 1
) -> Memory:
    """Add up what a step holds on one device.

    Args:
        weights: Of the model.
        step: Of the samples that a device computes at one time.
        averaged: Whether a moving average of the weights is kept.
        shards: Devices that divide weights, gradients and moments among them (FSDP).
    """
    resident = resident_bytes(weights, averaged=averaged, shards=shards)
    return Memory(
        weights=weights.bytes * (2 if averaged else 1) / shards,
        gradients=weights.gradient_bytes / shards,
        optimizer=weights.optimizer_bytes / shards,
        kept=step.kept,
        peak=resident + max(step.peak, weights.gradient_bytes / shards),
    )


def spare_memory(
    weights: Weights, memory: float, *, averaged: bool = False, shards: int = 1
) -> float:
    """Return the bytes that are left for a step on one device.

    Args:
        weights: Of the model.
        memory: Bytes of the device, of which ``USABLE`` are counted on.
        averaged: As for ``estimate_memory``.
        shards: As for ``estimate_memory``.
    """
    return memory * USABLE - resident_bytes(weights, averaged=averaged, shards=shards)


def estimate_duration(
    *,
    step: StepCounts,
    samples: float,
    batch_size: int,
    rate: float,
    devices: int = 1,
    sample_bytes: float = 0.0,
    stored: float = 0.0,
    hourly_cost: float = 0.0,
) -> Duration:
    """Return how long a run takes.

    Args:
        step: Counts of one step of one device.
        samples: That are seen in the whole run, all epochs and devices together.
        batch_size: Samples per step of all devices together.
        rate: Operations per second that one device reaches.
        devices: How many there are.
        sample_bytes: Size of a stored sample.
        stored: Samples of the data set.
        hourly_cost: Price of one device for an hour, in any currency.
    """
    operations = step.step / step.batch_size * samples
    seconds = operations / (rate * devices)
    hours = seconds / SECONDS_PER_HOUR
    return Duration(
        operations=operations,
        steps=-(-int(samples) // batch_size),
        samples_per_second=samples / seconds,
        hours=hours,
        bandwidth=samples / seconds * sample_bytes,
        storage=stored * sample_bytes,
        cost=hours * devices * hourly_cost,
    )
