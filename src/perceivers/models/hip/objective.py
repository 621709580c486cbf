"""Masked autoencoding of raw elements: HiP hides slots of every group.

Legend: B batch, g groups of a modality, S slots, Q masked slots, N elements, C channels.
Paper: HiP (arXiv 2202.10890) Sec. 3.3. The paper does not state the loss; here it is the mean
squared error, and cross-entropy for labels and bytes. Padding bytes and missing points are not
scored.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from perceivers.adapters.elements import is_point
from perceivers.draws import Draws
from perceivers.masking import DEFAULT_MASK_RATIO, MaskKind, MaskPlan, count_kept, draw_mask_plan
from perceivers.models.hip.encoder import HiPEncoded, gather_slots
from perceivers.models.hip.model import HiP
from perceivers.models.masked import (
    LATENTS,
    Imagined,
    MaskSettings,
    Raw,
    Scored,
    Tally,
    Target,
    Taught,
    add_pass,
    blank_absent,
    byte_errors,
    cover,
    error_unit,
    likeliest_bytes,
    normalise_latents,
    split_ids,
)

GROUP_EPSILON = 1e-6


class ElementObjective:
    """Masked autoencoding with HiP.

    Args:
        model: A model with a decoder.
    """

    kinds: tuple[MaskKind, ...] = ("groupwise", "independent", "groups", "uniform")
    defaults = MaskSettings(DEFAULT_MASK_RATIO, "groupwise", "per-channel")

    def __init__(self, model: HiP) -> None:
        self.model = model
        # Vocabulary entries have no mean, so they cannot be standardised.
        values = any(not spec.indexed for spec in model.config.grouped_inputs.values())
        self.targets: tuple[Target, ...] = ("per-channel", "raw")
        self.targets += ("group-normalised",) if values else ()

    def draw(
        self,
        inputs: Mapping[str, Tensor],
        settings: MaskSettings,
        generator: Draws,
    ) -> MaskPlan:
        """Sample hidden slots for every sample; the model's declared input sizes apply."""
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
        taught: Taught | None = None,
    ) -> dict[str, Scored]:
        """Return errors of hidden elements; bottleneck labels are always hidden and scored."""
        model, hidden = self.model, self.model.config.labels
        assert model.decoder is not None
        encoded = model.encode(self._given(inputs), plan, present=shown)
        levels, scored = model.decoder.levels(encoded), {}
        if taught is not None:
            guesses = zip(model.decoder.predict_latents(levels), taught, strict=True)
            errors = [(guess.float() - x).square().mean((1, 2, 3)) for guess, x in guesses]
            scored[LATENTS] = Scored(torch.stack(errors, 1), torch.ones_like(errors[0])[:, None])
        for name, prediction in model.reconstruct(encoded, plan, latents=levels[-1]).items():
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

    @torch.no_grad()
    def teach(
        self, inputs: Mapping[str, Tensor], held: Mapping[str, Tensor] | None = None
    ) -> Taught:
        """Return the latents of every level below the processor, topmost first."""
        encoded = self.model.encode(self._given(inputs), present=held)
        return tuple(normalise_latents(level) for level in reversed(encoded.levels[:-1]))

    @property
    def predicts_latents(self) -> bool:
        """Whether the decoder has a latent head."""
        return self.model.config.latent_head

    @property
    def latent_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Number of groups, latents per group and channels of each level."""
        config = self.model.config
        below = reversed(config.levels[: config.processor])
        return tuple((each.num_groups, each.num_latents, each.latent_dim) for each in below)

    def _given(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the inputs without bottleneck labels, which are only predicted."""
        return {n: x for n, x in inputs.items() if n not in self.model.config.labels}

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
            adapter, raw = self.model.adapter(name), inputs[name]
            visible = visible_elements(self.model, plan, name)
            if adapter.spec.kind == "bytes":
                best = likeliest_bytes(reconstructed, raw)
                imagined[name] = Imagined(raw, visible.squeeze(-1), best)
                continue
            tokens = adapter.normalise(adapter.flatten(raw), torch.float32)
            reconstructed = reconstructed.float()
            if (real := adapter.real(raw)) is not None:
                reconstructed = reconstructed.where(real.unsqueeze(-1), torch.nan)
            imagined[name] = Imagined(adapter.restore(tokens), visible, reconstructed)
        return imagined


def group_statistics(
    grouped: Float[Tensor, "B g S C"], real: Bool[Tensor, "#B g S"]
) -> tuple[Float[Tensor, "B g 1 C"], Float[Tensor, "B g 1 C"]]:
    """Return mean and standard deviation of the valid elements of every group, per channel.

    The mean of a group without valid elements is 0.
    """
    real = real.unsqueeze(-1)
    count = real.sum(2, keepdim=True).clamp(min=1)
    # ``where``, as a product with 0 would keep NaN.
    mean = torch.where(real, grouped, 0.0).sum(2, keepdim=True) / count
    variance = torch.where(real, grouped - mean, 0.0).square().sum(2, keepdim=True) / count
    return mean, (variance + GROUP_EPSILON).sqrt()


def masked_targets(
    model: HiP, encoded: HiPEncoded, name: str, raw: Tensor, plan: MaskPlan, target: Target
) -> tuple[Tensor, Tensor]:
    """Return the targets and the weight (0 or 1) of every element.

    Shapes follow ``HiP.reconstruct``: ``[B, g, Q, C]`` and ``[B|1, g, Q]`` for a packed plan,
    ``[B, N, C]`` and ``[B, N]`` for a dense one. The targets of texts are byte ids, ``[B, g, Q]``
    or ``[B, N]``. Padding and missing points have weight 0 and finite targets.
    """
    share = next(share for share in encoded.layout.shares if share.name == name)
    kind = model.adapter(name).spec.kind
    grouped = model.encoder.inputs.slots(raw, share)
    real = model.encoder.inputs.real(raw, share, raw.device)
    statistics = None
    if target == "group-normalised" and not model.adapter(name).spec.indexed:
        statistics = group_statistics(model.adapter(name).normalise(grouped, torch.float32), real)
    if plan.is_packed:
        grouped = gather_slots(grouped, plan.masked[name])
        weight = gather_slots(real, plan.masked[name])
    else:
        weight = real & ~plan.keep[name]
    truth = grouped.long() if kind == "bytes" else _values(model, name, grouped, statistics)
    if not plan.is_packed:
        truth, weight = share.merge(truth), share.merge(weight.unsqueeze(-1)).squeeze(-1)
    return truth.squeeze(-1) if kind == "bytes" else truth, weight


def _values(
    model: HiP, name: str, grouped: Tensor, statistics: tuple[Tensor, Tensor] | None
) -> Float[Tensor, "B g S C"]:
    """Return normalised values of slots (one-hot for labels); 0 for missing points."""
    adapter = model.adapter(name)
    values = grouped.squeeze(-1) if adapter.spec.kind == "labels" else grouped
    tokens = adapter.normalise(values, torch.float32)
    if statistics is not None:
        mean, std = statistics
        tokens = (tokens - mean) / std
    return torch.where(is_point(tokens).unsqueeze(-1), tokens, 0.0) if adapter.may_lack else tokens


def element_errors(
    model: HiP, name: str, prediction: Tensor, truth: Tensor, target: Target
) -> Float[Tensor, "..."]:
    """Return each element's squared error, averaged over channels, or its cross-entropy."""
    adapter = model.adapter(name)
    if adapter.spec.kind == "bytes":
        return byte_errors(prediction, truth)
    if adapter.spec.kind == "labels":
        return -(truth * F.log_softmax(prediction.float(), -1)).sum(-1)  # ``truth`` is one-hot
    error = prediction.float() - truth
    # Both are standardised; their means cancel, so scaling the error gives raw units.
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
    """Reconstruct every element from the visible ones, in the raw layout.

    For texts and labels the result holds logits. With ``group-normalised`` the model only predicts
    standardised values; mean and deviation of every group are taken from the original input, which
    callers should state where they present the result.
    """
    hidden = model.config.labels
    given = {n: x for n, x in inputs.items() if n not in hidden}
    encoded = model.encode(given, plan, present=shown)
    predictions = model.reconstruct(encoded)
    pictures = {}
    for share in encoded.layout.shares:
        adapter, prediction = model.adapter(share.name), predictions[share.name]
        if target == "group-normalised" and not adapter.spec.indexed:
            raw = inputs[share.name]
            tokens = adapter.normalise(model.encoder.inputs.slots(raw, share), torch.float32)
            real = model.encoder.inputs.real(raw, share, raw.device)
            mean, std = group_statistics(tokens, real)
            prediction = share.merge(share.split(prediction) * std + mean)
        pictures[share.name] = adapter.restore(prediction)
    return pictures


def visible_elements(model: HiP, plan: MaskPlan, name: str) -> Tensor:
    """Return which elements of a modality are visible, in its raw layout with one channel."""
    layout = model.layout()
    share = next(share for share in layout.shares if share.name == name)
    keep = plan.to_dense(layout).keep[name]
    keep = keep.expand(-1, share.num_groups, -1)
    return model.adapter(name).unflatten(share.merge(keep.unsqueeze(-1)))


# -- Errors of the hidden elements, element by element -------------------------------------------
#
# Legend: B batch, P passes, g groups of a modality, S slots.


class ElementErrors:
    """Errors of a HiP for every element.

    Args:
        model: A HiP with a decoder.
        settings: Masking settings.
        repeats: How often each element is hidden.
        generator: Random generator of the masks.
    """

    def __init__(
        self, model: HiP, settings: MaskSettings, repeats: int, generator: torch.Generator
    ) -> None:
        self.model = model
        self.target: Target = settings.target
        self.objective = ElementObjective(model)
        self.plans = cover_slots(model, settings, repeats, generator)
        specs = model.config.grouped_inputs.values()
        self.passes, self.unit = len(self.plans), error_unit(specs, settings.target)

    @torch.no_grad()
    def __call__(self, inputs: Raw, held: Raw) -> dict[str, Tensor]:
        """Return the mean error of every element over the passes that hide it."""
        size = len(next(iter(inputs.values())))
        shares = {share.name: share for share in self.model.layout().shares}
        tallies: dict[str, Tally] = {}
        for plan in self.plans:
            wide = _widen(plan, size)
            scored = self.objective.score(inputs, wide, self.target, shown=held)
            for name, share in shares.items():
                each = scored[name]
                weight = each.weight.to(each.errors.dtype).expand_as(each.errors)
                parts = [each.errors * weight, weight]
                if wide.is_packed:
                    # Packed errors cover only the hidden slots; scatter them to all slots.
                    ids = wide.masked[name].expand(-1, share.num_groups, -1)
                    blank = parts[0].new_zeros(size, share.num_groups, share.slots)
                    parts = [blank.scatter(2, ids, part).unsqueeze(-1) for part in parts]
                    parts = [share.merge(part).squeeze(-1) for part in parts]
                add_pass(tallies, name, *parts)
        specs = self.model.config.inputs
        return {
            name: blank_absent(tally.mean().unflatten(1, specs[name].grid), held.get(name))
            for name, tally in tallies.items()
        }


def cover_slots(
    model: HiP, settings: MaskSettings, repeats: int, generator: torch.Generator
) -> list[MaskPlan]:
    """Return plans for one sample that hide every element of a HiP at least ``repeats`` times."""
    layout, ratio = model.layout(), settings.ratio

    def draw(rows: int, units: int) -> Tensor:
        kept = count_kept(units, ratio)
        return cover(rows, units, kept=kept, repeats=repeats, generator=generator)

    if settings.kind == "groups":
        # [P, 1, G]: whole groups, sampled from the groups of all modalities together.
        keep = draw(1, layout.num_groups).split([s.num_groups for s in layout.shares], 2)
        wide = {
            share.name: part.movedim(1, 2).expand(-1, -1, share.slots)
            for share, part in zip(layout.shares, keep, strict=True)
        }
        return _plans(wide, packed=False)
    if settings.kind == "uniform":
        dense = {
            share.name: share.split(draw(1, share.length).movedim(1, 2).to(torch.uint8))
            for share in layout.shares
        }
        return _plans({name: part.squeeze(-1).bool() for name, part in dense.items()}, packed=False)
    common = settings.kind == "groupwise"
    drawn: dict[str, Tensor] = {}
    for share in layout.shares:
        if common and layout.axis == "groups" and drawn:
            # As in training: modalities that own whole groups share one mask.
            drawn[share.name] = next(iter(drawn.values()))
        else:
            drawn[share.name] = draw(1 if common else share.num_groups, share.slots)
    return _plans(drawn, packed=True)


def _plans(keep: Mapping[str, Tensor], *, packed: bool) -> list[MaskPlan]:
    """Return one plan per pass from the visible slots ``[P, U, S]`` of each modality."""
    total = max(len(part) for part in keep.values())
    plans = []
    for index in range(total):
        # A modality that needs fewer passes repeats its masks.
        rows = {name: part[index % len(part)].unsqueeze(0) for name, part in keep.items()}
        if packed:
            pairs = {name: split_ids(row) for name, row in rows.items()}
            kept = {name: pair[0] for name, pair in pairs.items()}
            masked = {name: pair[1] for name, pair in pairs.items()}
            plans.append(MaskPlan(kept=kept, masked=masked))
        else:
            plans.append(MaskPlan(keep=rows))
    return plans


def _widen(plan: MaskPlan, size: int) -> MaskPlan:
    """Expand the plan of one sample to a batch."""

    def wide(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: part.expand(size, *part.shape[1:]) for name, part in parts.items()}

    return MaskPlan(
        kept=wide(plan.kept), masked=wide(plan.masked), keep=wide(plan.keep), axis=plan.axis
    )
