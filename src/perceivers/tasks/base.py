"""What the training loop asks of a task."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from perceivers.errors import DataError
from perceivers.tasks.metrics import new_metric, result, update

# -- Answers that are none: scores of NaN, which ``argmax`` takes for the largest of all ---------
#
# Weights are checked where they are loaded and saved; finite weights can still overflow.
#
# Legend: K classes.

NO_ANSWER = (
    "the model's answer holds NaN or infinity, although its weights are finite; look for values in "
    "the input that are far outside those it was trained on"
)


def is_answer(scores: Tensor, dim: int = -1) -> Bool[Tensor, "..."]:
    """Tell which rows of scores name a class: none is NaN or infinite, one at least is not -inf."""
    return (scores < torch.inf).all(dim) & (scores > -torch.inf).any(dim)


def check_answer(values: Tensor, where: str) -> None:
    """Refuse an answer that is not finite.

    Args:
        values: What a model answers.
        where: Names the input.

    Raises:
        DataError: Some value is NaN or infinite.
    """
    if not bool(values.isfinite().all()):
        raise DataError(f"{where}: {NO_ANSWER}")


class Choices:
    """Chooses classes for figures, and spoils the figures where scores named none.

    Args:
        device: Where counts are kept.
    """

    def __init__(self, device: torch.device) -> None:
        self._missing = new_metric("SumMetric", device)

    def of(self, scores: Tensor, dim: int = -1) -> Int[Tensor, "..."]:
        """Return the likeliest class of every row."""
        self.note(is_answer(scores, dim))
        return scores.argmax(dim)

    def note(self, answered: Bool[Tensor, "..."]) -> None:
        """Remember which rows are answers."""
        update(self._missing, (~answered).sum())

    def judge(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Return the figures, as NaN if a row of any process was no answer; all must call this."""
        if float(result(self._missing)):
            return dict.fromkeys(figures, float("nan"))
        return dict(figures)


# -- What the training loop asks of a task -------------------------------------------------------


@runtime_checkable
class TaskBatch(Protocol):
    """A batch as the loaders make it.

    Attributes:
        inputs: Raw tensors ``[B, ...]`` by name; zero where a sample has none.
        labels: ``[B]``, or ``[B, T]`` for several label columns, -1 where unknown; or None.
        targets: Numbers ``[B, T]``, NaN where unknown; or None.
        present: Which samples hold a modality, bool ``[B]``, by name; empty when all hold all.
        position: What tells samples apart ``[B]``: their randomness is keyed on it; or None.
    """

    inputs: dict[str, Tensor]
    labels: Tensor | None
    targets: Tensor | None
    present: dict[str, Tensor]
    position: Tensor | None


@dataclass
class Losses:
    """A scalar to minimise, and the scalars it is made of.

    Not frozen: the wrapper that handles precision rebuilds it around cast tensors.
    """

    total: Tensor
    parts: Mapping[str, Tensor]


class Task(nn.Module, ABC):
    """A model with its loss and metrics.

    Attributes:
        model: What is trained; any family (``models.base.Model``).
        best_metric: The validation figure that chooses the best weights.
        higher_is_better: Its direction.
        modality_dropout: Probability that training hides a modality from a sample, for every one
            that the model reads; none hides nothing (``tasks.presence.dropout_rates``).
        averaged: Gives the model its averaged weights for a while; they are its own in a run that
            averages none.
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
        """Return the training losses; all randomness of the objective comes from ``generator``."""

    @abstractmethod
    def evaluate(self, batches: Iterable[TaskBatch]) -> dict[str, float]:
        """Return figures over all batches; deterministic, in evaluation mode.

        Where several processes have joined, each brings its share of the batches, which may be
        none, and all get the figures over all shares.
        """
