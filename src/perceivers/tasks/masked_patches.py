"""Masked auto-encoding of mask units: Hiera hides whole units and predicts their pixels.

Legend: B batch, U mask units, Q masked ones, T patches of a unit, P values of a patch.
Paper: Hiera (arXiv 2306.00989) Sec. 4 and App. A; the target is MAE's (arXiv 2111.06377), each
patch in units of its own mean and deviation (the unbiased one, as in the released code).
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from perceivers.draws import Draws
from perceivers.masking import MaskKind, MaskPlan, draw_unit_plan
from perceivers.models.hiera import Hiera
from perceivers.tasks.masked import Imagined, MaskSettings, Scored, Target

PATCH_EPSILON = 1e-6
PICTURE_RATIO, CLIP_RATIO = 0.6, 0.9


class PatchObjective:
    """Hiera's side of masked auto-encoding.

    Args:
        model: With a decoder.
    """

    kinds: tuple[MaskKind, ...] = ("units",)
    targets: tuple[Target, ...] = ("patch-normalised", "per-channel")

    def __init__(self, model: Hiera) -> None:
        self.model = model

    @property
    def defaults(self) -> MaskSettings:
        """Hide 60 %, of clips 90 %."""
        clips = len(self.model.config.mask_unit) == 3
        return MaskSettings(CLIP_RATIO if clips else PICTURE_RATIO, "units", "patch-normalised")

    def draw(
        self,
        inputs: Mapping[str, Tensor],
        settings: MaskSettings,
        generator: Draws,
    ) -> MaskPlan:
        """Draw units for every sample; the size of the batch decides."""
        config = self.model.config
        raw = self.model.as_dict(inputs)[config.name]
        size = tuple(raw.shape[2:] if config.spec.channels_first else raw.shape[1:-1])
        return draw_unit_plan(
            config.name,
            self.model.num_units(size),
            len(raw),
            ratio=settings.ratio,
            generator=generator,
        ).to(raw.device)

    def score(
        self,
        inputs: Mapping[str, Tensor],
        plan: MaskPlan,
        target: Target,
        *,
        shown: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Scored]:
        """Score every patch of the hidden units alike; a single modality is always shown."""
        assert not shown
        name = self.model.config.name
        prediction = self.model.reconstruct(self.model.encode(inputs, plan), plan)
        truth = self.model.patches(inputs[name], plan.masked[name]).float()
        if target == "patch-normalised":
            mean, deviation = patch_statistics(truth)
            truth = (truth - mean) / deviation
        errors = (prediction.float() - truth).square().mean(-1)
        return {name: Scored(errors, torch.ones_like(errors))}

    @torch.no_grad()
    def imagine(
        self,
        inputs: Mapping[str, Tensor],
        plan: MaskPlan,
        target: Target,
        *,
        shown: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Imagined]:
        """Reconstruct the hidden patches; shown ones, which are never scored, are the original's.

        A model of ``patch-normalised`` values only predicts deviations; mean and deviation of every
        patch are then borrowed from the original, which a caller must say.
        """
        assert not shown
        model, config = self.model, self.model.config
        name = config.name
        encoded = model.encode(inputs, plan)
        made = model.reconstruct(encoded).float()
        truth = model.patches(inputs[name]).float()
        if target == "patch-normalised":
            mean, deviation = patch_statistics(truth)
            made = made * deviation + mean
        kept = plan.kept[name]
        seen = torch.zeros(truth.shape[:2], dtype=torch.bool, device=truth.device)
        seen = seen.scatter(1, kept, value=True)[:, :, None, None].expand_as(truth)
        made = torch.where(seen, truth, made)
        visible = model.unpatch(seen, encoded.units)[:, :1]
        original, made = (
            model.input.denormalise(model.unpatch(x, encoded.units).movedim(1, -1)).movedim(-1, 1)
            for x in (truth, made)
        )
        step = config.patch[0] // config.target_patch[0]
        return {name: Imagined(original, visible, made, frame_step=step)}


def patch_statistics(
    patches: Float[Tensor, "B Q T P"],
) -> tuple[Float[Tensor, "B Q T 1"], Float[Tensor, "B Q T 1"]]:
    """Mean and standard deviation of every patch over all its values."""
    mean = patches.mean(-1, keepdim=True)
    return mean, (patches.var(-1, keepdim=True) + PATCH_EPSILON).sqrt()
