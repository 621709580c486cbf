"""The process in which one model is measured at one size: time, peak memory, what is kept.

It prints one line of JSON. Nothing else may be printed, and nothing is measured in the process
that starts it: memory that one model has taken would count for the next.
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

# -- What a process has taken of memory, and what autograd keeps ---------------------------------
#
# ``PeakWatch`` ends a process that exceeds a limit. It reads the most that has ever been
# resident, which the system keeps, so that a short peak between two looks is not missed. A limit
# on address space would not do: libraries reserve far more of it than they use.


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


# -- The process in which one model is measured at one size --------------------------------------
#
# It reads a request as JSON from its standard input, and answers with a line of JSON per pass;
# what libraries print goes to standard error. A parent that has half of the lines still has
# results.


# Most repetitions of a fast pass, and most seconds for them; their median counts.
REPEATS, SECONDS = 10, 1.0
# What torch says on a CPU, where it raises no exception of its own for it.
NO_MEMORY = ("can't allocate memory", "not enough memory", "Cannot allocate memory")
OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True, kw_only=True)
class Request:
    """One model at one size.

    Args:
        model: As ``find_subject`` knows it.
        size: Pixels per side.
        batch_size: Images.
        passes: In the order in which they are measured.
        device: ``cpu`` or ``cuda``.
        precision: ``float32``, ``bf16`` (autocast) or ``bf16-pure``.
        threads: Of torch; None: its own choice.
        limit: Bytes that the process may take; on a GPU, the bytes there.
        timed: Whether passes are timed after a first one; else two are run, for their memory.
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
    """Runs the passes of a built model and measures each.

    Args:
        built: The model with its input.
        request: What is asked for.
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
        """Run a pass once to warm up, then as often as one second holds.

        Returns:
            ``seconds`` (median; None where it is not timed), ``repeats``, ``peak`` bytes of the
            process or on the GPU, ``parameters``, and ``linear``, the library of matrix products
            (None for peers).
        """
        self.module.train(name == "step")
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        run = self.step if name == "step" else self.forward
        run()
        if not self._timed:
            run()  # a second one takes up to a tenth more, as freed memory is in pieces by then
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
        """Compute logits without gradients."""
        with torch.no_grad():
            self._loss()

    def step(self) -> None:
        """Compute the loss of a classifier and its gradients."""
        self.module.zero_grad(set_to_none=True)
        self._loss().backward()

    def count_kept(self) -> int:
        """Count the bytes that the forward pass of a step keeps for its backward pass.

        Without a backward pass: some need the very tensors that they saved, not a hook's.
        """
        self.module.zero_grad(set_to_none=True)
        own = (*self.module.parameters(), *self.module.buffers(), self.pictures, self.targets)
        return saved_bytes(self._loss, own)

    def peak(self) -> int:
        """Return the most bytes so far, of the process or on the GPU."""
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
        request: What is asked for.
        answer: Called with the result of every pass, and with what went wrong.
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
            # Last, as it may take more memory than what was measured.
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
    """Answer the request on the standard input."""
    words = json.load(sys.stdin)
    request = Request(**{**words, "passes": tuple(words["passes"])})
    answers = os.dup(1)
    os.dup2(2, 1)

    def answer(data: Mapping[str, Any]) -> None:
        # One write of less than a pipe's page is whole, whichever thread makes it.
        os.write(answers, (json.dumps(data) + "\n").encode())

    try:
        measure(request, answer)
    except Exception as error:
        answer({"status": "failed", "message": f"{type(error).__name__}: {_first_line(error)}"})
        raise


if __name__ == "__main__":
    main()
