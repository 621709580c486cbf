"""Numerical choices that a run's settings leave open: measured, recorded, and kept on resume.

``precision: auto`` and the library for matrix products are chosen by measurement when a run starts
and stored in ``numerics.json`` in its folder, so that it resumes bit for bit.
"""

import os
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import get_args

import torch

from perceivers.checkpoints.loading import Loaded
from perceivers.data import Batch, make_train_loader
from perceivers.data.augment import Views
from perceivers.errors import CheckpointError
from perceivers.files import read_json_file, write_json
from perceivers.machine import has_fast_bf16, remembered
from perceivers.models.compiling import CompiledParts, Uncompiled, check_compiler
from perceivers.nn.chunking import use_chunks
from perceivers.nn.linear import VARIABLE, Library, choose_library, onednn_works, use_linear
from perceivers.tasks import Task
from perceivers.tasks.metrics import device_of
from perceivers.training.config import TrainConfig
from perceivers.training.run_folder import RunFolder
from perceivers.training.runtime import Resolved, Runtime
from perceivers.workflows.task_table import Prepared


@dataclass(frozen=True)
class Numerics:
    """Numerical choices of a run.

    Attributes:
        device: Device type that they were made for.
        precision: Precision of steps and evaluations.
        linear: Library for float32 matrix products on CPUs.
        chunks: Whether long inputs in many groups are computed a few groups at a time.
    """

    device: str
    precision: Resolved
    linear: Library
    chunks: bool = True

    @contextmanager
    def used(self) -> Iterator[None]:
        """Apply ``linear`` and ``chunks`` inside the block; ``Runtime`` applies the precision."""
        with use_linear(self.linear), use_chunks(on=self.chunks):
            yield


def write_numerics(folder: RunFolder, numerics: Numerics) -> None:
    """Store the choices in the run folder."""
    write_json(folder.numerics, asdict(numerics))


def recall_numerics(
    folder: RunFolder, device: str, precision: Resolved
) -> tuple[Numerics, list[str]]:
    """Return the choices for a resumed run, and notes on what differs from before.

    Args:
        folder: Run folder.
        device: Device type on which the run resumes.
        precision: Precision that its settings give there without a measurement.

    Raises:
        CheckpointError: The record is damaged.
        ConfigError: ``PERCEIVERS_LINEAR`` has an invalid value.
    """
    if not folder.numerics.exists():
        note = (
            "this run was started by a version without oneDNN matrix products and without chunking "
            "of long inputs; it resumes with torch's own products and without chunks"
        )
        return Numerics(device, precision, "torch", chunks=False), [note]
    kept = _read(folder)
    notes = []
    if kept.device == device:
        precision = kept.precision
    elif kept.precision != precision:
        notes.append(
            f"this run computed in {kept.precision} on {kept.device} and resumes in {precision} on "
            f"{device}; its metrics may differ slightly from now on"
        )
    linear = kept.linear
    # The environment variable overrides the recorded choice.
    if os.environ.get(VARIABLE, "").strip() in get_args(Library):
        linear = choose_library()
    elif linear == "onednn" and not onednn_works():
        linear = "torch"
    if linear != kept.linear:
        notes.append(
            f"this run used {kept.linear} for matrix products and resumes with {linear}; its "
            f"metrics may differ in the last digits from now on"
        )
    return Numerics(device, precision, linear, kept.chunks), notes


def _read(folder: RunFolder) -> Numerics:
    found = read_json_file(folder.numerics)
    rules = {"precision": get_args(Resolved), "linear": get_args(Library), "chunks": (True, False)}
    for name, known in rules.items():
        value = found.get(name)
        # Compare types too, since ``1 in (True, False)`` holds.
        if value not in known or type(value) is not type(known[0]):
            raise CheckpointError(
                f"{folder.numerics} is damaged: {name} is {value!r}, expected "
                f"{' or '.join(map(str, known))}; restore it, or delete it to resume in float32 "
                f"with torch's own products"
            )
    return Numerics(str(found.get("device")), found["precision"], found["linear"], found["chunks"])


# -- Choose precision and matrix library of a new run, by measurement if the settings allow it -----


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
