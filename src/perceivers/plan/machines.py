"""Accelerators by name: memory, and what the vendors state as their peak.

Peaks are dense matrix products in bf16, without sparsity, from the vendors' data sheets; a training
step reaches a share of them.
"""

from dataclasses import dataclass

from perceivers.errors import ConfigError, suggest

GIGA, TERA = 1e9, 1e12


@dataclass(frozen=True)
class Machine:
    """One accelerator.

    Args:
        name: What the user calls it.
        memory: Bytes.
        peak: Floating-point operations per second.
        note: Which one it is.
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
    """Return an accelerator by its name.

    Raises:
        ConfigError: It is not in the table.
    """
    if name not in MACHINES:
        raise ConfigError(
            f"device {name!r} is not in the table ({', '.join(MACHINES)}); for another one give "
            f"--memory and --peak{suggest(name, MACHINES)}"
        )
    return MACHINES[name]
