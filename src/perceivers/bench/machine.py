"""What the measured numbers depend on: the machine, the libraries, the environment."""

import os
import platform
import re
from typing import Any

import torch

from perceivers.machine import cpu_entries, cpu_name

# Variables that change how fast a process computes, whatever its code.
VARIABLES = re.compile(
    r"(PERCEIVERS|OMP|MKL|KMP|GOMP|ONEDNN|DNNL|OPENBLAS|ATEN|TORCH|PYTORCH|CUDA|NVIDIA_TF32|MALLOC)_"
    r"|LD_PRELOAD$"
)


def describe_machine() -> dict[str, Any]:
    """Return the processor, its load, and the versions and number of threads of torch."""
    entries = cpu_entries()
    return {
        "cpu": cpu_name(),
        "cpu_family_model": f"{entries.get('cpu family', '')}/{entries.get('model', '')}",
        "cores": os.cpu_count(),
        "load_average": [round(x, 2) for x in os.getloadavg()],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "dtype": str(torch.get_default_dtype()).removeprefix("torch."),
    }


def describe_environment() -> dict[str, str]:
    """Return the environment variables that change the speed, by name."""
    return {name: os.environ[name] for name in sorted(os.environ) if VARIABLES.match(name)}
