"""What is checked before a run starts or goes on: settings, data of before, memory."""

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
from perceivers.data.loaders import BLANK_DTYPES
from perceivers.data.sources import PartialSource, TargetSource
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
from perceivers.plan.estimates import USABLE
from perceivers.plan.machines import GIGA, Free, free_device_memory, free_host_memory
from perceivers.settings import default_of, refuse_unused
from perceivers.tasks import Autoencoding, Task
from perceivers.training.config import TrainConfig
from perceivers.training.launching import ADDRESSES
from perceivers.training.run_folder import RunFolder, read_fingerprint, write_fingerprint
from perceivers.types import Image, ModalitySpec
from perceivers.workflows.planning import blank_batch
from perceivers.workflows.preparing import PREPARE, Prepared

# -- Settings whose effect depends on the data and the model: those given in vain are refused ----
#
# Conditions on other settings are declared beside the fields (``perceivers.settings.UsedIf``);
# here are the conditions that nobody knows before the data are open and the model is built.


def own_validation(config: TrainConfig, prepared: Prepared) -> str:
    """Why ``val_share`` has no effect: the data bring a split."""
    return "" if prepared.dataset.carved else f"on {config.data}, which has a val split of its own"


def alone(config: TrainConfig, prepared: Prepared) -> str:
    """Why nothing can be waited for: there is one process."""
    single = config.devices * config.nodes == 1 and config.strategy == "auto"
    return "where one process trains (devices and nodes are 1)" if single else ""


def without_tables(config: TrainConfig, prepared: Prepared) -> str:
    """Why there is no learning rate of positions: they are not learned."""
    learned = any(isinstance(m, LearnedPositions) for m in prepared.task.model.modules())
    return "" if learned else f"on {config.model}, which has no learned positions"


def without_label(config: TrainConfig, prepared: Prepared) -> str:
    """Why no label can be hidden: none is auto-encoded."""
    labels = prepared.task.labels if isinstance(prepared.task, Autoencoding) else []
    return "" if labels else f"on {config.data}, which has no label to auto-encode"


def never_patient(config: TrainConfig, prepared: Prepared) -> str:
    """Why a run never stops early: it ends before it has evaluated often enough."""
    count = -(-config.steps // config.eval_every)
    if count > config.patience or config.limit:
        return ""
    return f"in {config.steps} steps, which are evaluated {count} times (eval_every)"


def other_size(config: TrainConfig, prepared: Prepared) -> str:
    """Why a side is not that of the images: another setting gives their size."""
    side = config.size
    read = {n: s.grid for n, s in prepared.specs.items() if isinstance(s, Image)}
    if not read or any(grid == (side, side) for grid in read.values()):
        return ""
    return f"beside inputs, which give images the size {read}"


def other_channels(config: TrainConfig, prepared: Prepared) -> str:
    """Why the number of channels is another: it is that of the trained model."""
    read = {n: s.channels for n, s in prepared.specs.items() if isinstance(s, Image)}
    if not read or config.channels in read.values():
        return ""
    return f"on {config.model}, which reads {read} channels"


# Why a setting has no effect in a run, by its name; an empty reason where it has one.
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
        config: The run's settings.
        prepared: Its data and model.

    Raises:
        ConfigError: Names the setting, its value and why it has no effect.
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


# -- Runs of earlier versions, which go on with the data as these versions read them -------------

NOTE = "this run began when the first video decided on sound for all, and goes on without sound"


def prepare_again(
    task: str, config: TrainConfig, folder: RunFolder
) -> tuple[Prepared, TrainConfig]:
    """Prepare a run to be resumed, and return the settings with which it goes on.

    Whether videos had sound was once decided by the first of them for all. A run that began so has
    a model without sound, and now names what it reads.

    Args:
        task: A name of ``TASKS``.
        config: The run's settings.
        folder: Whose last model says what is read.

    Raises:
        UserError: A setting or the data are not usable.
    """
    prepared = PREPARE[task](config)
    names = _recorded_inputs(folder)
    read = tuple(prepared.specs)
    if config.modalities or "audio" not in read or "video" not in names or "audio" in names:
        return prepared, config
    config = replace(config, modalities=names)
    prepared = PREPARE[task](config)
    prepared.notes.append(NOTE)
    return prepared, config


def _recorded_inputs(folder: RunFolder) -> tuple[str, ...]:
    """Return what the last model reads; nothing where that is not known."""
    path = folder.last_model / "config.json"
    if not path.is_file():
        return ()
    found = read_json_file(path)
    try:
        return tuple(FAMILIES[found["family"]].config.from_json(found["config"]).data_inputs)
    # A damaged folder is named where it is needed; the run's state lies elsewhere.
    except (AttributeError, KeyError, TypeError, ValueError):
        return ()


# -- Before a run is resumed: are its data where they were, and are they the same? ---------------


def check_presence(folder: RunFolder, config: TrainConfig) -> None:
    """Refuse to resume without the data, or the model that training started from.

    Raises:
        RunError: They are not where the run's settings say.
    """
    for name, (_, is_there) in ADDRESSES.items():
        address = getattr(config, name)
        if not is_there(address):
            raise RunError(
                f"{folder.path}: there is no {name} at {address} any more; if it moved, say where "
                f"it is: perceivers resume {folder.path} --{name} ADDRESS"
            )


def compare_data(folder: RunFolder, prepared: Prepared, *, accept: bool) -> Callable[[], None]:
    """Compare the data with those that a run started on.

    Args:
        folder: Of the run.
        prepared: Holds the data; gets notes on what was found.
        accept: Go on with other data.

    Returns:
        What records the data, to be called when the run goes on.

    Raises:
        DataError: They differ, and ``accept`` is off.
    """
    found, before = take_fingerprint(prepared.dataset), read_fingerprint(folder)
    if before is None:
        prepared.notes.append(
            "this run kept no record of its data, so nobody can tell whether they changed; it "
            "keeps one from here on"
        )
        return partial(write_fingerprint, folder, found)
    differences = compare_fingerprints(before, found)
    if not differences:
        return lambda: None
    what = "; ".join(differences)
    if not accept:
        raise DataError(
            f"{folder.path}: the data are not those that the run started on: {what}. Restore them, "
            f"or go on with them as they are now: --accept_changed_data"
        )
    prepared.notes.append(f"the data changed, which was accepted: {what}")
    return partial(write_fingerprint, folder, found, accepted=differences)


# -- Before a run starts: does its first step fit into memory, and if not, what would? -----------
#
# The step is counted without being computed. What does not fit is refused, because a system that
# runs out of memory kills the process without a word.

# Far more bytes than any model keeps per raw element, and per parameter and sample. What is small
# even so need not be counted, which takes a second.
ELEMENT_BYTES, PARAMETER_BYTES, WEIGHT_BYTES = 1 << 16, 16, 64
SURELY_FREE = 0.25
# A batch is stacked from its samples; each worker also holds two that wait.
COPIES, WORKER_COPIES = 2, 3
# The whole state is copied to be written beside the steps; a model folder's file is put together in
# memory, and copied once.
MODEL_COPIES = 2
HALVINGS = 7


@dataclass(frozen=True)
class Need:
    """Bytes that a run takes beyond what it holds now.

    Args:
        device: On the device that computes.
        host: In main memory; that of a CPU includes the step.
        exact: Whether the step was counted; else it takes more.
    """

    device: float
    host: float
    exact: bool


@dataclass(frozen=True)
class Room:
    """What is free on the device (None on a CPU) and in main memory."""

    device: Free | None
    host: Free

    def shortage(self, need: Need, usable: float = 1.0) -> tuple[float, Free] | None:
        """Return what is needed and the limit that it exceeds; None where everything fits."""
        if self.device is not None and need.device > usable * self.device.bytes:
            return need.device, self.device
        return (need.host, self.host) if need.host > usable * self.host.bytes else None


@dataclass(frozen=True)
class Subject:
    """A run whose memory is estimated.

    Args:
        config: Its settings.
        prepared: Its task and data.
        device: What computes.
        precision: Of a step.
        task: The task, or one of other sizes in its place, on any device.
        specs: What the loaders bring.
    """

    config: TrainConfig
    prepared: Prepared
    device: torch.device
    precision: Precision
    task: Task
    specs: Mapping[str, ModalitySpec]

    def resized(self, specs: Mapping[str, ModalitySpec]) -> "Subject":
        """Return the same run with other sizes of its inputs.

        Raises:
            UserError: The model cannot have these sizes.
        """
        model = self.task.model
        with torch.device("meta"):
            other = type(model)(replace(model.config, inputs={**model.config.inputs, **specs}))
        task = meta_copy(self.task, model=other)
        return replace(self, task=task, specs=other.config.data_inputs)

    def estimate(self, **changes: Any) -> Need:
        """Estimate the memory of the run, some of whose settings are changed.

        Args:
            changes: ``batch_size``, ``accumulate`` or ``recompute``.
        """
        config = replace(self.config, **changes)
        return self.add_up(config, self.count(part_size(config), recompute=config.recompute))

    def count(self, batch_size: int, *, recompute: bool = False) -> StepCounts | None:
        """Count a step; None where it needs values."""
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
            # It looks at values, which zeros may not satisfy.
            return None

    def add_up(self, config: TrainConfig, step: StepCounts | None) -> Need:
        """Add what is held between steps, what loaders hold, and checkpoints."""
        weights = count_weights(self.task.model, self.precision)
        shards = config.devices * config.nodes if config.strategy == "fsdp" else 1
        peak = max(weights.gradient_bytes / shards, 0.0 if step is None else step.peak)
        if shards > 1:
            peak += weights.bytes  # the most that is gathered at one time
        exact = step is not None
        moments = weights.optimizer_bytes / shards
        average = weights.bytes / shards if config.ema else 0.0
        held = weights.bytes / shards + moments + average
        saved = held + MODEL_COPIES * weights.bytes
        batch = config.batch_size * self.sample_bytes
        loaders = batch * (WORKER_COPIES * config.workers if config.workers else COPIES)
        if self.device.type == "cuda":
            return Need(held + peak, config.devices * (loaders + saved), exact)
        # The weights are there already, where they are those of the run.
        fresh = 0.0 if self.task is self.prepared.task else float(weights.bytes)
        every = fresh + moments + average + loaders + peak + saved
        return Need(0.0, config.devices * every, exact)

    @property
    def sample_bytes(self) -> float:
        """Bytes of one sample as loaders bring it."""
        return float(
            sum(
                prod(spec.raw_shape) * np.dtype(BLANK_DTYPES.get(spec.kind, np.float32)).itemsize
                for spec in self.specs.values()
            )
        )

    @property
    def is_small(self) -> bool:
        """Whether the run fits by far, whatever its model."""
        weights = sum(p.numel() for p in self.task.model.parameters())
        elements = sum(prod(spec.raw_shape) for spec in self.specs.values())
        step = self.config.batch_size * (elements * ELEMENT_BYTES + weights * PARAMETER_BYTES)
        return step + weights * WEIGHT_BYTES < SURELY_FREE * free_host_memory().bytes

    def make_batch(self, size: int) -> Batch:
        """Return a batch as the loaders would bring it, of zeros."""
        batch = blank_batch(self.specs, size)
        source = self.prepared.dataset.splits["train"]
        labels, targets, present = None, None, {}
        if source.labels is not None:
            labels = torch.zeros(size, *source.labels.shape[1:], dtype=torch.int64)
        if isinstance(source, TargetSource) and source.targets is not None:
            targets = torch.zeros(size, *source.targets.shape[1:])
        if isinstance(source, PartialSource):
            present = {name: torch.ones(size, dtype=torch.bool) for name in self.specs}
        return replace(batch, labels=labels, targets=targets, present=present)


def check_memory(
    config: TrainConfig, prepared: Prepared, device: torch.device, precision: str
) -> None:
    """Compare the memory that a run will take with what there is.

    Args:
        config: Its settings.
        prepared: Its model, which is in main memory, and data.
        device: What will compute.
        precision: ``float32``, ``bf16`` or ``bf16-pure``.

    Raises:
        ConfigError: It does not fit; says which settings would.
    """
    if config.memory_limit == 0 or device.type not in {"cpu", "cuda"}:
        return
    checked: Any = precision
    subject = Subject(config, prepared, device, checked, prepared.task, prepared.specs)
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
    """Return how many samples are computed at one time."""
    return -(-config.batch_size // config.accumulate)


def find_room(config: TrainConfig, device: torch.device) -> Room:
    """Return how much memory a run may take: what is free, or the limit that its settings give."""
    if config.memory_limit:
        given = Free(config.memory_limit * GIGA, "memory_limit")
        return Room(None, given) if device.type == "cpu" else Room(given, free_host_memory())
    on_device = free_device_memory(device) if device.type == "cuda" else None
    return Room(on_device, free_host_memory())


def _advise(subject: Subject, room: Room) -> str:
    """Say what would fit; each of these was estimated too."""
    fits = [words for words in _find_fits(subject, room) if words]
    return f"What fits: {'; or '.join(fits)}." if fits else "Take a smaller model, or more memory."


def _find_fits(subject: Subject, room: Room) -> Iterator[str]:
    def fits(tried: Subject, **changes: Any) -> bool:
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
        # The peak bends upwards with the batch, so that a line between two counts is above it.
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


def _fit_sizes(subject: Subject, fits: Callable[[Subject], bool]) -> str:
    """Halve the sides of images and videos, and then the frames of videos, until they fit."""
    config, specs = subject.config, dict(subject.task.model.config.data_inputs)
    # Targets on the grid of an input would have to follow it, and trained weights have their size.
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
        except UserError:  # a size that the model cannot have
            continue
    return ""


def _describe(specs: Mapping[str, ModalitySpec]) -> str:
    """Name the modalities with their shapes."""
    return ", ".join(
        f"{name} {' x '.join(map(str, spec.raw_shape))}" for name, spec in specs.items()
    )
