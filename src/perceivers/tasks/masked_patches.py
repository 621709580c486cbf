"""Masked auto-encoding of mask units: Hiera hides whole units and predicts their pixels.

Legend: B batch, U mask units, Q masked ones, T patches of a unit, P values of a patch, n bytes of a
patch, L bytes of a text.
Paper: Hiera (arXiv 2306.00989) Sec. 4 and App. A; the target is MAE's (arXiv 2111.06377), each
patch in units of its own mean and deviation (the unbiased one, as in the released code). Bytes of
texts are entries of a vocabulary and scored by cross-entropy; what pads a text weighs nothing.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perceivers.draws import Draws
from perceivers.masking import MaskKind, MaskPlan, draw_unit_plan
from perceivers.models.hiera import Hiera
from perceivers.nn.mask_units import gather_units
from perceivers.tasks.masked import (
    LATENTS,
    Imagined,
    MaskSettings,
    Scored,
    Target,
    Taught,
    byte_errors,
    likeliest_bytes,
    normalise_latents,
)
from perceivers.types import PAD

PATCH_EPSILON = 1e-6
PICTURE_RATIO, CLIP_RATIO = 0.6, 0.9


class PatchObjective:
    """Hiera's side of masked auto-encoding.

    Args:
        model: With a decoder.
    """

    kinds: tuple[MaskKind, ...] = ("units",)

    def __init__(self, model: Hiera) -> None:
        self.model = model
        # Bytes have no mean that a patch could be standardised by.
        values: tuple[Target, ...] = ("patch-normalised", "per-channel")
        texts: tuple[Target, ...] = ("per-channel", "raw")
        self.targets: tuple[Target, ...] = texts if model.config.reads_text else values

    @property
    def defaults(self) -> MaskSettings:
        """Hide 60 %, of clips 90 %."""
        clips = len(self.model.config.mask_unit) == 3
        return MaskSettings(CLIP_RATIO if clips else PICTURE_RATIO, "units", self.targets[0])

    def draw(
        self,
        inputs: Mapping[str, Tensor],
        settings: MaskSettings,
        generator: Draws,
    ) -> MaskPlan:
        """Draw units for every sample; the size of the batch decides."""
        config = self.model.config
        raw = self.model.as_dict(inputs)[config.name]
        axes = slice(2, None) if config.spec.channels_first else slice(1, 1 + config.num_axes)
        size = tuple(raw.shape[axes])
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
        taught: Taught | None = None,
    ) -> dict[str, Scored]:
        """Score every patch of the hidden units alike, of texts every byte.

        A single modality is always shown.
        """
        assert not shown
        encoded, scored = self.model.encode(inputs, plan), {}
        if taught is None:
            prediction = self.model.reconstruct(encoded, plan)
        else:
            prediction, guess = self.model.reconstruct_latents(encoded, plan)
            latents = gather_units(taught[0], plan.masked[self.model.config.name])
            errors = (guess.float() - latents).square().mean(-1)
            scored[LATENTS] = Scored(errors, torch.ones_like(errors))
        return {**scored, **self._score_patches(inputs, plan, target, prediction)}

    @torch.no_grad()
    def teach(
        self, inputs: Mapping[str, Tensor], held: Mapping[str, Tensor] | None = None
    ) -> Taught:
        """Return the fused tokens of all mask units ``[B, U, T, C]``."""
        assert not held
        return (normalise_latents(self.model.fuse(self.model.encode(inputs))),)

    @property
    def predicts_latents(self) -> bool:
        """Whether the decoder predicts the tokens of an encoder."""
        decoder = self.model.config.decoder
        return decoder is not None and decoder.latent_head

    @property
    def latent_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Tokens of a mask unit, and their channels."""
        config = self.model.config
        return ((config.layout.tokens(config.pools), config.dims[-1]),)

    def _score_patches(
        self, inputs: Mapping[str, Tensor], plan: MaskPlan, target: Target, prediction: Tensor
    ) -> dict[str, Scored]:
        """Compare the values of hidden units."""
        name = self.model.config.name
        if self.model.config.reads_text:
            ids = self.model.patch_ids(inputs[name], plan.masked[name])
            errors = byte_errors(self.model.byte_scores(prediction), ids)
            return {name: Scored(errors, ids != PAD)}
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
        if config.reads_text:
            return {name: self._imagine_text(inputs[name], plan)}
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

    def _imagine_text(self, raw: Int[Tensor, "B L"], plan: MaskPlan) -> Imagined:
        """Fill hidden units with the likeliest bytes."""
        model, name = self.model, self.model.config.name
        encoded = model.encode({name: raw}, plan)
        ids = model.patch_ids(raw)
        shown = torch.zeros(ids.shape[:2], dtype=torch.bool, device=ids.device)
        shown = shown.scatter(1, plan.kept[name], value=True)[:, :, None, None].expand_as(ids)
        best = likeliest_bytes(model.byte_scores(model.reconstruct(encoded)), ids)
        made = torch.where(shown, ids, best)
        visible, made = (
            model.unpatch(x, encoded.units, 1).squeeze(1)[:, : raw.shape[1]] for x in (shown, made)
        )
        return Imagined(raw, visible, made)


def patch_statistics(
    patches: Float[Tensor, "B Q T P"],
) -> tuple[Float[Tensor, "B Q T 1"], Float[Tensor, "B Q T 1"]]:
    """Mean and standard deviation of every patch over all its values."""
    mean = patches.mean(-1, keepdim=True)
    return mean, (patches.var(-1, keepdim=True) + PATCH_EPSILON).sqrt()
