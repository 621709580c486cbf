"""Space to depth: blocks of neighbouring elements become tokens, and back.

Legend: B batch, C channels, N blocks (row-major), P values per block: prod(factors) * C.
Paper: Perceiver IO (arXiv 2107.14795) Sec. 4.3; channel order of the released code,
``b (t dt) (h dh) (w dw) c -> b t h w (dt dh dw c)``: channels change fastest.
"""

from collections.abc import Sequence
from math import prod

from jaxtyping import Shaped
from torch import Tensor

from perceivers.errors import InputError


def space_to_depth(
    x: Shaped[Tensor, "B C *grid"], factors: Sequence[int]
) -> Shaped[Tensor, "B N P"]:
    """Cut a signal into blocks, one token each.

    Args:
        x: Channels before any number of axes: samples, rows and columns, or frames as well.
        factors: Elements of a block along each axis of the grid.

    Raises:
        InputError: Not one factor of at least 1 per axis, or an axis that does not divide.
    """
    grid = tuple(x.shape[2:])
    blocks = _count_blocks(grid, factors)
    axes = range(len(grid))
    split = x.reshape(
        *x.shape[:2], *(n for pair in zip(blocks, factors, strict=True) for n in pair)
    )
    # [B, C, g1, f1, g2, f2, ...] -> [B, g1, g2, ..., f1, f2, ..., C]
    order = (0, *(2 + 2 * i for i in axes), *(3 + 2 * i for i in axes), 1)
    return split.permute(order).reshape(x.shape[0], prod(blocks), prod(factors) * x.shape[1])


def depth_to_space(
    tokens: Shaped[Tensor, "B N P"], grid: Sequence[int], factors: Sequence[int]
) -> Shaped[Tensor, "B C *grid"]:
    """Put blocks back where ``space_to_depth`` took them from.

    Args:
        tokens: One block per token, row-major.
        grid: Shape of the whole signal, as it was before ``space_to_depth``.
        factors: Elements of a block along each axis of the grid.

    Raises:
        InputError: The tokens are not those of such a grid.
    """
    blocks = _count_blocks(grid, factors)
    batch, count, width = tokens.shape
    if count != prod(blocks) or width % prod(factors):
        raise InputError(
            f"{count} tokens of {width} values are no blocks {tuple(factors)} of a grid "
            f"{tuple(grid)}; it takes {prod(blocks)} tokens of a multiple of {prod(factors)} values"
        )
    axes = len(blocks)
    split = tokens.reshape(batch, *blocks, *factors, width // prod(factors))
    # [B, g1, g2, ..., f1, f2, ..., C] -> [B, C, g1, f1, g2, f2, ...]
    order = (0, 1 + 2 * axes, *(at for i in range(axes) for at in (1 + i, 1 + axes + i)))
    return split.permute(order).reshape(batch, -1, *grid)


def _count_blocks(grid: Sequence[int], factors: Sequence[int]) -> tuple[int, ...]:
    """Return the blocks along each axis."""
    if len(factors) != len(grid) or any(factor < 1 for factor in factors):
        raise InputError(
            f"block {tuple(factors)} for a grid {tuple(grid)}; give one size of at least 1 for "
            f"each of its {len(grid)} axes"
        )
    if any(size % factor for size, factor in zip(grid, factors, strict=True)):
        pairs = list(zip(grid, factors, strict=True))
        smaller = tuple(max(size // factor, 1) * factor for size, factor in pairs)
        larger = tuple(-(-size // factor) * factor for size, factor in pairs)
        raise InputError(
            f"grid {tuple(grid)} does not divide into blocks {tuple(factors)}; the nearest grids "
            f"that do are {smaller} and {larger}"
        )
    return tuple(size // factor for size, factor in zip(grid, factors, strict=True))
