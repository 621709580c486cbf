"""Random masks for masked autoencoding, sampled outside the model.

HiP masks *groupwise*: one random set of slots, shared by all groups, so that every group keeps the
same number of elements and hidden ones can be dropped with static shapes. Hiera hides whole *mask
units*, the same number in every sample.

Legend: B batch, U units (1 if groups share a mask, else G), K visible, Q masked and S all slots.
Paper: HiP (arXiv 2202.10890) Sec. 3.3 and Fig. 3, ratio 85 %; Hiera (arXiv 2306.00989) Sec. 4, 60 %
for images and 90 % for video.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from perceivers.draws import Draws, rand_rows
from perceivers.errors import ConfigError
from perceivers.nn.grouping import GroupLayout

MaskKind = Literal["groupwise", "independent", "groups", "uniform", "units"]
MaskAxis = Literal["slot", "unit"]
DEFAULT_MASK_RATIO = 0.85


@dataclass(frozen=True)
class MaskPlan:
    """Visible and masked elements of each modality, along one axis.

    The axis is the slots of every group (``slot``, HiP) or the mask units (``unit``, Hiera; the
    plan is then packed, with indices ``[B, K]`` and ``[B, Q]``).

    A plan has one of two forms, which give the same result where both apply. *Packed*: ``kept`` and
    ``masked`` hold slot indices, int64 ``[B, U, K]`` and ``[B, U, Q]``; shapes are static and
    hidden elements cost nothing. *Dense*: ``keep`` holds booleans ``[B, U, S]``, True where
    visible; the number may differ between groups. U is the number of the modality's groups, or 1 if
    they share a mask.
    """

    kept: Mapping[str, Tensor] = field(default_factory=dict)
    masked: Mapping[str, Tensor] = field(default_factory=dict)
    keep: Mapping[str, Tensor] = field(default_factory=dict)
    axis: MaskAxis = "slot"

    def __post_init__(self) -> None:
        if bool(self.keep) == bool(self.kept) or self.kept.keys() != self.masked.keys():
            raise ConfigError(
                "a MaskPlan is either packed (kept and masked for the same modalities) or dense "
                f"(keep); got kept={list(self.kept)}, masked={list(self.masked)}, "
                f"keep={list(self.keep)}"
            )

    @property
    def is_packed(self) -> bool:
        """Whether the plan has the packed form (indices rather than booleans)."""
        return not self.keep

    @property
    def names(self) -> list[str]:
        """Names of the modalities in the plan."""
        return list(self.kept or self.keep)

    def to(self, device: torch.device | str) -> "MaskPlan":
        """Return the plan on another device."""
        return MaskPlan(
            **{
                form: {name: ids.to(device) for name, ids in getattr(self, form).items()}
                for form in ("kept", "masked", "keep")
            },
            axis=self.axis,
        )

    def to_dense(self, layout: GroupLayout) -> "MaskPlan":
        """Return the dense form; a dense plan is returned as it is.

        Raises:
            ConfigError: The axis is mask units, which have no group layout.
        """
        if not self.is_packed:
            return self
        if self.axis == "unit":
            raise ConfigError("a plan of mask units has no dense form; use it as it is")
        slots = {share.name: share.slots for share in layout.shares}
        keep = {}
        for name, ids in self.kept.items():
            blank = torch.zeros(*ids.shape[:2], slots[name], dtype=torch.bool, device=ids.device)
            keep[name] = blank.scatter(2, ids, value=True)
        return MaskPlan(keep=keep)


def draw_mask_plan(
    layout: GroupLayout,
    batch_size: int,
    *,
    ratio: float = DEFAULT_MASK_RATIO,
    kind: MaskKind = "groupwise",
    generator: Draws = None,
) -> MaskPlan:
    """Sample a mask for every sample of a batch, on the generator's device.

    Args:
        layout: The model's group layout (``model.layout()``).
        batch_size: Samples B.
        ratio: Fraction of slots to hide, strictly between 0 and 1; at least one slot is hidden and
            at least one is visible.
        kind: ``groupwise`` hides the same slots in all groups (packed); ``independent`` samples
            slots for each group (packed); ``groups`` hides whole groups (dense); ``uniform`` hides
            elements anywhere in a modality, regardless of groups (dense).
        generator: Random generator; one for all samples or one for each; None uses the global one.

    Raises:
        ConfigError: The ratio is out of range, a group is too small, the kind is unknown, or
            ``groups`` is used with a single group.
    """
    if not 0.0 < ratio < 1.0:
        raise ConfigError(f"mask ratio is {ratio}; it must lie strictly between 0 and 1")
    if kind in {"groupwise", "independent"}:
        return _draw_packed(layout, batch_size, ratio, kind == "groupwise", generator)
    if kind == "groups":
        return _draw_groups(layout, batch_size, ratio, generator)
    if kind == "uniform":
        return _draw_uniform(layout, batch_size, ratio, generator)
    raise ConfigError(
        f"mask kind {kind!r} is not for groups; use groupwise, independent, groups or uniform"
    )


def thin_masked(plan: MaskPlan, fraction: float, *, generator: Draws = None) -> MaskPlan:
    """Return a packed plan whose ``masked`` is a random subset of the hidden slots.

    The other hidden slots are neither encoded nor decoded. Queries do not attend to each other, so
    the expected loss is unchanged, while the decoder has less to compute (Perceiver IO, arXiv
    2107.14795, Sec. 4.3, subsamples its outputs in the same way).

    Args:
        plan: A packed plan over slots.
        fraction: Fraction of the hidden slots to decode, above 0; at least one slot is kept.
        generator: Random generator; one for all samples or one for each; None uses the global one.

    Raises:
        ConfigError: The plan is dense, so it cannot tell which hidden slots are queried.
    """
    if not plan.is_packed:
        raise ConfigError(
            "only masks that hide the same number of elements in every group can be thinned; use "
            "mask kind groupwise or independent, or query all hidden elements"
        )
    masked = {}
    for name, ids in plan.masked.items():
        noise = rand_rows(*ids.shape, generator=generator).to(ids.device)
        count = max(round(fraction * ids.shape[-1]), 1)
        masked[name] = ids.gather(-1, noise.argsort(-1)[..., :count].sort(-1).values)
    return MaskPlan(kept=plan.kept, masked=masked, axis=plan.axis)


def draw_unit_plan(
    name: str,
    num_units: int,
    batch_size: int,
    *,
    ratio: float,
    generator: Draws = None,
) -> MaskPlan:
    """Sample the visible mask units of every sample, on the generator's device.

    Args:
        name: The modality.
        num_units: Mask units U of a sample (``model.num_units()``).
        batch_size: Samples B.
        ratio: Fraction of units to hide, strictly between 0 and 1; at least one unit is hidden and
            at least one is visible.
        generator: Random generator; one for all samples or one for each; None uses the global one.

    Raises:
        ConfigError: The ratio is out of range, or there is only one unit.
    """
    if not 0.0 < ratio < 1.0:
        raise ConfigError(f"mask ratio is {ratio}; it must lie strictly between 0 and 1")
    if num_units < 2:
        raise ConfigError("one mask unit cannot be partly hidden; use larger inputs")
    kept, masked = draw_units(rand_rows(batch_size, num_units, generator=generator), ratio)
    return MaskPlan(kept={name: kept}, masked={name: masked}, axis="unit")


def draw_units(noise: Float[Tensor, "B U"], ratio: float) -> tuple[Tensor, Tensor]:
    """Return the units with the lowest noise ``[B, K]`` and the others ``[B, Q]``, both sorted.

    K is rounded down, as in the released code: at ratio 0.6, 19 of 49 units are visible.
    """
    total = noise.shape[1]
    # Products such as 10 x (1 - 0.9) may lie just below a whole number.
    num_kept = min(max(int(total * (1.0 - ratio) + 1e-9), 1), max(total - 1, 1))
    ids = noise.argsort(1)
    return ids[:, :num_kept].sort(1).values, ids[:, num_kept:].sort(1).values


def count_kept(total: int, ratio: float) -> int:
    """Return the number of visible elements: rounded, at least one and at most ``total`` - 1."""
    if total < 2:
        raise ConfigError(
            f"a group of {total} element cannot be partly masked; use fewer groups or longer inputs"
        )
    return min(max(round((1.0 - ratio) * total), 1), total - 1)


def _draw_packed(
    layout: GroupLayout, batch: int, ratio: float, shared: bool, generator: Draws
) -> MaskPlan:
    kept, masked = {}, {}
    # Modalities that own whole groups share one mask; in a concatenated layout each has its own.
    common = layout.axis == "groups" and shared
    ids = torch.empty(0)
    for index, share in enumerate(layout.shares):
        if index == 0 or not common:
            units = 1 if shared else share.num_groups
            ids = rand_rows(batch, units, share.slots, generator=generator).argsort(-1)
        num_kept = count_kept(share.slots, ratio)
        kept[share.name] = ids[..., :num_kept].sort(-1).values
        masked[share.name] = ids[..., num_kept:].sort(-1).values
    return MaskPlan(kept=kept, masked=masked)


def _draw_groups(layout: GroupLayout, batch: int, ratio: float, generator: Draws) -> MaskPlan:
    """Hide whole groups, sampled from the groups of all modalities together."""
    groups = layout.num_groups
    if groups < 2:
        raise ConfigError(
            "mask kind 'groups' needs at least two groups at the first level; use 'groupwise'"
        )
    order = rand_rows(batch, groups, generator=generator).argsort(-1).argsort(-1)
    visible = order < count_kept(groups, ratio)  # [B, G]
    parts = visible.split([share.num_groups for share in layout.shares], dim=1)
    return MaskPlan(
        keep={
            share.name: part.unsqueeze(-1).expand(-1, -1, share.slots)
            for share, part in zip(layout.shares, parts, strict=True)
        }
    )


def _draw_uniform(layout: GroupLayout, batch: int, ratio: float, generator: Draws) -> MaskPlan:
    """Hide the same number of declared elements of a modality in every sample, never padding."""
    keep = {}
    for share in layout.shares:
        noise = rand_rows(batch, share.length, generator=generator)
        visible = noise.argsort(-1).argsort(-1) < count_kept(share.length, ratio)
        keep[share.name] = share.split(visible.unsqueeze(-1).to(torch.uint8)).squeeze(-1).bool()
    return MaskPlan(keep=keep)
