"""HieraDet's blocks against their definition, spelled out window by window; and its positions."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from perceivers.errors import ConfigError
from perceivers.models.hiera_det.model import WindowBlock, WindowPositions


def draw(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=rng, dtype=torch.float64)


# -- the block, against its definition -------------------------------------------------------------


def pool_plainly(x: Tensor) -> Tensor:
    """2 x 2 maxima of ``[h, w, C]``; an odd side loses its last token."""
    return F.max_pool2d(x.movedim(-1, 0), 2).movedim(0, -1)


def run_plainly(block: WindowBlock, x: Tensor, window: int, *, pools: bool) -> Tensor:
    """The block on one grid ``[h, w, C]``, window by window, with loops."""
    height, width = x.shape[:2]
    normed = block.norm_attention(x)
    rows, columns = -(-height // window), -(-width // window)
    filled = F.pad(normed, (0, 0, 0, columns * window - width, 0, rows * window - height))
    side = window // 2 if pools else window
    out = block.attention.out.out_features
    mixed = x.new_zeros(rows * side, columns * side, out)
    for row in range(rows):
        for column in range(columns):
            part = filled[
                row * window : (row + 1) * window, column * window : (column + 1) * window
            ]
            q, k, v = block.attention.qkv(part).chunk(3, -1)
            q = pool_plainly(q) if pools else q
            heads = [t.reshape(-1, block.attention.num_heads, out // 2) for t in (q, k, v)]
            scores = torch.einsum("nhd,mhd->hnm", heads[0], heads[1]) / math.sqrt(out // 2)
            seen = torch.einsum("hnm,mhd->nhd", scores.softmax(-1), heads[2])
            mixed[row * side : (row + 1) * side, column * side : (column + 1) * side] = (
                block.attention.out(seen.reshape(side, side, out))
            )
    shortcut = x
    if block.shortcut is not None:
        shortcut = block.shortcut(normed)
        shortcut = pool_plainly(shortcut) if pools else shortcut
    x = shortcut + mixed[: shortcut.shape[0], : shortcut.shape[1]]
    return x + block.mlp(block.norm_mlp(x))


def make_block(dim_out: int, window: int | None) -> WindowBlock:
    torch.manual_seed(3)
    block = WindowBlock(
        dim=6,
        dim_out=dim_out,
        num_heads=2,
        mlp_ratio=2,
        window=None if window is None else (window, window),
        pool=(2, 2),
    ).double()
    with torch.no_grad():
        block.norm_attention.bias.normal_()
        block.norm_mlp.bias.normal_()
    return block


@pytest.mark.parametrize("grid", [(4, 8), (5, 7), (3, 2), (9, 4)])
@pytest.mark.parametrize("dim_out", [6, 12])
def test_a_block_is_what_its_definition_says(
    grid: tuple[int, int], dim_out: int, rng: torch.Generator
) -> None:
    """Also where windows reach over the edge, and where pooling meets an odd side."""
    block, x = make_block(dim_out, 4), draw(rng, 2, *grid, 6)
    with torch.no_grad():
        expected = torch.stack([run_plainly(block, one, 4, pools=dim_out == 12) for one in x])
        found = block(x)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-12)
    assert not torch.allclose(block(draw(rng, 2, *grid, 6)), expected)


def test_a_global_block_is_one_window_of_all(rng: torch.Generator) -> None:
    x = draw(rng, 2, 5, 7, 6)
    everywhere = make_block(6, None)
    same = make_block(6, 7)
    expected = torch.stack([run_plainly(same, one, 7, pools=False) for one in x])
    # The window of 7 is filled up with two rows of zeros, which the global block does not have.
    assert not torch.allclose(everywhere(x), expected)
    square = draw(rng, 2, 7, 7, 6)
    expected = torch.stack([run_plainly(same, one, 7, pools=False) for one in square])
    torch.testing.assert_close(everywhere(square), expected, rtol=0.0, atol=1e-12)


@torch.no_grad()
def test_windows_are_filled_up_after_the_norm(rng: torch.Generator) -> None:
    """Filled up before it, the norm's bias would make other tokens of the zeros."""
    block, x = make_block(6, 4), draw(rng, 1, 4, 6, 6)
    before = block(F.pad(x, (0, 0, 0, 2)))[:, :, :6]
    difference = (block(x) - before).abs().amax((0, 3))
    assert float(difference[:, :4].max()) < 1e-12
    assert float(difference[:, 4:].min()) > 1e-3
    cut = make_block(6, 2)(x[:, :, 4:])
    assert not torch.allclose(block(x)[:, :, 4:], cut)


def test_a_block_that_pools_needs_windows() -> None:
    with pytest.raises(ConfigError, match=r"from 6 to 12 channels pools, inside windows"):
        make_block(12, None)


# -- positions -------------------------------------------------------------------------------------


def make_positions() -> WindowPositions:
    positions = WindowPositions(dim=3, grid=(2, 5), window=(4, 2)).double()
    torch.manual_seed(0)
    for table in positions.parameters():
        torch.nn.init.normal_(table)
    return positions


@pytest.mark.parametrize("grid", [(8, 6), (2, 5), (5, 7), (3, 1)])
@torch.no_grad()
def test_one_table_is_stretched_and_one_is_tiled(grid: tuple[int, int]) -> None:
    positions = make_positions()
    table = positions.table.reshape(2, 5, 3).movedim(-1, 0).unsqueeze(0)
    stretched = F.interpolate(table, size=grid, mode="bicubic").squeeze(0).movedim(0, -1)
    window = positions.window.reshape(4, 2, 3)
    tiled = torch.stack(
        [torch.stack([window[y % 4, x % 2] for x in range(grid[1])]) for y in range(grid[0])]
    )
    torch.testing.assert_close(positions(grid), stretched + tiled, rtol=0.0, atol=1e-12)


def test_the_stretched_table_is_not_smoothed_where_it_shrinks() -> None:
    positions = make_positions()
    with torch.no_grad():
        positions.window.zero_()
        table = positions.table.reshape(2, 5, 3).movedim(-1, 0).unsqueeze(0)
        smooth = F.interpolate(table, size=(2, 2), mode="bicubic", antialias=True)
        assert not torch.allclose(positions((2, 2)), smooth.squeeze(0).movedim(0, -1))
