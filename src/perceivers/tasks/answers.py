"""Answers that are none: scores of NaN, which ``argmax`` takes for the largest of all.

Weights are checked where they are loaded and saved; finite weights can still overflow.

Legend: K classes.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from perceivers.errors import DataError
from perceivers.tasks.metrics import new_metric, result, update

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
