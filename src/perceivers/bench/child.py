"""Measure one model at one size, in a process of its own: time, peak memory, saved activations.

The parent process measures nothing itself, because memory used by one model would count for the
next. Results are printed as JSON lines, and nothing else may be printed to standard output.
"""

import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from perceivers.bench.settings import Pass
from perceivers.bench.subjects import NUM_CLASSES, Built, build_subject, find_subject
from perceivers.nn.linear import linear_library

# -- Memory of a process, and memory that autograd saves -----------------------------------------
#
# ``PeakWatch`` ends a process that exceeds a limit. It reads the peak resident size, which the
# operating system records, so that a short peak between two checks is not missed. A limit on the
# address space would not work: libraries reserve far more of it than they use.


STATUS = Path("/proc/self/status")
# Seconds between two checks; memory grows by a few GB per second at most.
INTERVAL = 0.01


def peak_memory() -> int:
    """Return the peak resident size of this process in bytes."""
    try:
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    # Without /proc, as on macOS. On Linux this value would include the parent process.
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


class PeakWatch(threading.Thread):
    """Thread that calls ``exceeded(peak)`` and ends the process when its memory exceeds a limit.

    It also ends the process when its parent is gone.

    Args:
        limit: Maximum memory in bytes.
        exceeded: Called from this thread with the peak in bytes.
    """

    def __init__(self, limit: float, exceeded: Callable[[int], None]) -> None:
        super().__init__(daemon=True)
        self._limit, self._exceeded, self._parent = limit, exceeded, os.getppid()

    def run(self) -> None:
        """Check the memory until the process ends."""
        while True:
            peak = peak_memory()
            if peak > self._limit:
                self._exceeded(peak)
                os._exit(0)
            if os.getppid() != self._parent:
                os._exit(1)
            time.sleep(INTERVAL)


def saved_bytes(run: Callable[[], Any], own: Iterable[Tensor]) -> int:
    """Return the bytes that ``run`` saves for a backward pass, excluding the tensors ``own``."""
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


# -- Measuring one model at one size -------------------------------------------------------------
#
# The process reads a request as JSON from standard input and prints a line of JSON per pass, so
# that the parent has results even if a later pass fails. Output of libraries goes to standard
# error.


# Maximum number of repetitions of a fast pass, and maximum seconds for them; the median counts.
REPEATS, SECONDS = 10, 1.0
# Messages of torch when memory runs out on a CPU, for which it has no exception type.
NO_MEMORY = ("can't allocate memory", "not enough memory", "Cannot allocate memory")
OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True, kw_only=True)
class Request:
    """Request to measure one model at one size.

    Args:
        model: Name for ``find_subject``.
        size: Side of the square images in pixels.
        batch_size: Images per pass.
        passes: Passes in the order of measurement.
        device: ``cpu`` or ``cuda``.
        precision: ``float32``, ``bf16`` (autocast) or ``bf16-pure``.
        threads: Number of threads of torch; None for its default.
        limit: Maximum memory of the process in bytes; on a GPU, of the device memory.
        timed: Whether passes are timed after a warm-up; otherwise two are run, for their memory.
    """

    model: str
    size: int
    batch_size: int
    passes: tuple[Pass, ...]
    device: str
    precision: str
    threads: int | None
    limit: float
    timed: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


class Meter:
    """Runs and measures the passes of a model.

    Args:
        built: The model with its input.
        request: The request.
    """

    def __init__(self, built: Built, request: Request) -> None:
        self.module, self.device = built.module, torch.device(request.device)
        dtype = torch.bfloat16 if request.precision == "bf16-pure" else torch.float32
        self.module.to(dtype)
        self.pictures, self._run = built.pictures.to(dtype), built.run
        self._autocast = request.precision == "bf16"
        self._timed, self._is_ours = request.timed, ":" not in request.model
        self.targets = torch.randint(NUM_CLASSES, (len(self.pictures),), device=self.device)

    def measure(self, name: Pass) -> dict[str, Any]:
        """Run a pass once to warm up, then up to ``REPEATS`` times within ``SECONDS``.

        Returns:
            ``seconds`` (median; None if not timed), ``repeats``, ``peak`` in bytes (of the process
            or on the GPU), ``parameters``, and ``linear``, the library for matrix products (None
            for models of other libraries).
        """
        self.module.train(name == "step")
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        run = self.step if name == "step" else self.forward
        run()
        if not self._timed:
            run()  # the second pass needs up to 10 % more, because freed memory is fragmented
        times: list[float] = []
        while self._timed and len(times) < REPEATS and sum(times) < SECONDS:
            start = self._now()
            run()
            times.append(self._now() - start)
        return {
            "pass": name,
            "seconds": median(times) if times else None,
            "repeats": len(times),
            "peak": self.peak(),
            "linear": linear_library() if self._is_ours else None,
            "parameters": sum(p.numel() for p in self.module.parameters()),
        }

    def forward(self) -> None:
        """Run a forward pass without gradients."""
        with torch.no_grad():
            self._loss()

    def step(self) -> None:
        """Compute the classification loss and its gradients."""
        self.module.zero_grad(set_to_none=True)
        self._loss().backward()

    def count_kept(self) -> int:
        """Return the bytes that the forward pass of a step saves for its backward pass.

        No backward pass is run: some operations need the very tensors that they saved, not those
        returned by a hook.
        """
        self.module.zero_grad(set_to_none=True)
        own = (*self.module.parameters(), *self.module.buffers(), self.pictures, self.targets)
        return saved_bytes(self._loss, own)

    def peak(self) -> int:
        """Return the peak memory so far in bytes, of the process or on the GPU."""
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else peak_memory()

    def _loss(self) -> Any:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            return F.cross_entropy(self._run(self.pictures).float(), self.targets)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def measure(request: Request, answer: Callable[[Mapping[str, Any]], None]) -> None:
    """Build the model and measure its passes.

    Args:
        request: The request.
        answer: Called with the result of every pass, or with the reason why it failed.
    """
    device = torch.device(request.device)

    def give_up(peak: int, message: str = f"more than {request.limit / 1e9:.3g} GB") -> None:
        answer({"status": OUT_OF_MEMORY, "peak": peak, "message": message})

    try:
        if request.threads is not None:
            torch.set_num_threads(request.threads)
        if device.type == "cuda":
            total = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, request.limit / total))
        PeakWatch(inf if device.type == "cuda" else request.limit, give_up).start()
        torch.manual_seed(0)
        subject = find_subject(request.model)
        built = build_subject(subject, request.size, request.batch_size, device)
        meter = Meter(built, request)
        for name in request.passes:
            result = meter.measure(name)
            if result["peak"] > request.limit:
                give_up(result["peak"])
                return
            answer({"status": "measured", **result})
        if request.timed and "step" in request.passes:
            # Last, as it may need more memory than the passes measured above.
            answer({"status": "kept", "kept": meter.count_kept()})
    except (MemoryError, torch.OutOfMemoryError) as error:
        give_up(0, _first_line(error))
    except RuntimeError as error:
        if not any(words in str(error) for words in NO_MEMORY):
            raise
        give_up(0, _first_line(error))


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def main() -> None:
    """Read a request from standard input and print the results."""
    words = json.load(sys.stdin)
    request = Request(**{**words, "passes": tuple(words["passes"])})
    # Results go to the original standard output; everything else is redirected to standard error.
    answers = os.dup(1)
    os.dup2(2, 1)

    def answer(data: Mapping[str, Any]) -> None:
        # A single write smaller than a pipe's page is atomic, from any thread.
        os.write(answers, (json.dumps(data) + "\n").encode())

    try:
        measure(request, answer)
    except Exception as error:
        answer({"status": "failed", "message": f"{type(error).__name__}: {_first_line(error)}"})
        raise


if __name__ == "__main__":
    main()
