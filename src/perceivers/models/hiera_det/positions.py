"""HieraDet's learned positions for any grid: one table is stretched, one is tiled.

Legend: N cells of the stretched table and T of the tiled one (row-major), C channels; a grid is
that of the first stage's tokens.
Paper: Window Attention is Bugged (arXiv 2311.05613) Sec. 3.
"""

from collections.abc import Sequence
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from perceivers.models.hiera.positions import tile_window
from perceivers.nn.positions import interpolate_table


class WindowPositions(nn.Module):
    """A position for every token of a grid of any size: ``table [N, C]`` and ``window [T, C]``.

    The stretched table is interpolated without a wider filter where it shrinks, as in the released
    code. That code refuses grids that are not made of whole windows; here the last window is cut.

    Args:
        dim: Channels.
        grid: Shape of the table that is stretched.
        window: Shape of the table that is tiled: a window of the first stage.
    """

    def __init__(self, *, dim: int, grid: Sequence[int], window: Sequence[int]) -> None:
        super().__init__()
        self.grid = tuple(grid)
        self.unit = tuple(window)
        self.table = nn.Parameter(torch.zeros(prod(self.grid), dim))
        self.window = nn.Parameter(torch.zeros(prod(self.unit), dim))

    def forward(self, grid: Sequence[int]) -> Float[Tensor, "*grid C"]:
        """Return the positions of a token grid."""
        stretched = interpolate_table(self.table, self.grid, grid)
        whole = [-(-size // unit) * unit for size, unit in zip(grid, self.unit, strict=True)]
        tiled = tile_window(self.window, self.unit, whole)
        return stretched.reshape(*grid, -1) + tiled[tuple(slice(size) for size in grid)]
