"""Errors of the hidden mask units of Hiera, pixel by pixel or byte by byte.

Legend: B batch, U mask units, T patches of a unit, P values of a patch.
"""

import torch
from torch import Tensor

from perceivers.finite import check_answer
from perceivers.masking import MaskPlan, draw_units
from perceivers.models.hidden_errors import Raw, cover, error_unit, split_ids
from perceivers.models.hiera.model import Hiera
from perceivers.models.hiera.objective import patch_statistics
from perceivers.models.masked import MaskSettings, byte_errors
from perceivers.types import PAD


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
