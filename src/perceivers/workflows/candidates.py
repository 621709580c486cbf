"""Candidates of a bake-off: which models compete for a data set, with which settings, how long.

Every small variant of the registry uses the sizes, batches, augmentation and columns that ``data
check`` proposes, with several learning rates; the proposal itself competes too.
"""

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import torch

from perceivers.data import AugmentConfig, make_eval_loader, make_train_loader, open_data
from perceivers.data.fitting import SampleReader
from perceivers.data.inspecting import DataFacts, inspect_data
from perceivers.errors import ConfigError, DataError, suggest
from perceivers.models.registry import FAMILIES, find_family, list_models
from perceivers.tasks import MaskedAutoencoding
from perceivers.training.config import TrainConfig, build_config
from perceivers.training.run_folder import TASKS
from perceivers.workflows.arms import Outcome, collecting_failures
from perceivers.workflows.opening import WARPS
from perceivers.workflows.planning import time_steps
from perceivers.workflows.proposing import (
    PURPOSES,
    choose_data_task,
    common_settings,
    task_settings,
)
from perceivers.workflows.proposing_setups import SHORT_TRUNK, choose_setup
from perceivers.workflows.starting import check_memory
from perceivers.workflows.task_table import Prepared, tasks
from perceivers.workflows.training import check_start

# Samples to inspect: enough to choose sizes.
LOOKED_AT = 500
LEARNING_RATES = (1e-3, 3e-3)
# Names of the variants designed for two CPU cores; published variants are far larger.
SMALL = re.compile(r"_(nano|pico|tiny|small)(_(audio|text|video))?$")
# The trunk of SAM 2 needs images of at least 256 pixels.
LEFT_OUT = ("hiera_det",)
# Modality that variants with these words in their name are designed for.
MADE_FOR = {"_audio_": "audio", "_text_": "bytes", "_video_": "video", "entity_set_": "points"}
# Modified variants that compete too: a short trunk with several heads learns audio, text and
# several modalities faster (docs/log.md).
CHANGES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "perceiver_io_tiny": {"short trunk": {"trunk": {"depth": 2, **SHORT_TRUNK}}},
}
# Settings of a proposal that concern its length and its objective.
LENGTH = ("task", "steps", "eval_every", "checkpoint_every")
PROPOSED = "proposed"


@dataclass(frozen=True)
class Study:
    """An inspected data set and the settings proposed for it.

    Args:
        address: Data address.
        facts: Result of the inspection.
        task: The task.
        proposed: Variant that ``data check`` proposes.
        settings: Proposed settings, without task, model, data, out and training length.
        is_own_task: Whether the proposal is for this task.
        splits: Names of the splits.
    """

    address: str
    facts: DataFacts
    task: str
    proposed: str
    settings: Mapping[str, Any]
    is_own_task: bool
    splits: tuple[str, ...]

    @property
    def proposal(self) -> dict[str, Any]:
        """Settings of the proposed model."""
        return {**self.settings, "model": self.proposed}

    def settings_for(
        self, model: str, rate: float | None = None, options: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the proposed settings for another variant.

        Args:
            model: The variant.
            rate: Peak learning rate; that of the proposal if not given.
            options: ``model_options``.
        """
        found = {k: v for k, v in self.settings.items() if k not in {"model_options", "optimizer"}}
        optimizer = dict(self.settings.get("optimizer", {}))
        optimizer |= {} if rate is None else {"lr": rate}
        found |= {"model": model}
        found |= {"optimizer": optimizer} if optimizer else {}
        return found | ({"model_options": dict(options)} if options else {})


@dataclass(frozen=True)
class Candidate:
    """A model with its training settings.

    Args:
        name: Display name.
        settings: Training settings, without data, out, seed and steps.
    """

    name: str
    settings: Mapping[str, Any]

    @property
    def model(self) -> str:
        """The variant."""
        return str(self.settings["model"])

    @property
    def slug(self) -> str:
        """The name in a form usable as a folder name."""
        return re.sub(r"[^A-Za-z0-9.]+", "_", self.name).strip("_")


def study_data(
    address: str,
    *,
    task: str = "",
    labels: Sequence[str] = (),
    targets: Sequence[str] = (),
) -> Study:
    """Inspect a data set and choose the task and settings for it.

    Args:
        address: Data address, as for ``open_data``.
        task: The task; chosen from the data if not given.
        labels: Label columns to read.
        targets: Numeric columns to predict.

    Raises:
        DataError: The data cannot be opened, or no training sample can be read.
        ConfigError: The task is unknown or does not suit the data.
    """
    if address.startswith(WARPS) or task == "flow":
        raise ConfigError(
            "only perceiver_io models learn optical flow, so there is nothing to compare; train "
            "one with 'perceivers train --config optical_flow'"
        )
    if task and task not in TASKS:
        raise ConfigError(
            f"task {task!r} is unknown; there are {', '.join(TASKS)}{suggest(task, TASKS)}"
        )
    dataset = open_data(address, labels=labels, targets=targets)
    facts = inspect_data(dataset, limit=LOOKED_AT)
    if not facts.is_usable:
        raise DataError(f"{address}: no training sample can be read; see 'perceivers data check'")
    found = choose_data_task(facts)
    if task and task != found and tasks()[task].verb != "pretrain":
        raise ConfigError(
            f"task is {task!r}, but {address} is data for {found!r}; choose columns with --labels "
            f"or --targets, or leave the task out"
        )
    cuda = torch.cuda.is_available()
    chosen = task or found
    if chosen in PURPOSES:
        setup = choose_setup(facts, PURPOSES[chosen], cuda=cuda)
        own, settings = chosen, task_settings(facts, chosen, setup)
    else:
        setup = choose_setup(facts, "unlabelled", cuda=cuda)
        own, settings = str(setup.options.get("task", "pretrain")), dict(setup.options)
        chosen = task or own
        if chosen != own:
            unlabelled = (row for row in tasks().values() if row.verb == "pretrain")
            objectives = {row.settings[0] for row in unlabelled if row.settings}
            settings = {k: v for k, v in settings.items() if k not in objectives}
    settings |= common_settings(facts, {"labels": labels, "targets": targets})
    settings = {key: value for key, value in settings.items() if key not in LENGTH}
    splits = tuple(dataset.splits)
    return Study(address, facts, chosen, setup.model, settings, chosen == own, splits)


def small_models(kinds: Iterable[str]) -> list[str]:
    """Return the small variants that accept inputs of any size, HiP first.

    Args:
        kinds: Kinds of the modalities; variants designed for other kinds are excluded.
    """
    return [
        name
        for family, entry in FAMILIES.items()
        if family not in LEFT_OUT
        for name, variant in entry.variants.items()
        if SMALL.search(name) and "inputs" not in variant and not variant.get("autoencoder")
        if {kind for word, kind in MADE_FOR.items() if word in f"{name}_"} <= {*kinds}
    ]


def list_candidates(
    study: Study,
    *,
    models: Sequence[str] = (),
    rates: Sequence[float] = LEARNING_RATES,
    settings: Mapping[str, Any] | None = None,
) -> list[Candidate]:
    """List the candidates, the proposal first.

    The list may contain variants that cannot read the data; ``examine`` finds out.

    Args:
        study: Result of ``study_data``.
        models: Variants that compete; if empty, all small ones and the proposal.
        rates: Peak learning rates to try with each variant.
        settings: Further training settings of all candidates; they override the proposal.

    Raises:
        ConfigError: A variant is unknown.
    """
    known = list_models()
    for name in models:
        if name not in known:
            raise ConfigError(
                f"models holds {name!r}, which is not a variant ('perceivers models' lists them)"
                f"{suggest(name, known)}"
            )
    extra = settings or {}
    found: list[Candidate] = []
    if study.is_own_task and not models:
        name = f"{PROPOSED}: {study.proposed}"
        found.append(Candidate(name, join(study.proposal, extra)))
    kinds = {found.kind for found in study.facts.modalities.values()}
    for name in models or small_models(kinds):
        changes = {} if kinds <= {"image", "mask"} else CHANGES.get(name, {})
        for words, options in {"": {}, **changes}.items():
            for rate in rates:
                title = ", ".join(filter(None, (name, words, f"lr {rate:g}")))
                plain = study.settings_for(name, rate, options)
                found.append(Candidate(title, join(plain, extra)))
    return found


def join(settings: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested settings; values of ``extra`` take precedence."""
    joined = dict(settings)
    for key, value in extra.items():
        own: Any = joined.get(key)
        both = isinstance(own, Mapping) and isinstance(value, Mapping)
        joined[key] = join(own, value) if both else value
    return joined


# -- Examination of candidates: build for the data, check memory, and time a few steps -----------

# Steps to time after a warm-up step.
TIMED = 3


@dataclass(frozen=True)
class Entrant:
    """An examined candidate.

    Args:
        name: Display name.
        slug: Name of its folders.
        settings: Training settings, without data, out, seed and steps.
        parameters: Number of model parameters.
        step_seconds: Time of a training step; 0 if not timed.
        read_seconds: Time to read a batch.
        eval_seconds: Time of an evaluation on the validation split.
        objective: Objective of masked autoencoding, which differs between families; otherwise
            empty.
        reason: Why it does not compete; empty if it does.
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
    """Build the complete training config of a candidate, without an output folder."""
    return build_config(TASKS[task], {**settings, "data": address, "out": ""})


def examine(candidate: Candidate, task: str, address: str, *, timed: bool) -> Entrant:
    """Build a candidate for the data, and check that it can be trained.

    Args:
        candidate: The candidate.
        task: The task.
        address: Data address.
        timed: Also time a few steps and an evaluation.

    Returns:
        The entry, with a ``reason`` if the candidate cannot compete.
    """
    failures: list[str] = []
    parameters, seconds, objective = 0, (0.0, 0.0, 0.0), ""
    with collecting_failures(failures):
        config = make_config(task, candidate.settings, address)
        prepared = tasks()[task].prepare(config)
        parameters = sum(weights.numel() for weights in prepared.task.model.parameters())
        objective = describe_masks(prepared)
        device, precision = choose_device(config)
        check_start(config, prepared)
        check_memory(config, prepared, device, precision)
        if timed:
            seconds = time_candidate(prepared, config, device, half=precision == "bf16")
    return Entrant(
        candidate.name,
        candidate.slug,
        candidate.settings,
        parameters,
        *seconds,
        objective=objective,
        reason=failures[0] if failures else "",
    )


def describe_masks(prepared: Prepared) -> str:
    """Describe the masks of a masked autoencoder; losses under different masks are incomparable."""
    if not isinstance(prepared.task, MaskedAutoencoding):
        return ""
    masks = prepared.task.settings
    return f"{masks.kind} masks, {masks.ratio:.0%} hidden, {masks.target} errors"


def choose_device(config: TrainConfig) -> tuple[torch.device, str]:
    """Return the device of a run, and its precision before any measurement for ``auto``."""
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
    """Return the seconds of a training step, of reading a batch, and of a whole evaluation."""
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
    """Extrapolate the seconds of an evaluation on the validation split from one batch."""
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


def drop_repeats(entries: list[Entrant], task: str, address: str) -> list[Entrant]:
    """Remove entries whose complete settings equal those of an earlier entry."""
    seen: list[Any] = []
    kept = []
    for entry in entries:
        usable = not entry.reason
        settings: Any = make_config(task, entry.settings, address) if usable else entry.settings
        if settings not in seen:
            seen.append(settings)
            kept.append(entry)
    return kept


def comparable(entries: list[Entrant]) -> list[Entrant]:
    """Exclude entries whose objective differs, since their losses cannot be compared.

    The objective of HiP is kept if a HiP competes, otherwise that of the first entry.
    """
    able = [entry for entry in entries if not entry.reason]
    if len({entry.objective for entry in able}) < 2:
        return entries
    hips = [entry for entry in able if find_family(entry.settings["model"]) == "hip"]
    chosen = (hips or able)[0].objective
    words = f"its loss is for {{}}, which cannot be compared with {chosen}"
    return [
        entry
        if entry.reason or entry.objective == chosen
        else replace(entry, reason=words.format(entry.objective))
        for entry in entries
    ]


# -- Successive halving: number of survivors, training length and ranking ------------------------
#
# All rungs get the same fraction of the time, divided equally among the candidates of a rung;
# survivors therefore train longer in the next rung. Nothing here trains.
#
# Paper: Jamieson and Talwalkar (arXiv 1502.07943).

# Evaluations per run, fewer if they would take more than this fraction of its time.
EVALUATIONS, EVALUATION_SHARE = 5, 0.3


def plan_rungs(count: int, reduce: int) -> tuple[int, ...]:
    """Return how many candidates train in each rung.

    Args:
        count: Number of candidates, at least 1.
        reduce: One in this many candidates advances, rounded up; at least 2. The first rung with
            at most this many candidates is the last one, and its best candidate wins.
    """
    counts = [count]
    while counts[-1] > reduce:
        counts.append(-(-counts[-1] // reduce))
    return tuple(counts)


def rank(outcomes: Sequence[Outcome], *, higher_is_better: bool) -> list[Outcome]:
    """Sort outcomes from best to worst, failed ones last.

    Ties go to the smaller model, then to the earlier candidate. Time never breaks a tie, because it
    differs from run to run.
    """

    def key(item: tuple[int, Outcome]) -> tuple[bool, float, int, int]:
        place, outcome = item
        value = outcome.value
        if outcome.has_failed or value is None:
            return True, 0.0, 0, place
        return False, -value if higher_is_better else value, outcome.parameters, place

    return [outcome for _, outcome in sorted(enumerate(outcomes), key=key)]


def choose_survivors(
    outcomes: Sequence[Outcome], keep: int, *, higher_is_better: bool
) -> list[str]:
    """Return the names of the best ``keep`` outcomes, best first, without failed ones."""
    ranked = rank(outcomes, higher_is_better=higher_is_better)
    return [outcome.name for outcome in ranked if not outcome.has_failed][:keep]


def fit_steps(seconds: float, step_seconds: float, eval_seconds: float) -> tuple[int, int]:
    """Return the number of steps that fit into a time budget, and the evaluation interval.

    Args:
        seconds: Time for steps and evaluations.
        step_seconds: Time of one step, positive.
        eval_seconds: Time of one evaluation.

    Returns:
        The number of steps (0 if not even one fits beside its evaluation) and ``eval_every``, at
        least 1.
    """
    count = EVALUATIONS
    if eval_seconds > 0:
        count = min(count, max(1, int(EVALUATION_SHARE * seconds / eval_seconds)))
    left = seconds - count * eval_seconds
    steps = int(left / step_seconds) if isfinite(step_seconds) and left > 0 else 0
    return steps, spread_evaluations(steps, count)


def spread_evaluations(steps: int, count: int = EVALUATIONS) -> int:
    """Return ``eval_every`` for at most ``count`` evaluations in ``steps`` steps."""
    return max(1, -(-steps // count))


def find_front(points: Mapping[str, tuple[int, float]], *, higher_is_better: bool) -> list[str]:
    """Return the names on the Pareto front: no smaller model has an equal or better metric.

    Args:
        points: Number of parameters and metric by name.
        higher_is_better: Direction of the metric.

    Returns:
        Names from the smallest to the largest model.
    """
    sign = -1.0 if higher_is_better else 1.0
    front: list[str] = []
    best = float("inf")
    for name, (_, value) in sorted(
        points.items(), key=lambda item: (item[1][0], sign * item[1][1])
    ):
        if sign * value < best:
            front.append(name)
            best = sign * value
    return front
