"""Division of the elements of all modalities into groups of equal size.

Every modality has whole groups; groups are assigned greedily to the modality with the most elements
per group. Short groups are padded at their end; ``valid`` marks slots with an element.

Legend: B batch, G groups, g groups of one modality, S slots per group, N elements, C channels.
Paper: HiP (arXiv 2202.10890) Sec. 3; group sizes are computed as in the released code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from perceivers.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Share:
    """The groups of one modality.

    Each of the ``num_groups`` groups has ``slots`` slots, the first ``size`` of which hold
    elements; ``group_padding`` slots at the end of each group and ``final_padding`` slots at the
    end of the modality are empty. Elements are divided in their own order or, if ``grid`` is the
    shape of their grid, along a Z-order curve (``morton_order``).
    """

    name: str
    length: int
    num_groups: int
    size: int
    slots: int
    grid: tuple[int, ...] = ()

    @property
    def final_padding(self) -> int:
        """Number of empty slots that complete the last ``size`` slots of the modality."""
        return self.num_groups * self.size - self.length

    @property
    def group_padding(self) -> int:
        """Number of empty slots at the end of every group."""
        return self.slots - self.size

    @property
    def is_padded(self) -> bool:
        """Whether any slot is empty."""
        return self.num_groups * self.slots != self.length

    @property
    def is_reordered(self) -> bool:
        """Whether elements are divided in another order than their own."""
        return len(self.grid) > 1

    def split(self, x: Shaped[Tensor, "B N C"]) -> Shaped[Tensor, "B g S C"]:
        """Divide the elements into groups, with zeros in the empty slots."""
        if self.is_reordered:
            x = x.index_select(1, torch.as_tensor(morton_order(self.grid), device=x.device))
        x = F.pad(x, (0, 0, 0, self.final_padding)) if self.final_padding else x
        x = x.unflatten(1, (self.num_groups, self.size))
        return F.pad(x, (0, 0, 0, self.group_padding)) if self.group_padding else x

    def merge(self, x: Shaped[Tensor, "B g S C"]) -> Shaped[Tensor, "B N C"]:
        """Invert ``split`` and drop the empty slots."""
        x = x[:, :, : self.size].flatten(1, 2)[:, : self.length]
        if self.is_reordered:
            x = x.index_select(1, torch.as_tensor(inverse_morton_order(self.grid), device=x.device))
        return x

    def valid(self, device: torch.device | None = None) -> Bool[Tensor, "g S"]:
        """Return which slots hold an element."""
        group = torch.arange(self.num_groups, device=device).unsqueeze(1)
        slot = torch.arange(self.slots, device=device)
        return (slot < self.size) & (group * self.size + slot < self.length)


@dataclass(frozen=True, kw_only=True)
class GroupLayout:
    """Assignment of groups to modalities.

    Modalities are concatenated along ``axis``: ``groups`` (each modality has whole groups) or
    ``slots`` (a single group holds all modalities: the flat Perceiver IO).
    """

    shares: tuple[Share, ...]
    axis: str = "groups"

    @property
    def num_groups(self) -> int:
        """Number of groups G."""
        return sum(s.num_groups for s in self.shares) if self.axis == "groups" else 1

    @property
    def is_padded(self) -> bool:
        """Whether any slot is empty."""
        return any(share.is_padded for share in self.shares)

    def join(self, parts: Sequence[Shaped[Tensor, "B ..."]]) -> Shaped[Tensor, "B G S *C"]:
        """Concatenate the groups of all modalities, in the order of ``shares``."""
        return torch.cat(list(parts), dim=1 if self.axis == "groups" else 2)

    def part(self, x: Shaped[Tensor, "B G S C"], name: str) -> Shaped[Tensor, "B g s C"]:
        """Return the groups (or slots) of one modality from the output of ``join``."""
        sizes = [s.num_groups if self.axis == "groups" else s.slots for s in self.shares]
        index = [s.name for s in self.shares].index(name)
        return x.split(sizes, dim=1 if self.axis == "groups" else 2)[index]


@lru_cache(maxsize=64)
def morton_order(grid: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the row-major indices ``[N]`` of the cells of a grid along a Z-order curve.

    The curve interleaves the bits of the coordinates. Cells close on the curve are close on every
    axis, so that equal pieces of it are compact blocks. The first axis varies slowest.
    """
    axes = np.meshgrid(*[np.arange(size) for size in grid], indexing="ij")
    code = np.zeros(grid, dtype=np.int64)
    for bit in reversed(range(max((size - 1).bit_length() for size in grid))):
        for axis, size in zip(axes, grid, strict=True):
            if bit < (size - 1).bit_length():
                code = 2 * code + (axis >> bit & 1)
    return code.ravel().argsort(kind="stable")


@lru_cache(maxsize=64)
def inverse_morton_order(grid: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the index of each cell on the curve of ``morton_order``, ``[N]``."""
    return morton_order(grid).argsort(kind="stable")


def deal_groups(
    lengths: Mapping[str, int],
    num_groups: int,
    grids: Mapping[str, tuple[int, ...]] | None = None,
) -> GroupLayout:
    """Assign ``num_groups`` groups to modalities with the given numbers of elements.

    Each modality gets one group; the others go one by one to the modality with the most elements
    per group (the first one in case of a tie). A group never mixes modalities.

    Raises:
        ConfigError: There are no modalities, or more of them than groups.
    """
    if not lengths or len(lengths) > num_groups:
        raise ConfigError(
            f"{len(lengths)} modalities {list(lengths)} cannot share {num_groups} groups: every "
            f"modality needs at least one of its own; use a model with at least {len(lengths)} "
            f"groups at its first level"
        )
    dealt = dict.fromkeys(lengths, 1)
    for _ in range(num_groups - len(lengths)):
        longest = max(lengths, key=lambda name: lengths[name] / dealt[name])
        dealt[longest] += 1
    sizes = {name: -(-length // dealt[name]) for name, length in lengths.items()}
    slots = max(sizes.values())
    return GroupLayout(
        shares=tuple(
            Share(
                name=n,
                length=lengths[n],
                num_groups=dealt[n],
                size=sizes[n],
                slots=slots,
                grid=(grids or {}).get(n, ()),
            )
            for n in lengths
        )
    )


def concatenate(lengths: Mapping[str, int]) -> GroupLayout:
    """Return a layout with all modalities in a single group."""
    return GroupLayout(
        shares=tuple(
            Share(name=name, length=length, num_groups=1, size=length, slots=length)
            for name, length in lengths.items()
        ),
        axis="slots",
    )


# -- Regrouping of latents between levels --------------------------------------------------------
#
# Legend: B batch, G groups before, g groups after, N latents per group before, n after, C channels.
# Paper: HiP (arXiv 2202.10890) Sec. 3 uses "reshape".

Regroup = Literal["reshape", "transpose_reshape"]


def regroup(
    x: Float[Tensor, "B G N C"], num_groups: int, how: Regroup = "reshape"
) -> Float[Tensor, "B g n C"]:
    """Divide the latents of all groups into ``num_groups`` groups.

    ``reshape`` merges neighbouring groups, or splits groups into consecutive parts;
    ``transpose_reshape`` gives every new group latents from all old groups.

    Raises:
        ConfigError: The latents do not divide evenly.
    """
    batch, groups, num, channels = x.shape
    if groups * num % num_groups:
        raise ConfigError(
            f"{groups} groups of {num} latents cannot be dealt into {num_groups} equal groups"
        )
    if how == "transpose_reshape":
        x = x.transpose(1, 2)  # [B, N, G, C]
    return x.reshape(batch, num_groups, groups * num // num_groups, channels)
