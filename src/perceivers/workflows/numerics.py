"""Choose precision and matrix library of a new run, by measurement if the settings allow it."""

import time
import zlib
from collections.abc import Callable

import torch

from perceivers.checkpoints.loading import Loaded
from perceivers.data import Batch, make_train_loader
from perceivers.data.augment import Views
from perceivers.machine import has_fast_bf16, remembered
from perceivers.models.compiling import CompiledParts, Uncompiled, check_compiler
from perceivers.nn.linear import Library, choose_library, use_linear
from perceivers.tasks import Task
from perceivers.tasks.metrics import device_of
from perceivers.training.config import TrainConfig
from perceivers.training.numerics import Numerics, Resolved
from perceivers.training.runtime import Runtime
from perceivers.workflows.task_table import Prepared

# Measuring takes about a dozen passes, so shorter runs stay in float32.
MEASURED_STEPS = 200
# bf16 keeps only two to three decimal digits, so it must be clearly faster to be chosen.
LEAST_GAIN = 1.15
MEASURED_SAMPLES, ROUNDS, MOST_SECONDS = 8, 5, 10.0


def choose_numerics(config: TrainConfig, prepared: Prepared, runtime: Runtime) -> Numerics:
    """Choose device type, precision and library of a run; the main process decides for all.

    Raises:
        ConfigError: ``PERCEIVERS_LINEAR`` has an unknown value.
        DataError: No sample can be read.
    """
    chosen = None
    if runtime.is_main:
        library, precision = choose_library(), runtime.precision
        if may_use_bf16(config, runtime):
            # The result is cached on disk by model, task and library.
            subject = f"{prepared.task.model.config!r} {type(prepared.task).__name__}"
            name = f"precision of {zlib.crc32(subject.encode()):08x}, products by {library}"
            found = remembered(name, lambda: _faster(config, prepared, library))
            precision = "bf16" if found == "bf16" else "float32"
        chosen = Numerics(runtime.device.type, precision, library)
    return runtime.from_main(chosen)


def may_use_bf16(config: TrainConfig, runtime: Runtime) -> bool:
    """Return whether ``precision: auto`` leaves a choice, and measuring is worth the time."""
    return (
        config.precision == "auto"
        and runtime.device.type == "cpu"
        and has_fast_bf16()
        and config.total_steps >= MEASURED_STEPS
    )


def _faster(config: TrainConfig, prepared: Prepared, library: Library) -> Resolved:
    copies = config.augment.copies
    # A batch contains all copies of a sample.
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
    """Return the speed of a training step under bf16 autocast relative to float32, on the CPU.

    Steps of both precisions alternate. The fastest of five counts, or of fewer if these take more
    than ten seconds. Weights, batch norm statistics and the global random generator are unchanged.
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
                if number:  # the first round is a warm-up
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


# -- Compile a loaded model ----------------------------------------------------------------------


# Callback that receives a message for the user.
Note = Callable[[str], object]


def compile_loaded(
    loaded: Loaded, batch_size: int, views: Views | None = None, *, on: bool
) -> Uncompiled:
    """Compile a model for full batches if ``on``; smaller batches run uncompiled.

    Args:
        loaded: The model, modified in place.
        batch_size: Batch size, in views if there are several views per sample.
        views: Numbers of temporal and spatial views per sample.
        on: Whether to compile.

    Raises:
        ConfigError: This machine has no working compiler.
    """
    if not on:
        return Uncompiled()
    check_compiler(device_of(loaded.model).type)
    count = 1 if views is None else views.count
    return CompiledParts(loaded.model, [max(1, batch_size // count)])


def tell(compiled: Uncompiled, note: Note | None) -> None:
    """Report the outcome of compilation after all samples have been processed."""
    text = compiled.summary()
    if text and note is not None:
        note(text)
