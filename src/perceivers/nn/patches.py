"""Pictures and clips as patches and tiles, and back; values between their pixels."""

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from perceivers.errors import ConfigError, InputError

# -- Space to depth: blocks of neighbouring elements become tokens, and back ---------------------
#
# Legend: B batch, C channels, N blocks (row-major), P values per block: prod(factors) * C. Paper:
# Perceiver IO (arXiv 2107.14795) Sec. 4.3; channel order of the released code, ``b (t dt) (h dh)
# (w dw) c -> b t h w (dt dh dw c)``: channels change fastest.


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


# -- The input of the flow model: around every pixel, the 3x3 neighbourhood in both frames -------
#
# Legend: B batch, C channels, T frames (two), H W rows and columns, N pixels (row-major), P
# values per pixel: 2 * 9 * C, 54 for RGB. Paper: Perceiver IO (arXiv 2107.14795) App. H; channel
# order of the released code, which is (frame, row of the window, column of the window, channel).

FRAMES = 2
WINDOW = 3


def extract_flow_patches(video: Shaped[Tensor, "B C T H W"]) -> Shaped[Tensor, "B N P"]:
    """Gather the values around every pixel, zero beyond the edges.

    Args:
        video: Two frames, normalised already: the released model sees -1..1, so that the zeros
            outside are mid-grey.

    Raises:
        InputError: Not two frames.
    """
    batch, channels, frames, height, width = video.shape
    if frames != FRAMES:
        raise InputError(f"flow patches of {frames} frames; optical flow is between exactly 2")
    margin = WINDOW // 2
    # [B, H, W, T, C]: channels last, so that each of the nine copies below is of whole runs.
    padded = F.pad(video.permute(0, 3, 4, 2, 1), (0, 0, 0, 0, margin, margin, margin, margin))
    windows = [
        padded[:, row : row + height, column : column + width]
        for row in range(WINDOW)
        for column in range(WINDOW)
    ]
    patches = torch.stack(windows, dim=4)  # [B, H, W, T, 9, C]
    return patches.reshape(batch, height * width, frames * WINDOW * WINDOW * channels)


# -- Values of pictures between their pixels -----------------------------------------------------
#
# Legend: B batch, C channels, H W rows and columns, h w those of what is sampled.


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
    """Read pictures at any coordinates; beyond the edges their outermost pixels go on.

    Args:
        pictures: What is read.
        places: Coordinates in pixels of the pictures, x before y; (0, 0) is the centre of the
            first pixel.
        how: How values between pixels are made; bicubic is sharper and may overshoot.
    """
    height, width = pictures.shape[-2:]
    size = places.new_tensor([width, height]).view(1, 2, 1, 1)
    # Without aligned corners -1 and 1 are the outer edges of the outermost pixels.
    grid = ((2 * places + 1) / size - 1).permute(0, 2, 3, 1)  # [B, h, w, 2]
    return F.grid_sample(pictures, grid, how, padding_mode="border", align_corners=False)


# -- Large pictures as overlapping tiles of the size a model was trained on, and back ------------
#
# Legend: C channels, H W rows and columns of the picture, h w those of a tile, n tiles. Paper:
# Perceiver IO (arXiv 2107.14795) App. H: six evenly spaced tiles of 368x496 cover a Sintel frame
# of 436x1024. The released code spaces them unevenly, and computes tiles twice where the picture
# is as large as the tile; here they are evenly spaced, and each is computed once.


def tile_starts(size: int, tile: int, min_overlap: int) -> tuple[int, ...]:
    """Return where the fewest evenly spaced tiles start that cover an axis.

    Args:
        size: Pixels along the axis.
        tile: Pixels along the tile.
        min_overlap: Pixels that neighbouring tiles share, at least.

    Raises:
        InputError: The axis is shorter than the tile; ``pad_to_tile`` mends that.
        ConfigError: An overlap below 0, or as large as the tile.
    """
    if not 0 <= min_overlap < tile:
        raise ConfigError(
            f"min_overlap is {min_overlap} for tiles of {tile} pixels; it must lie in 0..{tile - 1}"
        )
    if size < tile:
        raise InputError(
            f"{size} pixels are fewer than a tile of {tile}; pad the picture with pad_to_tile"
        )
    span, stride = size - tile, tile - min_overlap
    gaps = -(-span // stride)
    return tuple((index * span + gaps // 2) // gaps for index in range(gaps + 1)) if gaps else (0,)


def tile_places(
    size: tuple[int, int], tile: tuple[int, int], min_overlap: int
) -> tuple[tuple[int, int], ...]:
    """Return the upper left corner (row, column) of every tile, row by row.

    Args:
        size: Rows H and columns W of the picture.
        tile: Rows h and columns w of a tile.
        min_overlap: Pixels that neighbouring tiles share, at least.

    Raises:
        InputError: The picture is smaller than the tile.
        ConfigError: An impossible overlap.
    """
    starts = [tile_starts(size[axis], tile[axis], min_overlap) for axis in range(2)]
    return tuple(product(starts[0], starts[1]))


def cut_tiles(
    picture: Shaped[Tensor, "*channels H W"],
    places: Sequence[tuple[int, int]],
    tile: tuple[int, int],
) -> Shaped[Tensor, "n *channels h w"]:
    """Return the tiles at ``places``, one after the other.

    Raises:
        InputError: A tile that would reach beyond the picture.
    """
    _check_places(places, tile, (picture.shape[-2], picture.shape[-1]))
    height, width = tile
    return torch.stack([picture[..., y : y + height, x : x + width] for y, x in places])


def tile_weights(height: int, width: int) -> Float[Tensor, "h w"]:
    """Return how much each pixel of a tile counts: its distance to the nearest edge, from 1."""
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
        tiles: What was computed for each tile.
        places: Upper left corner (row, column) of each, as from ``tile_places``.
        size: Rows H and columns W of the whole.

    Raises:
        InputError: Not one place per tile, a tile beyond the picture, or a part no tile covers.
    """
    if len(places) != len(tiles):
        raise InputError(f"{len(tiles)} tiles for {len(places)} places; give one place per tile")
    height, width = tiles.shape[-2:]
    _check_places(places, (height, width), size)
    # Half precision would round sums of weights, which go into the hundreds.
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
            f"tile_places for a picture of {size}"
        )
    return (total / count).to(tiles.dtype)


def pad_to_tile(
    picture: Shaped[Tensor, "*channels H W"], tile: tuple[int, int]
) -> Shaped[Tensor, "*channels Y X"]:
    """Repeat the last row and the last column until the picture is as large as a tile.

    A picture that is large enough is returned as it is. The original stays in the upper left
    corner, so ``crop_to_size`` undoes it.

    Args:
        picture: Rows and columns last.
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
    """Return the upper left corner: what ``pad_to_tile`` was given, or its flow.

    Raises:
        InputError: The picture is smaller than that.
    """
    rows, columns = picture.shape[-2:]
    if rows < size[0] or columns < size[1]:
        raise InputError(f"a picture of {(rows, columns)} cannot be cropped to {size}")
    return picture[..., : size[0], : size[1]]


def _check_places(
    places: Sequence[tuple[int, int]], tile: tuple[int, int], size: tuple[int, int]
) -> None:
    """Reject tiles that do not lie in the picture, and no tiles at all."""
    if not places:
        raise InputError("no tiles; at least one place is needed")
    for place in places:
        if any(p < 0 or p + t > s for p, t, s in zip(place, tile, size, strict=True)):
            raise InputError(
                f"a tile of {tile} at {place} reaches beyond a picture of {size}; use tile_places"
            )
