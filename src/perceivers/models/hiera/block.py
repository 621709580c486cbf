"""Hiera's block: attention inside mask units or everywhere, and queries that pool the tokens.

Legend: B batch, U mask units, T tokens of a unit, t of them after pooling, C channels.
Paper: Hiera (arXiv 2306.00989) Sec. 3 and Fig. 2; a mask unit is not a window: it shrinks with the
tokens, so it always shows the same part of the input.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from perceivers.nn.attention import Attention
from perceivers.nn.blocks import DropPath, Mlp
from perceivers.nn.linear import Linear
from perceivers.nn.mask_units import pool_tokens

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
