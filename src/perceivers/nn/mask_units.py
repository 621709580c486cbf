"""Mask units: squares of neighbouring tokens that are hidden, and attended to, together.

Tokens of a grid are brought into the order *unit, place in the unit* once. Inside a unit the
neighbours that are pooled first differ in the slowest digits of their place, so pooling q x q
neighbours is a maximum over the leading part of one axis, and it never mixes units.

Legend: B batch, U units (row-major), T tokens of a unit, C channels, K kept units. ``pools`` counts
the poolings that tokens went through.
Paper: Hiera (arXiv 2306.00989) Sec. 3; the released code orders place before unit, which is this
order transposed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from jaxtyping import Float, Int, Shaped
from torch import Tensor

from perceivers.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class UnitLayout:
    """The order of tokens on grids of any rank.

    Args:
        unit: Tokens of a mask unit along each axis, before any pooling.
        pool: Neighbours along each axis that one pooling joins.
        levels: Poolings that the order allows.

    Raises:
        ConfigError: The axes differ in number, a size is impossible, or a unit does not divide
            ``levels`` times.
    """

    unit: tuple[int, ...]
    pool: tuple[int, ...]
    levels: int

    def __post_init__(self) -> None:
        """Reject units that cannot be pooled."""
        sizes = (*self.unit, *self.pool)
        possible = len(self.unit) == len(self.pool) > 0 and min(sizes) > 0 and self.levels >= 0
        if not possible or any(
            u % p**self.levels for u, p in zip(self.unit, self.pool, strict=True)
        ):
            raise ConfigError(
                f"a mask unit of {self.unit} tokens cannot be pooled {self.levels} times by "
                f"{self.pool}; every side must be a multiple of pool ** {self.levels}"
            )

    @property
    def rank(self) -> int:
        """Axes of the grid."""
        return len(self.unit)

    @property
    def stride(self) -> int:
        """Tokens that one pooling joins."""
        return prod(self.pool)

    def side(self, pools: int) -> tuple[int, ...]:
        """Return a unit's tokens along each axis after some poolings."""
        return tuple(u // p**pools for u, p in zip(self.unit, self.pool, strict=True))

    def tokens(self, pools: int = 0) -> int:
        """Return a unit's tokens T after some poolings."""
        return prod(self.side(pools))

    def units(self, grid: Sequence[int], pools: int = 0) -> tuple[int, ...]:
        """Return the units along each axis of a token grid."""
        return tuple(g // u for g, u in zip(grid, self.side(pools), strict=True))

    def split(self, x: Shaped[Tensor, "B *grid C"], pools: int = 0) -> Shaped[Tensor, "B U T C"]:
        """Cut a token grid into units."""
        units = self.units(x.shape[1:-1], pools)
        digits = self._digits(pools)
        sizes = [n for axis in range(self.rank) for n in (units[axis], *digits[axis])]
        parts = len(digits[0]) + 1
        # Axis a holds its unit and then its digits, most significant first: [u, rest, dK .. d0].
        at = [[1 + axis * parts + part for part in range(parts)] for axis in range(self.rank)]
        order = [places[0] for places in at]
        order += [places[part] for part in range(parts - 1, 0, -1) for places in at]
        split = x.reshape(x.shape[0], *sizes, x.shape[-1])
        split = split.permute(0, *order, split.ndim - 1)
        return split.reshape(x.shape[0], prod(units), self.tokens(pools), x.shape[-1])

    def merge(
        self, x: Shaped[Tensor, "B U T C"], units: Sequence[int], pools: int = 0
    ) -> Shaped[Tensor, "B *grid C"]:
        """Undo ``split``: put tokens back on their grid of ``units`` units."""
        tokens = self.merge_inside(x, pools)  # [B, U, *side, C]
        rank, side = self.rank, self.side(pools)
        tokens = tokens.reshape(x.shape[0], *units, *side, x.shape[-1])
        order = [axis for i in range(rank) for axis in (1 + i, 1 + rank + i)]
        tokens = tokens.permute(0, *order, tokens.ndim - 1)
        grid = [u * s for u, s in zip(units, side, strict=True)]
        return tokens.reshape(x.shape[0], *grid, x.shape[-1])

    def merge_inside(
        self, x: Shaped[Tensor, "B K T C"], pools: int = 0
    ) -> Shaped[Tensor, "B K *side C"]:
        """Put tokens back on the grid inside their unit; any units, kept ones for instance."""
        digits = self._digits(pools)
        parts = len(digits[0])
        sizes = [
            digits[axis][part] for part in range(parts - 1, -1, -1) for axis in range(self.rank)
        ]
        split = x.reshape(*x.shape[:2], *sizes, x.shape[-1])
        order = [
            2 + (parts - 1 - part) * self.rank + axis
            for axis in range(self.rank)
            for part in range(parts)
        ]
        split = split.permute(0, 1, *order, split.ndim - 1)
        return split.reshape(*x.shape[:2], *self.side(pools), x.shape[-1])

    def _digits(self, pools: int) -> list[tuple[int, ...]]:
        """Per axis, the sizes of a place's digits, most significant first: rest, then poolings."""
        left = self.levels - pools
        return [
            (u // p**self.levels, *[p] * left) for u, p in zip(self.unit, self.pool, strict=True)
        ]


def pool_tokens(x: Float[Tensor, "B U T C"], stride: int) -> Float[Tensor, "B U t C"]:
    """Return the maximum over the ``stride`` neighbours that are pooled next, per channel."""
    if stride == 1:
        return x
    return x.unflatten(2, (stride, -1)).amax(2)


def gather_units(
    x: Shaped[Tensor, "B U T C"], ids: Int[Tensor, "B K"]
) -> Shaped[Tensor, "B K T C"]:
    """Return some units of every sample."""
    return x.gather(1, ids[:, :, None, None].expand(-1, -1, *x.shape[2:]))
