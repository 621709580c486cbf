"""Run measurements in processes of their own, and search for the largest size that fits."""

import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor, sqrt
from typing import Any, Literal

import torch

from perceivers.bench.child import OUT_OF_MEMORY, Request
from perceivers.bench.settings import Pass
from perceivers.machine import cpu_entries, cpu_name

# -- Context of the measurements: machine, libraries, environment --------------------------------


# Environment variables that affect the speed of a process.
VARIABLES = re.compile(
    r"(PERCEIVERS|OMP|MKL|KMP|GOMP|ONEDNN|DNNL|OPENBLAS|ATEN|TORCH|PYTORCH|CUDA|NVIDIA_TF32|MALLOC)_"
    r"|LD_PRELOAD$"
)


def describe_machine() -> dict[str, Any]:
    """Return processor, load, GPU, library versions and number of threads."""
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
    """Return the environment variables that affect the speed, by name."""
    return {name: os.environ[name] for name in sorted(os.environ) if VARIABLES.match(name)}


# -- Running a measurement in a process of its own -----------------------------------------------

Status = Literal["measured", "out of memory", "too slow", "failed"]
# The child imports the same modules as this process, whatever the working directory contains.
PROGRAM = "import sys; sys.path[:] = {path!r}; from perceivers.bench.child import main; main()"
TAIL = 2000


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One pass of one model at one size.

    Args:
        model: Name as given by the user.
        size: Side of the square images in pixels.
        round: Number of the round, from 1.
        name: The pass.
        status: ``measured``, or why it was not.
        seconds: Median time of ``repeats`` passes.
        repeats: Number of timed passes.
        peak_bytes: Peak memory of the process, or on the GPU, up to the end of the pass.
        kept_bytes: Bytes that the forward pass of a step saves for its backward pass.
        parameters: Number of parameters of the model.
        linear: Library for matrix products on a CPU; None for models of other libraries.
        message: Reason why it was not measured.
        inferred: Not tried, because the same model failed in this way before, at this or a smaller
            size.
    """

    model: str
    size: int
    round: int
    name: Pass
    status: Status
    seconds: float | None = None
    repeats: int = 0
    peak_bytes: int | None = None
    kept_bytes: int | None = None
    parameters: int | None = None
    linear: str | None = None
    message: str = ""
    inferred: bool = False


def run_child(request: Request, *, timeout: float, turn: int = 1) -> list[Measurement]:
    """Measure a model in a process of its own.

    Args:
        request: Model, size and passes to measure.
        timeout: Seconds after which the process is killed.
        turn: Number of the round.

    Returns:
        One measurement per pass, in order.
    """
    program = PROGRAM.format(path=[path for path in sys.path if path])
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        too_slow = False
        try:
            text, _ = process.communicate(json.dumps(request.to_json()).encode(), timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            text, _ = process.communicate()
            too_slow = True
        except BaseException:
            process.kill()
            process.wait()
            raise
        errors.seek(0)
        said = errors.read().decode(errors="backslashreplace")
    answers = [json.loads(line) for line in text.decode().splitlines() if line.startswith("{")]
    status, message = _ending(process.returncode, said)
    if too_slow:
        status, message = "too slow", f"it took more than {timeout:g} s (--timeout)"
    return _pair(request, answers, status, message, turn)


def _ending(code: int, said: str) -> tuple[Status, str]:
    """Return status and message for passes without a result, from the exit code."""
    if code == -signal.SIGKILL:
        return "out of memory", "the system killed the process, as it does when memory runs out"
    if code < 0:
        return "failed", f"the process ended with signal {-code}"
    last = said[-TAIL:].strip().splitlines()
    return "failed", last[-1] if last else f"the process ended with status {code}"


def _pair(
    request: Request, answers: Sequence[dict[str, Any]], status: Status, message: str, turn: int
) -> list[Measurement]:
    """Return one measurement per pass; passes after a failure get the status of that failure."""
    done = {answer["pass"]: answer for answer in answers if answer["status"] == "measured"}
    ends = [answer for answer in answers if answer["status"] not in {"measured", "kept"}]
    kept = next((answer["kept"] for answer in answers if answer["status"] == "kept"), None)
    peak = None
    if ends:
        known: Status = "out of memory" if ends[0]["status"] == OUT_OF_MEMORY else "failed"
        status, message, peak = known, ends[0]["message"], ends[0].get("peak") or None
    found = []
    for name in request.passes:
        where: dict[str, Any] = {
            "model": request.model,
            "size": request.size,
            "round": turn,
            "name": name,
        }
        if name in done:
            answer = done[name]
            found.append(
                Measurement(
                    **where,
                    status="measured",
                    seconds=answer["seconds"],
                    repeats=answer["repeats"],
                    peak_bytes=answer["peak"],
                    kept_bytes=kept if name == "step" else None,
                    parameters=answer["parameters"],
                    linear=answer["linear"],
                )
            )
        else:
            found.append(Measurement(**where, status=status, message=message, peak_bytes=peak))
    return found


# -- Search for the largest image that a model can be trained on within a memory limit -------------
#
# Memory grows nearly linearly with the number of inputs, so the line through two sizes predicts
# the next size to try. The reported size was run, and so was a larger one that did not fit.


# All sizes are multiples of this number, as Hiera requires.
GRID = 32
# The search ends when the smallest size that does not fit is at most this fraction larger.
TOLERANCE = 0.05
LARGEST = 16384
# Maximum number of sizes tried per limit.
MOST = 14


@dataclass(frozen=True, kw_only=True)
class Largest:
    """Largest size of a model within a limit.

    Args:
        model: Name as given by the user.
        limit: Memory limit in bytes.
        size: Largest size that fits, in pixels per side; 0 if none does.
        peak_bytes: Its peak memory.
        next_size: Smallest size tried that does not fit; None if all fit.
        next_status: Why it does not fit.
    """

    model: str
    limit: float
    size: int
    peak_bytes: int | None
    next_size: int | None
    next_status: Status | None


class Search:
    """Finds the largest size of one model for several limits, smallest first.

    Args:
        model: Name of the model.
        probe: Runs training steps at a size, within a limit in bytes.
        start: First size to try.
    """

    def __init__(self, model: str, probe: Callable[[int, float], Measurement], start: int) -> None:
        self._model, self._probe = model, probe
        self._start = max(GRID, start // GRID * GRID)
        # Peak memory of sizes that ran; for those that did not fit, the limit they exceeded.
        self._peaks: dict[int, int] = {}
        self._failed: dict[int, tuple[float, Status]] = {}

    def find(self, limit: float) -> Largest:
        """Return the largest size within a limit.

        Args:
            limit: Memory limit in bytes, not less than in the previous call.
        """
        size = max((s for s, peak in self._peaks.items() if peak <= limit), default=self._start)
        for _ in range(MOST):
            self._try(size, limit)
            low, high = self._bounds(limit)
            if low >= LARGEST or (high and self._is_near(low, high)):
                break
            size = self._next(low, high, limit)
        low, high = self._bounds(limit)
        ended = self._failed.get(high or 0)
        return Largest(
            model=self._model,
            limit=limit,
            size=low,
            peak_bytes=self._peaks.get(low),
            next_size=high,
            next_status=None if high is None else ended[1] if ended else "out of memory",
        )

    def _try(self, size: int, limit: float) -> None:
        """Run a size, unless it is already known whether it fits."""
        if size in self._peaks or (size in self._failed and self._failed[size][0] >= limit):
            return
        done = self._probe(size, limit)
        if done.status == "measured" and done.peak_bytes is not None:
            self._peaks[size] = done.peak_bytes
        else:
            # More memory would not help a size that is too slow or fails for another reason.
            forever = float("inf") if done.status in {"too slow", "failed"} else limit
            self._failed[size] = forever, done.status

    def _bounds(self, limit: float) -> tuple[int, int | None]:
        """Return the largest size that fits (0 if none does) and the smallest that does not."""
        low = max((size for size, peak in self._peaks.items() if peak <= limit), default=0)
        over = [size for size, peak in self._peaks.items() if peak > limit]
        over += [size for size, (most, _) in self._failed.items() if most >= limit]
        return low, min((size for size in over if size > low), default=None)

    def _is_near(self, low: int, high: int) -> bool:
        """Return whether nothing is left to try between two sizes."""
        # Sizes just below one that was too slow would take as long to give up.
        if high in self._failed and self._failed[high][1] != "out of memory":
            return True
        return high - low <= max(GRID, TOLERANCE * low)

    def _next(self, low: int, high: int | None, limit: float) -> int:
        """Return the size to try next: a multiple of the grid strictly between the bounds."""
        if not low:
            assert high is not None
            return max(GRID, high // 2 // GRID * GRID)
        guess = self._solve(low, limit)
        if guess <= low:
            # By the line, nothing larger fits; try the size just above to verify it.
            guess = ceil((1 + TOLERANCE) * low / GRID) * GRID
            guess = max(guess - GRID, low + GRID)
        if high is None:
            return min(guess, 4 * low, LARGEST)
        return guess if guess < high else max(low + GRID, (low + high) // 2 // GRID * GRID)

    def _solve(self, low: int, limit: float) -> int:
        """Return the size at which the line through the two largest that fit reaches the limit."""
        sizes = sorted(size for size, peak in self._peaks.items() if size <= low)
        if len(sizes) == 1:
            return 2 * low
        (n1, p1), (n2, p2) = ((size**2, self._peaks[size]) for size in sizes[-2:])
        if p2 <= p1:
            return 2 * low
        inputs = n2 + (limit - p2) * (n2 - n1) / (p2 - p1)
        return floor(sqrt(inputs) / GRID) * GRID
