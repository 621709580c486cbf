"""Which models compete for some data, and with which settings: a table made from the registry.

Sizes, batches, augmentation and columns are those that ``data check`` proposes; every small variant
takes them over, with learning rates of its own, and the proposal itself competes too.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from perceivers.data import open_data
from perceivers.data.inspecting import DataFacts, inspect_data
from perceivers.errors import ConfigError, DataError, suggest
from perceivers.models.registry import FAMILIES, list_models
from perceivers.training.run_folder import TASKS
from perceivers.workflows.opening import WARPS
from perceivers.workflows.proposing import (
    PURPOSES,
    choose_data_task,
    common_settings,
    task_settings,
)
from perceivers.workflows.proposing_setups import SHORT_TRUNK, choose_setup

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
