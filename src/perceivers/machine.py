"""Properties of the machine, and a persistent cache of choices made by measurements on it.

Measurements vary, but choices based on them must not, or runs would not be reproducible bit for
bit. So each is made once per processor, torch version and number of threads, and stored in the
user's cache folder (or in ``PERCEIVERS_CACHE``). Delete the folder to measure again.
"""

import os
import platform
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from platformdirs import user_cache_path

from perceivers.errors import CheckpointError
from perceivers.files import read_json_file, write_json

VARIABLE = "PERCEIVERS_CACHE"
# Entries of /proc/cpuinfo that identify a processor; names such as "AMD EPYC" are not enough.
CPU_ENTRIES = ("model name", "vendor_id", "cpu family", "model", "stepping")


@cache
def cpu_entries() -> dict[str, str]:
    """Return the /proc/cpuinfo entries of the first processor; empty if there are none."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0].splitlines()
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def cpu_flags() -> set[str]:
    """Return the instruction sets of this processor; empty if unknown."""
    entries = cpu_entries()
    return set((entries.get("flags") or entries.get("Features", "")).split())  # x86, ARM


def cpu_name() -> str:
    """Return the name of the processor."""
    return cpu_entries().get("model name") or platform.processor() or platform.machine()


def has_fast_bf16() -> bool:
    """Return whether this processor multiplies bf16 in hardware, not via float32."""
    return bool(cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})


def core_count() -> int:
    """Return the number of CPUs that this process may use (before Python 3.13: of all CPUs)."""
    count = os.process_cpu_count() if sys.version_info >= (3, 13) else os.cpu_count()
    return count or 1


def remembered(name: str, measure: Callable[[], str]) -> str:
    """Return the cached result of a measurement, taken once on this kind of machine.

    Args:
        name: Name of the measurement, including everything it depends on besides the machine.
        measure: Called if there is no cached result.
    """
    path = _cache_file()
    key = f"{name} | {_machine()}"
    with suppress(CheckpointError):  # missing or damaged: measure again
        found = read_json_file(path).get(key)
        if isinstance(found, str):
            return found
    found = measure()
    known = {}
    with suppress(CheckpointError):
        known = read_json_file(path)
    with suppress(OSError):  # without a writable cache, measure every time
        write_json(path, {**known, key: found})
    return found


def _machine() -> str:
    entries = cpu_entries()
    cpu = ", ".join(entries[name] for name in CPU_ENTRIES if name in entries) or cpu_name()
    return f"{cpu} | torch {torch.__version__} | {torch.get_num_threads()} threads"


def _cache_file() -> Path:
    folder = os.environ.get(VARIABLE, "").strip()
    return (Path(folder) if folder else user_cache_path("perceivers")) / "measured.json"
