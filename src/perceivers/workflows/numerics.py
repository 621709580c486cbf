"""Choosing precision and library of a new run: by measurement, where the settings leave it open."""

import time
import zlib

import torch

from perceivers.data import Batch, make_train_loader
from perceivers.machine import has_fast_bf16, remembered
from perceivers.nn.linear import Library, choose_library, use_linear
from perceivers.tasks import Task
from perceivers.training.config import TrainConfig
from perceivers.training.numerics import Numerics, Resolved
from perceivers.training.runtime import Runtime
from perceivers.workflows.preparing import Prepared

# Measuring takes about a dozen passes; a shorter run stays in float32.
MEASURED_STEPS = 200
# bf16 rounds to three digits, so it must be worth while.
LEAST_GAIN = 1.15
MEASURED_SAMPLES, ROUNDS, MOST_SECONDS = 8, 5, 10.0


def choose_numerics(config: TrainConfig, prepared: Prepared, runtime: Runtime) -> Numerics:
    """Return how a new run computes; the main process decides for all.

    Raises:
        ConfigError: ``PERCEIVERS_LINEAR`` is no choice.
        DataError: No sample can be read.
    """
    chosen = None
    if runtime.is_main:
        library, precision = choose_library(), runtime.precision
        if may_use_bf16(config, runtime):
            subject = f"{prepared.task.model.config!r} {type(prepared.task).__name__}"
            name = f"precision of {zlib.crc32(subject.encode()):08x}, products by {library}"
            found = remembered(name, lambda: _faster(config, prepared, library))
            precision = "bf16" if found == "bf16" else "float32"
        chosen = Numerics(runtime.device.type, precision, library)
    return runtime.from_main(chosen)


def may_use_bf16(config: TrainConfig, runtime: Runtime) -> bool:
    """Tell whether ``precision: auto`` leaves a choice, and measuring is worth the time."""
    return (
        config.precision == "auto"
        and runtime.device.type == "cpu"
        and has_fast_bf16()
        and config.total_steps >= MEASURED_STEPS
    )


def _faster(config: TrainConfig, prepared: Prepared, library: Library) -> Resolved:
    copies = config.augment.copies
    size = max(copies, min(config.batch_size, MEASURED_SAMPLES) // copies * copies)
    batches = make_train_loader(
        prepared.dataset.splits["train"],
        prepared.specs,
        batch_size=size,
        seed=config.seed,
        augment=config.augment,
        start_step=0,
        num_steps=1,
    )
    with use_linear(library):
        gain = measure_half(prepared.task, next(iter(batches)))
    return "bf16" if gain >= LEAST_GAIN else "float32"


def measure_half(task: Task, batch: Batch) -> float:
    """Return how many times as fast a training step is under bf16 autocast on this CPU.

    Forward and backward passes alternate; the best of up to five counts, or of what fits into ten
    seconds. Weights, statistics of batch norms and the global generator stay as they were.
    """
    buffers = {name: buffer.clone() for name, buffer in task.named_buffers()}
    training = task.training
    best = {False: float("inf"), True: float("inf")}
    began = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        task.train()
        for number in range(ROUNDS + 1):
            for half in best:
                seconds = _step(task, batch, half=half)
                if number:  # the first one prepares
                    best[half] = min(best[half], seconds)
            if number and time.perf_counter() - began > MOST_SECONDS:
                break
    task.zero_grad(set_to_none=True)
    task.train(training)
    with torch.no_grad():
        for name, buffer in task.named_buffers():
            buffer.copy_(buffers[name])
    return best[False] / best[True]


def _step(task: Task, batch: Batch, *, half: bool) -> float:
    began = time.perf_counter()
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        losses = task(batch, torch.Generator().manual_seed(0))
    losses.total.backward()
    seconds = time.perf_counter() - began
    task.zero_grad(set_to_none=True)
    return seconds
