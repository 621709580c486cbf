"""Settings of a plan, and estimates of memory, time, bandwidth, storage and cost."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from perceivers.errors import ConfigError
from perceivers.plan.counting import Precision, StepCounts, Weights
from perceivers.settings import Count, Natural, NonNegative, Positive, Range, Settings, UsedIf

# ------------------------------------------------------------------------------------------------
# Settings, for Python and the command line.


DEFAULT_UTILISATION = 0.35
ASSUMED = UsedIf("measure", 0, otherwise="where --measure finds the speed of this machine")


@dataclass(frozen=True, kw_only=True)
class PlanSettings(Settings, prefix=""):
    """Run to plan, and hardware to plan it for."""

    model: str
    """A variant name ('perceivers models'); with --data also a model or run folder."""
    task: str = ""
    """Task as in training; by default pretrain if the model supports it, else classify."""
    data: str = ""
    """A data address, from which sizes and classes are read, instead of --inputs alone."""
    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Modalities by name, such as {video: {frames: 8, height: 224, width: 224}}. With --data they
    override the data's sizes; without both, the variant's own are used."""
    classes: Annotated[Count, UsedIf("data", "", otherwise="where --data has its own")] = 1000
    """Number of classes of a classifier that is planned without data."""
    batch_size: Count = 64
    """Samples per step and device."""
    accumulate: Count = 1
    """Number of parts that a batch is split into for gradient accumulation."""
    precision: Precision = "bf16"
    """bf16 (autocast), float32 or bf16-pure."""
    recompute: bool = False
    """Recompute layers in the backward pass."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Further settings of the training command, such as {mask: {ratio: 0.6}}."""
    samples: NonNegative = 0.0
    """Number of samples of the dataset; by default that of --data."""
    epochs: Annotated[Positive, UsedIf("steps", 0)] = 1.0
    """Number of passes over the dataset."""
    steps: Natural = 0
    """Optimizer steps of the run, instead of epochs."""
    device: str = "h100"
    """Accelerator: h200, h100, a100, a100_40, l40s, l4, rtx4090 or mi300x."""
    memory: NonNegative = 0.0
    """Memory per device in GB; by default that of the device."""
    peak: Annotated[NonNegative, ASSUMED] = 0.0
    """Peak speed per device in TFLOP/s; by default that of the device."""
    devices: Count = 1
    """Number of devices that train together, over all nodes."""
    sharded: Annotated[bool, UsedIf("devices", above=1)] = False
    """Shard weights, gradients and moments over the devices (FSDP)."""
    utilisation: Annotated[float, Range(above=0, most=1), ASSUMED] = DEFAULT_UTILISATION
    """Fraction of the peak speed that a step reaches, 0..1 (model FLOPs utilisation)."""
    measure: Natural = 0
    """Number of steps to run on this machine; their speed replaces peak and utilisation."""
    sample_bytes: NonNegative = 0.0
    """Size of a stored sample in bytes; by default that of --data if it consists of shards."""
    hourly_cost: NonNegative = 0.0
    """Price per device and hour."""

    def __post_init__(self) -> None:
        """Reject values out of range."""
        super().__post_init__()
        if self.batch_size % self.accumulate:
            raise ConfigError(
                f"batch_size={self.batch_size} does not divide into accumulate={self.accumulate} "
                f"parts"
            )


# -- Estimates from the counts of a step ---------------------------------------------------------

# Usable fraction of a device's memory; the rest is for driver, fragmentation and communication.
USABLE = 0.9
SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Args:
        weights: Parameters, and their moving average if there is one.
        gradients: Gradients of the parameters.
        optimizer: The optimizer's moments.
        kept: Tensors that the forward pass saves for the backward pass.
        peak: Peak of the total.
    """

    weights: float
    gradients: float
    optimizer: float
    kept: float
    peak: float


@dataclass(frozen=True)
class Duration:
    """Time of a run, and what depends on it.

    Args:
        operations: Floating-point operations of the whole run.
        steps: Optimizer steps.
        samples_per_second: Throughput of all devices together.
        hours: Duration of the run.
        bandwidth: Bytes per second that all loaders read together; 0 if the sample size is unknown.
        storage: Bytes of the dataset; 0 if the sample size is unknown.
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
    """Return the bytes on a device between steps: weights, their average, and moments.

    Args:
        weights: Parameters of the model.
        averaged: Whether a moving average of the weights is kept.
        shards: Devices over which all of this is sharded (FSDP); 1 for one device or DDP. With
            FSDP, one full copy of the weights is added as an upper bound on gathered weights.
    """
    held = weights.bytes * (2 if averaged else 1) + weights.optimizer_bytes
    return held if shards == 1 else held / shards + weights.bytes


def estimate_memory(
    weights: Weights, step: StepCounts, *, averaged: bool = False, shards: int = 1
) -> Memory:
    """Estimate the memory of a training step on one device.

    Args:
        weights: Parameters of the model.
        step: Counts for the samples that a device computes at one time.
        averaged: Whether a moving average of the weights is kept.
        shards: Devices over which weights, gradients and moments are sharded (FSDP).
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
        weights: Parameters of the model.
        memory: Memory of the device in bytes, of which the fraction ``USABLE`` is available.
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
    """Estimate the duration of a run.

    Args:
        step: Counts of one step on one device.
        samples: Samples processed in the whole run, over all epochs and devices.
        batch_size: Samples per step of all devices together.
        rate: Operations per second that one device reaches.
        devices: Number of devices.
        sample_bytes: Size of a stored sample in bytes.
        stored: Number of samples of the dataset.
        hourly_cost: Price per device and hour, in any currency.
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
