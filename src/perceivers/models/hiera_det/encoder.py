"""HieraDet's encoder: patches with positions, and blocks that attend in windows of a token grid.

Hiera's blocks do the work. What differs is where tokens stand: they stay on their grid, and every
block cuts that grid into windows of its own size, which therefore need not divide it.

Legend: B batch, C channels, U windows, T tokens of a window, t of them after pooling.
Papers: Window Attention is Bugged (arXiv 2311.05613) Sec. 4; SAM 2 (arXiv 2408.00714) App. D.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from perceivers.errors import ConfigError
from perceivers.models.hiera.block import HieraBlock
from perceivers.models.hiera.encoder import CONVOLUTIONS
from perceivers.models.hiera_det.config import HieraDetConfig
from perceivers.models.hiera_det.positions import WindowPositions
from perceivers.nn.mask_units import UnitLayout, pool_tokens


class WindowBlock(HieraBlock):
    """Hiera's block on a grid of any size, which it cuts into windows.

    Windows that reach over the edge are filled with zeros *after* the norm, as in the released
    code: such tokens take part as keys and values, through the biases. Pooling drops what does not
    fill a neighbourhood: an odd side loses its last token. There the released code fails wherever
    the number of windows changes with it; this block agrees wherever that code runs.

    Args:
        dim: Channels in.
        dim_out: Channels out; when they differ the block opens a stage, and pools.
        num_heads: Heads.
        mlp_ratio: Hidden channels of the MLP per channel.
        window: Tokens of a window along each axis; None attends everywhere, and cannot pool.
        pool: Neighbours along each axis that pooling joins.
        drop_path_rate: Stochastic depth on both branches.

    Raises:
        ConfigError: The block pools without a window, or the window cannot be pooled.
    """

    def __init__(
        self,
        *,
        dim: int,
        dim_out: int,
        num_heads: int,
        mlp_ratio: int,
        window: Sequence[int] | None,
        pool: Sequence[int],
        drop_path_rate: float = 0.0,
    ) -> None:
        pools = int(dim != dim_out)
        if pools and window is None:
            raise ConfigError(f"a block from {dim} to {dim_out} channels pools, inside windows")
        layout = None
        if window is not None:
            layout = UnitLayout(unit=tuple(window), pool=tuple(pool), levels=pools)
        super().__init__(
            dim=dim,
            dim_out=dim_out,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            stride=layout.stride if layout is not None and pools else 1,
            local=layout is not None,
            drop_path_rate=drop_path_rate,
        )
        self.pools = pools
        self.layout = layout

    def forward(self, x: Float[Tensor, "B *grid C"]) -> Float[Tensor, "B *pooled D"]:
        """Return the transformed tokens on their grid."""
        grid = x.shape[1:-1]
        normed = self.norm_attention(x)
        windows = self._split(normed)
        branch = self.drop_path(self.attention(windows))
        if self.shortcut is None:
            x = x + self._merge(branch, grid)
        else:
            x = self._merge(pool_tokens(self.shortcut(windows), self.stride) + branch, grid)
        return x + self.drop_path(self.mlp(self.norm_mlp(x)))

    def _split(self, x: Float[Tensor, "B *grid C"]) -> Float[Tensor, "B U T C"]:
        """Cut a grid into windows, neighbours that are pooled first; or into one of any size."""
        if self.layout is None:
            return x.flatten(1, -2).unsqueeze(1)
        missing = [-g % w for g, w in zip(x.shape[1:-1], self.layout.unit, strict=True)]
        padding = [0, 0, *(n for amount in reversed(missing) for n in (0, amount))]
        return self.layout.split(F.pad(x, padding) if any(missing) else x)

    def _merge(self, x: Float[Tensor, "B U t C"], grid: Sequence[int]) -> Tensor:
        """Undo ``_split`` for pooled tokens, ``[B, *pooled, C]``, without what was filled up."""
        if self.layout is None:
            return x.squeeze(1).unflatten(1, tuple(grid))
        units = [-(-g // w) for g, w in zip(grid, self.layout.unit, strict=True)]
        sides = [g // p**self.pools for g, p in zip(grid, self.layout.pool, strict=True)]
        merged = self.layout.merge(x, units, self.pools)
        return merged[(slice(None), *(slice(side) for side in sides))]


class HieraDetEncoder(nn.Module):
    """Maps of every stage from normalised input of any size.

    Args:
        config: The complete description.
    """

    def __init__(self, config: HieraDetConfig) -> None:
        super().__init__()
        rank = len(config.patch_kernel)
        self.stem = CONVOLUTIONS[rank](
            config.spec.channels,
            config.dim,
            kernel_size=config.patch_kernel,
            stride=config.patch_stride,
            padding=[size // 2 for size in config.patch_kernel],
        )
        self.positions = WindowPositions(
            dim=config.dim, grid=config.position_grid, window=[config.windows[0]] * rank
        )
        self.blocks = nn.ModuleList(make_window_blocks(config))
        self.stage_ends = config.stage_ends
        self.recompute = False

    def forward(self, x: Float[Tensor, "B C *size"]) -> list[Float[Tensor, "B ..."]]:
        """Return the tokens at the end of every stage on their grids, channels last."""
        tokens = self.stem(x).movedim(1, -1)
        tokens = tokens + self.positions(tokens.shape[1:-1])
        stages = []
        for index, block in enumerate(self.blocks):
            if self.recompute and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
            if index in self.stage_ends:
                stages.append(tokens)
        return stages


def make_window_blocks(config: HieraDetConfig) -> list[WindowBlock]:
    """Return the blocks of all stages; one that opens a stage uses the windows of the last."""
    depth, rank = sum(config.depths), len(config.patch_kernel)
    rates = [config.drop_path_rate * index / max(depth - 1, 1) for index in range(depth)]
    blocks: list[WindowBlock] = []
    for stage, num in enumerate(config.depths):
        for index in range(num):
            before = stage - 1 if stage > 0 and index == 0 else stage
            everywhere = len(blocks) in config.global_blocks
            blocks.append(
                WindowBlock(
                    dim=config.dims[before],
                    dim_out=config.dims[stage],
                    num_heads=config.num_heads * 2**stage,
                    mlp_ratio=config.mlp_ratio,
                    window=None if everywhere else [config.windows[before]] * rank,
                    pool=config.pool,
                    drop_path_rate=rates[len(blocks)],
                )
            )
    return blocks
