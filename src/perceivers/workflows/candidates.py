"""Which models compete for some data, and with which settings: a table made from the registry.

Sizes, batches, augmentation and columns are those that ``data check`` proposes; every small variant
takes them over, with learning rates of its own, and the proposal itself competes too.
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
from perceivers.workflows.preparing import PREPARE, Prepared
from perceivers.workflows.proposing import (
    PURPOSES,
    choose_data_task,
    common_settings,
    task_settings,
)
from perceivers.workflows.proposing_setups import SHORT_TRUNK, choose_setup
from perceivers.workflows.starting import check_memory
from perceivers.workflows.training import check_start

# Samples that are looked at: sizes need no more.
LOOKED_AT = 500
LEARNING_RATES = (1e-3, 3e-3)
# How our variants are named, for two CPU cores; released ones are far larger.
SMALL = re.compile(r"_(nano|pico|tiny|small)(_(audio|text|video))?$")
# The trunk of SAM 2 reads pictures of 256 pixels and more.
LEFT_OUT = ("hiera_det",)
# What variants of these names are made for.
MADE_FOR = {"_audio_": "audio", "_text_": "bytes", "_video_": "video", "entity_set_": "points"}
# Changes of a variant that compete beside it: a short trunk with several heads learns sounds, texts
# and several modalities faster (docs/log.md).
CHANGES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "perceiver_io_tiny": {"short trunk": {"trunk": {"depth": 2, **SHORT_TRUNK}}},
}
# What a proposal says of its length, and of what is learned.
LENGTH = ("task", "steps", "eval_every", "checkpoint_every")
OBJECTIVES = ("mask", "mlm", "autoencode")
PROPOSED = "proposed"
UNLABELLED_TASKS = ("pretrain", "autoencode", "mlm")


@dataclass(frozen=True)
class Study:
    """Data that were looked at, and what is proposed for them.

    Args:
        address: Of the data.
        facts: What was found.
        task: What is learned.
        proposed: The variant that ``data check`` proposes.
        settings: Of the proposal, beside task, model, data, out and how long it trains.
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
        """Return settings of another variant: what the proposal says of the data.

        Args:
            model: The variant.
            rate: Peak learning rate; that of the proposal when not given.
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
    """A model with its settings.

    Args:
        name: For people.
        settings: Of its training, beside data, out, seed and steps.
    """

    name: str
    settings: Mapping[str, Any]

    @property
    def model(self) -> str:
        """The variant."""
        return str(self.settings["model"])

    @property
    def slug(self) -> str:
        """The name as a folder's."""
        return re.sub(r"[^A-Za-z0-9.]+", "_", self.name).strip("_")


def study_data(
    address: str,
    *,
    task: str = "",
    labels: Sequence[str] = (),
    targets: Sequence[str] = (),
) -> Study:
    """Look at data and find what is proposed for them.

    Args:
        address: As for ``open_data``.
        task: What is to be learned; what the data are for when not given.
        labels: Label columns to read.
        targets: Columns of numbers to be predicted.

    Raises:
        DataError: The data cannot be opened, or no training sample can be read.
        ConfigError: A task that the data are not for.
    """
    if address.startswith(WARPS) or task == "flow":
        raise ConfigError(
            "optical flow is learned by one family alone (perceiver_io), from pixels whose places "
            "are what is learned, so there is nothing to compare; train it with 'perceivers train "
            "--config optical_flow'"
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
    if task and task != found and task not in UNLABELLED_TASKS:
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
            settings = {k: v for k, v in settings.items() if k not in OBJECTIVES}
    settings |= common_settings(facts, {"labels": labels, "targets": targets})
    settings = {key: value for key, value in settings.items() if key not in LENGTH}
    splits = tuple(dataset.splits)
    return Study(address, facts, chosen, setup.model, settings, chosen == own, splits)


def small_models(kinds: Iterable[str]) -> list[str]:
    """Return our small variants that read inputs of any size, HiP's first.

    Args:
        kinds: Of the modalities; variants for other kinds are left out.
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
    """Return the table of candidates, the proposal first.

    Whether each fits the data is found out by building it.

    Args:
        study: Of the data.
        models: Variants that compete; all small ones, and the proposal, when empty.
        rates: Peak learning rates that every variant is tried with.
        settings: Further training settings of all candidates; they win over the proposal's.

    Raises:
        ConfigError: A variant is unknown.
    """
    known = list_models()
    for name in models:
        if name not in known:
            raise ConfigError(
                f"models holds {name!r}, which is no variant ('perceivers models' lists them)"
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
    """Return nested settings with others over them, field by field."""
    joined = dict(settings)
    for key, value in extra.items():
        own: Any = joined.get(key)
        both = isinstance(own, Mapping) and isinstance(value, Mapping)
        joined[key] = join(own, value) if both else value
    return joined


# -- Whether a candidate can compete: built for the data, held against memory, and timed ---------

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


# -- Successive halving: how many go on, for how long each trains, and who is ahead --------------
#
# Every rung has the same share of the time, and within a rung every candidate the same; so
# whoever stays trains longer in the next rung. Nothing here trains.
#
# Paper: Jamieson and Talwalkar (arXiv 1502.07943).

# Evaluations of a run, where they take no more than a share of its time.
EVALUATIONS, EVALUATION_SHARE = 5, 0.3


def plan_rungs(count: int, reduce: int) -> tuple[int, ...]:
    """Return how many candidates train in each rung.

    Args:
        count: Candidates, at least 1.
        reduce: One in so many goes on, rounded up, at least 2. The last rung is the first with no
            more than that many: its best one wins.
    """
    counts = [count]
    while counts[-1] > reduce:
        counts.append(-(-counts[-1] // reduce))
    return tuple(counts)


def rank(outcomes: Sequence[Outcome], *, higher_is_better: bool) -> list[Outcome]:
    """Return outcomes from best to worst, failed ones last.

    Of equal ones the smaller model is ahead, then the one that comes first: time, which differs
    from run to run, decides nothing.
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
    """Return the names of those that go on, best first; fewer where fewer have a result."""
    ranked = rank(outcomes, higher_is_better=higher_is_better)
    return [outcome.name for outcome in ranked if not outcome.has_failed][:keep]


def fit_steps(seconds: float, step_seconds: float, eval_seconds: float) -> tuple[int, int]:
    """Return the steps that fit into a time, and between how many of them one evaluates.

    Args:
        seconds: For steps and evaluations.
        step_seconds: Of one step, positive.
        eval_seconds: Of one evaluation.

    Returns:
        Steps, 0 where not even one fits beside its evaluation, and ``eval_every``, at least 1.
    """
    count = EVALUATIONS
    if eval_seconds > 0:
        count = min(count, max(1, int(EVALUATION_SHARE * seconds / eval_seconds)))
    left = seconds - count * eval_seconds
    steps = int(left / step_seconds) if isfinite(step_seconds) and left > 0 else 0
    return steps, spread_evaluations(steps, count)


def spread_evaluations(steps: int, count: int = EVALUATIONS) -> int:
    """Return ``eval_every`` for a number of evaluations, the last of them at the last step."""
    return max(1, -(-steps // count))


def find_front(points: Mapping[str, tuple[int, float]], *, higher_is_better: bool) -> list[str]:
    """Return the names of the Pareto front: no other is as good with fewer parameters.

    Args:
        points: Parameters and metric by name.
        higher_is_better: Direction of the metric.

    Returns:
        From the smallest to the largest model.
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
