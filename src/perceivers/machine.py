"""What kind of machine this is, and what was measured on it, kept from one process to the next.

A measurement never comes out twice alike. What is chosen by one must, so that a run can be repeated
to the bit: it is made once per processor, version of torch and number of threads, and written into
the user's cache folder (``PERCEIVERS_CACHE`` sets another). Delete the folder to measure again.
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
# What of /proc/cpuinfo tells processors apart; model names such as "AMD EPYC" do not.
CPU_ENTRIES = ("model name", "vendor_id", "cpu family", "model", "stepping")


@cache
def cpu_entries() -> dict[str, str]:
    """What the system says of the first processor; empty where it says nothing."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0].splitlines()
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def cpu_flags() -> set[str]:
    """Instruction sets of this processor, where the system tells."""
    entries = cpu_entries()
    return set((entries.get("flags") or entries.get("Features", "")).split())  # x86, ARM


def cpu_name() -> str:
    """The processor, as the system calls it."""
    return cpu_entries().get("model name") or platform.processor() or platform.machine()


def has_fast_bf16() -> bool:
    """Whether this processor multiplies bf16 in hardware, rather than by way of float32."""
    return bool(cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})


def core_count() -> int:
    """Processors that this process may use."""
    count = os.process_cpu_count() if sys.version_info >= (3, 13) else os.cpu_count()
    return count or 1


def remembered(name: str, measure: Callable[[], str]) -> str:
    """Return what ``measure`` found the first time that it was asked on this kind of machine.

    Args:
        name: What is measured, and everything that it depends on beside the machine.
        measure: Called where nothing is known.
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
    with suppress(OSError):  # a machine where nothing can be kept measures every time
        write_json(path, {**known, key: found})
    return found


def _machine() -> str:
    entries = cpu_entries()
    cpu = ", ".join(entries[name] for name in CPU_ENTRIES if name in entries) or cpu_name()
    return f"{cpu} | torch {torch.__version__} | {torch.get_num_threads()} threads"


def _cache_file() -> Path:
    folder = os.environ.get(VARIABLE, "").strip()
    return (Path(folder) if folder else user_cache_path("perceivers")) / "measured.json"
