"""Encoder of Hiera, its blocks and the weight initialisation of the whole model.

Legend: B batch, C channels, U mask units, K visible units, T tokens of a unit.
Paper: Hiera (arXiv 2306.00989) Sec. 3, Fig. 2; only visible units are encoded, as in Sec. 4.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from perceivers.models.hiera.config import HieraConfig
from perceivers.models.hiera.positions import HieraPositions
from perceivers.nn.attention import Attention
from perceivers.nn.blocks import DropPath, Mlp
from perceivers.nn.linear import Linear
from perceivers.nn.mask_units import gather_units, pool_tokens

# -- Block: attention inside mask units or global, with pooled queries ---------------------------
#
# Legend: B batch, U mask units, T tokens of a unit before and t after pooling, C input channels,
# D output channels. Paper: Hiera (arXiv 2306.00989) Sec. 3 and Fig. 2. A mask unit is not a window:
# it is pooled together with its tokens, and so always covers the same part of the input.

NORM_EPSILON = 1e-6

Shortcut = Literal["project", "pool"]


class UnitAttention(Attention):
    """Self-attention inside mask units or over all tokens, with max-pooled queries.

    Args:
        dim: Input channels.
        dim_out: Output channels; a multiple of ``num_heads``.
        num_heads: Attention heads.
        stride: Queries per pooled query; keys and values are not pooled.
        local: Attend only inside each unit.
    """

    def __init__(self, *, dim: int, dim_out: int, num_heads: int, stride: int, local: bool) -> None:
        super().__init__(num_heads=num_heads)
        self.stride = stride
        self.local = local
        self.qkv = Linear(dim, 3 * dim_out)
        self.out = Linear(dim_out, dim_out)

    def forward(self, x: Float[Tensor, "B U T C"]) -> Float[Tensor, "B U t D"]:
        """Return the tokens after attention."""
        # Not len(x): it would make the batch size a constant in exported graphs.
        batch, units = x.shape[:2]
        q, k, v = self.qkv(x).chunk(3, -1)
        q = pool_tokens(q, self.stride)
        if not self.local:
            q, k, v = (part.flatten(1, 2).unsqueeze(1) for part in (q, k, v))
        mixed = self._attend(self._fold(q), self._fold(k), self._fold(v), None, q.shape[1])
        return self.out(mixed.reshape(batch, units, -1, mixed.shape[-1]))


class LayerScale(nn.Module):
    """Learned scale per channel on a residual branch.

    Args:
        dim: Channels.
        value: Initial value of every scale.
    """

    def __init__(self, dim: int, value: float) -> None:
        super().__init__()
        self.value = value
        self.scale = nn.Parameter(torch.full((dim,), value))

    def forward(self, x: Float[Tensor, "B U T C"]) -> Float[Tensor, "B U T C"]:
        """Return the scaled branch."""
        return x * self.scale


class HieraBlock(nn.Module):
    """Pre-norm transformer block that may pool the tokens and widen the channels.

    Args:
        dim: Input channels.
        dim_out: Output channels.
        num_heads: Attention heads.
        mlp_ratio: Expansion ratio of the MLP.
        stride: Tokens per pooled token; 1 does not pool.
        local: Attend only inside mask units.
        shortcut: How the residual connection is widened: ``project``, a linear layer on the
            normalised tokens followed by max pooling; ``pool``, max pooling and mean pooling
            concatenated (timm's small window variant).
        layer_scale: Initial layer scale of both branches; ``None`` for no layer scale.
        drop_path_rate: Probability of stochastic depth on both branches.
    """

    def __init__(
        self,
        *,
        dim: int,
        dim_out: int,
        num_heads: int,
        mlp_ratio: int = 4,
        stride: int = 1,
        local: bool = False,
        shortcut: Shortcut = "project",
        layer_scale: float | None = None,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.widens = dim != dim_out
        self.norm_attention = nn.LayerNorm(dim, eps=NORM_EPSILON)
        self.shortcut = Linear(dim, dim_out) if self.widens and shortcut == "project" else None
        self.attention = UnitAttention(
            dim=dim, dim_out=dim_out, num_heads=num_heads, stride=stride, local=local
        )
        self.norm_mlp = nn.LayerNorm(dim_out, eps=NORM_EPSILON)
        self.mlp = Mlp(dim=dim_out, ratio=mlp_ratio, activation="gelu")
        self.scale_attention = (
            nn.Identity() if layer_scale is None else LayerScale(dim_out, layer_scale)
        )
        self.scale_mlp = nn.Identity() if layer_scale is None else LayerScale(dim_out, layer_scale)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Float[Tensor, "B U T C"]) -> Float[Tensor, "B U t D"]:
        """Return the transformed tokens."""
        normed = self.norm_attention(x)
        if self.shortcut is not None:
            x = pool_tokens(self.shortcut(normed), self.stride)
        elif self.widens:
            neighbours = x.unflatten(2, (self.stride, -1))
            x = torch.cat([neighbours.amax(2), neighbours.mean(2)], -1)
        x = x + self.drop_path(self.scale_attention(self.attention(normed)))
        return x + self.drop_path(self.scale_mlp(self.mlp(self.norm_mlp(x))))


# -- Weight initialisation -----------------------------------------------------------------------
#
# | parameter | paper | autoencoder |
# |---|---|---|
# | linear weights | truncated normal, std 0.02 | Xavier uniform |
# | linear biases | 0.02 | 0 |
# | stem | truncated normal, std 0.02; bias 0.02 | Xavier uniform, flattened; PyTorch's bias |
# | positions, mask token | truncated normal, std 0.02 | the same |
# | LayerNorm | weight 1, bias 0.02 | weight 1, bias 0 |
# | fusion of the stages | - | PyTorch's default for convolutions |
# | layer scales | as configured | as configured |
# | logits | weights and biases multiplied by 0.001 | - |
#
# Paper: Hiera (arXiv 2306.00989) App. A; the values are those of the released code.

DEVIATION = 0.02
HEAD_SCALE = 0.001


@torch.no_grad()
def initialise(model: Any) -> None:
    """Initialise every parameter of a Hiera as ``config.init`` specifies."""
    classifier = model.config.init == "paper"
    bias = DEVIATION if classifier else 0.0
    for module in model.modules():
        if isinstance(module, nn.Linear):
            if classifier:
                nn.init.trunc_normal_(module.weight, std=DEVIATION)
            else:
                nn.init.xavier_uniform_(module.weight)
            nn.init.constant_(module.bias, bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.constant_(module.bias, bias)
        elif isinstance(module, LayerScale):
            nn.init.constant_(module.scale, module.value)
    tables = [*model.encoder.positions.parameters()]
    if model.decoder is not None:
        tables += [model.decoder.mask_token, model.decoder.positions]
        for merge in model.decoder.fusion.merges:
            # Same distribution as a convolution, because the fan-in is the same.
            merge.reset_parameters()
    for table in tables:
        nn.init.trunc_normal_(table, std=DEVIATION)
    stem = model.encoder.stem
    stem.reset_parameters()
    if classifier:
        nn.init.trunc_normal_(stem.weight, std=DEVIATION)
        nn.init.constant_(stem.bias, bias)
    else:
        nn.init.xavier_uniform_(stem.weight.view(len(stem.weight), -1))
    if model.config.head.kind == "mean":
        model.head.weight.mul_(HEAD_SCALE)
        model.head.bias.mul_(HEAD_SCALE)


# -- Encoder -------------------------------------------------------------------------------------

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@dataclass(frozen=True)
class HieraEncoded:
    """Output of the encoder.

    Attributes:
        stages: Tokens at the end of every stage, ``[B, K, T, C]``.
        units: Mask units along each axis, visible or hidden.
        kept: Indices of the visible units, ``[B, K]``; None if all are visible.
    """

    stages: tuple[Tensor, ...]
    units: tuple[int, ...]
    kept: Tensor | None


class HieraEncoder(nn.Module):
    """Stem, positions and blocks of all stages, for any input of whole mask units.

    Args:
        config: The full configuration.

    Attributes:
        recompute: Use activation checkpointing: recompute blocks in the backward pass.
    """

    def __init__(self, config: HieraConfig) -> None:
        super().__init__()
        self.layout = config.layout
        self.unit_size = config.unit_size
        self.stem = CONVOLUTIONS[self.layout.rank](
            config.spec.channels,
            config.dim,
            kernel_size=config.patch_kernel,
            stride=config.patch_stride,
            padding=[size // 2 for size in config.patch_kernel],
        )
        self.positions = HieraPositions(config)
        self.blocks = nn.ModuleList(make_blocks(config))
        self.stage_ends = tuple(end - 1 for end in accumulate(config.depths))
        self.recompute = False

    def forward(
        self, x: Float[Tensor, "B C *size"], kept: Int[Tensor, "B K"] | None = None
    ) -> HieraEncoded:
        """Encode all mask units, or only those in ``kept``, without information from the others."""
        units = tuple(size // unit for size, unit in zip(x.shape[2:], self.unit_size, strict=True))
        if kept is not None:
            x = self._blank(x, kept, units)
        tokens = self.stem(x).movedim(1, -1)
        tokens = tokens + self.positions(tokens.shape[1:-1])
        tokens = self.layout.split(tokens)
        if kept is not None:
            tokens = gather_units(tokens, kept)
        stages = []
        for index, block in enumerate(self.blocks):
            if self.recompute and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
            if index in self.stage_ends:
                stages.append(tokens)
        return HieraEncoded(stages=tuple(stages), units=units, kept=kept)

    def _blank(self, x: Tensor, kept: Tensor, units: Sequence[int]) -> Tensor:
        """Set hidden units to zero, since overlapping patches would read across their border."""
        shown = torch.zeros(kept.shape[0], prod(units), dtype=torch.bool, device=x.device)
        shown = shown.scatter(1, kept, value=True)
        pairs = zip(units, self.unit_size, strict=True)
        split = x.reshape(*x.shape[:2], *(n for pair in pairs for n in pair))
        shown = shown.reshape(kept.shape[0], 1, *(n for unit in units for n in (unit, 1)))
        # Not a product: NaN times zero is NaN.
        return torch.where(shown, split, 0.0).reshape(x.shape)


def make_blocks(config: HieraConfig) -> list[HieraBlock]:
    """Return the blocks of all stages.

    The first block of a stage increases the channels and pools its queries. Its attention is still
    local or global as in the previous stage, whose token grid its keys and values have.
    """
    depth = sum(config.depths)
    rates = [config.drop_path_rate * index / max(depth - 1, 1) for index in range(depth)]
    blocks: list[HieraBlock] = []
    for stage, num in enumerate(config.depths):
        for index in range(num):
            changes = stage > 0 and index == 0
            reach = stage - 1 if changes else stage
            blocks.append(
                HieraBlock(
                    dim=config.dims[reach],
                    dim_out=config.dims[stage],
                    num_heads=config.num_heads * 2**stage,
                    mlp_ratio=config.mlp_ratio,
                    stride=config.layout.stride if changes and stage <= config.pools else 1,
                    local=reach < config.local_stages,
                    shortcut=config.shortcut,
                    layer_scale=config.layer_scale,
                    drop_path_rate=rates[len(blocks)],
                )
            )
    return blocks
