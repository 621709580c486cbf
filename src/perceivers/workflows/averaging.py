"""Classifiers that answer by the mean of their probabilities over several views of a sample.

Legend: B samples, V views of each, K classes.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import log
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers.checkpoints.loading import Loaded
from perceivers.data.views import Views
from perceivers.errors import ConfigError
from perceivers.tasks.presence import answer

# Tasks whose answers are probabilities of the whole sample.
AVERAGED_TASKS = ("classify", "multilabel", "multitask")


def check_views(loaded: Loaded, views: Views) -> None:
    """Refuse several views where there is nothing to average, or nothing to spread them over.

    Raises:
        ConfigError: The model is no classifier, or what it reads has no time, or no sides.
    """
    if views.count > 1 and loaded.info.task not in AVERAGED_TASKS:
        raise ConfigError(
            f"views are {views}, but only the answers of classifiers are averaged "
            f"({', '.join(AVERAGED_TASKS)}), and the model's task is "
            f"{loaded.info.task or 'not recorded'}; use 1 temporal and 1 spatial view"
        )
    views.check(loaded.model.config.data_inputs)


def average_views(loaded: Loaded, views: Views, at_once: int) -> Loaded:
    """Return the model as one that takes all views of its samples; unchanged for a single view.

    Args:
        loaded: A trained model.
        views: How many views of each sample there are.
        at_once: Views that are computed together, at least 1.

    Raises:
        ConfigError: As ``check_views``.
    """
    check_views(loaded, views)
    if views.count == 1:
        return loaded
    model = ViewAverage(loaded.model, views.count, loaded.info.task == "multilabel", at_once)
    return replace(loaded, model=model)


class ViewAverage(nn.Module):
    """A classifier of samples, made of one of views.

    Its logits are such that their softmax, or sigmoid, is the mean of the probabilities.

    Args:
        model: Whose call returns logits ``[B * V, K]``, or several of them by name.
        num_views: Views V of each sample, which follow each other.
        independent: Every output has a probability of its own (sigmoid); else they sum to 1.
        at_once: Views that are computed together, at least 1.
    """

    def __init__(self, model: Any, num_views: int, independent: bool, at_once: int) -> None:
        super().__init__()
        self.model = model
        self.config = model.config
        self.num_views = num_views
        self.independent = independent
        self.at_once = max(1, at_once)

    def forward(
        self, inputs: Mapping[str, Tensor], *, present: Mapping[str, Tensor] | None = None
    ) -> Tensor | dict[str, Tensor]:
        """Return logits ``[B, K]`` of inputs ``[B * V, ...]``, or several of them by name.

        Args:
            inputs: Raw tensors by name.
            present: Which views hold a modality, bool ``[B * V]``, by name; all where not given.
        """
        num_inputs = len(next(iter(inputs.values())))
        rows = [slice(i, i + self.at_once) for i in range(0, num_inputs, self.at_once)]
        answers = [
            answer(self.model, _take(inputs, part), _take(present or {}, part)) for part in rows
        ]
        if isinstance(answers[0], Mapping):
            return {name: self._average([a[name] for a in answers]) for name in answers[0]}
        return self._average(answers)

    def _average(self, parts: list[Tensor]) -> Tensor:
        """Join the answers to all views and average them."""
        logits = torch.cat(parts).unflatten(0, (-1, self.num_views))  # [B, V, K]
        return average_sigmoids(logits) if self.independent else average_softmaxes(logits)


def _take(tensors: Mapping[str, Tensor], rows: slice) -> dict[str, Tensor]:
    """Return some rows of every tensor."""
    return {name: tensor[rows] for name, tensor in tensors.items()}


def average_softmaxes(logits: Float[Tensor, "B V K"]) -> Float[Tensor, "B K"]:
    """Return logits whose softmax is the mean of the softmaxes over the views."""
    return logits.float().log_softmax(-1).logsumexp(1) - log(logits.shape[1])


def average_sigmoids(logits: Float[Tensor, "B V K"]) -> Float[Tensor, "B K"]:
    """Return logits whose sigmoid is the mean of the sigmoids over the views."""
    logits = logits.float()
    return F.logsigmoid(logits).logsumexp(1) - F.logsigmoid(-logits).logsumexp(1)
