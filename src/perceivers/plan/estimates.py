"""Hours, cost and memory of a training run on known machines."""

import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch

from perceivers.errors import ConfigError, suggest
from perceivers.plan.counting import Precision, StepCounts, Weights
from perceivers.settings import Count, Natural, NonNegative, Positive, Range, Settings, UsedIf

# -- Accelerators: memory and peak speed ---------------------------------------------------------
#
# Peaks are for dense matrix products in bf16, without sparsity, from the vendors' data sheets; a
# training step reaches a fraction of them.


GIGA, TERA = 1e9, 1e12


@dataclass(frozen=True)
class Machine:
    """One accelerator.

    Args:
        name: Name in settings.
        memory: Memory in bytes.
        peak: Peak floating-point operations per second.
        note: Full product name.
    """

    name: str
    memory: float
    peak: float
    note: str


MACHINES = {
    machine.name: machine
    for machine in (
        Machine("h200", 141 * GIGA, 989 * TERA, "NVIDIA H200 SXM"),
        Machine("h100", 80 * GIGA, 989 * TERA, "NVIDIA H100 SXM"),
        Machine("a100", 80 * GIGA, 312 * TERA, "NVIDIA A100 80 GB"),
        Machine("a100_40", 40 * GIGA, 312 * TERA, "NVIDIA A100 40 GB"),
        Machine("l40s", 48 * GIGA, 362 * TERA, "NVIDIA L40S"),
        Machine("l4", 24 * GIGA, 121 * TERA, "NVIDIA L4"),
        Machine("rtx4090", 24 * GIGA, 165 * TERA, "NVIDIA GeForce RTX 4090"),
        Machine("mi300x", 192 * GIGA, 1307 * TERA, "AMD Instinct MI300X"),
    )
}


def find_machine(name: str) -> Machine:
    """Return an accelerator by name.

    Raises:
        ConfigError: The name is not in the table.
    """
    if name not in MACHINES:
        raise ConfigError(
            f"device {name!r} is not in the table ({', '.join(MACHINES)}); for other devices give "
            f"--memory and --peak{suggest(name, MACHINES)}"
        )
    return MACHINES[name]


# ------------------------------------------------------------------------------------------------
# Memory that a process can still allocate: of the system, a container or a GPU.


SYSTEM = Path("/")


class Free(NamedTuple):
    """Bytes that can still be allocated, and what limits them."""

    bytes: float
    limit: str


def free_host_memory(root: Path = SYSTEM) -> Free:
    """Return the free main memory: the smallest of all limits, infinite if none is known.

    Args:
        root: Folder that contains ``proc`` and ``sys``.
    """
    return min(
        [*_of_system(root), *_of_groups(root), *_of_process(root), Free(float("inf"), "no limit")]
    )


def free_device_memory(device: torch.device) -> Free:
    """Return the free memory of a GPU, including unused memory that this process has reserved."""
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return Free(float(free + unused), f"the memory of {torch.cuda.get_device_name(device)}")


def _of_system(root: Path) -> Iterator[Free]:
    for line in _read(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable" and rest.split():
            yield Free(float(rest.split()[0]) * 1024, "the machine's free memory")
            return
    # Systems without /proc report at least the installed memory.
    if not (root / "proc").exists() and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        yield Free(float(total), "the machine's memory")


def _of_groups(root: Path) -> Iterator[Free]:
    """Yield the limits of this process's control groups, of version 2 and version 1."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        kinds, _, path = rest.partition(":")
        if number != "0" and "memory" not in kinds.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("" if number == "0" else "memory")
        limit, used, cache = (
            ("memory.max", "memory.current", "inactive_file")
            if number == "0"
            else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        )
        group = base / path.strip().lstrip("/")
        # Groups are nested, and a container may not see the group's own path.
        for folder in dict.fromkeys([group, *group.parents, base]):
            if not folder.is_relative_to(base):
                continue
            most, taken = _number(folder / limit), _number(folder / used)
            if most is not None and taken is not None:
                freed = _entry(folder / "memory.stat", cache)
                yield Free(max(0.0, most - taken + freed), "the memory limit of the container")


def _of_process(root: Path) -> Iterator[Free]:
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = _read(root / "proc/self/statm").split()
    if most != resource.RLIM_INFINITY and pages:
        taken = int(pages[0]) * os.sysconf("SC_PAGE_SIZE")
        yield Free(max(0.0, float(most - taken)), "the memory limit of the process (ulimit -v)")


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(path: Path) -> float | None:
    """Return the number in a file; None if it contains none, such as ``max``."""
    text = _read(path).strip()
    return float(text) if text.isdigit() else None


def _entry(path: Path, name: str) -> float:
    """Return a number by name from a file of ``name number`` lines; 0 if it is missing."""
    for line in _read(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return float(value)
    return 0.0


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
