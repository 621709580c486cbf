"""Positions of raw elements: a learned low-dimensional table, or Fourier features.

HiP's central claim is that learned tables of 32 (or 16) channels beat hand-made features once they
are trained by masked auto-encoding, where the same row names an input and asks for its
reconstruction.

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
    """One learned row per element.

    Args:
        num_tokens: Elements N.
        dim: Channels P.
    """

    def __init__(self, *, num_tokens: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(num_tokens, dim))

    def forward(self) -> Float[Tensor, "N P"]:
        """Return the table."""
        return self.table


class InterpolatedPositions(LearnedPositions):
    """A learned row per block of cells; the rows of single elements are interpolated linearly.

    A table with a row per element takes gigabytes from tens of millions of elements on, and as much
    again for its gradient; this one takes ``stride`` to the power of the grid's axes less.

    Args:
        grid: Shape of the grid of elements.
        dim: Channels P.
        stride: Cells per block along every axis.
    """

    def __init__(self, *, grid: Sequence[int], dim: int, stride: int) -> None:
        super().__init__(num_tokens=prod(coarse_grid(grid, stride)), dim=dim)
        self.grid = tuple(grid)
        self.coarse = coarse_grid(grid, stride)

    def forward(self) -> Float[Tensor, "N P"]:
        """Return the rows of all elements."""
        return self.part(0, prod(self.grid))

    def part(self, start: int, stop: int) -> Float[Tensor, "n P"]:
        """Return the rows of the elements from ``start`` to ``stop``; only these are computed."""
        line = prod(self.grid[1:])
        first, last = start // line, -(-stop // line)
        rows = self.table.unflatten(0, self.coarse)
        for axis, (size, coarse) in enumerate(zip(self.grid, self.coarse, strict=True)):
            cells = torch.arange(size, device=rows.device, dtype=torch.float32)
            cells = cells[first:last] if axis == 0 else cells
            # Half-cell convention: the rows stand in the middle of their blocks.
            place = ((cells + 0.5) * (coarse / size) - 0.5).clamp(0, coarse - 1)
            low = place.long()
            high = (low + 1).clamp(max=coarse - 1)
            weight = (place - low).to(rows.dtype).reshape(-1, *[1] * (rows.ndim - 1 - axis))
            below, above = rows.index_select(axis, low), rows.index_select(axis, high)
            rows = torch.lerp(below, above, weight)
        return rows.reshape(-1, rows.shape[-1])[start - first * line : stop - first * line]


def coarse_grid(grid: Sequence[int], stride: int) -> tuple[int, ...]:
    """Return the shape of a grid of blocks of ``stride`` cells along every axis."""
    return tuple(-(-size // stride) for size in grid)


class FourierPositions(nn.Module):
    """Sines and cosines of the element's place on its grid; nothing learned, nothing stored.

    Args:
        grid: Shape of the grid; coordinates run from -1 to 1 on each axis.
        num_bands: Frequencies per axis, spaced evenly from 1 to half of ``max_resolution``.
        max_resolution: Length per axis whose Nyquist frequency is the highest; the grid's own when
            not given.
        dim: Pad with zeros to this width, so that modalities of different rank share it.
        sine_only: Leave the cosines out.
        keep_coordinates: Put the coordinates themselves before the waves.
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
    """Return sines and cosines of every cell's place, as the start of a learned table.

    Each axis gets the same number of frequencies, from one cycle over the axis to one cycle over
    four cells in equal ratios: with equal differences, rows of cells far apart would be alike
    again and again. Channels that are left over are zero; the mean square of a full row is a half.
    """
    waves = [
        torch.cat([angle.sin(), angle.cos()], -1)
        for angle in _axis_angles(grid, max(dim // (2 * len(grid)), 1))
    ]
    rows = torch.cat(waves, -1)[:, :dim].float()
    return F.pad(rows, (0, dim - rows.shape[1]))


def rotary_angles(grid: Sequence[int], pairs: int) -> Float[Tensor, "N pairs"]:
    """Return the angles by which pairs of channels are turned in rotary attention (``rotate``).

    Frequencies are those of ``fourier_rows``; pairs that are left over are not turned.
    """
    angles = torch.cat(_axis_angles(grid, max(pairs // len(grid), 1)), -1)[:, :pairs].float()
    return F.pad(angles, (0, pairs - angles.shape[1]))


def _axis_angles(grid: Sequence[int], bands: int) -> list[Tensor]:
    """Return the phase of every cell in each of an axis's waves ``[N, bands]``, axis by axis."""
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
    """Channels of ``fourier_features``: coordinates, sines, cosines."""
    return num_axes * (num_bands * (1 if sine_only else 2) + keep_coordinates)


def grid_coordinates(grid: Sequence[int]) -> Float[Tensor, "N A"]:
    """Return the place of every cell, row-major: -1 to 1 on each axis, both ends included."""
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

    The order of the products is that of the released code, so that float32 rounds alike; the
    highest audio frequencies make angles of tens of thousands, where that shows.

    Args:
        places: Coordinates, usually -1..1; any points, on a grid or not.
        num_bands: Frequencies per axis, spaced evenly from 1 to ``max_resolution / 2``.
        max_resolution: One length per axis.
        sine_only: Leave the cosines out.
        keep_coordinates: Put the coordinates first.
    """
    bands = torch.stack(
        [torch.linspace(1.0, size / 2, num_bands, device=places.device) for size in max_resolution]
    )
    angles = pi * (places.unsqueeze(-1) * bands.to(places.dtype)).flatten(-2)
    waves = [angles.sin()] if sine_only else [angles.sin(), angles.cos()]
    return torch.cat([places, *waves] if keep_coordinates else waves, -1)


def interpolate_table(
    table: Float[Tensor, "N P"], old: Sequence[int], new: Sequence[int], *, antialias: bool = False
) -> Float[Tensor, "M P"]:
    """Interpolate a table from one grid to another of the same rank; gradients pass.

    Linear on one axis, bicubic on two, trilinear on three; the corners keep the half-cell
    convention, so a table learned on 32x32 still spans the whole picture at 64x64.

    Args:
        table: One row per cell, row-major.
        old: Its grid.
        new: The grid wanted.
        antialias: Widen the bicubic filter where a grid shrinks (two axes only).

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
    """Return ``interpolate_table`` as a table of its own, without gradients.

    Raises:
        ConfigError: The grids differ in rank or have more than three axes.
    """
    return interpolate_table(table.detach(), old, new).contiguous()
