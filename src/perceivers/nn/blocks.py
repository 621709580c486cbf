"""Perceiver block: cross-attention from latents to tokens and self-attention, inside groups.

Legend: B batch, G groups, N latents or queries per group, n latents in training, M tokens per
group, C channels.
Paper: HiP (arXiv 2202.10890) Sec. 3; with G = 1 the encoder of Perceiver IO (arXiv 2107.14795).
"""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from perceivers.errors import ConfigError, suggest
from perceivers.nn.attention import CrossAttention, SelfAttention
from perceivers.nn.linear import Linear

# -- MLP and activations -------------------------------------------------------------------------
#
# Legend: C channels. Paper: squared ReLU is from Primer (arXiv 2109.08668), as in the released HiP
# code.


def squared_relu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return max(x, 0) squared."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "squared_relu": squared_relu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}


def get_activation(name: str) -> Callable[[Tensor], Tensor]:
    """Return an activation by name.

    Raises:
        ConfigError: The name is unknown.
    """
    if name not in ACTIVATIONS:
        raise ConfigError(
            f"activation {name!r} is unknown; choose from {sorted(ACTIVATIONS)}"
            + suggest(name, ACTIVATIONS)
        )
    return ACTIVATIONS[name]


class Mlp(nn.Module):
    """Linear layer, activation, linear layer.

    Args:
        dim: Input and output channels.
        ratio: Expansion ratio of the hidden channels.
        activation: A key of ``ACTIVATIONS``.
    """

    def __init__(self, *, dim: int, ratio: int, activation: str) -> None:
        super().__init__()
        self.hidden = Linear(dim, ratio * dim)
        self.out = Linear(ratio * dim, dim)
        self.activation = get_activation(activation)

    def forward(self, x: Float[Tensor, "*B C"]) -> Float[Tensor, "*B C"]:
        """Transform every token independently."""
        return self.out(self.activation(self.hidden(x)))


# -- The Perceiver block -------------------------------------------------------------------------


class DropPath(nn.Module):
    """Drop a residual branch for whole samples while training (stochastic depth).

    Args:
        rate: Probability of dropping, 0..1.
        rescale: Divide retained branches by ``1 - rate``, so that their mean is the same as in
            evaluation; the released HiP does not, which biases its evaluation.
    """

    def __init__(self, rate: float, *, rescale: bool = True) -> None:
        super().__init__()
        self.rate = rate
        self.rescale = rescale

    def forward(self, x: Float[Tensor, "B *shape"]) -> Float[Tensor, "B *shape"]:
        """Set the branch of dropped samples to zero, in all groups of a sample."""
        if not self.training or self.rate == 0.0:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self.rate
        scale = 1.0 / max(1.0 - self.rate, 1e-6) if self.rescale else 1.0
        return x * (keep * scale).to(x.dtype)


class Read(nn.Module):
    """Pre-norm cross-attention layer from queries to tokens, followed by an MLP.

    Args:
        query_dim: Channels of queries and result.
        token_dim: Channels of the tokens.
        num_heads: Attention heads; must divide ``qk_dim`` and ``v_dim``.
        mlp_ratio: Expansion ratio of the MLP.
        activation: Name of the activation of the MLP.
        residual: Use a residual connection around cross-attention, as in blocks; decoder outputs
            usually have none.
        skip_dim: Channels of a skip connection that is added to the queries; 0 without one. If they
            differ from ``query_dim``, a linear layer projects it.
        qk_dim: Width of projected queries and keys; that of the *tokens* by default.
        v_dim: Width of projected values; ``qk_dim`` by default.
    """

    def __init__(
        self,
        *,
        query_dim: int,
        token_dim: int,
        num_heads: int = 1,
        mlp_ratio: int = 1,
        activation: str = "squared_relu",
        residual: bool = True,
        skip_dim: int = 0,
        qk_dim: int | None = None,
        v_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.residual = residual
        self.skip = Linear(skip_dim, query_dim) if skip_dim not in {0, query_dim} else None
        self.norm_query = nn.LayerNorm(query_dim)
        self.norm_tokens = nn.LayerNorm(token_dim)
        self.attention = CrossAttention(
            query_dim=query_dim,
            kv_dim=token_dim,
            qk_dim=qk_dim or token_dim,
            v_dim=v_dim or qk_dim or token_dim,
            out_dim=query_dim,
            num_heads=num_heads,
        )
        self.norm_mlp = nn.LayerNorm(query_dim)
        self.mlp = Mlp(dim=query_dim, ratio=mlp_ratio, activation=activation)

    def forward(
        self,
        queries: Float[Tensor, "#B G N C"],
        tokens: Float[Tensor, "B G M D"],
        mask: Bool[Tensor, "#B G #N M"] | None = None,
        skip: Float[Tensor, "B G N S"] | None = None,
        keep: Bool[Tensor, "#B G N"] | None = None,
    ) -> Float[Tensor, "B G N C"]:
        """Return one result per query.

        Tokens where ``mask`` is False are not attended to, and queries where ``keep`` is False
        attend to nothing.
        """
        if skip is not None:
            queries = queries + (skip if self.skip is None else self.skip(skip))
        x = self.attention(self.norm_query(queries), self.norm_tokens(tokens), mask, keep)
        if self.residual:
            x = x + queries
        return x + self.mlp(self.norm_mlp(x))


class SelfAttentionLayer(nn.Module):
    """Pre-norm transformer layer inside each group.

    Args:
        dim: Channels.
        num_heads: Attention heads.
        mlp_ratio: Expansion ratio of the MLP.
        activation: Name of the activation of the MLP.
        dropout_rate: Dropout on both residual branches.
        drop_path_rate: Stochastic depth on both residual branches.
        drop_path_rescale: See ``DropPath``.
        qk_dim: Width of projected queries and keys; ``dim`` by default.
        v_dim: Width of projected values; ``dim`` by default.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        mlp_ratio: int = 4,
        activation: str = "squared_relu",
        dropout_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        drop_path_rescale: bool = True,
        qk_dim: int | None = None,
        v_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim=dim, num_heads=num_heads, qk_dim=qk_dim, v_dim=v_dim)
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = Mlp(dim=dim, ratio=mlp_ratio, activation=activation)
        self.dropout = nn.Dropout(dropout_rate)
        self.drop_path = DropPath(drop_path_rate, rescale=drop_path_rescale)

    def forward(
        self,
        x: Float[Tensor, "B G N C"],
        mask: Bool[Tensor, "#B G #N N"] | None = None,
        angles: Float[Tensor, "#B G N P"] | None = None,
    ) -> Float[Tensor, "B G N C"]:
        """Return the transformed tokens; arguments as in ``SelfAttention``."""
        x = x + self.drop_path(self.dropout(self.attention(self.norm_attention(x), mask, angles)))
        return x + self.drop_path(self.dropout(self.mlp(self.norm_mlp(x))))


class PerceiverBlock(nn.Module):
    """Cross-attention from the latents of every group to its tokens, then self-attention layers.

    Groups share all weights but the latents.

    Args:
        read: Cross-attention layer; its ``query_dim`` is the width of the latents.
        layers: Self-attention layers.
        latents: Learned array ``[G, N, C]``; the model initialises it.
        train_latents: Number of latents per group in training, sampled without replacement for
            every sample and group (HiP Sec. 3, latent sub-sampling); ``None`` for all.

    Attributes:
        recompute: Use activation checkpointing: recompute self-attention layers in the backward
            pass.
    """

    def __init__(
        self,
        *,
        read: Read,
        layers: list[SelfAttentionLayer],
        latents: Float[Tensor, "G N C"],
        train_latents: int | None = None,
    ) -> None:
        super().__init__()
        self.latents = nn.Parameter(latents)
        self.read = read
        self.layers = nn.ModuleList(layers)
        self.train_latents = train_latents
        self.recompute = False

    def forward(
        self,
        tokens: Float[Tensor, "B G M D"],
        mask: Bool[Tensor, "#B G 1 M"] | None = None,
        skip: Float[Tensor, "B G N S"] | None = None,
    ) -> Float[Tensor, "B G n C"]:
        """Return the latents; tokens where ``mask`` is False are not attended to."""
        queries = self.queries(tokens.shape[0], tokens.device)
        return self.transform(self.read(queries, tokens, mask, skip))

    def transform(self, x: Float[Tensor, "B G n C"]) -> Float[Tensor, "B G n C"]:
        """Apply the self-attention layers to the output of cross-attention."""
        for layer in self.layers:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(layer, x, use_reentrant=False)
            else:
                x = layer(x)
        return x

    @property
    def runs_as_it_is(self) -> bool:
        """Whether its parts may be called instead of it: it has no hooks and is not compiled."""
        hooks = (self._forward_hooks, self._forward_pre_hooks, self._backward_hooks)
        return not any(hooks) and self._compiled_call_impl is None

    def queries(self, batch: int, device: torch.device) -> Float[Tensor, "#B G n C"]:
        """Return all latents once, or in training a random subset per sample and group."""
        latents = self.latents.unsqueeze(0)  # [1, G, N, C]
        _, groups, num, dim = latents.shape
        if not self.training or self.train_latents in {None, num}:
            return latents
        noise = torch.rand(batch, groups, num, device=device)
        chosen = noise.argsort(-1)[..., : self.train_latents]
        return latents.expand(batch, -1, -1, -1).gather(
            2, chosen.unsqueeze(-1).expand(-1, -1, -1, dim)
        )
