"""Attention inside groups, as a single 4-D scaled-dot-product call.

Groups are folded into the batch: a 5-D call would silently bypass the fused kernels and store all
scores for the backward pass. The reference path computes the same with ``einsum``; it serves to
test the fast path and to return attention weights.

Legend: B batch, G groups, N queries, M keys, H heads, C channels, D channels of queries and keys
per head, V channels of values per head, F = B x G folded.
Paper: Perceiver (arXiv 2103.03206) Sec. 3.1; HiP (arXiv 2202.10890) Sec. 3.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers.errors import ConfigError
from perceivers.nn.chunking import is_exporting
from perceivers.nn.linear import Linear, linear

AttentionPath = Literal["sdpa", "reference"]

# CUDA kernels put batch x heads on a grid axis of at most 65,535.
CUDA_GRID_LIMIT = 65_535
# Fused CUDA kernels copy their arguments if the channels of a head are not a multiple of this.
CHANNEL_MULTIPLE = 8
# With fewer keys and no mask, the fused CPU kernel returns finite values for a row of scores that
# are all NaN: it finds the maximum by scalar comparisons, which are false for NaN.
MIN_CPU_KEYS = 16
# Number of scores up to which the CPU uses plain matrix products if queries and values differ in
# width: fused kernels need equal widths, and padding costs more than it saves until memory matters.
PLAIN_SCORES = 2**25


def attend(
    q: Float[Tensor, "F H N D"],
    k: Float[Tensor, "F H M D"],
    v: Float[Tensor, "F H M V"],
    mask: Bool[Tensor, "#F 1 #N M"] | None = None,
) -> Float[Tensor, "F H N V"]:
    """Return softmax(q k' / sqrt(D)) v over the keys where ``mask`` is True.

    A query without any admissible key gives zeros (and no gradient), as in the released code.
    """
    if q.is_cuda and q.shape[0] * q.shape[1] > CUDA_GRID_LIMIT:
        size = max(1, CUDA_GRID_LIMIT // q.shape[1])
        masks = [mask] * -(-len(q) // size) if mask is None or len(mask) == 1 else mask.split(size)
        parts = zip(q.split(size), k.split(size), v.split(size), masks, strict=True)
        return torch.cat([attend(*part) for part in parts])
    if mask is None:
        return _attend_fused(q, k, v, None)
    # Backends differ on queries without keys: make all their keys admissible, then zero the result.
    seen = mask.any(-1, keepdim=True)
    return torch.where(seen, _attend_fused(q, k, v, mask | ~seen), 0.0)


def _attend_fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Call the fused kernel, which needs queries, keys and values of equal width."""
    width = v.shape[-1]
    if q.shape[-1] == width:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=_open_mask(k, mask))
    total = prod((*q.shape[:-1], k.shape[2]))
    if not q.is_cuda and not _is_free(total) and total <= PLAIN_SCORES:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if mask is not None:
            # Added in place: masked_fill would copy the scores, and their gradient again.
            blocked = torch.zeros_like(mask, dtype=scores.dtype)
            scores += blocked.masked_fill(~mask, torch.finfo(scores.dtype).min)
        return scores.softmax(-1) @ v
    # Padding with zeros does not change scores; the scale is that of the original width.
    widest = -(-max(q.shape[-1], width) // CHANNEL_MULTIPLE) * CHANNEL_MULTIPLE
    scale = q.shape[-1] ** -0.5
    q, k, v = (F.pad(x, (0, widest - x.shape[-1])) for x in (q, k, v))
    mask = _open_mask(k, mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)[..., :width]


def _open_mask(k: Tensor, mask: Tensor | None) -> Tensor | None:
    """Return the mask, or an all-True one if the kernel needs it to propagate NaN.

    Results without NaN do not change by a single bit.
    """
    if mask is not None or k.device.type != "cpu" or is_exporting():
        return mask
    few = k.shape[2] < MIN_CPU_KEYS
    return torch.ones(1, 1, 1, k.shape[2], dtype=torch.bool) if few else None


def _is_free(size: int) -> bool:
    """Return whether a size is dynamic in an exported graph, which then must not depend on it."""
    return is_exporting() and isinstance(size, torch.SymInt)


def attend_reference(
    q: Float[Tensor, "F H N D"],
    k: Float[Tensor, "F H M D"],
    v: Float[Tensor, "F H M V"],
    mask: Bool[Tensor, "#F 1 #N M"] | None = None,
) -> tuple[Float[Tensor, "F H N V"], Float[Tensor, "F H N M"]]:
    """Return the result of ``attend`` and the weights, with softmax in at least float32."""
    scores = torch.einsum("fhnd,fhmd->fhnm", q, k) * q.shape[-1] ** -0.5
    wide = torch.promote_types(scores.dtype, torch.float32)
    scores = scores.to(wide)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(wide).min)
    weights = scores.softmax(-1)
    if mask is not None:
        weights = weights.masked_fill(~mask, 0.0)
    weights = weights.to(v.dtype)
    return torch.einsum("fhnm,fhmv->fhnv", weights, v), weights


class Attention(nn.Module):
    """Base class of cross- and self-attention.

    Attributes:
        path: ``sdpa``, unless changed by ``use_attention``.
        keep_weights: Store attention weights (reference path only).
        weights: Attention weights ``[B, G, H, N, M]`` of the last call if ``keep_weights`` is set.
    """

    def __init__(self, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.path: AttentionPath = "sdpa"
        self.keep_weights = False
        self.weights: Tensor | None = None

    def _fold(self, x: Float[Tensor, "B G N C"]) -> Float[Tensor, "F H N D"]:
        """Split heads (heads major) and fold the groups into the batch."""
        x = x.unflatten(-1, (self.num_heads, -1)).flatten(0, 1)  # [F, N, H, D]
        return x.transpose(1, 2)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Bool[Tensor, "#B G #N M"] | None, groups: int
    ) -> Float[Tensor, "B G N C"]:
        """Attend with folded q, k, v and unfold the result."""
        if mask is not None:
            batch = k.shape[0] // groups
            mask = mask.expand(batch, -1, -1, -1).flatten(0, 1).unsqueeze(1)  # [F, 1, N, M]
        if self.path == "sdpa":
            out = attend(q, k, v, mask)
        else:
            out, weights = attend_reference(q, k, v, mask)
            if self.keep_weights:
                self.weights = weights.detach().unflatten(0, (-1, groups))
        return out.transpose(1, 2).flatten(2).unflatten(0, (-1, groups))  # [B, G, N, C]


class CrossAttention(Attention):
    """Cross-attention inside each group.

    With one head, projections are applied on the side with fewer tokens, which is exact. With more
    keys than queries, softmax(q (W_k x)') W_v x = (softmax((W_k' q) x') x) W_v', so that keys and
    values are not projected. Otherwise the query and output projections are applied to the keys and
    values if that makes them narrower, so that no wide tensor per query is needed.

    Args:
        query_dim: Channels of the queries.
        kv_dim: Channels of keys and values before projection.
        qk_dim: Width of projected queries and keys; a multiple of ``num_heads``.
        v_dim: Width of projected values; a multiple of ``num_heads``.
        out_dim: Channels of the result.
        num_heads: Number of heads H.

    Raises:
        ConfigError: A width is not a multiple of ``num_heads``.
    """

    def __init__(
        self, *, query_dim: int, kv_dim: int, qk_dim: int, v_dim: int, out_dim: int, num_heads: int
    ) -> None:
        super().__init__(num_heads=num_heads)
        for name, width in (("qk_dim", qk_dim), ("v_dim", v_dim)):
            if width % num_heads:
                raise ConfigError(
                    f"cross-attention {name}={width} is not a multiple of num_heads={num_heads}"
                )
        self.q = Linear(query_dim, qk_dim)
        self.k = Linear(kv_dim, qk_dim)
        self.v = Linear(kv_dim, v_dim)
        self.out = Linear(v_dim, out_dim)

    def forward(
        self,
        queries: Float[Tensor, "#B G N Cq"],
        kv: Float[Tensor, "B G M Ckv"],
        mask: Bool[Tensor, "#B G #N M"] | None = None,
        keep: Bool[Tensor, "#B G N"] | None = None,
    ) -> Float[Tensor, "B G N Co"]:
        """Return one result per query.

        Args:
            queries: Queries; with batch size 1 they are projected once for all samples.
            kv: Tokens from which keys and values are computed.
            mask: Tokens that may be attended to; all by default.
            keep: Valid queries; others attend to nothing, so that zeros enter the output
                projection. All by default.
        """
        (batch, groups, keys, _), asked = kv.shape, queries.shape[2]
        if self.path == "sdpa" and self.num_heads == 1:
            if not _is_free(keys) and not _is_free(asked) and keys > asked:
                return self._forward_absorbed(self.q(queries), kv, mask, keep)
            if self._narrow_width() < min(self.q.out_features, self.v.out_features):
                return self._forward_narrow(queries, kv, mask, keep)
        q = self.q(queries).expand(batch, -1, -1, -1)
        mixed = self._attend(
            self._fold(q), self._fold(self.k(kv)), self._fold(self.v(kv)), mask, groups
        )
        return self.out(_drop_queries(mixed, keep))

    def _forward_absorbed(
        self, q: Tensor, kv: Tensor, mask: Tensor | None, keep: Tensor | None
    ) -> Tensor:
        """Attend to ``kv`` without projecting it; ``q`` is already projected."""
        batch, groups, _, kv_dim = kv.shape
        # SDPA divides by sqrt(kv_dim) instead of sqrt(qk_dim).
        scale = (kv_dim / q.shape[-1]) ** 0.5
        # The key bias shifts all scores of a query equally, so softmax cancels it. Multiplied by
        # zero it stays in the graph, which data-parallel training requires of every parameter.
        unseen_bias = 0.0 * self.k.bias.sum()
        q = linear(q * scale + unseen_bias, self.k.weight.t())  # [., G, N, Ckv]
        q = q.expand(batch, -1, -1, -1)
        folded = self._fold(kv)
        mixed = self._attend(self._fold(q), folded, folded, mask, groups)  # [B, G, N, Ckv]
        values = self.v(mixed)
        if mask is not None:
            values = torch.where(mask.any(-1).unsqueeze(-1), values, 0.0)
        return self.out(_drop_queries(values, keep))

    def _narrow_width(self) -> int:
        """Return the width of attention in ``_forward_narrow``, padded for the kernels."""
        # The query with an appended one, or the result, whichever is wider.
        width = max(self.q.in_features + 1, self.out.out_features)
        return -(-width // CHANNEL_MULTIPLE) * CHANNEL_MULTIPLE

    def _forward_narrow(
        self, queries: Tensor, kv: Tensor, mask: Tensor | None, keep: Tensor | None
    ) -> Tensor:
        """Attend with unprojected ``queries``; keys and values are projected to their width."""
        batch, groups, _, _ = kv.shape
        width = self._narrow_width()
        # SDPA divides by sqrt(width) instead of sqrt(qk_dim).
        k = self.k(kv) * (width / self.q.out_features) ** 0.5
        # The query bias adds a score per key: an extra channel of the key, times an appended one.
        scores = linear(k, self.q.weight.t())
        k = torch.cat([scores, (k @ self.q.bias).unsqueeze(-1)], -1)  # [B, G, M, Cq + 1]
        v = linear(self.v(kv), self.out.weight)  # [B, G, M, Co]
        q = F.pad(queries, (0, 1), value=1.0)
        q, k, v = (F.pad(x, (0, width - x.shape[-1])) for x in (q, k, v))
        q = q.expand(batch, -1, -1, -1)
        mixed = self._attend(self._fold(q), self._fold(k), self._fold(v), mask, groups)
        mixed = _drop_queries(mixed[..., : self.out.out_features], keep)
        return mixed + self.out.bias.to(mixed.dtype)


def _drop_queries(
    mixed: Float[Tensor, "B G N C"], keep: Bool[Tensor, "#B G N"] | None
) -> Float[Tensor, "B G N C"]:
    """Set the results of queries without ``keep`` to zero."""
    return mixed if keep is None else torch.where(keep.unsqueeze(-1), mixed, 0.0)


class SelfAttention(Attention):
    """Self-attention inside each group, with one projection for queries, keys and values.

    Args:
        dim: Channels of tokens and result.
        num_heads: Number of heads H.
        qk_dim: Width of projected queries and keys; ``dim`` by default.
        v_dim: Width of projected values; ``dim`` by default.

    Raises:
        ConfigError: A width is not a multiple of ``num_heads``.
    """

    def __init__(
        self, *, dim: int, num_heads: int, qk_dim: int | None = None, v_dim: int | None = None
    ) -> None:
        super().__init__(num_heads=num_heads)
        qk_dim, v_dim = qk_dim or dim, v_dim or dim
        for name, width in (("qk_dim", qk_dim), ("v_dim", v_dim)):
            if width % num_heads:
                raise ConfigError(
                    f"self-attention {name}={width} is not a multiple of num_heads={num_heads}"
                )
        self.widths = (qk_dim, qk_dim, v_dim)
        self.qkv = Linear(dim, 2 * qk_dim + v_dim)
        self.out = Linear(v_dim, dim)

    def forward(
        self,
        x: Float[Tensor, "B G N C"],
        mask: Bool[Tensor, "#B G #N N"] | None = None,
        angles: Float[Tensor, "#B G N P"] | None = None,
    ) -> Float[Tensor, "B G N C"]:
        """Return the tokens after attention.

        Args:
            x: Tokens.
            mask: Tokens that may be attended to; all by default.
            angles: Rotary positions: rotation angle of each pair of channels of a head.
        """
        q, k, v = self.qkv(x).split(self.widths, -1)
        if angles is not None:
            q, k = (rotate(part, angles, self.num_heads) for part in (q, k))
        q, k, v = (self._fold(part) for part in (q, k, v))
        return self.out(self._attend(q, k, v, mask, x.shape[1]))


def rotate(
    x: Float[Tensor, "B G N C"], angles: Float[Tensor, "#B G N P"], num_heads: int
) -> Float[Tensor, "B G N C"]:
    """Apply rotary position embeddings (RoFormer, arXiv 2104.09864).

    Channel i of a head is paired with channel P + i; all heads use the same angles. Scores then
    depend on relative positions.
    """
    first, second = x.unflatten(-1, (num_heads, 2, -1)).unbind(-2)
    cos, sin = (part.to(x.dtype).unsqueeze(-2) for part in (angles.cos(), angles.sin()))
    turned = torch.stack([first * cos - second * sin, first * sin + second * cos], -2)
    return turned.flatten(-3)


@contextmanager
def use_attention(
    model: nn.Module, path: AttentionPath, *, keep_weights: bool = False
) -> Iterator[dict[str, Attention]]:
    """Use ``path`` in all attention modules of ``model`` inside the block.

    Yields:
        The attention modules by name; with ``keep_weights`` (reference path only), their
        ``weights`` are ``[B, G, H, N, M]`` after a forward pass.
    """
    found = {
        name: module for name, module in model.named_modules() if isinstance(module, Attention)
    }
    before: dict[str, AttentionPath] = {name: module.path for name, module in found.items()}
    for module in found.values():
        module.path, module.keep_weights = path, keep_weights
    try:
        yield found
    finally:
        for name, module in found.items():
            module.path, module.keep_weights, module.weights = before[name], False, None
