"""What the training loop asks of a task."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class TaskBatch(Protocol):
    """A batch as the loaders make it: raw inputs ``[B, ...]`` by name, labels or none.

    Labels are ``[B]``, or ``[B, T]`` for several label columns, -1 where unknown.
    """

    inputs: dict[str, Tensor]
    labels: Tensor | None


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
    """

    best_metric: str
    higher_is_better: bool

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    @abstractmethod
    def forward(self, batch: TaskBatch, generator: torch.Generator) -> Losses:
        """Return the training losses; all randomness of the objective comes from ``generator``."""

    @abstractmethod
    def evaluate(self, batches: Iterable[TaskBatch]) -> dict[str, float]:
        """Return figures over all batches; deterministic, in evaluation mode."""
