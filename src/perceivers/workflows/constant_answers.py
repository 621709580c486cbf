"""What a constant answer reaches: the most common class, the mean number, the mean signal.

It is the floor of a comparison: a model that does not beat it has learned nothing of the samples.

Legend: n samples, T label or target columns, K outputs.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from perceivers.data.fitting import cut_windows
from perceivers.data.masks import count_pixels
from perceivers.data.sources import Source, TargetSource
from perceivers.tasks import (
    Classification,
    MaskedAutoencoding,
    Multitask,
    Regression,
    Segmentation,
)
from perceivers.tasks.metrics import UNKNOWN
from perceivers.tasks.multilabel import Multilabel, to_multi_hot
from perceivers.tasks.segmentation import TARGET as MASKS
from perceivers.workflows.preparing import Prepared


def describe_constant(prepared: Prepared) -> str:
    """Say what the constant answer of a task is; empty where there is none."""
    task = prepared.task
    if isinstance(task, Classification | Multitask):
        return "most common class"
    if isinstance(task, Multilabel):
        return "the same scores for all samples"
    if isinstance(task, Regression):
        return "mean of the training targets"
    if isinstance(task, Segmentation):
        return "most common class everywhere"
    if isinstance(task, MaskedAutoencoding) and task.settings.target != "raw":
        return "mean of the training data"
    return ""


def score_constant(prepared: Prepared, split: str) -> float | None:
    """Return the metric that chooses models, of the constant answer, on a split.

    Args:
        prepared: Of any model for the data.
        split: ``val`` or ``test``.

    Returns:
        The metric; None where the task has no constant answer (texts, auto-encoding, errors in raw
        units).
    """
    train, held = (
        cut_windows(prepared.dataset.splits[name], prepared.specs) for name in ("train", split)
    )
    task = prepared.task
    if isinstance(task, Classification | Multitask):
        return _majority(_columns(train), _columns(held))
    if isinstance(task, Multilabel):
        return _prevalence(_columns(held), task)
    if isinstance(task, Regression):
        return _mean_error(held, task)
    if isinstance(task, Segmentation):
        spec: Any = prepared.specs[MASKS]
        common = int(count_pixels(train, spec).argmax())
        counts = count_pixels(held, spec)
        occurring = np.count_nonzero(counts) + (counts[common] == 0)
        return float(counts[common] / counts.sum() / occurring)
    if isinstance(task, MaskedAutoencoding) and task.settings.target != "raw":
        # Errors are in units of the variance, of which the mean explains nothing.
        return float(sum(task.config.weights.get(name, 1.0) for name in task.model.config.inputs))
    return None


def _columns(source: Source) -> NDArray[np.int64]:
    """Return labels ``[n, T]``."""
    assert source.labels is not None
    return source.labels.reshape(len(source.labels), -1)


def _majority(train: NDArray[np.int64], held: NDArray[np.int64]) -> float:
    """Return the accuracy of each column's most common training class, its mean over columns."""
    shares = []
    for known, wanted in zip(train.T, held.T, strict=True):
        known, truth = known[known != UNKNOWN], wanted[wanted != UNKNOWN]
        if len(known) and len(truth):
            answer = np.bincount(known).argmax()
            shares.append(float((truth == answer).mean()))
    return sum(shares) / max(len(shares), 1)


def _prevalence(held: NDArray[np.int64], task: Multilabel) -> float:
    """Return the mean average precision of equal scores: how common each label is, on average."""
    targets, known = to_multi_hot(torch.from_numpy(held), task.columns)
    counts, totals = (targets * known).sum(0), known.sum(0)
    occurs = counts > 0
    return float((counts[occurs] / totals[occurs]).mean()) if bool(occurs.any()) else 0.0


def _mean_error(held: Source, task: Regression) -> float:
    """Return the loss of the training mean, which is 0 where targets are standardised."""
    assert isinstance(held, TargetSource)
    assert held.targets is not None
    targets = torch.from_numpy(held.targets)
    wanted = ((targets - task.mean) / task.deviation)[~targets.isnan()]
    answers = torch.zeros_like(wanted)
    if task.config.loss == "mse":
        return float(F.mse_loss(answers, wanted))
    if task.config.loss == "mae":
        return float(F.l1_loss(answers, wanted))
    return float(F.huber_loss(answers, wanted, delta=task.config.delta))
