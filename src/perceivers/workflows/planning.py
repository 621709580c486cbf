"""Plan a training run: tokens, parameters, operations, memory, largest batch, time and cost."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from perceivers.data import Batch, make_train_loader
from perceivers.errors import ConfigError, suggest
from perceivers.files import write_json
from perceivers.models.registry import FAMILIES, find_family, list_models
from perceivers.plan.counting import (
    ModalityTokens,
    StepCounter,
    StepCounts,
    Weights,
    count_tokens,
    count_weights,
)
from perceivers.plan.estimates import (
    GIGA,
    TERA,
    USABLE,
    Duration,
    Memory,
    PlanSettings,
    estimate_duration,
    estimate_memory,
    find_machine,
    spare_memory,
)
from perceivers.report.console import Grid, Shown
from perceivers.tasks import (
    Autoencoding,
    Classification,
    MaskedAutoencoding,
    MaskedLanguage,
    Task,
)
from perceivers.training.config import TrainConfig, build_config, read_yaml
from perceivers.training.optimizers import make_optimizer
from perceivers.training.run_folder import TASKS
from perceivers.types import SPECS, ModalitySpec, spec_from_json
from perceivers.workflows.building import fresh_autoencoder, fresh_model
from perceivers.workflows.opening import settings_file
from perceivers.workflows.task_table import tasks

# Tasks that can be planned from the sizes of inputs alone.
DATALESS = ("pretrain", "classify", "autoencode", "mlm")


@dataclass(frozen=True)
class Plan:
    """Estimated cost of a training run.

    Args:
        settings: Settings of the plan.
        task: Name of the task.
        tokens: Number of tokens of each modality.
        weights: Parameters, gradients and moments.
        step: Counts of a step, or of one part of it with gradient accumulation.
        exact: Whether the step was counted at this batch size, not extrapolated from small ones.
        memory: Memory of one device at the given batch size.
        largest_batch: Most samples that fit into the device at one time; 0 if not even one does.
        device_memory: Memory of a device in bytes.
        rate: Operations per second that a device reaches.
        seconds: Measured duration of a step; 0 if nothing was measured.
        samples: Number of samples processed in the whole run, over all epochs; 0 if unknown.
        stored: Number of samples of the dataset; 0 if unknown.
        duration: Time and cost; None if the number of samples is unknown.
    """

    settings: PlanSettings
    task: str
    tokens: list[ModalityTokens]
    weights: Weights
    step: StepCounts
    exact: bool
    memory: Memory
    largest_batch: int
    device_memory: float
    rate: float
    seconds: float
    samples: float
    stored: float
    duration: Duration | None


@dataclass(frozen=True)
class _Subject:
    """What is counted: factories of the task and its batches, and the size of the data."""

    build: Callable[[], Task]
    make_batch: Callable[[int], Batch]
    samples: int = 0
    sample_bytes: float = 0.0


def plan_training(settings: PlanSettings) -> Plan:
    """Count a training step without computing it, and estimate the whole run.

    Args:
        settings: Run to plan, and hardware to plan it for.

    Raises:
        UserError: The model, the data or a setting cannot be used.
    """
    task = choose_planned_task(settings)
    if task != "classify" and settings.classes != PlanSettings.classes:
        raise ConfigError(
            f"classes={settings.classes} has no effect for the task {task!r}; leave it out, or set "
            f"task to 'classify'"
        )
    config = _training_config(settings, task)
    subject = _from_data(task, config) if settings.data else _from_inputs(task, config, settings)
    # On the meta device even models that exceed this machine's memory can be counted.
    with torch.device("meta"):
        model = subject.build().model
    weights = count_weights(model, settings.precision)
    counter = StepCounter(
        subject.build,
        subject.make_batch,
        precision=settings.precision,
        recompute=settings.recompute,
    )
    part = settings.batch_size // settings.accumulate
    step = counter.count(part)
    device_memory, rate = _choose_machine(settings)
    shares: dict[str, Any] = {
        "averaged": config.ema > 0,
        "shards": settings.devices if settings.sharded else 1,
    }
    room = spare_memory(weights, device_memory, **shares)
    seconds = _measure(subject, config, settings) if settings.measure else 0.0
    if seconds:
        # ``step`` covers only one of the parts of a measured step.
        rate = step.step * settings.accumulate / seconds
    stored = settings.samples or subject.samples
    seen = stored * settings.epochs
    if settings.steps:
        seen = float(settings.steps * settings.batch_size * settings.devices)
    return Plan(
        settings=settings,
        task=task,
        tokens=count_tokens(model),
        weights=weights,
        step=step,
        exact=counter.exact,
        memory=estimate_memory(weights, step, **shares),
        largest_batch=counter.largest_batch(room, part),
        device_memory=device_memory,
        rate=rate,
        seconds=seconds,
        samples=seen,
        stored=stored,
        duration=_duration(settings, step, rate, seen, stored, subject.sample_bytes),
    )


def _duration(
    settings: PlanSettings,
    step: StepCounts,
    rate: float,
    seen: float,
    stored: float,
    sample_bytes: float,
) -> Duration | None:
    if not seen:
        return None
    return estimate_duration(
        step=step,
        samples=seen,
        batch_size=settings.batch_size * settings.devices,
        rate=rate,
        devices=settings.devices,
        sample_bytes=settings.sample_bytes or sample_bytes,
        stored=stored,
        hourly_cost=settings.hourly_cost,
    )


def choose_planned_task(settings: PlanSettings) -> str:
    """Return the task of a plan; by default pretrain if the model supports it, else classify.

    Raises:
        ConfigError: The task does not exist.
    """
    if settings.task:
        if settings.task not in TASKS:
            raise ConfigError(
                f"task {settings.task!r} is unknown; there are {', '.join(TASKS)}"
                f"{suggest(settings.task, TASKS)}"
            )
        return settings.task
    if settings.model in list_models():
        masks = FAMILIES[find_family(settings.model)].autoencoder is not None
        return "pretrain" if masks else "classify"
    return "classify"


def _training_config(settings: PlanSettings, task: str) -> TrainConfig:
    own = {
        "model": settings.model,
        "data": settings.data,
        "out": "",
        "batch_size": settings.batch_size,
        "accumulate": settings.accumulate,
        "recompute": settings.recompute,
    }
    given = {key: value for key, value in settings.settings.items() if key not in {"out", "task"}}
    double = sorted(own.keys() & given.keys())
    if double:
        raise ConfigError(f"settings hold {double}, which have flags of their own; use those")
    if settings.data:
        own["inputs"] = {**settings.inputs}
    return build_config(TASKS[task], {**given, **own})


def _from_data(task: str, config: TrainConfig) -> _Subject:
    """Describe a run on given data; batches repeat the first training sample."""
    prepared = tasks()[task].prepare(config)
    source = prepared.dataset.splits["train"]
    copies = config.augment.copies
    loader = make_train_loader(
        source,
        prepared.specs,
        batch_size=copies,
        seed=config.seed,
        augment=config.augment,
        start_step=0,
        num_steps=1,
    )
    one = next(iter(loader)).take(slice(0, 1))
    return _Subject(
        lambda: tasks()[task].prepare(config).task,
        lambda size: one.take(torch.zeros(size, dtype=torch.int64)),
        len(source),
        _stored_bytes(source),
    )


def _stored_bytes(source: Any) -> float:
    """Return the mean size of a sample in shards, in bytes; 0 for other data."""
    places = getattr(source, "places", None)
    if places is None:
        return 0.0
    # Each place is (shard, offset, bytes); a sample may have several members.
    sizes = np.asarray(places)[..., 2].reshape(len(places), -1)
    return float(sizes.sum(axis=1).mean())


def _from_inputs(task: str, config: TrainConfig, settings: PlanSettings) -> _Subject:
    """Describe a run without data, from the sizes of its inputs; batches are zeros."""
    if task not in DATALESS or settings.model not in list_models():
        raise ConfigError(
            f"without --data only variants can be planned, for {', '.join(DATALESS)}, but the "
            f"model is {settings.model!r} and the task {task!r}; give --data"
        )
    family = FAMILIES[find_family(settings.model)]
    specs = _parse_inputs(settings.inputs) or family.variants[settings.model].get("inputs")
    if not specs:
        raise ConfigError(
            f"{settings.model} has no inputs of its own; give --data, or --inputs such as "
            f'\'{{"image": {{"height": 224, "width": 224}}}}\''
        )

    def build() -> Task:
        """Build the task on the default device."""
        settings_of_task: Any = config
        if task == "classify":
            count = settings.classes
            head = settings_of_task.head
            model = fresh_model(config, specs, num_classes=count, head=head)
            return Classification(model, count, settings_of_task.loss, None)
        if task == "pretrain":
            return MaskedAutoencoding(fresh_autoencoder(config, specs), settings_of_task.mask)
        if task == "mlm":
            return MaskedLanguage(fresh_autoencoder(config, specs), settings_of_task.mlm)
        return Autoencoding(fresh_model(config, specs), settings_of_task.autoencode)

    return _Subject(build, lambda size: blank_batch(specs, size))


def _parse_inputs(inputs: Mapping[str, Mapping[str, Any]]) -> dict[str, ModalitySpec]:
    """Return specs; the kind of a modality is its ``type``, or else its name."""
    for name, fields in inputs.items():
        if name not in SPECS and "type" not in fields:
            raise ConfigError(
                f"modality {name!r} has no 'type'; set it to one of {', '.join(sorted(SPECS))}, or "
                f"use one of these as the name"
            )
    return {name: spec_from_json({"type": name, **fields}) for name, fields in inputs.items()}


def blank_batch(specs: Mapping[str, ModalitySpec], size: int) -> Batch:
    """Return a batch of zeros."""
    rows = torch.arange(size)
    inputs = {}
    for name, spec in specs.items():
        inputs[name] = torch.from_numpy(np.zeros((size, *spec.raw_shape), spec.raw_dtype))
    labels = torch.zeros(size, dtype=torch.int64)
    return Batch(inputs, labels, rows, [], position=rows)


def _choose_machine(settings: PlanSettings) -> tuple[float, float]:
    """Return a device's memory in bytes, and its assumed operations per second."""
    machine = find_machine(settings.device)
    memory = settings.memory * GIGA or machine.memory
    return memory, (settings.peak * TERA or machine.peak) * settings.utilisation


def _measure(subject: _Subject, config: TrainConfig, settings: PlanSettings) -> float:
    parts = subject.make_batch(settings.batch_size).split(settings.accumulate)
    half = settings.precision == "bf16"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return time_steps(
        subject.build(), parts, config, device=device, steps=settings.measure, half=half
    )


def time_steps(
    task: Task,
    parts: Sequence[Batch],
    config: TrainConfig,
    *,
    device: torch.device,
    steps: int,
    half: bool = False,
) -> float:
    """Train a task for a few steps and return the mean seconds per step, after one warm-up step.

    Args:
        task: Task to train; moved to the device and changed.
        parts: The batch, split for gradient accumulation.
        config: Settings of the optimizer and of recomputation.
        device: Device to train on.
        steps: Number of measured steps, at least 1.
        half: Compute under bf16 autocast.
    """
    task = task.train().to(device)
    task.model.set_recompute(config.recompute)
    optimizer = make_optimizer(task.model, config.optimizer)
    moved = [part.to(device) for part in parts]
    began = 0.0
    for step in range(steps + 1):
        if step == 1:
            began = _now(device)
        for part in moved:
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                losses = task(part, torch.Generator().manual_seed(step))
            (losses.total / len(moved)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return (_now(device) - began) / steps


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        # CUDA kernels run asynchronously.
        torch.cuda.synchronize(device)
    return time.perf_counter()


def settings_from_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the settings of a training run to those of a plan.

    Args:
        recipe: Settings from the YAML file of a training verb.

    Returns:
        Fields of ``PlanSettings``; all other settings are under ``settings``.
    """
    known = {"model", "task", "data", "inputs", "batch_size", "accumulate", "recompute", "steps"}
    found: dict[str, Any] = {key: value for key, value in recipe.items() if key in known}
    # Where and how a run computes does not change what is counted.
    left_out = {"out", "device", "devices", "nodes", "strategy", "precision", "overwrite", "quiet"}
    rest = {key: value for key, value in recipe.items() if key not in known | left_out}
    return {**found, "settings": rest}


# -- The verb plan -------------------------------------------------------------------------------

UNITS = ("", "k", "M", "G", "T", "P", "E")
LEAST = 1000.0


def plan(
    *,
    model: str | None = None,
    recipe: str | None = None,
    json: str | Path | None = None,
    **options: Any,
) -> Plan:
    """Estimate what a training run needs, without training.

    Tokens, parameters, operations, memory, the largest batch that fits, hours and cost.

    Args:
        model: A variant name ('perceivers models'); with ``data`` also a model or run folder.
        recipe: YAML file of a training verb, or a packaged recipe; other arguments override it.
        json: File to write the plan to.
        options: Fields of ``PlanSettings``.

    Raises:
        UserError: There is no model, or as for ``plan_training``.
    """
    given = {**options} if model is None else {**options, "model": model}
    if recipe is not None:
        read = settings_from_recipe(read_yaml(settings_file(recipe)))
        if "epochs" in given:
            read.pop("steps", None)  # steps in the file would make the argument unused
        given = {**read, **given}
    if not given.get("model"):
        raise ConfigError("nothing to plan; required: --model, or a --recipe that has one")
    found = plan_training(PlanSettings(**given))
    if json is not None:
        write_json(Path(json), plan_to_json(found))
    return found


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """Return a plan for JSON, in bytes, operations, hours and seconds.

    Args:
        plan: From ``plan_training``.
    """
    data: Mapping[str, Any] = asdict(plan)
    return {**data, "tokens": [modality._asdict() for modality in plan.tokens]}


def scaled(value: float, unit: str) -> str:
    """Format a number with a decimal unit prefix, such as ``1.5 GB``.

    Args:
        value: Not negative.
        unit: For example ``B`` or ``FLOP``.
    """
    power = 0
    while value >= LEAST and power < len(UNITS) - 1:
        value, power = value / LEAST, power + 1
    return f"{value:.3g} {UNITS[power]}{unit}".strip()


def show(plan: Plan, *, json: str | Path | None) -> Shown:
    """Show the tokens of each modality, and all estimates.

    Args:
        plan: From ``plan_training``.
        json: File that the plan was written to, if any.
    """
    settings = plan.settings
    rows = [(t.name, f"{t.elements:,}", f"{t.tokens:,}", str(t.groups)) for t in plan.tokens]
    tokens = Grid(("modality", "elements", "tokens", "groups"), rows)
    part = settings.batch_size // settings.accumulate
    split = f" in {settings.accumulate} parts" if settings.accumulate > 1 else ""
    recomputed = ", layers recomputed" if settings.recompute else ""
    counted = "counted by torch" if plan.exact else "counted by torch on 2 and 4 samples"
    per_sample = plan.step.step / part
    memory, where = plan.memory, f"of {scaled(plan.device_memory, 'B')}"
    shared = f", divided by {settings.devices}" if settings.sharded else ""
    what = [
        ("task", plan.task, f"{settings.model}, {settings.precision}{recomputed}"),
        ("parameters", f"{plan.weights.count:,}", f"{plan.weights.trained:,} trained"),
        ("forward pass", scaled(plan.step.forward / part, "FLOP"), f"per sample, {counted}"),
        ("training step", scaled(per_sample, "FLOP"), "per sample, forward and backward"),
        ("batch", f"{settings.batch_size:,}", f"per device{split}, on {settings.devices} devices"),
        ("weights", scaled(memory.weights, "B"), f"per device{shared}"),
        ("gradients", scaled(memory.gradients, "B"), f"per device{shared}"),
        ("optimizer", scaled(memory.optimizer, "B"), f"per device{shared}: two moments"),
        ("activations", scaled(memory.kept, "B"), "stored for the backward pass"),
        ("peak memory", scaled(memory.peak, "B"), where + _too_much(plan)),
        ("largest batch", f"{plan.largest_batch:,}", f"at one time, in {USABLE:.0%} {where}"),
    ]
    estimates = Grid(("what", "value", "note"), [*what, *_run_rows(plan)])
    return Shown([tokens, estimates, *([] if json is None else [str(json)])])


def _too_much(plan: Plan) -> str:
    fits = plan.memory.peak <= USABLE * plan.device_memory
    return "" if fits else ": too much; use --accumulate, --recompute true or a smaller batch"


def _run_rows(plan: Plan) -> list[tuple[str, str, str]]:
    settings, run = plan.settings, plan.duration
    how = f"{settings.utilisation:.0%} of the peak, assumed (--utilisation)"
    if plan.seconds:
        how = f"{plan.seconds:.3g} s per step, measured on this machine"
    rows = [("speed", scaled(plan.rate, "FLOP/s"), f"per device: {how}")]
    if run is None:
        return [*rows, ("run", "-", "give --samples or --steps to estimate hours and cost")]
    rows += [
        (
            "run",
            scaled(run.operations, "FLOP"),
            f"{plan.samples:,.0f} samples, {run.steps:,} steps",
        ),
        ("samples per second", f"{run.samples_per_second:,.1f}", "needed from the data loaders"),
        ("hours", f"{run.hours:,.3g}", f"{run.hours * settings.devices:,.3g} device hours"),
    ]
    if run.bandwidth:
        rows += [
            ("bandwidth", scaled(run.bandwidth, "B/s"), "of all loaders"),
            ("storage", scaled(run.storage, "B"), f"{plan.stored:,.0f} samples"),
        ]
    if settings.hourly_cost:
        formula = f"hours x {settings.devices} devices x {settings.hourly_cost:g}"
        rows.append(("cost", f"{run.cost:,.0f}", formula))
    return rows
