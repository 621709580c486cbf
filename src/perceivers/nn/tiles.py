"""Large pictures as overlapping tiles of the size a model was trained on, and back.

Legend: C channels, H W rows and columns of the picture, h w those of a tile, n tiles.
Paper: Perceiver IO (arXiv 2107.14795) App. H: six evenly spaced tiles of 368x496 cover a Sintel
frame of 436x1024. The released code spaces them unevenly, and computes tiles twice where the
picture is as large as the tile; here they are evenly spaced, and each is computed once.
"""

from collections.abc import Sequence
from itertools import product

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from perceivers.errors import ConfigError, InputError


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
