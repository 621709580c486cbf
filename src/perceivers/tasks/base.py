"""Base class of tasks, their batches and losses, and predicted classes in metrics."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

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
