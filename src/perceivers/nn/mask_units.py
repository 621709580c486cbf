"""Mask units: blocks of neighbouring tokens that are masked, and attend to each other, together.

The tokens of a grid are sorted once, by unit and by position inside the unit. Positions are ordered
so that the neighbours pooled first differ in the slowest digits. Pooling is then a maximum over the
leading part of one axis, and never mixes units.

Legend: B batch, U units (row-major), T tokens of a unit, t tokens of a unit after pooling, C
channels, K visible units. ``pools`` is the number of times that tokens were pooled.
Paper: Hiera (arXiv 2306.00989) Sec. 3; the released code puts the position before the unit, which
is this order transposed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from jaxtyping import Float, Int, Shaped
from torch import Tensor

from perceivers.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class UnitLayout:
    """Conversion of token grids of any rank to mask units and back.

    Args:
        unit: Tokens of a mask unit along each axis, before pooling.
        pool: Pooling factor along each axis.
        levels: Maximum number of poolings.

    Raises:
        ConfigError: The numbers of axes differ, a size is not positive, or a unit cannot be pooled
            ``levels`` times.
    """

    unit: tuple[int, ...]
    pool: tuple[int, ...]
    levels: int

    def __post_init__(self) -> None:
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
        """Number of axes of the grid."""
        return len(self.unit)

    @property
    def stride(self) -> int:
        """Number of tokens that are pooled to one."""
        return prod(self.pool)

    def side(self, pools: int) -> tuple[int, ...]:
        """Return the tokens of a unit along each axis."""
        return tuple(u // p**pools for u, p in zip(self.unit, self.pool, strict=True))

    def tokens(self, pools: int = 0) -> int:
        """Return the number of tokens T of a unit."""
        return prod(self.side(pools))

    def units(self, grid: Sequence[int], pools: int = 0) -> tuple[int, ...]:
        """Return the number of units along each axis of a token grid."""
        return tuple(g // u for g, u in zip(grid, self.side(pools), strict=True))

    def split(self, x: Shaped[Tensor, "B *grid C"], pools: int = 0) -> Shaped[Tensor, "B U T C"]:
        """Divide a token grid into units."""
        units = self.units(x.shape[1:-1], pools)
        digits = self._digits(pools)
        sizes = [n for axis in range(self.rank) for n in (units[axis], *digits[axis])]
        parts = len(digits[0]) + 1
        # Axis a is split into its unit and its digits, most significant first: [u, rest, dK .. d0].
        at = [[1 + axis * parts + part for part in range(parts)] for axis in range(self.rank)]
        order = [places[0] for places in at]
        order += [places[part] for part in range(parts - 1, 0, -1) for places in at]
        split = x.reshape(x.shape[0], *sizes, x.shape[-1])
        split = split.permute(0, *order, split.ndim - 1)
        return split.reshape(x.shape[0], prod(units), self.tokens(pools), x.shape[-1])

    def merge(
        self, x: Shaped[Tensor, "B U T C"], units: Sequence[int], pools: int = 0
    ) -> Shaped[Tensor, "B *grid C"]:
        """Invert ``split``: arrange tokens on the grid of ``units`` units along each axis."""
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
        """Arrange tokens on the grid inside their unit, for any subset of units."""
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
        """Return the sizes of the digits of a position, per axis, most significant first.

        The first digit is what remains after all poolings; each further one belongs to a pooling.
        """
        left = self.levels - pools
        return [
            (u // p**self.levels, *[p] * left) for u, p in zip(self.unit, self.pool, strict=True)
        ]


def pool_tokens(x: Float[Tensor, "B U T C"], stride: int) -> Float[Tensor, "B U t C"]:
    """Max-pool the ``stride`` neighbours that are next in the order of ``UnitLayout``."""
    if stride == 1:
        return x
    return x.unflatten(2, (stride, -1)).amax(2)


def gather_units(
    x: Shaped[Tensor, "B U T C"], ids: Int[Tensor, "B K"]
) -> Shaped[Tensor, "B K T C"]:
    """Gather units of every sample by index."""
    return x.gather(1, ids[:, :, None, None].expand(-1, -1, *x.shape[2:]))
