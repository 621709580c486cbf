"""Errors of the hidden elements of HiP, element by element.

Legend: B batch, P passes, g groups of a modality, S slots.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from perceivers.masking import MaskPlan, count_kept
from perceivers.models.hidden_errors import (
    Raw,
    Tally,
    add_pass,
    blank_absent,
    cover,
    error_unit,
    split_ids,
)
from perceivers.models.hip.model import HiP
from perceivers.models.hip.objective import ElementObjective
from perceivers.models.masked import MaskSettings, Target


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
