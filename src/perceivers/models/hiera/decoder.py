"""Decoder for masked autoencoding with Hiera, and a segmentation head.

The decoder fuses the stages, inserts mask tokens for hidden units and predicts patches.

Legend: B batch, U mask units, K visible and Q masked units, T tokens of a unit at the last stage,
P values of a patch, C channels of the last encoder stage, D channels of the decoder.
Paper: Hiera (arXiv 2306.00989) Sec. 4 and App. A: whole units are hidden, and the decoder uses all
scales. If the last stage does not pool, the third is left out, as in the released code.
"""

from collections.abc import Sequence
from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers.models.hiera.config import HieraConfig
from perceivers.models.hiera.encoder import NORM_EPSILON, HieraBlock, HieraEncoded
from perceivers.nn.linear import Linear
from perceivers.nn.mask_units import gather_units
from perceivers.nn.positions import interpolate_table


class StageFusion(nn.Module):
    """Sum of all stages that are pooled later and of the last stage, at its resolution.

    The released code reduces each stage with a convolution whose kernel equals its stride. In unit
    order its inputs are adjacent in memory, so that a linear layer does the same.

    Args:
        config: The full configuration.
    """

    def __init__(self, config: HieraConfig) -> None:
        super().__init__()
        self.tokens = config.layout.tokens(config.pools)
        self.merges = nn.ModuleList(
            Linear(
                config.dims[stage] * config.layout.stride ** (config.pools - stage), config.dims[-1]
            )
            for stage in range(config.pools)
        )

    def forward(self, stages: Sequence[Float[Tensor, "B K _ _"]]) -> Float[Tensor, "B K T C"]:
        """Return the fused tokens, on the grid of the last stage."""
        fused = stages[-1]
        for merge, x in zip(self.merges, stages, strict=False):
            joined = x.unflatten(2, (-1, self.tokens)).transpose(2, 3).flatten(3)
            fused = fused + merge(joined)
        return fused


class HieraPatchDecoder(nn.Module):
    """Predicts the patches of hidden units from the tokens of visible units.

    Args:
        config: The full configuration, with a decoder.
    """

    def __init__(self, config: HieraConfig) -> None:
        super().__init__()
        settings = config.decoder
        assert settings is not None
        self.layout, self.pools = config.layout, config.pools
        self.native = tuple(u * s for u, s in zip(self._units(config), self._side(), strict=True))
        self.fusion = StageFusion(config)
        self.embed = Linear(config.dims[-1], settings.dim)
        self.mask_token = nn.Parameter(torch.zeros(settings.dim))
        self.positions = nn.Parameter(torch.zeros(prod(self.native), settings.dim))
        self.blocks = nn.ModuleList(
            HieraBlock(
                dim=settings.dim,
                dim_out=settings.dim,
                num_heads=settings.num_heads,
                mlp_ratio=config.mlp_ratio,
            )
            for _ in range(settings.depth)
        )
        self.norm = nn.LayerNorm(settings.dim, eps=NORM_EPSILON)
        self.predict = Linear(settings.dim, config.target_dim)
        self.latent_head = Linear(settings.dim, config.dims[-1]) if settings.latent_head else None

    def forward(
        self,
        tokens: Float[Tensor, "B K T C"],
        encoded: HieraEncoded,
        masked: Int[Tensor, "B Q"] | None = None,
    ) -> Float[Tensor, "B q T P"]:
        """Return the values of the patches of the ``masked`` units, by default of all units."""
        return self.predict(self.decode(tokens, encoded, masked))

    def decode(
        self,
        tokens: Float[Tensor, "B K T C"],
        encoded: HieraEncoded,
        masked: Int[Tensor, "B Q"] | None = None,
    ) -> Float[Tensor, "B q T D"]:
        """Return the decoder tokens from which patches are predicted.

        Args:
            tokens: Fused, normalised stages.
            encoded: Encoder output from which they were computed.
            masked: Indices of the units to return; all by default.
        """
        x = self._fill(self.embed(tokens), encoded)
        x = x + self._positions(encoded.units)
        for block in self.blocks:
            x = block(x)
        if masked is not None:
            x = gather_units(x, masked)
        if self.latent_head is not None:
            # Data-parallel training requires a gradient for every parameter, used or not.
            x = x + 0.0 * (self.latent_head.weight.sum() + self.latent_head.bias.sum())
        return self.norm(x)

    def _fill(self, shown: Tensor, encoded: HieraEncoded) -> Tensor:
        """Place visible tokens at their units, and the mask token everywhere else."""
        if encoded.kept is None:
            # Multiplying by zero keeps the mask token in the graph: data-parallel training requires
            # a gradient for it, although masked language modelling hides bytes instead of units.
            return shown + 0.0 * self.mask_token.to(shown.dtype)
        batch, _, tokens, dim = shown.shape
        # Tokens have half precision under autocast, and scatter requires equal dtypes.
        x = self.mask_token.to(shown.dtype).expand(batch, prod(encoded.units), tokens, dim)
        ids = encoded.kept[:, :, None, None].expand_as(shown)
        return x.scatter(1, ids, shown)

    def _positions(self, units: Sequence[int]) -> Float[Tensor, "1 U T D"]:
        """Return the position embeddings in unit order."""
        grid = tuple(u * s for u, s in zip(units, self._side(), strict=True))
        table = interpolate_table(self.positions, self.native, grid)
        return self.layout.split(table.reshape(1, *grid, -1), self.pools)

    def _side(self) -> tuple[int, ...]:
        return self.layout.side(self.pools)

    def _units(self, config: HieraConfig) -> tuple[int, ...]:
        return self.layout.units(config.native_grid)


# -- Segmentation head ---------------------------------------------------------------------------
#
# Legend: B batch, C channels of a stage, D common width, N classes. Paper: the feature pyramid is
# used as in the semantic branch of Panoptic FPN (arXiv 1901.02446) Sec. 3, but without its
# convolutions: attention has already mixed neighbouring tokens.

LINEAR_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


class SegmentationHead(nn.Module):
    """Project every stage to a common width, sum at the finest resolution, predict classes.

    Args:
        config: The full configuration, with a segmentation head.
    """

    def __init__(self, config: HieraConfig) -> None:
        super().__init__()
        self.mode = LINEAR_MODES[len(config.mask_unit)]
        self.stride = config.patch_stride
        head = config.head
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=NORM_EPSILON) for dim in config.dims)
        self.laterals = nn.ModuleList(Linear(dim, head.dim) for dim in config.dims)
        self.norm = nn.LayerNorm(head.dim, eps=NORM_EPSILON)
        self.dropout = nn.Dropout(config.dropout_rate)
        self.out = Linear(head.dim, head.num_outputs)

    def forward(self, maps: Sequence[Float[Tensor, "B _ ..."]]) -> Float[Tensor, "B N *size"]:
        """Return logits for every element of the (padded) input."""
        # Maps go from fine to coarse; the first one sets the resolution of the sum.
        finest = tuple(maps[0].shape[2:])
        total = None
        for x, norm, lateral in zip(maps, self.norms, self.laterals, strict=True):
            x = lateral(norm(x.movedim(1, -1))).movedim(-1, 1)
            x = x if total is None else self._resize(x, finest)
            total = x if total is None else total + x
        assert total is not None
        x = F.gelu(self.norm(total.movedim(1, -1)))
        size = [n * stride for n, stride in zip(finest, self.stride, strict=True)]
        return self._resize(self.out(self.dropout(x)).movedim(-1, 1), size)

    def _resize(self, x: Tensor, size: Sequence[int]) -> Tensor:
        return F.interpolate(x, size=tuple(size), mode=self.mode, align_corners=False)
