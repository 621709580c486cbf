"""Hiera's encoder: patches with positions, in mask units, through stages that pool and widen.

Legend: B batch, C channels, U mask units, K kept ones, T tokens of a unit.
Paper: Hiera (arXiv 2306.00989) Sec. 3, Fig. 2; sparse encoding is that of its masked auto-encoding.
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

# -- Hiera's block: attention inside mask units or everywhere, and queries that pool the tokens --
#
# Legend: B batch, U mask units, T tokens of a unit, t of them after pooling, C channels. Paper:
# Hiera (arXiv 2306.00989) Sec. 3 and Fig. 2; a mask unit is not a window: it shrinks with the
# tokens, so it always shows the same part of the input.

NORM_EPSILON = 1e-6

Shortcut = Literal["project", "pool"]


class UnitAttention(Attention):
    """Self-attention inside every mask unit, or over all tokens; queries are pooled first.

    Args:
        dim: Channels in.
        dim_out: Channels out; a multiple of ``num_heads``.
        num_heads: Heads.
        stride: Tokens whose queries are joined by their maximum; keys and values never are.
        local: Attend inside the unit only.
    """

    def __init__(self, *, dim: int, dim_out: int, num_heads: int, stride: int, local: bool) -> None:
        super().__init__(num_heads=num_heads)
        self.stride = stride
        self.local = local
        self.qkv = Linear(dim, 3 * dim_out)
        self.out = Linear(dim_out, dim_out)

    def forward(self, x: Float[Tensor, "B U T C"]) -> Float[Tensor, "B U t D"]:
        """Return the attended tokens."""
        # Not len(x): it would fix the batch of an exported graph.
        batch, units = x.shape[:2]
        q, k, v = self.qkv(x).chunk(3, -1)
        q = pool_tokens(q, self.stride)
        if not self.local:
            q, k, v = (part.flatten(1, 2).unsqueeze(1) for part in (q, k, v))
        mixed = self._attend(self._fold(q), self._fold(k), self._fold(v), None, q.shape[1])
        return self.out(mixed.reshape(batch, units, -1, mixed.shape[-1]))


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch.

    Args:
        dim: Channels.
        value: Initial factor.
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
        dim: Channels in.
        dim_out: Channels out.
        num_heads: Heads.
        mlp_ratio: Hidden channels of the MLP per channel.
        stride: Tokens joined by pooling; 1 keeps all.
        local: Attend inside mask units only.
        shortcut: How the residual gets wider: ``project``, a Linear on the normalised tokens, then
            the maximum; ``pool``, maximum and mean side by side (timm's small window variant).
        layer_scale: Initial factor of both branches; ``None`` goes without.
        drop_path_rate: Stochastic depth on both branches.
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


# -- How a fresh Hiera starts --------------------------------------------------------------------
#
# | parameter | paper | autoencoder |
# |---|---|---|
# | Linear weights | truncated normal, deviation 0.02 | Xavier uniform |
# | Linear biases | 0.02 | 0 |
# | stem | truncated normal, deviation and bias 0.02 | Xavier uniform, flattened; bias as PyTorch |
# | positions, mask token | truncated normal, deviation 0.02 | the same |
# | LayerNorm | scale 1, offset 0.02 | scale 1, offset 0 |
# | fusion of the stages | - | as PyTorch's convolutions |
# | layer scales | as configured | as configured |
# | logits | weights and biases times 0.001 | - |
#
# Paper: Hiera (arXiv 2306.00989) App. A; the numbers are those of the released code.

DEVIATION = 0.02
HEAD_SCALE = 0.001


@torch.no_grad()
def initialise(model: Any) -> None:
    """Initialise every parameter of a Hiera as its config asks for."""
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
            merge.reset_parameters()  # a Linear of as many values is drawn as a convolution is
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


# -- Hiera's encoder -----------------------------------------------------------------------------

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@dataclass(frozen=True)
class Encoded:
    """What the encoder leaves behind.

    ``stages`` holds the tokens at the end of every stage, ``[B, K, T, C]``; ``units`` the mask
    units along each axis; ``kept`` which of them were shown, ``[B, K]``, or None when all were.
    """

    stages: tuple[Tensor, ...]
    units: tuple[int, ...]
    kept: Tensor | None


class HieraEncoder(nn.Module):
    """Tokens of every stage from normalised input of any legal size.

    Args:
        config: The complete description.
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
    ) -> Encoded:
        """Encode all mask units, or those in ``kept``; what is hidden cannot leak into them."""
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
        return Encoded(stages=tuple(stages), units=units, kept=kept)

    def _blank(self, x: Tensor, kept: Tensor, units: Sequence[int]) -> Tensor:
        """Zero hidden units: patches overlap, and would see across the border."""
        shown = torch.zeros(kept.shape[0], prod(units), dtype=torch.bool, device=x.device)
        shown = shown.scatter(1, kept, value=True)
        pairs = zip(units, self.unit_size, strict=True)
        split = x.reshape(*x.shape[:2], *(n for pair in pairs for n in pair))
        shown = shown.reshape(kept.shape[0], 1, *(n for unit in units for n in (unit, 1)))
        # A product would let NaN through.
        return torch.where(shown, split, 0.0).reshape(x.shape)


def make_blocks(config: HieraConfig) -> list[HieraBlock]:
    """Return the blocks of all stages.

    The first block of a stage makes the change: it widens, and pools its queries. Its attention
    still reaches as far as that of the stage before, so it pools within what it could see.
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
