"""Learned position embeddings of Hiera, and their interpolation to other grids.

With attention inside mask units, a model learns a table in which the pattern of one unit repeats.
Interpolating this table would change the period of the pattern, so that it no longer matched the
units. Therefore the repeating pattern is tiled, and only the remainder is interpolated.

Legend: N tokens of a grid (row-major), T tokens of a mask unit, C channels.
Paper: Window Attention is Bugged (arXiv 2311.05613) Sec. 3; Hiera (arXiv 2306.00989) Sec. 3.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from perceivers.models.hiera.config import HieraConfig, ResizeKind
from perceivers.nn.positions import interpolate_table


class HieraPositions(nn.Module):
    """Position embeddings for a token grid of any valid size.

    | kind | tables |
    |---|---|
    | absolute | ``table [N, C]`` on the native grid |
    | separable | ``spatial`` on the native rows and columns, ``temporal`` on the native frames |
    | window | ``table`` on ``position_grid``, ``window [T, C]`` for the tokens of a unit |

    Args:
        config: The full configuration.
    """

    def __init__(self, config: HieraConfig) -> None:
        super().__init__()
        self.kind = config.positions
        self.resize: ResizeKind = config.position_resize
        self.antialias = config.position_antialias
        self.unit = config.mask_unit
        self.native = config.native_grid
        dim = config.dim
        if self.kind == "separable":
            self.spatial = nn.Parameter(torch.zeros(prod(self.native[1:]), dim))
            self.temporal = nn.Parameter(torch.zeros(self.native[0], dim))
        elif self.kind == "window":
            self.table_grid = config.position_grid
            self.table = nn.Parameter(torch.zeros(prod(self.table_grid), dim))
            self.window = nn.Parameter(torch.zeros(prod(self.unit), dim))
        else:
            self.table = nn.Parameter(torch.zeros(prod(self.native), dim))

    def forward(self, grid: Sequence[int]) -> Float[Tensor, "*grid C"]:
        """Return the position embeddings of a token grid."""
        if self.kind == "separable":
            rows = interpolate_table(self.temporal, self.native[:1], grid[:1])
            plane = resize_absolute(
                self.spatial, self.native[1:], grid[1:], self.unit[1:], self.resize
            )
            return rows.reshape(-1, *[1] * (len(grid) - 1), rows.shape[-1]) + plane
        if self.kind == "window":
            table = interpolate_table(self.table, self.table_grid, grid, antialias=self.antialias)
            return table.reshape(*grid, -1) + tile_window(self.window, self.unit, grid)
        return resize_absolute(self.table, self.native, grid, self.unit, self.resize)


def tile_window(
    window: Float[Tensor, "T C"], unit: Sequence[int], grid: Sequence[int]
) -> Float[Tensor, "*grid C"]:
    """Repeat the pattern of one unit over a grid."""
    repeats = [g // u for g, u in zip(grid, unit, strict=True)]
    return window.reshape(*unit, -1).tile(*repeats, 1)


def split_window(
    table: Float[Tensor, "N C"], grid: Sequence[int], unit: Sequence[int]
) -> tuple[Float[Tensor, "N C"], Float[Tensor, "T C"]]:
    """Split a table into the pattern that repeats in every unit and a remainder.

    The tiled pattern plus the remainder equals the table.

    Args:
        table: Table on ``grid``, row-major.
        grid: Multiple of ``unit`` along each axis.
        unit: Tokens of a mask unit along each axis.

    Returns:
        The remainder and the pattern.
    """
    rank = len(grid)
    sizes = [n for g, u in zip(grid, unit, strict=True) for n in (g // u, u)]
    window = table.reshape(*sizes, -1).mean([2 * axis for axis in range(rank)])
    rest = table - tile_window(window.reshape(prod(unit), -1), unit, grid).reshape(len(table), -1)
    return rest, window.reshape(prod(unit), -1)


def resize_absolute(
    table: Float[Tensor, "N C"],
    native: Sequence[int],
    grid: Sequence[int],
    unit: Sequence[int],
    kind: ResizeKind,
) -> Float[Tensor, "*grid C"]:
    """Interpolate an absolute table to another grid; on the native grid it is unchanged."""
    if tuple(grid) == tuple(native):
        return table.reshape(*grid, -1)
    if kind == "plain":
        return interpolate_table(table, native, grid).reshape(*grid, -1)
    rest, window = split_window(table, native, unit)
    stretched = interpolate_table(rest, native, grid).reshape(*grid, -1)
    return stretched + tile_window(window, unit, grid)


def carry_positions(
    old: HieraConfig, new: HieraConfig, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return a copy of the state dict with position embeddings resized to another native size.

    Args:
        old: Config that ``state`` belongs to.
        new: The same config with another input size.
        state: Weights by name.
    """
    carried = dict(state)

    def fit(name: str, make: Callable[[Tensor], Tensor]) -> None:
        key = f"encoder.positions.{name}"
        if key in carried:
            carried[key] = make(carried[key]).detach().flatten(0, -2).contiguous()

    grids, unit = (old.native_grid, new.native_grid), old.mask_unit
    if old.positions == "separable":
        (frames, *plane), (wanted, *wide) = grids
        fit("temporal", lambda t: interpolate_table(t, [frames], [wanted]))
        fit("spatial", lambda t: resize_absolute(t, plane, wide, unit[1:], old.position_resize))
    elif old.positions == "absolute":
        fit("table", lambda t: resize_absolute(t, *grids, unit, old.position_resize))
    key = "decoder.positions"
    if key in carried:
        sides = [
            [g // (p**c.pools) for g, p in zip(c.native_grid, c.pool, strict=True)]
            for c in (old, new)
        ]
        carried[key] = interpolate_table(carried[key].detach(), *sides).contiguous()
    return carried
