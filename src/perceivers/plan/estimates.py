"""From the counts of a step to memory, hours, bandwidth, storage and cost."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from perceivers.errors import ConfigError
from perceivers.plan.counting import Precision, StepCounts, Weights
from perceivers.settings import Count, Natural, NonNegative, Positive, Range, Settings, UsedIf

# ------------------------------------------------------------------------------------------------
# What is planned, and for what machine; one set of fields serves Python and the command line.


DEFAULT_UTILISATION = 0.35
ASSUMED = UsedIf("measure", 0, otherwise="where --measure finds the speed of this machine")


@dataclass(frozen=True, kw_only=True)
class PlanSettings(Settings, prefix=""):
    """What is planned, and for what machine."""

    model: str
    """A variant name ('perceivers models'); with --data also a model or run folder."""
    task: str = ""
    """As in training; pretrain where the model can, else classify, when not given."""
    data: str = ""
    """A data address, whose sizes and classes are read, instead of --inputs alone."""
    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Modalities by name, such as {video: {frames: 8, height: 224, width: 224}}; changes of the
    data's sizes beside --data; the variant's own when neither is given."""
    classes: Annotated[Count, UsedIf("data", "", otherwise="where --data has its own")] = 1000
    """Classes of a classifier that is planned without data."""
    batch_size: Count = 64
    """Samples per step and device."""
    accumulate: Count = 1
    """Parts in which a batch is computed."""
    precision: Precision = "bf16"
    """bf16 (autocast), float32 or bf16-pure."""
    recompute: bool = False
    """Recompute layers in the backward pass."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Further settings of the training verb, such as {mask: {ratio: 0.6}}."""
    samples: NonNegative = 0.0
    """Samples of the data set; those of --data when not given."""
    epochs: Annotated[Positive, UsedIf("steps", 0)] = 1.0
    """Times that each is seen."""
    steps: Natural = 0
    """Steps of the run, instead of epochs."""
    device: str = "h100"
    """Accelerator: h200, h100, a100, a100_40, l40s, l4, rtx4090 or mi300x."""
    memory: NonNegative = 0.0
    """Memory per device in GB, instead of the table's."""
    peak: Annotated[NonNegative, ASSUMED] = 0.0
    """Operations per second per device in TFLOP/s, instead of the table's."""
    devices: Count = 1
    """Devices that train together, over all nodes."""
    sharded: Annotated[bool, UsedIf("devices", above=1)] = False
    """Divide weights, gradients and moments among the devices (FSDP)."""
    utilisation: Annotated[float, Range(above=0, most=1), ASSUMED] = DEFAULT_UTILISATION
    """Share of the peak that a step reaches, 0..1 (model FLOPs utilisation)."""
    measure: Natural = 0
    """Steps to run on this machine, whose speed then takes the place of peak and utilisation."""
    sample_bytes: NonNegative = 0.0
    """Size of a stored sample in bytes; that of --data where it is shards."""
    hourly_cost: NonNegative = 0.0
    """Price of one device for an hour."""

    def __post_init__(self) -> None:
        """Reject values out of range."""
        super().__post_init__()
        if self.batch_size % self.accumulate:
            raise ConfigError(
                f"batch_size={self.batch_size} does not divide into accumulate={self.accumulate} "
                f"parts"
            )


# -- From the counts of a step to memory, hours, bandwidth, storage and cost ---------------------

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
