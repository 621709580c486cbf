"""Position embeddings of raw elements: learned low-dimensional tables, or Fourier features.

A central claim of HiP is that learned embeddings with 32 (or 16) channels outperform Fourier
features if they are trained by masked autoencoding, which uses them both for input tokens and for
reconstruction queries.

Legend: N elements, P position channels, A grid axes.
Paper: HiP (arXiv 2202.10890) Sec. 3.2; Fourier features: Perceiver (arXiv 2103.03206) Sec. 3.2.
"""

from collections.abc import Sequence
from math import log10, pi, prod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers.errors import ConfigError


class LearnedPositions(nn.Module):
    """One learned embedding per element; the model initialises the table.

    Args:
        num_tokens: Number of elements N.
        dim: Channels P.
    """

    def __init__(self, *, num_tokens: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(num_tokens, dim))

    def forward(self) -> Float[Tensor, "N P"]:
        """Return the table."""
        return self.table


class InterpolatedPositions(LearnedPositions):
    """Learned embeddings on a coarse grid, interpolated linearly to the grid of elements.

    For tens of millions of elements, a table with one row per element takes gigabytes, and as much
    again for its gradient; this one is smaller by a factor of ``stride ** axes``.

    Args:
        grid: Shape of the grid of elements.
        dim: Channels P.
        stride: Elements per coarse cell along every axis.
    """

    def __init__(self, *, grid: Sequence[int], dim: int, stride: int) -> None:
        super().__init__(num_tokens=prod(coarse_grid(grid, stride)), dim=dim)
        self.grid = tuple(grid)
        self.coarse = coarse_grid(grid, stride)

    def forward(self) -> Float[Tensor, "N P"]:
        """Return the embeddings of all elements."""
        return self.part(0, prod(self.grid))

    def part(self, start: int, stop: int) -> Float[Tensor, "n P"]:
        """Compute only the embeddings of the elements from ``start`` to ``stop``."""
        line = prod(self.grid[1:])
        first, last = start // line, -(-stop // line)
        rows = self.table.unflatten(0, self.coarse)
        for axis, (size, coarse) in enumerate(zip(self.grid, self.coarse, strict=True)):
            cells = torch.arange(size, device=rows.device, dtype=torch.float32)
            cells = cells[first:last] if axis == 0 else cells
            # Embeddings belong to the centres of coarse cells (as with align_corners=False).
            place = ((cells + 0.5) * (coarse / size) - 0.5).clamp(0, coarse - 1)
            low = place.long()
            high = (low + 1).clamp(max=coarse - 1)
            weight = (place - low).to(rows.dtype).reshape(-1, *[1] * (rows.ndim - 1 - axis))
            below, above = rows.index_select(axis, low), rows.index_select(axis, high)
            rows = torch.lerp(below, above, weight)
        return rows.reshape(-1, rows.shape[-1])[start - first * line : stop - first * line]


def coarse_grid(grid: Sequence[int], stride: int) -> tuple[int, ...]:
    """Return the shape of the grid coarsened by ``stride`` along every axis, rounded up."""
    return tuple(-(-size // stride) for size in grid)


class FourierPositions(nn.Module):
    """Fourier features of the coordinates of a grid; neither learned nor saved.

    Args:
        grid: Shape of the grid; coordinates run from -1 to 1 on each axis.
        num_bands: Frequencies per axis, spaced evenly from 1 to half of ``max_resolution``.
        max_resolution: Length per axis whose Nyquist frequency is the highest frequency; that of
            the grid by default.
        dim: Pad with zeros to this width, so that it is the same for modalities of different rank.
        sine_only: Leave the cosines out.
        keep_coordinates: Prepend the coordinates themselves.
    """

    features: Tensor

    def __init__(
        self,
        *,
        grid: Sequence[int],
        num_bands: int,
        max_resolution: Sequence[int] | None = None,
        dim: int = 0,
        sine_only: bool = False,
        keep_coordinates: bool = True,
    ) -> None:
        super().__init__()
        features = fourier_features(
            grid_coordinates(grid),
            num_bands,
            max_resolution or grid,
            sine_only=sine_only,
            keep_coordinates=keep_coordinates,
        )
        features = F.pad(features, (0, max(dim - features.shape[-1], 0)))
        self.register_buffer("features", features, persistent=False)

    def forward(self) -> Float[Tensor, "N P"]:
        """Return the features."""
        return self.features


def fourier_rows(grid: Sequence[int], dim: int) -> Float[Tensor, "N P"]:
    """Return sines and cosines of the coordinates of every cell, to initialise a learned table.

    Each axis gets the same number of frequencies, from one cycle over the axis to one cycle over
    four cells. Their ratios are equal: with equal differences, embeddings of distant cells would be
    similar periodically. Remaining channels are zero; the mean square of the others is one half.
    """
    waves = [
        torch.cat([angle.sin(), angle.cos()], -1)
        for angle in _axis_angles(grid, max(dim // (2 * len(grid)), 1))
    ]
    rows = torch.cat(waves, -1)[:, :dim].float()
    return F.pad(rows, (0, dim - rows.shape[1]))


def rotary_angles(grid: Sequence[int], pairs: int) -> Float[Tensor, "N pairs"]:
    """Return the angles for rotary position embeddings (``rotate``) of every cell.

    Frequencies are those of ``fourier_rows``; remaining pairs are not rotated.
    """
    angles = torch.cat(_axis_angles(grid, max(pairs // len(grid), 1)), -1)[:, :pairs].float()
    return F.pad(angles, (0, pairs - angles.shape[1]))


def _axis_angles(grid: Sequence[int], bands: int) -> list[Tensor]:
    """Return for each axis the phase of every cell at every frequency, ``[N, bands]``."""
    found = []
    for axis, size in enumerate(grid):
        cycles = torch.logspace(0.0, log10(max(size / 4, 1.0)), bands, dtype=torch.float64)
        place = (torch.arange(size, dtype=torch.float64) + 0.5) / size
        shape = [1] * len(grid)
        shape[axis] = size
        angle = (2 * pi * place.unsqueeze(-1) * cycles).reshape(*shape, bands)
        found.append(angle.expand(*grid, bands).reshape(prod(grid), bands))
    return found


def fourier_dim(
    num_axes: int, num_bands: int, *, sine_only: bool = False, keep_coordinates: bool = True
) -> int:
    """Return the number of channels P of ``fourier_features``."""
    return num_axes * (num_bands * (1 if sine_only else 2) + keep_coordinates)


def grid_coordinates(grid: Sequence[int]) -> Float[Tensor, "N A"]:
    """Return the coordinates of every cell, row-major, from -1 to 1 inclusive on each axis."""
    axes = [torch.linspace(-1.0, 1.0, size) for size in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(prod(grid), len(grid))


def fourier_features(
    places: Float[Tensor, "*B A"],
    num_bands: int,
    max_resolution: Sequence[int],
    *,
    sine_only: bool = False,
    keep_coordinates: bool = True,
) -> Float[Tensor, "*B P"]:
    """Return coordinates, then all sines, then all cosines (axis major, band minor).

    Args:
        places: Coordinates, usually in -1..1; any points, on a grid or not.
        num_bands: Frequencies per axis, spaced evenly from 1 to ``max_resolution / 2``.
        max_resolution: One length per axis.
        sine_only: Leave the cosines out.
        keep_coordinates: Prepend the coordinates themselves.
    """
    bands = torch.stack(
        [torch.linspace(1.0, size / 2, num_bands, device=places.device) for size in max_resolution]
    )
    # The order of multiplication is that of the released code, so that float32 rounding is equal:
    # it matters for the highest audio frequencies, with angles of tens of thousands.
    angles = pi * (places.unsqueeze(-1) * bands.to(places.dtype)).flatten(-2)
    waves = [angles.sin()] if sine_only else [angles.sin(), angles.cos()]
    return torch.cat([places, *waves] if keep_coordinates else waves, -1)


def interpolate_table(
    table: Float[Tensor, "N P"], old: Sequence[int], new: Sequence[int], *, antialias: bool = False
) -> Float[Tensor, "M P"]:
    """Interpolate a table to another grid of the same rank; differentiable.

    Interpolation is linear for one axis, bicubic for two and trilinear for three, with
    ``align_corners=False``: a table learned on 32x32 still covers the whole image at 64x64.

    Args:
        table: One row per cell, row-major.
        old: Grid of the table.
        new: Grid of the result.
        antialias: Use antialiasing when a grid is reduced in size (two axes only).

    Raises:
        ConfigError: The grids differ in rank or have more than three axes.
    """
    if tuple(old) == tuple(new):
        return table
    modes = {1: "linear", 2: "bicubic", 3: "trilinear"}
    if len(old) != len(new) or len(old) not in modes:
        raise ConfigError(
            f"a position table on grid {tuple(old)} cannot be resized to {tuple(new)}: both grids "
            f"need the same number of axes, one to three"
        )
    wide = torch.promote_types(table.dtype, torch.float32)
    rows = table.to(wide).T.reshape(1, -1, *old)
    rows = F.interpolate(
        rows,
        size=tuple(new),
        mode=modes[len(old)],
        align_corners=False,
        antialias=antialias and len(old) == 2,
    )
    return rows.reshape(table.shape[1], -1).T.to(table.dtype)


def resize_table(
    table: Float[Tensor, "N P"], old: Sequence[int], new: Sequence[int]
) -> Float[Tensor, "M P"]:
    """Interpolate a table as in ``interpolate_table``, without gradients.

    Raises:
        ConfigError: The grids differ in rank or have more than three axes.
    """
    return interpolate_table(table.detach(), old, new).contiguous()
