"""Multi-label classification: several label columns predicted by one output vector.

A column of two classes, such as ("no", "yes"), has one output, for its second class; a column of
more classes has one output per class. Outputs are in the order of the columns.

Legend: B batch, n samples, T label columns, K outputs.
Paper: Perceiver (arXiv 2103.03206) Sec. 4.2 (AudioSet: one output for each of 527 tags).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from perceivers.errors import ConfigError, DataError, suggest
from perceivers.settings import Fraction, Settings
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
    mean_precision,
    new_column_accuracies,
    new_means,
    new_precision,
    results,
    update,
)

Columns = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class MultilabelConfig(Settings, prefix="multilabel."):
    """Training settings."""

    input_dropout: dict[str, Fraction] = field(default_factory=dict)
    """Probability per modality, 0..1, that training sets all its raw values in a sample to 0.
    Perceiver's AudioSet recipe uses 0.3 for video (arXiv 2103.03206, Sec. 4.2)."""


def column_widths(columns: Columns) -> dict[str, int]:
    """Return the number of outputs per column: 1 for two classes, otherwise one per class.

    Raises:
        ConfigError: There is no column, or a column has fewer than two classes.
    """
    few = {name: classes for name, classes in columns.items() if len(classes) < 2}
    if few or not columns:
        raise ConfigError(
            f"label columns are {dict(columns)}; give at least one, and each at least two classes, "
            f"such as ('no', 'yes')"
        )
    return {name: 1 if len(classes) == 2 else len(classes) for name, classes in columns.items()}


def label_names(columns: Columns) -> tuple[str, ...]:
    """Return a name per output: ``column``, or ``column=class`` if it has more than two classes.

    Raises:
        ConfigError: As for ``column_widths``.
    """
    widths = column_widths(columns)
    return tuple(
        name if widths[name] == 1 else f"{name}={label}"
        for name, classes in columns.items()
        for label in (classes[1:] if widths[name] == 1 else classes)
    )


def to_multi_hot(
    labels: Int[Tensor, "B T"], columns: Columns
) -> tuple[Float[Tensor, "B K"], Bool[Tensor, "B K"]]:
    """Turn class indices per column into targets per output.

    Args:
        labels: Class indices, -1 where unknown; in the order of ``columns``.
        columns: Class names by column.

    Returns:
        Targets (0 or 1; 0 where unknown), and which of them are known.

    Raises:
        ConfigError: As for ``column_widths``.
        DataError: The number of columns is wrong, or an index is out of range.
    """
    widths = column_widths(columns)
    if labels.ndim != 2 or labels.shape[1] != len(columns):
        raise DataError(
            f"labels have shape {list(labels.shape)}, but there are {len(columns)} label columns "
            f"{list(columns)[:5]}; give labels [B, {len(columns)}]"
        )
    counts = torch.tensor([len(classes) for classes in columns.values()])
    wrong = (labels.cpu() >= counts) | (labels.cpu() < -1)
    if bool(wrong.any()):
        row, column = wrong.nonzero()[0].tolist()
        name = list(columns)[column]
        raise DataError(
            f"label {int(labels[row, column])} in column {name!r} is out of range; classes are "
            f"0..{len(columns[name]) - 1}, and -1 means unknown"
        )
    places = [
        (index, label)
        for index, (name, classes) in enumerate(columns.items())
        for label in ([1] if widths[name] == 1 else range(len(classes)))
    ]
    column, label = torch.tensor(places, device=labels.device).unbind(1)
    chosen = labels[:, column]  # [B, K]
    return (chosen == label).float(), chosen >= 0


class Multilabel(Task):
    """Multi-label classification with sigmoid cross-entropy over all known outputs.

    Args:
        model: Returns logits ``[B, K]``.
        columns: Class names by label column.
        config: Training settings.

    Raises:
        ConfigError: A column has fewer than two classes, or ``input_dropout`` names an unknown
            modality or labels.
    """

    best_metric = "map"
    higher_is_better = True

    def __init__(self, model: Any, columns: Columns, config: MultilabelConfig) -> None:
        super().__init__(model)
        check_dropout(model, config.input_dropout)
        self.columns = {name: tuple(classes) for name, classes in columns.items()}
        self.widths = column_widths(self.columns)
        self.config = config

    def forward(self, batch: TaskBatch, generator: torch.Generator) -> Losses:
        """Return the mean cross-entropy over known outputs, with input dropout applied."""
        targets, known = to_multi_hot(self._labels(batch), self.columns)
        inputs = hide_modalities(batch.inputs, self.config.input_dropout, generator)
        shown = shown_modalities(self, batch, generator)
        errors = self._errors(self._logits(inputs, shown), targets, known)
        return Losses(total=errors.sum() / known.sum().clamp(min=1), parts={})

    def _labels(self, batch: TaskBatch) -> Int[Tensor, "B T"]:
        if batch.labels is None:
            raise DataError("multi-label classification needs labels; the batch has none")
        return batch.labels if batch.labels.ndim == 2 else batch.labels.unsqueeze(1)

    def _logits(
        self, inputs: Mapping[str, Tensor], shown: Mapping[str, Tensor]
    ) -> Float[Tensor, "B K"]:
        logits = answer(self.model, inputs, shown).float()
        if logits.shape[-1] != sum(self.widths.values()):
            raise ConfigError(
                f"the model has {logits.shape[-1]} outputs, but the {len(self.columns)} label "
                f"columns need {sum(self.widths.values())}; build it with num_classes set to that"
            )
        return logits

    def _errors(
        self, logits: Float[Tensor, "B K"], targets: Float[Tensor, "B K"], known: Tensor
    ) -> Float[Tensor, "B K"]:
        """Return the cross-entropy per output in nats, 0 where unknown."""
        errors = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return errors * known

    @torch.no_grad()
    def evaluate(self, batches: Iterable[TaskBatch]) -> dict[str, float]:
        """Return loss, mean average precision ``map``, and accuracy per column.

        ``map`` is the mean over outputs that are true for at least one sample. ``top1/<column>`` is
        the accuracy on a column's known labels (with two classes: threshold 0 on the logit), and
        ``column_top1`` is its mean over columns.
        """
        self.eval()
        device = device_of(self.model)
        loss = new_means(["loss"], device)
        precision = new_precision(sum(self.widths.values()), device)
        right = new_column_accuracies(self.columns, device)
        choices = Choices(device)
        for batch in batches:
            held = held_modalities(self.model, batch)
            labels, logits = self._labels(batch), self._logits(batch.inputs, held)
            targets, known = to_multi_hot(labels, self.columns)
            errors = self._errors(logits, targets, known).sum()
            add_mean(loss["loss"], errors / known.sum().clamp(min=1), known.sum())
            # torchmetrics takes scores for probabilities if they all happen to lie in 0..1.
            scores = logits.to(device).double().sigmoid()
            update(precision, scores, targets.long().masked_fill(~known, UNKNOWN))
            # Stricter than ``Choices.of``: with a threshold, every logit matters.
            choices.note(logits.isfinite().all(-1))
            chosen = choose_classes(logits, self.widths)
            for index, metric in enumerate(right.values()):
                update(metric, chosen[:, index], labels[:, index])
        shares = column_shares(right)
        figures = {
            "map": mean_precision(precision),
            "column_top1": sum(shares.values()) / max(len(shares), 1),
            **{f"top1/{name}": share for name, share in shares.items()},
        }
        return {**results(loss), **choices.judge(figures)}


def choose_classes(logits: Float[Tensor, "B K"], widths: Mapping[str, int]) -> Int[Tensor, "B T"]:
    """Return the most likely class per column; of two, the second if the logit is above 0."""
    ends = torch.tensor([0, *widths.values()]).cumsum(0).tolist()
    chosen = [
        (part[:, 0] > 0).long() if part.shape[1] == 1 else part.argmax(-1)
        for part in (logits[:, first:last] for first, last in pairwise(ends))
    ]
    return torch.stack(chosen, dim=1)


def hide_modalities(
    inputs: Mapping[str, Tensor], rates: Mapping[str, float], generator: torch.Generator
) -> dict[str, Tensor]:
    """Set whole modalities of samples to zero, independently for each sample and modality.

    Raw values become 0 before normalisation: black images, silence, padding bytes. If the input is
    standardised, the values inside the model are therefore not 0.

    Args:
        inputs: Raw tensors ``[B, ...]`` by name.
        rates: Probability by name, 0..1.
        generator: Random generator.
    """
    hidden = dict(inputs)
    for name, rate in rates.items():
        raw = inputs[name]
        keep = torch.rand(len(raw), generator=generator, device=generator.device) >= rate
        shape = (-1, *[1] * (raw.ndim - 1))
        # ``where``, as a product with 0 would keep NaN.
        hidden[name] = torch.where(keep.to(raw.device).reshape(shape), raw, 0)
    return hidden


def check_dropout(model: Any, rates: Mapping[str, float]) -> None:
    """Raise if a modality is not an input of the model, or is labels, whose 0 is a class.

    Raises:
        ConfigError: Names the modalities of the model.
    """
    specs = model.config.data_inputs
    for name in rates:
        if name not in specs:
            raise ConfigError(
                f"input_dropout names {name!r}{suggest(name, specs)}, but the model reads "
                f"{list(specs)}"
            )
        if specs[name].kind == "labels":
            raise ConfigError(
                f"input_dropout names {name!r}, which are labels: 0 is their first class, not a "
                f"missing value; leave it out"
            )
