"""Start the process of a measurement, and turn its output or failure into results."""

import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
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
