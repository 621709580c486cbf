"""Masked autoencoding of mask units: Hiera hides whole units and predicts their pixels or bytes.

Legend: B batch, U mask units, Q masked units, T patches per unit, P values per patch, n bytes per
patch, L bytes per text.
Paper: Hiera (arXiv 2306.00989) Sec. 4 and App. A; the target is that of MAE (arXiv 2111.06377):
each patch standardised by its own mean and deviation (unbiased, as in the released code). Bytes
are scored by cross-entropy; padding is not scored.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perceivers.draws import Draws
from perceivers.finite import check_answer
from perceivers.masking import MaskKind, MaskPlan, draw_unit_plan, draw_units
from perceivers.models.hiera.model import Hiera
from perceivers.models.masked import (
    LATENTS,
    Imagined,
    MaskSettings,
    Raw,
    Scored,
    Target,
    Taught,
    byte_errors,
    cover,
    error_unit,
    likeliest_bytes,
    normalise_latents,
    split_ids,
)
from perceivers.nn.mask_units import gather_units
from perceivers.types import PAD

PATCH_EPSILON = 1e-6
PICTURE_RATIO, CLIP_RATIO = 0.6, 0.9


class PatchObjective:
    """Masked autoencoding with Hiera.

    Args:
        model: A model with a decoder.
    """

    kinds: tuple[MaskKind, ...] = ("units",)

    def __init__(self, model: Hiera) -> None:
        self.model = model
        # Bytes have no mean, so patches of text cannot be standardised.
        values: tuple[Target, ...] = ("patch-normalised", "per-channel")
        texts: tuple[Target, ...] = ("per-channel", "raw")
        self.targets: tuple[Target, ...] = texts if model.config.reads_text else values

    @property
    def defaults(self) -> MaskSettings:
        """Default settings: hide 60 % of an image or text and 90 % of a clip."""
        clips = len(self.model.config.mask_unit) == 3
        return MaskSettings(CLIP_RATIO if clips else PICTURE_RATIO, "units", self.targets[0])

    def draw(
        self,
        inputs: Mapping[str, Tensor],
        settings: MaskSettings,
        generator: Draws,
    ) -> MaskPlan:
        """Sample hidden units for every sample; the input size of the batch applies."""
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
        """Return the error of every patch (for texts: byte) of the hidden units."""
        assert not shown  # Hiera reads one modality, which no sample may lack
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
        """Return the fused multi-scale tokens of all mask units, ``[B, U, T, C]``."""
        assert not held
        return (normalise_latents(self.model.fuse(self.model.encode(inputs))),)

    @property
    def predicts_latents(self) -> bool:
        """Whether the decoder has a latent head."""
        decoder = self.model.config.decoder
        return decoder is not None and decoder.latent_head

    @property
    def latent_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Number of tokens per mask unit, and their channels."""
        config = self.model.config
        return ((config.layout.tokens(config.pools), config.dims[-1]),)

    def _score_patches(
        self, inputs: Mapping[str, Tensor], plan: MaskPlan, target: Target, prediction: Tensor
    ) -> dict[str, Scored]:
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
        """Reconstruct the hidden patches; copy the visible ones, whose predictions are not trained.

        With ``patch-normalised`` the model only predicts standardised values; mean and deviation of
        every patch are taken from the original input, which callers should state where they
        present the result.
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
        # All channels of an element are visible together, so one is enough.
        visible = model.unpatch(seen, encoded.units)[:, :1]
        original, made = (
            model.input.denormalise(model.unpatch(x, encoded.units).movedim(1, -1)).movedim(-1, 1)
            for x in (truth, made)
        )
        step = config.patch[0] // config.target_patch[0]
        return {name: Imagined(original, visible, made, frame_step=step)}

    def _imagine_text(self, raw: Int[Tensor, "B L"], plan: MaskPlan) -> Imagined:
        model, name = self.model, self.model.config.name
        encoded = model.encode({name: raw}, plan)
        ids = model.patch_ids(raw)
        shown = torch.zeros(ids.shape[:2], dtype=torch.bool, device=ids.device)
        shown = shown.scatter(1, plan.kept[name], value=True)[:, :, None, None].expand_as(ids)
        best = likeliest_bytes(model.byte_scores(model.reconstruct(encoded)), ids)
        made = torch.where(shown, ids, best)
        # Cut the padding to whole mask units.
        visible, made = (
            model.unpatch(x, encoded.units, 1).squeeze(1)[:, : raw.shape[1]] for x in (shown, made)
        )
        return Imagined(raw, visible, made)


def patch_statistics(
    patches: Float[Tensor, "B Q T P"],
) -> tuple[Float[Tensor, "B Q T 1"], Float[Tensor, "B Q T 1"]]:
    """Return mean and unbiased standard deviation of every patch over all its values."""
    mean = patches.mean(-1, keepdim=True)
    return mean, (patches.var(-1, keepdim=True) + PATCH_EPSILON).sqrt()


# -- Errors of the hidden mask units, pixel by pixel or byte by byte -----------------------------
#
# Legend: B batch, U mask units, T patches of a unit, P values of a patch.


class PatchErrors:
    """Errors of a Hiera for every element of its predicted patches.

    Args:
        model: A Hiera with a decoder.
        settings: Masking settings.
        repeats: How often each unit is hidden.
        generator: Random generator of the masks.
    """

    def __init__(
        self, model: Hiera, settings: MaskSettings, repeats: int, generator: torch.Generator
    ) -> None:
        self.model, self.borrows = model, settings.target == "patch-normalised"
        self.texts = model.config.reads_text
        units = model.num_units()
        # The number of visible units is rounded as in training.
        kept = len(draw_units(torch.zeros(1, units), settings.ratio)[0][0]) if units > 1 else 0
        self.keep = cover(1, units, kept=kept, repeats=repeats, generator=generator)
        note = ", mean and deviation of every patch taken from the original" if self.borrows else ""
        self.passes, self.unit = (
            len(self.keep),
            error_unit([model.config.spec], "per-channel", note),
        )

    @torch.no_grad()
    def __call__(self, inputs: Raw, held: Raw) -> dict[str, Tensor]:
        """Return the mean error of every element over the passes that hide it.

        Patch-normalised predictions are converted to per-channel values first: in units of its own
        deviation, a smooth patch would count as much as a detailed one. A Hiera reads a single
        modality, so ``held`` is not used.
        """
        model, name = self.model, self.model.config.name
        raw = inputs[name]
        # Target patches of all units, [B, U, T, P].
        truth = model.patch_ids(raw) if self.texts else model.patches(raw).float()
        size, units = len(truth), ()
        errors = torch.zeros(truth.shape, device=truth.device)
        times = torch.zeros(truth.shape[1])
        for keep in self.keep:
            kept, masked = (ids.expand(size, -1) for ids in split_ids(keep))
            plan = MaskPlan(kept={name: kept}, masked={name: masked}, axis="unit")
            encoded = model.encode({name: raw}, plan)
            made, hidden = model.reconstruct(encoded, plan).float(), masked[0]
            errors[:, hidden] += self._compare(made, truth[:, hidden])
            times[hidden] += 1
            units = encoded.units
        laid = model.unpatch(errors / times[:, None, None], units, 1 if self.texts else None)
        # Units may extend beyond the input; crop the padding.
        whole = tuple(slice(n) for n in model.config.spec.grid)
        found = laid.mean(1)[(slice(None), *whole)]  # [B, *size]
        return {name: found.masked_fill(raw == PAD, torch.nan) if self.texts else found}

    def _compare(self, made: Tensor, truth: Tensor) -> Tensor:
        """Return the error of every value of the patches; for texts, of every byte."""
        check_answer(made, f"reconstruction of {self.model.config.name}")
        if self.texts:
            return byte_errors(self.model.byte_scores(made), truth)
        if self.borrows:
            mean, deviation = patch_statistics(truth)
            made = made * deviation + mean
        return (made - truth).square()
