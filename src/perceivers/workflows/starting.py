"""Checks before a run starts or resumes: settings without effect, changed data, memory."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch

from perceivers.data import Batch
from perceivers.data.fingerprints import compare_fingerprints, take_fingerprint
from perceivers.errors import ConfigError, DataError, RunError, UserError
from perceivers.files import read_json_file
from perceivers.models.registry import FAMILIES, list_models
from perceivers.nn.positions import LearnedPositions
from perceivers.plan.counting import (
    Precision,
    StepCounter,
    StepCounts,
    count_weights,
    extrapolate,
    meta_copy,
)
from perceivers.plan.estimates import GIGA, USABLE, Free, free_device_memory, free_host_memory
from perceivers.settings import default_of, refuse_unused
from perceivers.tasks import Autoencoding, Task
from perceivers.training.config import TrainConfig
from perceivers.training.launching import ADDRESSES
from perceivers.training.run_folder import RunFolder, read_fingerprint, write_fingerprint
from perceivers.types import ModalitySpec
from perceivers.workflows.planning import blank_batch
from perceivers.workflows.task_table import Prepared, tasks

# -- Settings that have no effect with the given data and model: they are refused ----------------
#
# Conditions on other settings are declared with the fields (``perceivers.settings.UsedIf``); those
# below need the opened data and the built model.


def own_validation(config: TrainConfig, prepared: Prepared) -> str:
    """Explain why ``val_share`` has no effect: the data have a validation split."""
    return "" if prepared.dataset.carved else f"on {config.data}, which has a val split of its own"


def alone(config: TrainConfig, prepared: Prepared) -> str:
    """Explain why ``timeout_minutes`` has no effect: there are no processes to wait for."""
    single = config.devices * config.nodes == 1 and config.strategy == "auto"
    return "with a single process (devices and nodes are 1)" if single else ""


def without_tables(config: TrainConfig, prepared: Prepared) -> str:
    """Explain why ``optimizer.position_lr`` has no effect: positions are not learned."""
    learned = any(isinstance(m, LearnedPositions) for m in prepared.task.model.modules())
    return "" if learned else f"on {config.model}, which has no learned positions"


def without_label(config: TrainConfig, prepared: Prepared) -> str:
    """Explain why ``autoencode.label_mask`` has no effect: no label is autoencoded."""
    labels = prepared.task.labels if isinstance(prepared.task, Autoencoding) else []
    return "" if labels else f"on {config.data}, which has no label to autoencode"


def never_patient(config: TrainConfig, prepared: Prepared) -> str:
    """Explain why ``patience`` has no effect: there are too few evaluations."""
    count = -(-config.steps // config.eval_every)
    if count > config.patience or config.limit:
        return ""
    return f"in {config.steps} steps with {count} evaluations (eval_every)"


def other_size(config: TrainConfig, prepared: Prepared) -> str:
    """Explain why ``size`` has no effect: ``inputs`` sets the size of images."""
    side = config.size
    read = {n: s.grid for n, s in prepared.specs.items() if s.takes_size}
    if not read or any(grid == (side, side) for grid in read.values()):
        return ""
    return f"because inputs set the image size to {read}"


def other_channels(config: TrainConfig, prepared: Prepared) -> str:
    """Explain why ``channels`` has no effect: the trained model determines them."""
    read = {n: s.channels for n, s in prepared.specs.items() if s.takes_size}
    if not read or config.channels in read.values():
        return ""
    return f"on {config.model}, which reads {read} channels"


# Setting -> function that returns why it has no effect in a run, or "" if it has one.
REASONS: Mapping[str, Callable[[Any, Prepared], str]] = {
    "val_share": own_validation,
    "timeout_minutes": alone,
    "optimizer.position_lr": without_tables,
    "autoencode.label_mask": without_label,
    "patience": never_patient,
    "size": other_size,
    "channels": other_channels,
}


def check_effects(config: TrainConfig, prepared: Prepared) -> None:
    """Refuse settings that the run would ignore.

    Args:
        config: Settings of the run.
        prepared: Its data and model.

    Raises:
        ConfigError: A setting has no effect; the message explains why.
    """
    for name, explain in REASONS.items():
        group, _, key = name.rpartition(".")
        part = getattr(config, group, None) if group else config
        if part is None:
            continue
        value = getattr(part, key)
        if value == default_of(type(part).__dataclass_fields__[key]):
            continue
        if reason := explain(config, prepared):
            refuse_unused(name, f"{name}={value!r} has no effect {reason}; leave it out")


# -- Runs of earlier versions, which continue with the data as those versions read them ----------

NOTE = (
    "this run was started by a version that looked for sound in the first video only; it continues "
    "without sound"
)


def prepare_again(
    task: str, config: TrainConfig, folder: RunFolder
) -> tuple[Prepared, TrainConfig]:
    """Prepare a run for resuming; return it with the settings to continue with.

    Earlier versions decided by the first video whether all videos have sound. If such a run has a
    model without sound, ``modalities`` is set to what the model reads.

    Args:
        task: A name in ``TASKS``.
        config: Settings of the run.
        folder: Run folder, whose last model defines what is read.

    Raises:
        UserError: A setting or the data cannot be used.
    """
    prepared = tasks()[task].prepare(config)
    names = _recorded_inputs(folder)
    read = tuple(prepared.specs)
    if config.modalities or "audio" not in read or "video" not in names or "audio" in names:
        return prepared, config
    config = replace(config, modalities=names)
    prepared = tasks()[task].prepare(config)
    prepared.notes.append(NOTE)
    return prepared, config


def _recorded_inputs(folder: RunFolder) -> tuple[str, ...]:
    """Return the inputs of the last model; empty if they are unknown."""
    path = folder.last_model / "config.json"
    if not path.is_file():
        return ()
    found = read_json_file(path)
    try:
        return tuple(FAMILIES[found["family"]].config.from_json(found["config"]).data_inputs)
    # Damage is reported where the folder is needed; the training state is stored elsewhere.
    except (AttributeError, KeyError, TypeError, ValueError):
        return ()


# -- Before a run is resumed: do its data still exist, and are they unchanged? -------------------


def check_presence(folder: RunFolder, config: TrainConfig) -> None:
    """Check that the data and the initial model of a run still exist.

    Raises:
        RunError: They do not exist at the address in the run's settings.
    """
    for name, (_, is_there) in ADDRESSES.items():
        address = getattr(config, name)
        if not is_there(address):
            raise RunError(
                f"{folder.path}: the {name} at {address} no longer exists; if it moved, give its "
                f"new address: perceivers resume {folder.path} --{name} ADDRESS"
            )


def compare_data(folder: RunFolder, prepared: Prepared, *, accept: bool) -> Callable[[], None]:
    """Compare the data with those that a run was started with.

    Args:
        folder: Run folder.
        prepared: Has the data; notes on the result are added to it.
        accept: Continue with changed data.

    Returns:
        Function that records the data, to be called when the run continues.

    Raises:
        DataError: The data have changed, and ``accept`` is off.
    """
    found, before = take_fingerprint(prepared.dataset), read_fingerprint(folder)
    if before is None:
        prepared.notes.append(
            "this run kept no record of its data, so changes cannot be detected; it keeps one from "
            "here on"
        )
        return partial(write_fingerprint, folder, found)
    differences = compare_fingerprints(before, found)
    if not differences:
        return lambda: None
    what = "; ".join(differences)
    if not accept:
        raise DataError(
            f"{folder.path}: the data have changed since the run was started: {what}. Restore "
            f"them, or continue with the changed data: --accept_changed_data"
        )
    prepared.notes.append(f"the data changed, which was accepted: {what}")
    return partial(write_fingerprint, folder, found, accepted=differences)


# -- Before a run starts: does its first step fit into memory, and if not, what would? -----------
#
# The step is counted without being computed. A run that does not fit is refused, because the
# operating system kills a process that runs out of memory without an error message.

# Generous upper bounds in bytes: per raw element, per parameter and sample, and per parameter. Runs
# that fit even with these are not counted, which saves about a second.
ELEMENT_BYTES, PARAMETER_BYTES, WEIGHT_BYTES = 1 << 16, 16, 64
SURELY_FREE = 0.25
# Batches in memory: the samples and their stack; with workers, one in progress and two prefetched.
COPIES, WORKER_COPIES = 2, 3
# A checkpoint copies the whole state, to write it in the background; the file of a model folder is
# assembled in memory and copied once.
MODEL_COPIES = 2
HALVINGS = 7


@dataclass(frozen=True)
class Need:
    """Bytes that a run will allocate in addition to the present ones.

    Args:
        device: On the compute device.
        host: In main memory; on a CPU this includes the step.
        exact: Whether the step was counted; otherwise the run takes more.
    """

    device: float
    host: float
    exact: bool


@dataclass(frozen=True)
class FreeMemory:
    """Free memory on the device (None on a CPU) and in main memory."""

    device: Free | None
    host: Free

    def shortage(self, need: Need, usable: float = 1.0) -> tuple[float, Free] | None:
        """Return the required bytes and the limit that they exceed; None if everything fits."""
        if self.device is not None and need.device > usable * self.device.bytes:
            return need.device, self.device
        return (need.host, self.host) if need.host > usable * self.host.bytes else None


@dataclass(frozen=True)
class EstimatedRun:
    """A run whose memory is estimated.

    Args:
        config: Settings of the run.
        prepared: Task and data of the run.
        device: Compute device.
        precision: Precision of a step.
        task: The run's task, or a copy with other input sizes, on any device.
        specs: Specs of what loaders return.
    """

    config: TrainConfig
    prepared: Prepared
    device: torch.device
    precision: Precision
    task: Task
    specs: Mapping[str, ModalitySpec]

    def resized(self, specs: Mapping[str, ModalitySpec]) -> "EstimatedRun":
        """Return the same run with other input sizes.

        Raises:
            UserError: The model does not support these sizes.
        """
        model = self.task.model
        with torch.device("meta"):
            other = type(model)(replace(model.config, inputs={**model.config.inputs, **specs}))
        task = meta_copy(self.task, model=other)
        return replace(self, task=task, specs=other.config.data_inputs)

    def estimate(self, **changes: Any) -> Need:
        """Estimate the memory of the run with some settings changed.

        Args:
            changes: ``batch_size``, ``accumulate`` or ``recompute``.
        """
        config = replace(self.config, **changes)
        return self.add_up(config, self.count(part_size(config), recompute=config.recompute))

    def count(self, batch_size: int, *, recompute: bool = False) -> StepCounts | None:
        """Count a step; None if its operations depend on input values."""
        counter = StepCounter(
            lambda: meta_copy(self.task),
            self.make_batch,
            precision=self.precision,
            recompute=recompute,
            may_compute=False,
        )
        try:
            return counter.count(batch_size)
        except (RuntimeError, UserError):
            # The step inspects values, which are unavailable or, as zeros, invalid.
            return None

    def add_up(self, config: TrainConfig, step: StepCounts | None) -> Need:
        """Add up a step, the state between steps, loaders and checkpoints."""
        weights = count_weights(self.task.model, self.precision)
        shards = config.devices * config.nodes if config.strategy == "fsdp" else 1
        peak = max(weights.gradient_bytes / shards, 0.0 if step is None else step.peak)
        if shards > 1:
            peak += weights.bytes  # upper bound of the weights that FSDP gathers at one time
        exact = step is not None
        moments = weights.optimizer_bytes / shards
        average = weights.bytes / shards if config.ema else 0.0
        held = weights.bytes / shards + moments + average
        saved = held + MODEL_COPIES * weights.bytes
        batch = config.batch_size * self.sample_bytes
        loaders = batch * (WORKER_COPIES * config.workers if config.workers else COPIES)
        if self.device.type == "cuda":
            return Need(held + peak, config.devices * (loaders + saved), exact)
        # The weights of the run itself are already in main memory.
        fresh = 0.0 if self.task is self.prepared.task else float(weights.bytes)
        every = fresh + moments + average + loaders + peak + saved
        return Need(0.0, config.devices * every, exact)

    @property
    def sample_bytes(self) -> float:
        """Bytes of one sample as returned by loaders."""
        return float(
            sum(
                prod(spec.raw_shape) * np.dtype(spec.raw_dtype).itemsize
                for spec in self.specs.values()
            )
        )

    @property
    def is_small(self) -> bool:
        """Whether the run fits even with generous upper bounds, so that counting is not needed."""
        weights = sum(p.numel() for p in self.task.model.parameters())
        elements = sum(prod(spec.raw_shape) for spec in self.specs.values())
        step = self.config.batch_size * (elements * ELEMENT_BYTES + weights * PARAMETER_BYTES)
        return step + weights * WEIGHT_BYTES < SURELY_FREE * free_host_memory().bytes

    def make_batch(self, size: int) -> Batch:
        """Return a batch of zeros in the format of the loaders."""
        batch = blank_batch(self.specs, size)
        source = self.prepared.dataset.splits["train"]
        labels, targets, present = None, None, {}
        if source.labels is not None:
            labels = torch.zeros(size, *source.labels.shape[1:], dtype=torch.int64)
        if source.targets is not None:
            targets = torch.zeros(size, *source.targets.shape[1:])
        if source.present:
            present = {name: torch.ones(size, dtype=torch.bool) for name in self.specs}
        return replace(batch, labels=labels, targets=targets, present=present)


def check_memory(
    config: TrainConfig, prepared: Prepared, device: torch.device, precision: str
) -> None:
    """Check that a run fits into memory.

    Args:
        config: Settings of the run.
        prepared: Its data and its model, which is in main memory.
        device: Compute device.
        precision: ``float32``, ``bf16`` or ``bf16-pure``.

    Raises:
        ConfigError: The run does not fit; the message suggests settings that do.
    """
    if config.memory_limit == 0 or device.type not in {"cpu", "cuda"}:
        return
    checked: Any = precision
    subject = EstimatedRun(config, prepared, device, checked, prepared.task, prepared.specs)
    room = find_room(config, device)
    if config.memory_limit is None and device.type == "cpu" and subject.is_small:
        return
    found = room.shortage(subject.estimate())
    if found is None:
        return
    needed, limit = found
    raise ConfigError(
        f"a step of batch_size={config.batch_size} on {_describe(prepared.specs)} takes about "
        f"{needed / GIGA:.1f} GB, but {limit.limit} leaves {limit.bytes / GIGA:.1f} GB. "
        f"{_advise(subject, room)} --memory_limit GB sets another limit, and 0 switches this check "
        f"off"
    )


def part_size(config: TrainConfig) -> int:
    """Return the number of samples that are computed at one time."""
    return -(-config.batch_size // config.accumulate)


def find_room(config: TrainConfig, device: torch.device) -> FreeMemory:
    """Return the memory that a run may take: free memory, or the limit in its settings."""
    if config.memory_limit:
        given = Free(config.memory_limit * GIGA, "memory_limit")
        return (
            FreeMemory(None, given)
            if device.type == "cpu"
            else FreeMemory(given, free_host_memory())
        )
    on_device = free_device_memory(device) if device.type == "cuda" else None
    return FreeMemory(on_device, free_host_memory())


def _advise(subject: EstimatedRun, room: FreeMemory) -> str:
    fits = [words for words in _find_fits(subject, room) if words]
    return f"What fits: {'; or '.join(fits)}." if fits else "Use a smaller model or more memory."


def _find_fits(subject: EstimatedRun, room: FreeMemory) -> Iterator[str]:
    def fits(tried: EstimatedRun, **changes: Any) -> bool:
        need = tried.estimate(**changes)
        return need.exact and room.shortage(need, USABLE) is None

    config = subject.config
    size, copies = config.batch_size, config.augment.copies
    if not config.recompute and fits(subject, recompute=True):
        yield "--recompute true (more time)"
    whole = part_size(config)
    one, all_at_once = (subject.count(n, recompute=config.recompute) for n in (1, whole))

    def fits_in_parts(**changes: int) -> bool:
        changed = replace(config, **changes)
        if one is None or all_at_once is None:
            return False
        # The peak is convex in the batch size, so a line between two counts is an upper bound.
        step = extrapolate(one, all_at_once, part_size(changed)) if whole > 1 else one
        return room.shortage(subject.add_up(changed, step), USABLE) is None

    parts = [p for p in _doubled(2 * config.accumulate, size) if size % p == 0]
    found = next((p for p in parts if fits_in_parts(accumulate=p)), 0)
    if found:
        yield f"--accumulate {found} (the same batch in parts)"
    fitting = (n for n in range(size - size % copies, 0, -copies) if n < size)
    smaller = next((n for n in fitting if fits_in_parts(batch_size=n, accumulate=1)), 0)
    if smaller:
        yield f"--batch_size {smaller}" + (" --accumulate 1" if config.accumulate > 1 else "")
    yield _fit_sizes(subject, fits)


def _doubled(first: int, last: int) -> Iterator[int]:
    while first <= last:
        yield first
        first *= 2


def _fit_sizes(subject: EstimatedRun, fits: Callable[[EstimatedRun], bool]) -> str:
    """Alternately halve the sides of images and videos and the frames of videos until they fit."""
    config, specs = subject.config, dict(subject.task.model.config.data_inputs)
    # Targets on the grid of an input would need its new size, and trained weights have a fixed one.
    if config.model not in list_models() or subject.specs.keys() != specs.keys():
        return ""
    changed: dict[str, dict[str, int]] = {}
    for halving in range(HALVINGS):
        fields = ("height", "width") if halving % 2 == 0 else ("frames",)
        for name, spec in specs.items():
            halved = {f: getattr(spec, f) // 2 for f in fields if getattr(spec, f, 0) > 1}
            if halved:
                specs[name] = replace(spec, **halved)
                changed[name] = {**changed.get(name, {}), **halved}
        try:
            if changed and fits(subject.resized(specs)):
                given = {**config.inputs}
                sizes = {n: {**given.get(n, {}), **changed.get(n, {})} for n in given | changed}
                return f"--inputs '{json.dumps(sizes)}'"
        except UserError:  # the model does not support this size
            continue
    return ""


def _describe(specs: Mapping[str, ModalitySpec]) -> str:
    return ", ".join(
        f"{name} {' x '.join(map(str, spec.raw_shape))}" for name, spec in specs.items()
    )
