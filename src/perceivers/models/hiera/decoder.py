"""Hiera's decoder for masked auto-encoding: fuse the stages, fill hidden units in, predict patches.

Legend: B batch, U mask units, K kept and Q masked ones, T tokens of a unit at the last stage,
P values of a patch, C channels of the encoder's end, D of the decoder.
Paper: Hiera (arXiv 2306.00989) Sec. 4 and App. A: whole units are hidden, and the decoder reads all
scales. The third stage is left out where the last does not pool, as in the released code.
"""

from collections.abc import Sequence
from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers.models.hiera.config import HieraConfig
from perceivers.models.hiera.encoder import NORM_EPSILON, Encoded, HieraBlock
from perceivers.nn.linear import Linear
from perceivers.nn.mask_units import gather_units
from perceivers.nn.positions import interpolate_table


class StageFusion(nn.Module):
    """The sum of all stages that pooled and of the last, at its resolution.

    A convolution whose kernel is its stride joins the tokens that pooling would have joined; in
    unit order these are neighbours in memory, so it is a Linear.

    Args:
        config: The complete description.
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
        """Return one token per token of the last stage."""
        fused = stages[-1]
        for merge, x in zip(self.merges, stages, strict=False):
            joined = x.unflatten(2, (-1, self.tokens)).transpose(2, 3).flatten(3)
            fused = fused + merge(joined)
        return fused


class HieraPatchDecoder(nn.Module):
    """Patches of hidden units from the tokens of the shown ones.

    Args:
        config: With a decoder.
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
        encoded: Encoded,
        masked: Int[Tensor, "B Q"] | None = None,
    ) -> Float[Tensor, "B q T P"]:
        """Return the values of the patches of ``masked`` units, or of all; see ``decode``."""
        return self.predict(self.decode(tokens, encoded, masked))

    def decode(
        self,
        tokens: Float[Tensor, "B K T C"],
        encoded: Encoded,
        masked: Int[Tensor, "B Q"] | None = None,
    ) -> Float[Tensor, "B q T D"]:
        """Return what patches are predicted from, of ``masked`` units or of all.

        Args:
            tokens: The fused, normalised stages.
            encoded: What they were made from.
            masked: Units asked for.
        """
        x = self._fill(self.embed(tokens), encoded)
        x = x + self._positions(encoded.units)
        for block in self.blocks:
            x = block(x)
        if masked is not None:
            x = gather_units(x, masked)
        if self.latent_head is not None:
            # Data-parallel training needs a gradient for every parameter, used or not.
            x = x + 0.0 * (self.latent_head.weight.sum() + self.latent_head.bias.sum())
        return self.norm(x)

    def _fill(self, shown: Tensor, encoded: Encoded) -> Tensor:
        """Put shown tokens at their unit, and the mask token everywhere else."""
        if encoded.kept is None:
            # A zero multiple keeps the token in the graph: data-parallel training requires it of
            # every parameter, and masked language modelling hides bytes, no units.
            return shown + 0.0 * self.mask_token.to(shown.dtype)
        batch, _, tokens, dim = shown.shape
        # Autocast computes in half precision, and a scatter wants both sides alike.
        x = self.mask_token.to(shown.dtype).expand(batch, prod(encoded.units), tokens, dim)
        ids = encoded.kept[:, :, None, None].expand_as(shown)
        return x.scatter(1, ids, shown)

    def _positions(self, units: Sequence[int]) -> Float[Tensor, "1 U T D"]:
        """Return the positions in unit order."""
        grid = tuple(u * s for u, s in zip(units, self._side(), strict=True))
        table = interpolate_table(self.positions, self.native, grid)
        return self.layout.split(table.reshape(1, *grid, -1), self.pools)

    def _side(self) -> tuple[int, ...]:
        return self.layout.side(self.pools)

    def _units(self, config: HieraConfig) -> tuple[int, ...]:
        return self.layout.units(config.native_grid)


# ------------------------------------------------------------------------------------------------
# Logits for every input element from the pyramid: the stages meet in one width and are summed.
#
# Legend: B batch, C channels of a stage, D common width, N classes. Paper: the pyramid's use
# follows Panoptic FPN's semantic branch (arXiv 1901.02446) Sec. 3, without its convolutions:
# Hiera's maps have already mixed their neighbours.

LINEAR_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


class SegmentationHead(nn.Module):
    """A normalised Linear per stage, summed at the finest one, and a two-layer read-out.

    Args:
        config: With a segmentation head.
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
