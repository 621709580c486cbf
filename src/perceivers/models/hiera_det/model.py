"""HieraDet, the image encoder trunk of SAM 2, as a backbone or a classifier.

Legend: B batch, C channels, N classes.
Papers: SAM 2 (arXiv 2408.00714); Window Attention is Bugged (arXiv 2311.05613); Hiera (arXiv
2306.00989).
"""

from collections.abc import Mapping, Sequence
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from perceivers.adapters import ElementAdapter
from perceivers.errors import ConfigError
from perceivers.models.hiera.encoder import (
    CONVOLUTIONS,
    DEVIATION,
    HEAD_SCALE,
    NORM_EPSILON,
    HieraBlock,
)
from perceivers.models.hiera.model import Backbone, Pyramid
from perceivers.models.hiera.positions import tile_window
from perceivers.models.hiera_det.config import HieraDetConfig, check_smallest
from perceivers.nn.linear import Linear
from perceivers.nn.mask_units import UnitLayout, pool_tokens
from perceivers.nn.positions import interpolate_table
from perceivers.settings import change
from perceivers.types import ModalitySpec

# -- Position embeddings -------------------------------------------------------------------------
#
# Legend: N cells of the interpolated table, T cells of the tiled table (row-major), C channels;
# grids are token grids of the first stage. Paper: Window Attention is Bugged (arXiv 2311.05613)
# Sec. 3.


class WindowPositions(nn.Module):
    """Position embeddings for a token grid of any size: an interpolated plus a tiled table.

    ``table [N, C]`` is interpolated without antialiasing, as in the released code, and
    ``window [T, C]`` is tiled. The released code rejects grids that are not multiples of the
    window; here the last window is cropped.

    Args:
        dim: Channels.
        grid: Shape of the interpolated table.
        window: Shape of the tiled table: a window of the first stage.
    """

    def __init__(self, *, dim: int, grid: Sequence[int], window: Sequence[int]) -> None:
        super().__init__()
        self.grid = tuple(grid)
        self.unit = tuple(window)
        self.table = nn.Parameter(torch.zeros(prod(self.grid), dim))
        self.window = nn.Parameter(torch.zeros(prod(self.unit), dim))

    def forward(self, grid: Sequence[int]) -> Float[Tensor, "*grid C"]:
        """Return the position embeddings of a token grid."""
        stretched = interpolate_table(self.table, self.grid, grid)
        whole = [-(-size // unit) * unit for size, unit in zip(grid, self.unit, strict=True)]
        tiled = tile_window(self.window, self.unit, whole)
        return stretched.reshape(*grid, -1) + tiled[tuple(slice(size) for size in grid)]


# -- Encoder -------------------------------------------------------------------------------------
#
# The blocks are those of Hiera, but tokens stay on their grid: every block partitions the grid into
# windows of its own size, which does not have to divide it.
#
# Legend: B batch, C channels, U windows, T tokens of a window before and t after pooling. Papers:
# Window Attention is Bugged (arXiv 2311.05613) Sec. 4; SAM 2 (arXiv 2408.00714) App. D.


class WindowBlock(HieraBlock):
    """Hiera block on a token grid of any size, with attention inside windows or global.

    Windows across the edge of the grid are padded with zeros *after* the norm, as in the released
    code: through the biases, padding tokens contribute keys and values. Pooling drops incomplete
    neighbourhoods, so that an odd side loses its last token. There the released code fails if the
    number of windows changes; in all other cases the results are equal.

    Args:
        dim: Input channels.
        dim_out: Output channels; if they differ from ``dim``, the block opens a stage and pools.
        num_heads: Attention heads.
        mlp_ratio: Expansion ratio of the MLP.
        window: Tokens of a window along each axis; None for global attention, without pooling.
        pool: Pooling factor along each axis.
        drop_path_rate: Probability of stochastic depth on both branches.

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
        """Partition a grid into windows, ordered for pooling; global attention has one window."""
        if self.layout is None:
            return x.flatten(1, -2).unsqueeze(1)
        missing = [-g % w for g, w in zip(x.shape[1:-1], self.layout.unit, strict=True)]
        padding = [0, 0, *(n for amount in reversed(missing) for n in (0, amount))]
        return self.layout.split(F.pad(x, padding) if any(missing) else x)

    def _merge(self, x: Float[Tensor, "B U t C"], grid: Sequence[int]) -> Tensor:
        """Invert ``_split`` for pooled tokens and remove padding."""
        if self.layout is None:
            return x.squeeze(1).unflatten(1, tuple(grid))
        units = [-(-g // w) for g, w in zip(grid, self.layout.unit, strict=True)]
        sides = [g // p**self.pools for g, p in zip(grid, self.layout.pool, strict=True)]
        merged = self.layout.merge(x, units, self.pools)
        return merged[(slice(None), *(slice(side) for side in sides))]


class HieraDetEncoder(nn.Module):
    """Stem, positions and blocks of all stages, for input of any size.

    Args:
        config: The full configuration.

    Attributes:
        recompute: Use activation checkpointing: recompute blocks in the backward pass.
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
    """Return the blocks of all stages; the first of a stage has the windows of the previous one."""
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


# -- Model ---------------------------------------------------------------------------------------


class HieraDet(Backbone):
    """Hierarchical transformer with window attention over one modality, usually images.

    Any input size from ``config.smallest_size`` (29 x 29 for the released models) is valid and is
    neither padded nor cropped first. The released code supports only multiples of the windows of
    the first stage (32 pixels), for which results are equal.

    Args:
        config: The full configuration.
    """

    family = "hiera_det"
    # Fine-tuning transfers all but the head, which a backbone does not have.
    core = ("encoder.",)
    repeated = (HieraBlock,)
    config: HieraDetConfig

    def __init__(self, config: HieraDetConfig) -> None:
        super().__init__()
        self.config = config
        self.input = ElementAdapter(config.name, config.spec)
        self.encoder = HieraDetEncoder(config)
        self.norm = self.head = None
        if config.head.kind == "mean":
            self.norm = nn.LayerNorm(config.dims[-1], eps=NORM_EPSILON)
            self.head = Linear(config.dims[-1], config.head.num_outputs)
        self.dropout = nn.Dropout(config.dropout_rate)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialise every parameter.

        Weights and positions: truncated normal, std 0.02; biases: zero; weights of the logits:
        multiplied by 0.001. The released code has no initialisation of its own.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
                nn.init.trunc_normal_(module.weight, std=DEVIATION)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, WindowPositions):
                for table in module.parameters():
                    nn.init.trunc_normal_(table, std=DEVIATION)
        if self.head is not None:
            self.head.weight.mul_(HEAD_SCALE)

    def forward(self, inputs: Mapping[str, Tensor] | Tensor) -> Float[Tensor, "B C"]:
        """Return logits ``[B, N]``; without a head the mean of the last map, ``[B, C]``.

        Args:
            inputs: Raw tensor, or dict of modality name -> raw tensor.

        Raises:
            InputError: The input has a wrong shape, or is too small.
        """
        pooled = self.encoder(self._normalise(inputs))[-1].flatten(1, -2).mean(1)
        if self.norm is None or self.head is None:
            return pooled
        return self.head(self.dropout(self.norm(pooled)))

    def _describe_attention(self) -> str:
        return f"windows {'-'.join(map(str, self.config.windows))}"

    def forward_features(self, inputs: Mapping[str, Tensor] | Tensor) -> Pyramid:
        """Return the feature maps of all stages, without normalisation.

        In the released models the first map has a quarter of the input size, rounded up, and each
        further map half the size of the previous one, rounded down.

        Args:
            inputs: Raw tensor, or dict of modality name -> raw tensor.

        Raises:
            InputError: The input has a wrong shape, or is too small.
        """
        stages = self.encoder(self._normalise(inputs))
        return Pyramid(
            maps=tuple(tokens.movedim(-1, 1) for tokens in stages),
            strides=tuple(self.config.stride(stage) for stage in range(len(stages))),
            channels=self.config.dims,
        )

    def resized(self, inputs: Mapping[str, ModalitySpec]) -> "HieraDet":
        """Return a copy with another native size; no weight depends on that size.

        Raises:
            ConfigError: The modality, its kind or its channels differ.
            InputError: The size is too small.
        """
        self.check_resizable(inputs)
        model = type(self)(change(self.config, inputs=inputs)).to(next(self.parameters()))
        model.load_state_dict(self.state_dict())
        return model.train(self.training)

    def _normalise(self, inputs: Mapping[str, Tensor] | Tensor) -> Float[Tensor, "B C *size"]:
        raw = self.channels_last(inputs)
        check_smallest(raw.shape[1:-1], self.config.smallest_size)
        return self.input.normalise(raw, self.encoder.stem.weight.dtype).movedim(-1, 1)
