"""Conversion of images and videos to patches and tiles and back, and sampling between pixels."""

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from perceivers.errors import ConfigError, InputError

# -- Space to depth, and depth to space ----------------------------------------------------------
#
# Legend: B batch, C channels, N blocks (row-major), P values per block: prod(factors) * C. Paper:
# Perceiver IO (arXiv 2107.14795) Sec. 4.3; channel order of the released code, ``b (t dt) (h dh)
# (w dw) c -> b t h w (dt dh dw c)``: channels change fastest.


def space_to_depth(
    x: Shaped[Tensor, "B C *grid"], factors: Sequence[int]
) -> Shaped[Tensor, "B N P"]:
    """Divide a signal into blocks, one token each.

    Args:
        x: Signal with channels before any number of axes.
        factors: Elements of a block along each axis of the grid.

    Raises:
        InputError: There is not one factor of at least 1 per axis, or it does not divide the axis.
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
    """Assemble blocks to a signal: the inverse of ``space_to_depth``.

    Args:
        tokens: One block per token, row-major.
        grid: Shape of the signal.
        factors: Elements of a block along each axis of the grid.

    Raises:
        InputError: The number or width of tokens does not fit the grid.
    """
    blocks = _count_blocks(grid, factors)
    batch, count, width = tokens.shape
    if count != prod(blocks) or width % prod(factors):
        raise InputError(
            f"{count} tokens of {width} values are not blocks {tuple(factors)} of a grid "
            f"{tuple(grid)}; expected {prod(blocks)} tokens of a multiple of {prod(factors)} values"
        )
    axes = len(blocks)
    split = tokens.reshape(batch, *blocks, *factors, width // prod(factors))
    # [B, g1, g2, ..., f1, f2, ..., C] -> [B, C, g1, f1, g2, f2, ...]
    order = (0, 1 + 2 * axes, *(at for i in range(axes) for at in (1 + i, 1 + axes + i)))
    return split.permute(order).reshape(batch, -1, *grid)


def _count_blocks(grid: Sequence[int], factors: Sequence[int]) -> tuple[int, ...]:
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


# -- Input of the flow model: the 3x3 neighbourhood of every pixel in both frames ----------------
#
# Legend: B batch, C channels, T frames (two), H rows, W columns, N pixels (row-major), P values per
# pixel: 2 * 9 * C, 54 for RGB. Paper: Perceiver IO (arXiv 2107.14795) App. H; channel order as in
# the released code: (frame, row of the window, column of the window, channel).

FRAMES = 2
WINDOW = 3


def extract_flow_patches(video: Shaped[Tensor, "B C T H W"]) -> Shaped[Tensor, "B N P"]:
    """Gather the 3x3 neighbourhood of every pixel, with zeros beyond the edges.

    Args:
        video: Two normalised frames; in the released model in -1..1, so that zeros are mid-grey.

    Raises:
        InputError: There are not two frames.
    """
    batch, channels, frames, height, width = video.shape
    if frames != FRAMES:
        raise InputError(f"flow patches of {frames} frames; optical flow needs exactly 2")
    margin = WINDOW // 2
    # [B, H, W, T, C]: with channels last, each of the nine copies below is of contiguous memory.
    padded = F.pad(video.permute(0, 3, 4, 2, 1), (0, 0, 0, 0, margin, margin, margin, margin))
    windows = [
        padded[:, row : row + height, column : column + width]
        for row in range(WINDOW)
        for column in range(WINDOW)
    ]
    patches = torch.stack(windows, dim=4)  # [B, H, W, T, 9, C]
    return patches.reshape(batch, height * width, frames * WINDOW * WINDOW * channels)


# -- Sampling between pixels ---------------------------------------------------------------------
#
# Legend: B batch, C channels, H rows and W columns of the images, h rows and w columns of the
# output.


def pixel_places(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Return the coordinates of every pixel, ``[2, H, W]``: channel 0 is x, channel 1 is y."""
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float32, device=device),
        torch.arange(width, dtype=torch.float32, device=device),
        indexing="ij",
    )
    return torch.stack([x, y])


def sample_pixels(
    pictures: Float[Tensor, "B C H W"],
    places: Float[Tensor, "B 2 h w"],
    how: Literal["bilinear", "bicubic"] = "bilinear",
) -> Float[Tensor, "B C h w"]:
    """Sample images at any coordinates; beyond the edges, border pixels are repeated.

    Args:
        pictures: Images to sample from.
        places: Coordinates in pixels, x before y; (0, 0) is the centre of the first pixel.
        how: Interpolation; bicubic is sharper and may overshoot.
    """
    height, width = pictures.shape[-2:]
    size = places.new_tensor([width, height]).view(1, 2, 1, 1)
    # With align_corners=False, -1 and 1 are the outer edges of the border pixels.
    grid = ((2 * places + 1) / size - 1).permute(0, 2, 3, 1)  # [B, h, w, 2]
    return F.grid_sample(pictures, grid, how, padding_mode="border", align_corners=False)


# -- Overlapping tiles of large images -----------------------------------------------------------
#
# Tiles have the image size that a model was trained with. Legend: C channels, H rows and W columns
# of the image, h rows and w columns of a tile, n tiles. Paper: Perceiver IO (arXiv 2107.14795)
# App. H: six evenly spaced tiles of 368x496 cover a Sintel frame of 436x1024. The released code
# spaces them unevenly, and computes tiles twice if the image is as large as a tile; here they are
# evenly spaced and computed once.


def tile_starts(size: int, tile: int, min_overlap: int) -> tuple[int, ...]:
    """Return the start of each of the fewest evenly spaced tiles that cover an axis.

    Args:
        size: Pixels along the axis.
        tile: Pixels of a tile along the axis.
        min_overlap: Minimum number of pixels that neighbouring tiles share.

    Raises:
        InputError: The axis is shorter than the tile; use ``pad_to_tile`` first.
        ConfigError: The overlap is negative, or not smaller than the tile.
    """
    if not 0 <= min_overlap < tile:
        raise ConfigError(
            f"min_overlap is {min_overlap} for tiles of {tile} pixels; it must lie in 0..{tile - 1}"
        )
    if size < tile:
        raise InputError(
            f"{size} pixels are fewer than a tile of {tile}; pad the image with pad_to_tile"
        )
    span, stride = size - tile, tile - min_overlap
    gaps = -(-span // stride)
    return tuple((index * span + gaps // 2) // gaps for index in range(gaps + 1)) if gaps else (0,)


def tile_places(
    size: tuple[int, int], tile: tuple[int, int], min_overlap: int
) -> tuple[tuple[int, int], ...]:
    """Return the upper left corner (row, column) of every tile, row by row.

    Args:
        size: Rows H and columns W of the image.
        tile: Rows h and columns w of a tile.
        min_overlap: Minimum number of pixels that neighbouring tiles share.

    Raises:
        InputError: The image is smaller than the tile.
        ConfigError: The overlap is negative, or not smaller than the tile.
    """
    starts = [tile_starts(size[axis], tile[axis], min_overlap) for axis in range(2)]
    return tuple(product(starts[0], starts[1]))


def cut_tiles(
    picture: Shaped[Tensor, "*channels H W"],
    places: Sequence[tuple[int, int]],
    tile: tuple[int, int],
) -> Shaped[Tensor, "n *channels h w"]:
    """Cut out the tiles whose upper left corners are ``places``.

    Raises:
        InputError: There is no tile, or a tile reaches beyond the image.
    """
    _check_places(places, tile, (picture.shape[-2], picture.shape[-1]))
    height, width = tile
    return torch.stack([picture[..., y : y + height, x : x + width] for y, x in places])


def tile_weights(height: int, width: int) -> Float[Tensor, "h w"]:
    """Return the weight of each pixel in ``blend_tiles``: its distance to the edge, from 1."""
    rows, columns = (
        torch.minimum(torch.arange(1, size + 1), torch.arange(size, 0, -1))
        for size in (height, width)
    )
    return torch.minimum(rows[:, None], columns[None, :]).to(torch.float32)


def blend_tiles(
    tiles: Float[Tensor, "n C h w"], places: Sequence[tuple[int, int]], size: tuple[int, int]
) -> Float[Tensor, "C H W"]:
    """Average overlapping tiles, each pixel weighted by ``tile_weights``.

    Args:
        tiles: Result for each tile.
        places: Upper left corner (row, column) of each tile, as returned by ``tile_places``.
        size: Rows H and columns W of the image.

    Raises:
        InputError: There is not one place per tile, a tile reaches beyond the image, or a pixel is
            not covered.
    """
    if len(places) != len(tiles):
        raise InputError(f"{len(tiles)} tiles for {len(places)} places; give one place per tile")
    height, width = tiles.shape[-2:]
    _check_places(places, (height, width), size)
    # Sums of weights reach hundreds, which half precision would round.
    dtype = torch.promote_types(tiles.dtype, torch.float32)
    weights = tile_weights(height, width).to(tiles.device, dtype)
    total = tiles.new_zeros((tiles.shape[1], *size), dtype=dtype)
    count = tiles.new_zeros(size, dtype=dtype)
    for tile, (y, x) in zip(tiles, places, strict=True):
        total[:, y : y + height, x : x + width] += weights * tile
        count[y : y + height, x : x + width] += weights
    missing = int((count == 0).sum())
    if missing:
        raise InputError(
            f"{missing} of {count.numel()} pixels are covered by no tile; use the places of "
            f"tile_places for an image of {size}"
        )
    return (total / count).to(tiles.dtype)


def pad_to_tile(
    picture: Shaped[Tensor, "*channels H W"], tile: tuple[int, int]
) -> Shaped[Tensor, "*channels Y X"]:
    """Pad an image to at least the size of a tile by repeating its last row and column.

    The image stays in the upper left corner, so that ``crop_to_size`` is the inverse.

    Args:
        picture: Image with rows and columns last.
        tile: Rows h and columns w of a tile.
    """
    for axis, wanted in zip((-2, -1), tile, strict=True):
        size = picture.shape[axis]
        if size < wanted:
            index = torch.arange(wanted, device=picture.device).clamp(max=size - 1)
            picture = picture.index_select(axis, index)
    return picture


def crop_to_size(
    picture: Shaped[Tensor, "*channels Y X"], size: tuple[int, int]
) -> Shaped[Tensor, "*channels H W"]:
    """Crop to the upper left corner: the inverse of ``pad_to_tile``, also for predicted flow.

    Raises:
        InputError: The image is smaller than ``size``.
    """
    rows, columns = picture.shape[-2:]
    if rows < size[0] or columns < size[1]:
        raise InputError(f"an image of {(rows, columns)} cannot be cropped to {size}")
    return picture[..., : size[0], : size[1]]


def _check_places(
    places: Sequence[tuple[int, int]], tile: tuple[int, int], size: tuple[int, int]
) -> None:
    if not places:
        raise InputError("no tiles; at least one place is needed")
    for place in places:
        if any(p < 0 or p + t > s for p, t, s in zip(place, tile, size, strict=True)):
            raise InputError(
                f"a tile of {tile} at {place} reaches beyond an image of {size}; use tile_places"
            )
