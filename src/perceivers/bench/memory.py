"""What a process has taken of memory, and what autograd keeps.

``PeakWatch`` ends a process that exceeds a limit. It reads the most that has ever been resident,
which the system keeps, so that a short peak between two looks is not missed. A limit on address
space would not do: libraries reserve far more of it than they use.
"""

import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STATUS = Path("/proc/self/status")
# Seconds between two looks; memory is taken at a few GB per second at most.
INTERVAL = 0.01


def peak_memory() -> int:
    """Return the most bytes that this process has ever had in main memory."""
    try:
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    # Without /proc, as on macOS. On Linux this would include the process that started this one.
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


class PeakWatch(threading.Thread):
    """Calls ``exceeded(peak)`` once the process has taken more than a limit, and then ends it.

    It also ends the process when the one that started it is gone.

    Args:
        limit: Bytes.
        exceeded: Called from this thread.
    """

    def __init__(self, limit: float, exceeded: Callable[[int], None]) -> None:
        super().__init__(daemon=True)
        self._limit, self._exceeded, self._parent = limit, exceeded, os.getppid()

    def run(self) -> None:
        """Look at the memory until the process ends."""
        while True:
            peak = peak_memory()
            if peak > self._limit:
                self._exceeded(peak)
                os._exit(0)
            if os.getppid() != self._parent:
                os._exit(1)
            time.sleep(INTERVAL)


def saved_bytes(run: Callable[[], Any], own: Iterable[Tensor]) -> int:
    """Count the bytes of all storages that ``run`` saves for a backward pass, but for ``own``."""
    excluded = {tensor.untyped_storage().data_ptr() for tensor in own}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in excluded:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()  # keeps the graph, so no address is used twice
    del result
    return sum(seen.values())
