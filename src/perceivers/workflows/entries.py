"""Whether a candidate can compete: built for the data, held against memory, and timed."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from perceivers.data import AugmentConfig, make_eval_loader, make_train_loader
from perceivers.data.fitting import SampleReader
from perceivers.models.registry import find_family
from perceivers.tasks import MaskedAutoencoding
from perceivers.training.config import TrainConfig, build_config
from perceivers.training.run_folder import TASKS
from perceivers.workflows.arms import collecting_failures
from perceivers.workflows.candidates import Candidate
from perceivers.workflows.memory import check_memory
from perceivers.workflows.planning import time_steps
from perceivers.workflows.preparing import PREPARE, Prepared
from perceivers.workflows.training import check_start

# Steps that are timed after a first one.
TIMED = 3


@dataclass(frozen=True)
class Entry:
    """A candidate, and what is known of it before it trains.

    Args:
        name: For people.
        slug: Names its folders.
        settings: Of its training, beside data, out, seed and steps.
        parameters: Of its model.
        step_seconds: Of a step; 0 where nothing was timed.
        read_seconds: Of reading a batch.
        eval_seconds: Of an evaluation on the validation split.
        objective: What it is scored on, where families differ in that.
        reason: Why it does not compete; empty where it does.
    """

    name: str
    slug: str
    settings: Mapping[str, Any]
    parameters: int = 0
    step_seconds: float = 0.0
    read_seconds: float = 0.0
    eval_seconds: float = 0.0
    objective: str = ""
    reason: str = ""


def make_config(task: str, settings: Mapping[str, Any], address: str) -> TrainConfig:
    """Return complete settings of a candidate, for a look at what they mean."""
    return build_config(TASKS[task], {**settings, "data": address, "out": ""})


def examine(candidate: Candidate, task: str, address: str, *, timed: bool) -> Entry:
    """Build a candidate for the data, and see whether it fits.

    Args:
        candidate: The model with its settings.
        task: What is learned.
        address: Of the data.
        timed: Also time a few steps and an evaluation.

    Returns:
        The entry; one that cannot compete says why.
    """
    failures: list[str] = []
    parameters, seconds, objective = 0, (0.0, 0.0, 0.0), ""
    with collecting_failures(failures):
        config = make_config(task, candidate.settings, address)
        prepared = PREPARE[task](config)
        parameters = sum(weights.numel() for weights in prepared.task.model.parameters())
        objective = describe_masks(prepared)
        device, precision = choose_device(config)
        check_start(config, prepared)
        check_memory(config, prepared, device, precision)
        if timed:
            seconds = time_candidate(prepared, config, device, half=precision == "bf16")
    return Entry(
        candidate.name,
        candidate.slug,
        candidate.settings,
        parameters,
        *seconds,
        objective=objective,
        reason=failures[0] if failures else "",
    )


def describe_masks(prepared: Prepared) -> str:
    """Say what a masked auto-encoder hides, as losses under other masks cannot be compared."""
    if not isinstance(prepared.task, MaskedAutoencoding):
        return ""
    masks = prepared.task.settings
    return f"{masks.kind} masks, {masks.ratio:.0%} hidden, {masks.target} errors"


def choose_device(config: TrainConfig) -> tuple[torch.device, str]:
    """Return where a run computes, and in which precision unless that is measured later."""
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if name == "cuda" else "float32"
    return torch.device(name), precision


def time_candidate(
    prepared: Prepared, config: TrainConfig, device: torch.device, *, half: bool
) -> tuple[float, float, float]:
    """Return seconds of a step, of reading a batch, and of a whole evaluation."""
    splits, specs = prepared.dataset.splits, prepared.specs
    batches = iter(
        make_train_loader(
            splits["train"],
            specs,
            batch_size=config.batch_size,
            seed=config.seed,
            augment=config.augment,
            start_step=0,
            num_steps=TIMED + 1,
            workers=0,
        )
    )
    batch = next(batches)  # the first one also opens files
    began = time.perf_counter()
    for _ in range(TIMED):
        batch = next(batches)
    reading = (time.perf_counter() - began) / TIMED
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        parts = batch.split(config.accumulate)
        step = time_steps(prepared.task, parts, config, device=device, steps=TIMED, half=half)
    return step, reading, _time_evaluation(prepared, config, device)


def _time_evaluation(prepared: Prepared, config: TrainConfig, device: torch.device) -> float:
    """Return seconds of an evaluation on the validation split, from one batch of it."""
    source, specs = prepared.dataset.splits["val"], prepared.specs
    loader = make_eval_loader(source, specs, batch_size=config.batch_size)
    seconds = 0.0
    for _ in range(2):  # the first one imports the metrics
        began = time.perf_counter()
        batch = next(iter(loader)).to(device)
        prepared.task.evaluate([batch])
        seconds = time.perf_counter() - began
    samples = len(SampleReader(source, specs, AugmentConfig()).source)
    return seconds * -(-samples // config.batch_size)


def drop_repeats(entries: list[Entry], task: str, address: str) -> list[Entry]:
    """Return entries without those whose complete settings equal an earlier one's."""
    seen: list[Any] = []
    kept = []
    for entry in entries:
        usable = not entry.reason
        settings: Any = make_config(task, entry.settings, address) if usable else entry.settings
        if settings not in seen:
            seen.append(settings)
            kept.append(entry)
    return kept


def comparable(entries: list[Entry]) -> list[Entry]:
    """Return entries of which those that are scored on something else say so, and do not compete.

    Of several objectives, that of a HiP counts where there is one, else that of the first entry.
    """
    able = [entry for entry in entries if not entry.reason]
    if len({entry.objective for entry in able}) < 2:
        return entries
    hips = [entry for entry in able if find_family(entry.settings["model"]) == "hip"]
    chosen = (hips or able)[0].objective
    words = f"its loss is of {{}}, which cannot be compared with {chosen}"
    return [
        entry
        if entry.reason or entry.objective == chosen
        else replace(entry, reason=words.format(entry.objective))
        for entry in entries
    ]
