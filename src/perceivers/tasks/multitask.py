"""Multitask classification: one query, one head and one label column per task.

A sample has a label for one or more tasks; the other labels are -1 and are not scored.

Legend: B batch, T tasks, K classes of a task.
Paper: Perceiver IO (arXiv 2107.14795) Sec. 4.1 and App. F.4 (multitask queries).
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from perceivers.errors import ConfigError, DataError
from perceivers.tasks.base import (
    Choices,
    Losses,
    Task,
    TaskBatch,
    answer,
    held_modalities,
    shown_modalities,
)
from perceivers.tasks.metrics import (
    UNKNOWN,
    add_mean,
    column_shares,
    device_of,
    new_column_accuracies,
    new_means,
    results,
    update,
)


class Multitask(Task):
    """Classify samples for several tasks, one class each.

    Args:
        model: Returns logits ``[B, K]`` by task.
        columns: Class names by task, in the order of the label columns.
        label_smoothing: Fraction of the target spread evenly over a task's classes, 0..1.

    Raises:
        ConfigError: The model's outputs do not match the label columns, or there is only one.
    """

    best_metric = "top1"
    higher_is_better = True

    def __init__(
        self, model: Any, columns: Mapping[str, tuple[str, ...]], label_smoothing: float = 0.0
    ) -> None:
        super().__init__(model)
        outputs = getattr(model.config, "outputs", {})
        asked = {name: len(classes) for name, classes in columns.items()}
        answered = {name: output.channels for name, output in outputs.items()}
        if any(answered.get(name) != count for name, count in asked.items()) or len(asked) < 2:
            raise ConfigError(
                f"the label columns need outputs {asked}, but the model has {answered}; multitask "
                f"needs a perceiver_io model with one output per column, and at least two columns"
            )
        self.columns = dict(columns)
        self.label_smoothing = label_smoothing

    def forward(self, batch: TaskBatch, generator: torch.Generator) -> Losses:
        """Return the mean cross-entropy over all known labels, and that of each task."""
        shown = shown_modalities(self, batch, generator)
        labels, answers = self._labels(batch), answer(self.model, batch.inputs, shown)
        sums, counts, parts = [], [], {}
        for index, name in enumerate(self.columns):
            known = labels[:, index] >= 0
            errors = F.cross_entropy(
                answers[name].float(),
                labels[:, index].clamp(min=0),  # -1 is not an index; masked by ``known`` below
                reduction="none",
                label_smoothing=self.label_smoothing,
            )
            sums.append((errors * known).sum())
            counts.append(known.sum())
            parts[name] = sums[-1] / counts[-1].clamp(min=1)
        # Averaged over labels, not tasks: a task with more labels has more weight.
        total = torch.stack(sums).sum() / torch.stack(counts).sum().clamp(min=1)
        return Losses(total=total, parts=parts)

    def _labels(self, batch: TaskBatch) -> Tensor:
        shape = None if batch.labels is None else list(batch.labels.shape)
        if batch.labels is None or shape is None or shape[1:] != [len(self.columns)]:
            raise DataError(
                f"labels have shape {shape}, but multitask needs one column per task "
                f"({list(self.columns)}); join data sets with 'A + B', or name the label columns "
                f"with labels"
            )
        return batch.labels

    @torch.no_grad()
    def evaluate(self, batches: Iterable[TaskBatch]) -> dict[str, float]:
        """Return loss, ``top1/<task>`` and their mean ``top1``."""
        self.eval()
        device = device_of(self.model)
        loss = new_means(["loss"], device)
        right = new_column_accuracies(self.columns, device)
        choices = Choices(device)
        for batch in batches:
            held = held_modalities(self.model, batch)
            labels, answers = self._labels(batch), answer(self.model, batch.inputs, held)
            for index, name in enumerate(self.columns):
                logits, truth = answers[name].float(), labels[:, index]
                known = (truth != UNKNOWN).sum()
                # NaN without any known label; ``add_mean`` then ignores it.
                error = F.cross_entropy(logits, truth, ignore_index=UNKNOWN)
                add_mean(loss["loss"], error, known)
                update(right[name], choices.of(logits), truth)
        shares = column_shares(right)
        top1 = sum(shares.values()) / max(len(shares), 1)
        figures = {"top1": top1, **{f"top1/{name}": share for name, share in shares.items()}}
        return {**results(loss), **choices.judge(figures)}
