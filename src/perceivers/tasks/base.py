"""Base class of tasks, their batches and losses, predicted classes, and missing modalities."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from perceivers.draws import Draws, rand_rows, sample_generators
from perceivers.errors import ConfigError, suggest
from perceivers.finite import is_answer
from perceivers.tasks.metrics import new_metric, result, update


class Choices:
    """Predict classes for metrics, and invalidate the metrics if any row of scores was invalid.

    Args:
        device: Device of the counter.
    """

    def __init__(self, device: torch.device) -> None:
        self._missing = new_metric("SumMetric", device)

    def of(self, scores: Tensor, dim: int = -1) -> Int[Tensor, "..."]:
        """Return the most likely class of every row."""
        self.note(is_answer(scores, dim))
        return scores.argmax(dim)

    def note(self, answered: Bool[Tensor, "..."]) -> None:
        """Count the rows that are not valid."""
        update(self._missing, (~answered).sum())

    def judge(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Return the metrics, all NaN if any process saw an invalid row.

        The count is merged over processes, so every process must call this.
        """
        if float(result(self._missing)):
            return dict.fromkeys(figures, float("nan"))
        return dict(figures)


# -- Interface between the training loop and a task ----------------------------------------------


@runtime_checkable
class TaskBatch(Protocol):
    """A batch as the data loaders return it.

    Attributes:
        inputs: Raw tensors ``[B, ...]`` by name; zero for samples that lack the modality.
        labels: ``[B]``, or ``[B, T]`` for several label columns, -1 where unknown; or None.
        targets: Numbers ``[B, T]``, NaN where unknown; or None.
        present: Which samples have a modality, bool ``[B]``, by name; empty if all have all.
        position: Unique number of each sample ``[B]``, which seeds its random generator; or None.
    """

    inputs: dict[str, Tensor]
    labels: Tensor | None
    targets: Tensor | None
    present: dict[str, Tensor]
    position: Tensor | None


@dataclass
class Losses:
    """A scalar to minimise, and its parts.

    Not frozen: the mixed-precision wrapper rebuilds it around cast tensors.
    """

    total: Tensor
    parts: Mapping[str, Tensor]


class Task(nn.Module, ABC):
    """A model with its loss and metrics.

    Attributes:
        model: The model to train, of any family (``models.base.Model``).
        best_metric: Validation metric that selects the best weights.
        higher_is_better: Whether a larger value of ``best_metric`` is better.
        modality_dropout: Probability that training hides a modality from a sample, for every
            modality of the model; empty for no dropout (``tasks.presence.dropout_rates``).
        averaged: Context manager in which the model has its averaged weights; without weight
            averaging it does nothing.
    """

    best_metric: str
    higher_is_better: bool
    modality_dropout: Mapping[str, float]
    averaged: Callable[[], AbstractContextManager[None]]

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.modality_dropout = {}
        self.averaged = nullcontext

    @abstractmethod
    def forward(self, batch: TaskBatch, generator: torch.Generator) -> Losses:
        """Return the training losses; all randomness comes from ``generator``."""

    @abstractmethod
    def evaluate(self, batches: Iterable[TaskBatch]) -> dict[str, float]:
        """Return metrics over all batches, deterministically and in evaluation mode.

        With several processes, each passes its own part of the batches (possibly none), and all
        return the metrics over all parts.
        """


# -- Missing modalities, and modality dropout in training ------------------------------------------
#
# A modality is *held* (present) if the sample has data for it; only then is it scored. It is
# *shown* (visible) if the encoder also reads it, which modality dropout may prevent.
#
# Legend: B batch, M modalities.


DROPOUT_STREAM = 1


def can_lack(model: Any) -> bool:
    """Return whether a model reads several modalities, so that a sample may lack one."""
    return len(model.config.data_inputs) > 1


def held_modalities(model: Any, batch: TaskBatch) -> dict[str, Tensor]:
    """Return which samples have each modality that the model reads; empty if all have all."""
    if not can_lack(model):
        return {}
    return {name: batch.present[name] for name in model.config.data_inputs if name in batch.present}


def drop_modalities(
    held: Mapping[str, Tensor], rates: Mapping[str, float], size: int, generator: Draws
) -> dict[str, Tensor]:
    """Hide modalities of each sample at random, but never all that it has.

    Args:
        held: Which samples have a modality, bool ``[B]``; default all.
        rates: Probability of hiding each modality that the model reads, 0..1.
        size: Samples B.
        generator: Random generator on the CPU; one for all samples, or one for each.

    Returns:
        In which samples each modality of ``rates`` is visible, bool ``[B]``.
    """
    everywhere = torch.ones(size, dtype=torch.bool)
    there = torch.stack([held.get(name, everywhere).cpu() for name in rates], 1)  # [B, M]
    drawn = rand_rows(size, len(rates), generator=generator)
    shown = there & (drawn >= torch.tensor(list(rates.values())))
    # If all would be hidden, keep the modality that came closest to staying visible.
    margin = (drawn - torch.tensor(list(rates.values()))).masked_fill(~there, -torch.inf)
    spared = torch.zeros_like(there).scatter(1, margin.argmax(1, keepdim=True), value=True)
    shown = torch.where(shown.any(1, keepdim=True), shown, spared & there)
    return dict(zip(rates, shown.unbind(1), strict=True))


def dropout_rates(model: Any, setting: float | Mapping[str, float]) -> dict[str, float]:
    """Return the dropout rate of every modality; empty if all rates are 0.

    Args:
        model: A model of any family.
        setting: One rate for all modalities, or rates by name (default 0).

    Raises:
        ConfigError: A rate is out of range, a modality is unknown, or the model reads only one.
    """
    names = list(model.config.data_inputs)
    rates = dict(setting) if isinstance(setting, Mapping) else dict.fromkeys(names, float(setting))
    for name, rate in rates.items():
        if name not in names:
            raise ConfigError(
                f"modality_dropout names {name!r}, but the model reads {names}"
                + suggest(name, names)
            )
        if not 0.0 <= rate <= 1.0:
            raise ConfigError(f"modality_dropout for {name!r} is {rate}; it must be in [0, 1]")
    if not any(rates.values()):
        return {}
    if not can_lack(model):
        raise ConfigError(
            f"modality_dropout is {setting}, but the model reads only {names}, which cannot be "
            f"hidden; leave it at 0"
        )
    return {name: rates.get(name, 0.0) for name in names}


def shown_modalities(task: Task, batch: TaskBatch, generator: torch.Generator) -> dict[str, Tensor]:
    """Return in which samples each modality is visible: present, and not dropped in training.

    Args:
        task: In training mode, its ``modality_dropout`` applies.
        batch: Samples; their positions seed the dropout.
        generator: Random generator of the training step.
    """
    held = held_modalities(task.model, batch)
    if not (task.training and task.modality_dropout):
        return held
    first = next(iter(batch.inputs.values()))
    # Not the stream of the masks: hiding a modality must not depend on what else is hidden.
    draws = sample_generators(generator, batch.position, DROPOUT_STREAM)
    shown = drop_modalities(held, task.modality_dropout, first.shape[0], draws)
    return {name: there.to(first.device) for name, there in shown.items()}


def answer(
    model: Any, inputs: Mapping[str, Tensor], shown: Mapping[str, Tensor], **options: Any
) -> Any:
    """Call a model, passing ``present`` only if some samples may lack a modality.

    Args:
        model: A model of any family; models of a single modality do not accept ``present``.
        inputs: Raw tensors ``[B, ...]`` by name.
        shown: From ``shown_modalities`` or ``held_modalities``.
        options: Further keyword arguments of the call.
    """
    return model(inputs, present=shown, **options) if shown else model(inputs, **options)
