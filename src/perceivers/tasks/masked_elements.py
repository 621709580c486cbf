"""Masked auto-encoding of raw elements: HiP hides slots of every group.

Legend: B batch, g groups of a modality, S slots, Q masked slots, N elements, C channels.
Paper: HiP (arXiv 2202.10890) Sec. 3.3; the loss is not stated there, ours is mean squared error.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from perceivers.draws import Draws
from perceivers.masking import DEFAULT_MASK_RATIO, MaskKind, MaskPlan, draw_mask_plan
from perceivers.models.hip import HiP
from perceivers.models.hip.encoder import Encoded, gather_slots
from perceivers.nn.grouping import Share
from perceivers.tasks.masked import Imagined, MaskSettings, Scored, Target

GROUP_EPSILON = 1e-6


class ElementObjective:
    """HiP's side of masked auto-encoding.

    Args:
        model: With a decoder.
    """

    kinds: tuple[MaskKind, ...] = ("groupwise", "independent", "groups", "uniform")
    targets: tuple[Target, ...] = ("per-channel", "raw", "group-normalised")
    defaults = MaskSettings(DEFAULT_MASK_RATIO, "groupwise", "per-channel")

    def __init__(self, model: HiP) -> None:
        self.model = model

    def draw(
        self,
        inputs: Mapping[str, Tensor],
        settings: MaskSettings,
        generator: Draws,
    ) -> MaskPlan:
        """Draw slots for every sample; the model's declared sizes decide."""
        first = next(iter(inputs.values()))
        return draw_mask_plan(
            self.model.layout(),
            len(first),
            ratio=settings.ratio,
            kind=settings.kind,
            generator=generator,
        ).to(first.device)

    def score(
        self,
        inputs: Mapping[str, Tensor],
        plan: MaskPlan,
        target: Target,
        *,
        shown: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Scored]:
        """Score hidden elements; bottleneck labels are never shown and always predicted."""
        model, hidden = self.model, self.model.config.labels
        given = {n: x for n, x in inputs.items() if n not in hidden}
        encoded = model.encode(given, plan, present=shown)
        scored = {}
        for name, prediction in model.reconstruct(encoded, plan).items():
            if name not in inputs:
                continue
            if name in hidden:
                adapter = model.adapter(name)
                values = adapter.flatten(inputs[name])
                truth = adapter.normalise(values, torch.float32)
                labels = adapter.spec.kind == "labels"
                known = values >= 0 if labels else torch.ones_like(values[..., 0])
            else:
                truth, known = masked_targets(model, encoded, name, inputs[name], plan, target)
            errors = element_errors(model, name, prediction, truth, target)
            scored[name] = Scored(errors, known)
        return scored

    def imagine(
        self,
        inputs: Mapping[str, Tensor],
        plan: MaskPlan,
        target: Target,
        *,
        shown: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Imagined]:
        """Reconstruct all elements; see ``reconstruct_inputs``."""
        made = reconstruct_inputs(self.model, inputs, plan, target, shown=shown)
        imagined = {}
        for name, reconstructed in made.items():
            adapter = self.model.adapter(name)
            tokens = adapter.normalise(adapter.flatten(inputs[name]), torch.float32)
            visible = visible_elements(self.model, plan, name)
            imagined[name] = Imagined(adapter.restore(tokens), visible, reconstructed.float())
        return imagined


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


@torch.no_grad()
def reconstruct_inputs(
    model: HiP,
    inputs: Mapping[str, Tensor],
    plan: MaskPlan,
    target: Target,
    *,
    shown: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return every element as the model imagines it from what the plan keeps, in the raw layout.

    With ``group-normalised`` the model only predicts deviations; mean and deviation of every group
    are then borrowed from the original, which a caller must say.
    """
    hidden = model.config.labels
    given = {n: x for n, x in inputs.items() if n not in hidden}
    encoded = model.encode(given, plan, present=shown)
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
