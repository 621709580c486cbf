"""Specifications of accelerators, and the memory available to a process on this machine."""

import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from perceivers.errors import ConfigError, suggest

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
