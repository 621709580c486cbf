"""Masked auto-encoding: reconstruct the raw elements that the encoder was not shown.

Legend: B batch, g groups of a modality, S slots, Q masked slots, N elements, C channels.
Paper: HiP (arXiv 2202.10890) Sec. 3.3; the loss is not stated there, ours is mean squared error.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from perceivers.errors import ConfigError, suggest
from perceivers.masking import DEFAULT_MASK_RATIO, MaskKind, MaskPlan, draw_mask_plan
from perceivers.models.hip import HiP
from perceivers.models.hip.encoder import Encoded, gather_slots
from perceivers.nn.grouping import Share
from perceivers.tasks.base import Losses, Task, TaskBatch

Target = Literal["raw", "per-channel", "group-normalised"]
GROUP_EPSILON = 1e-6
# Evaluation draws the same masks every time.
EVALUATION_SEED = 20_220_222


@dataclass(frozen=True, kw_only=True)
class MaskedAutoencodingConfig:
    """What is hidden, and in which space the reconstruction is scored."""

    ratio: float = DEFAULT_MASK_RATIO
    """Share of elements hidden from the encoder, between 0 and 1; the paper's 0.85."""
    kind: MaskKind = "groupwise"
    """groupwise (the paper's), independent, groups or uniform."""
    target: Target = "per-channel"
    """per-channel: standardised by the input's mean and std; raw: 0..1 units; group-normalised:
    standardised within each group of the sample."""
    weights: dict[str, float] = field(default_factory=dict)
    """Weight per modality in the total; 1 where not given."""

    def __post_init__(self) -> None:
        """Reject an impossible ratio, kind or target."""
        if not 0.0 < self.ratio < 1.0:
            raise ConfigError(f"mask ratio is {self.ratio}; it must lie strictly between 0 and 1")
        for name, value, known in (
            ("kind", self.kind, ("groupwise", "independent", "groups", "uniform")),
            ("target", self.target, ("raw", "per-channel", "group-normalised")),
        ):
            if value not in known:
                raise ConfigError(f"mask {name} {value!r} is unknown; use one of {known}")


def group_statistics(
    grouped: Float[Tensor, "B g S C"], share: Share
) -> tuple[Float[Tensor, "B g 1 C"], Float[Tensor, "B g 1 C"]]:
    """Mean and standard deviation of the real elements of every group, per channel."""
    real = share.valid(grouped.device)[None, :, :, None].to(grouped.dtype)
    count = real.sum(2, keepdim=True).clamp(min=1.0)
    mean = (grouped * real).sum(2, keepdim=True) / count
    variance = ((grouped - mean).square() * real).sum(2, keepdim=True) / count
    return mean, (variance + GROUP_EPSILON).sqrt()


def masked_targets(
    model: HiP, encoded: Encoded, name: str, raw: Tensor, plan: MaskPlan, target: Target
) -> tuple[Tensor, Tensor]:
    """Return what should be predicted, and the weight (0 or 1) of every element.

    Shapes follow ``HiP.reconstruct``: ``[B, g, Q, C]`` and ``[B|1, g, Q]`` for a packed plan,
    ``[B, N, C]`` and ``[B, N]`` for a dense one. Padding weighs nothing.
    """
    share = next(share for share in encoded.layout.shares if share.name == name)
    adapter = model.adapter(name)
    values = adapter.flatten(raw)
    labels = adapter.spec.kind == "labels"
    grouped = share.split(values.unsqueeze(-1) if labels else values)
    real = share.valid(raw.device).unsqueeze(0)  # [1, g, S]
    dtype = torch.float32
    mean = std = None
    if target == "group-normalised" and not labels:
        mean, std = group_statistics(adapter.normalise(grouped, dtype), share)
    if plan.is_packed:
        grouped = gather_slots(grouped, plan.masked[name])
        weight = gather_slots(real, plan.masked[name])
    else:
        weight = real & ~plan.keep[name]
    tokens = adapter.normalise(grouped.squeeze(-1) if labels else grouped, dtype)
    if mean is not None and std is not None:
        tokens = (tokens - mean) / std
    if plan.is_packed:
        return tokens, weight
    return share.merge(tokens), share.merge(weight.unsqueeze(-1)).squeeze(-1)


def element_errors(
    model: HiP, name: str, prediction: Tensor, truth: Tensor, target: Target
) -> Float[Tensor, "..."]:
    """Mean squared error per element over its channels; cross-entropy for labels."""
    adapter = model.adapter(name)
    if adapter.spec.kind == "labels":
        return -(truth * F.log_softmax(prediction.float(), -1)).sum(-1)
    error = prediction.float() - truth
    if target == "raw" and adapter.spec.std:
        error = error * adapter.std
    return error.square().mean(-1)


def weighted_mean(errors: Tensor, weight: Tensor) -> Float[Tensor, ""]:
    """Mean over the elements that count; 0 when none does."""
    weight = weight.to(errors.dtype).expand_as(errors)
    return (errors * weight).sum() / weight.sum().clamp(min=1.0)


def mae_losses(
    model: HiP,
    inputs: Mapping[str, Tensor],
    plan: MaskPlan,
    *,
    target: Target = "per-channel",
    weights: Mapping[str, float] | None = None,
) -> Losses:
    """Encode what the plan keeps, reconstruct what it hides, and score that alone.

    The mean is taken within a modality, then the weighted sum over modalities, so that many pixels
    do not drown few samples. Bottleneck labels are never shown and always predicted.

    Args:
        model: With a decoder.
        inputs: Raw tensors by name.
        plan: From ``draw_mask_plan``; every grouped modality of ``inputs``.
        target: Space of the error; see ``MaskedAutoencodingConfig``.
        weights: Per modality, 1 where not given.

    Raises:
        ConfigError: A weight names an unknown modality.
    """
    weights = weights or {}
    check_weights(model, weights)
    hidden = model.config.labels
    encoded = model.encode({n: x for n, x in inputs.items() if n not in hidden}, plan)
    predictions = model.reconstruct(encoded, plan)
    parts = {}
    for name, prediction in predictions.items():
        if name not in inputs:
            continue
        if name in hidden:
            adapter = model.adapter(name)
            values = adapter.flatten(inputs[name])
            truth = adapter.normalise(values, torch.float32)
            known = (
                values >= 0 if adapter.spec.kind == "labels" else torch.ones_like(values[..., 0])
            )
        else:
            truth, known = masked_targets(model, encoded, name, inputs[name], plan, target)
        parts[name] = weighted_mean(element_errors(model, name, prediction, truth, target), known)
    total = torch.stack([loss * weights.get(name, 1.0) for name, loss in parts.items()]).sum()
    return Losses(total=total, parts=parts)


def check_weights(model: HiP, weights: Mapping[str, float]) -> None:
    """Reject weights of modalities that the model does not have."""
    for name in weights:
        if name not in model.config.inputs:
            raise ConfigError(
                f"loss weight for unknown modality {name!r}; the model has "
                f"{list(model.config.inputs)}{suggest(name, model.config.inputs)}"
            )


class MaskedAutoencoding(Task):
    """Pre-training: a fresh mask for every batch.

    Args:
        model: With a decoder.
        config: What is hidden and how it is scored.
    """

    best_metric = "loss"
    higher_is_better = False

    def __init__(self, model: HiP, config: MaskedAutoencodingConfig) -> None:
        super().__init__(model)
        if model.decoder is None:
            raise ConfigError("masked auto-encoding needs a model with decoder=True")
        check_weights(model, config.weights)
        self.config = config

    def forward(self, batch: TaskBatch, generator: torch.Generator) -> Losses:
        """Draw a plan and return its losses."""
        inputs = batch.inputs
        if batch.labels is not None:
            inputs = {**inputs, **dict.fromkeys(self.model.config.labels[:1], batch.labels)}
        first = next(iter(batch.inputs.values()))
        plan = draw_mask_plan(
            self.model.layout(),
            len(first),
            ratio=self.config.ratio,
            kind=self.config.kind,
            generator=generator,
        ).to(first.device)
        return mae_losses(
            self.model, inputs, plan, target=self.config.target, weights=self.config.weights
        )

    @torch.no_grad()
    def evaluate(self, batches: Iterable[TaskBatch]) -> dict[str, float]:
        """Return mean losses under masks that are the same at every evaluation."""
        generator = torch.Generator().manual_seed(EVALUATION_SEED)
        self.eval()
        sums: dict[str, float] = {}
        count = 0
        for batch in batches:
            size = len(next(iter(batch.inputs.values())))
            losses = self(batch, generator)
            figures = {"loss": losses.total}
            if len(losses.parts) > 1:
                figures |= {f"loss/{name}": value for name, value in losses.parts.items()}
            for name, value in figures.items():
                sums[name] = sums.get(name, 0.0) + float(value) * size
            count += size
        return {name: value / max(count, 1) for name, value in sums.items()}


@torch.no_grad()
def reconstruct_inputs(
    model: HiP, inputs: Mapping[str, Tensor], plan: MaskPlan, target: Target
) -> dict[str, Tensor]:
    """Return every element as the model imagines it from what the plan keeps, in the raw layout.

    With ``group-normalised`` the model only predicts deviations; mean and deviation of every group
    are then borrowed from the original, which a caller must say.
    """
    hidden = model.config.labels
    encoded = model.encode({n: x for n, x in inputs.items() if n not in hidden}, plan)
    predictions = model.reconstruct(encoded)
    pictures = {}
    for share in encoded.layout.shares:
        adapter, prediction = model.adapter(share.name), predictions[share.name]
        if target == "group-normalised" and adapter.spec.kind != "labels":
            tokens = adapter.normalise(adapter.flatten(inputs[share.name]), torch.float32)
            mean, std = group_statistics(share.split(tokens), share)
            prediction = share.merge(share.split(prediction) * std + mean)
        pictures[share.name] = adapter.restore(prediction)
    return pictures


def visible_elements(model: HiP, plan: MaskPlan, name: str) -> Tensor:
    """Return what the plan keeps of a modality as booleans in the raw layout, one channel."""
    layout = model.layout()
    share = next(share for share in layout.shares if share.name == name)
    keep = plan.to_dense(layout).keep[name]
    keep = keep.expand(-1, share.num_groups, -1)
    return model.adapter(name).unflatten(share.merge(keep.unsqueeze(-1)))
