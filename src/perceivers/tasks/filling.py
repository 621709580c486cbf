"""Predict a missing modality from the others, and measure the error.

Errors are squared errors of normalised values (for a standardised modality: in units of each
channel's variance), or cross-entropies in nats for labels and texts.

Legend: B batch, N elements, C channels, K classes or bytes.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from perceivers.errors import DataError
from perceivers.models.hip import HiP
from perceivers.models.masked import Target
from perceivers.models.perceiver_io import PerceiverIO
from perceivers.tasks.autoencoding import Autoencoding, AutoencodingConfig
from perceivers.tasks.base import TaskBatch, held_modalities
from perceivers.types import PAD, ModalitySpec

# Targets of a masked autoencoder that can be inverted without the missing values themselves.
FREE_TARGETS: tuple[Target, ...] = ("per-channel", "raw")


@runtime_checkable
class Filler(Protocol):
    """Interface that a model family implements to predict missing modalities.

    Attributes:
        model: The model.
        names: Modalities that it can predict.
    """

    model: Any
    names: tuple[str, ...]

    def fill(
        self, inputs: Mapping[str, Tensor], held: Mapping[str, Tensor], name: str
    ) -> Float[Tensor, "B N C"]:
        """Predict a modality from all others, as normalised values or as logits.

        Args:
            inputs: Raw tensors ``[B, ...]`` by name, one for every input of the model; that of the
                modality itself is ignored.
            held: Which samples have a modality, bool ``[B]``; default all.
            name: The modality to predict.
        """
        ...


class ElementFiller:
    """Fill in with HiP, whose decoder predicts every declared modality, present or not.

    Args:
        model: A model with a decoder, trained with one of ``FREE_TARGETS``.
    """

    def __init__(self, model: HiP) -> None:
        self.model = model.eval()
        self.names = keep_fillable(model, model.config.inputs)

    @torch.no_grad()
    def fill(
        self, inputs: Mapping[str, Tensor], held: Mapping[str, Tensor], name: str
    ) -> Float[Tensor, "B N C"]:
        """Encode all grouped inputs but ``name``; labels at the bottleneck are never encoded."""
        model = self.model
        given = {n: inputs[n] for n in model.config.grouped_inputs}
        encoded = model.encode(given, present=without(held, name, given))
        return model.reconstruct(encoded)[name].float()


class OutputFiller:
    """Fill in with Perceiver IO, whose position queries decode a modality, present or not.

    Args:
        model: An autoencoder.
        config: The settings that it was trained with.
    """

    def __init__(self, model: PerceiverIO, config: AutoencodingConfig) -> None:
        self.task = Autoencoding(model, config).eval()
        self.model = model
        # Queries built from a modality's own tokens need the missing values.
        outputs = model.config.outputs.items()
        self.names = keep_fillable(model, [n for n, o in outputs if o.queries != "tokens"])

    @torch.no_grad()
    def fill(
        self, inputs: Mapping[str, Tensor], held: Mapping[str, Tensor], name: str
    ) -> Float[Tensor, "B N C"]:
        """Encode all modalities but ``name``; labels are always hidden."""
        model = self.model
        given = {n: inputs[n] for n in model.config.data_inputs}
        encoded = self.task.encode_whole(inputs, without(held, name, given))
        made = model.decode(encoded, name).float()
        if name in self.task.labels:
            return made.reshape(len(made), -1, made.shape[-1])
        return model.adapter(name).flatten(made)


def keep_fillable(model: Any, names: Iterable[str]) -> tuple[str, ...]:
    """Return the modalities that can be predicted from another input that is not a label."""
    return tuple(n for n in names if any(other != n for other in model.config.data_inputs))


def without(
    held: Mapping[str, Tensor], name: str, given: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return which samples have which modality after ``name`` is hidden from all of them."""
    if name not in given:
        return dict(held)
    return {**held, name: torch.zeros(len(given[name]), dtype=torch.bool).to(given[name].device)}


def collect_inputs(filler: Filler, batch: TaskBatch) -> dict[str, Tensor]:
    """Return a batch's raw tensors by name, including labels if they are an input of the model.

    Labels that the batch lacks are set to unknown (-1).
    """
    config = filler.model.config
    inputs = {name: batch.inputs[name] for name in config.data_inputs}
    size = len(next(iter(inputs.values())))
    labels = [name for name in config.inputs if name not in inputs]
    for name in labels:
        inputs[name] = torch.full((size, *config.inputs[name].raw_shape), -1)
    if batch.labels is not None and batch.labels.ndim == 1:
        inputs |= dict.fromkeys(labels[:1], batch.labels)
    return inputs


def find_fillable(
    filler: Filler, batch: TaskBatch, inputs: Mapping[str, Tensor], name: str
) -> tuple[Bool[Tensor, " B"], Bool[Tensor, " B"]]:
    """Return which samples have another modality to predict ``name`` from, and which have ``name``.

    Args:
        filler: A filler for the model.
        batch: The samples.
        inputs: From ``collect_inputs``.
        name: The modality.
    """
    size = len(next(iter(inputs.values())))
    everywhere = torch.ones(size, dtype=torch.bool)
    held = held_modalities(filler.model, batch)
    others = [held.get(n, everywhere) for n in filler.model.config.data_inputs if n != name]
    there = held.get(name, everywhere)
    if name not in batch.inputs:
        there = (inputs[name].reshape(size, -1) >= 0).any(1)
    return torch.stack(others).any(0), there


def true_elements(model: Any, name: str, raw: Tensor) -> tuple[Tensor, Bool[Tensor, "B N"]]:
    """Return the true elements of a modality and which of them are valid.

    These are normalised values ``[B, N, C]``, or class indices ``[B, N]`` for labels and texts.
    Unknown labels, padding bytes and missing points (NaN) are not valid.
    """
    adapter = model.adapter(name)
    values = adapter.flatten(raw)
    if adapter.spec.kind == "labels":
        return values.clamp(min=0).long(), values >= 0
    if adapter.spec.kind == "bytes":
        return values.long(), values != PAD
    truth = adapter.normalise(values, torch.float32)
    real = ~truth.isnan().any(-1)
    return torch.where(real.unsqueeze(-1), truth, 0.0), real


def element_errors(model: Any, name: str, made: Tensor, truth: Tensor) -> Float[Tensor, "B N"]:
    """Return each element's squared error, averaged over channels, or its cross-entropy.

    Args:
        model: A model of any family.
        name: The modality.
        made: Predicted values or logits ``[#B, N, C]``.
        truth: From ``true_elements``.
    """
    if model.adapter(name).spec.indexed:
        # Expand, as the baseline makes one prediction for the whole batch.
        scores = F.log_softmax(made.float(), -1).expand(len(truth), -1, -1)
        return -scores.gather(-1, truth.unsqueeze(-1)).squeeze(-1)
    return (made - truth).square().mean(-1)


def unit_of(spec: ModalitySpec) -> str:
    """Return the unit of a modality's error.

    ``nats`` for labels and texts, ``variances`` for standardised values, ``squared`` for others.
    """
    if spec.indexed:
        return "nats"
    return "variances" if spec.std else "squared"


class MeanSample:
    """Baseline that predicts the mean of all samples, element by element, without any input.

    For labels and texts it predicts the class frequencies at each position, with add-one smoothing
    so that no class has probability 0.

    Args:
        model: A model of any family.
        name: The modality.
    """

    def __init__(self, model: Any, name: str) -> None:
        self.model, self.name = model, name
        self.scored = bool(model.adapter(name).spec.indexed)
        self.total: Tensor | None = None
        self.count: Tensor | None = None

    def add(self, raw: Tensor) -> None:
        """Add samples that have the modality, ``[B, ...]``."""
        truth, real = true_elements(self.model, self.name, raw)
        if self.scored:
            truth = F.one_hot(truth, self.model.adapter(self.name).spec.channels)
        values = (truth.double() * real.unsqueeze(-1)).sum(0)
        times = real.double().sum(0).unsqueeze(-1)
        self.total = values if self.total is None else self.total + values
        self.count = times if self.count is None else self.count + times

    def predict(self) -> Float[Tensor, "1 N C"]:
        """Return the mean, or the log frequencies.

        Raises:
            DataError: No sample was added.
        """
        if self.total is None or self.count is None:
            raise DataError(f"no sample contains {self.name!r}, so it has no mean")
        if self.scored:
            return ((self.total + 1) / (self.count + self.total.shape[-1])).log().float()[None]
        return (self.total / self.count.clamp(min=1)).float()[None]
