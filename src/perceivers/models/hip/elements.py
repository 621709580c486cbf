"""Self-attention among raw elements before the first read; not in the paper.

A latent reads a weighted mean of its group's elements, so a relation between two elements has to be
found by several latents together. These layers let elements find one another first. In every other
layer the groups are shifted by half of their length: the elements at a border meet there.

Legend: B batch, G groups, K visible slots of a group, E token width.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from perceivers.models.hip.config import HiPConfig
from perceivers.nn.blocks import SelfAttentionLayer
from perceivers.nn.grouping import GroupLayout, Share
from perceivers.nn.positions import rotary_angles

# How much more alike queries and near elements are at the start than random projections make them.
SHARPNESS = 2.0


class ElementMixing(nn.Module):
    """Self-attention layers on the tokens of the inputs, inside groups that shift back and forth.

    Args:
        config: The model's.
    """

    def __init__(self, config: HiPConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            SelfAttentionLayer(
                dim=config.input_dim,
                num_heads=config.element_heads,
                activation=config.activation,
                dropout_rate=config.dropout_rate,
                drop_path_rescale=config.drop_path_rescale,
            )
            for _ in range(config.element_layers)
        )
        self.recompute = False
        self.rotary = config.element_rotary
        pairs = config.input_dim // config.element_heads // 2
        for name, spec in config.grouped_inputs.items() if self.rotary else ():
            # Buffers of their own, as a module's names and a modality's may clash.
            angles = rotary_angles(spec.grid, pairs)
            self.register_buffer(f"angles_{name}", angles, persistent=False)

    def angles(
        self, layout: GroupLayout, pick: Callable[[Tensor, Share], Tensor]
    ) -> Float[Tensor, "b G K P"] | None:
        """Return the rotary positions of the visible slots, or None without.

        Args:
            layout: How modalities share the groups.
            pick: Leaves the visible ones of a modality's slots ``[1, g, S, P]``.
        """
        if not self.rotary:
            return None
        parts = []
        for share in layout.shares:
            angles = getattr(self, f"angles_{share.name}")
            parts.append(pick(share.split(angles.unsqueeze(0)), share))
        batch = max(part.shape[0] for part in parts)
        return layout.join([part.expand(batch, -1, -1, -1) for part in parts])

    def forward(
        self,
        tokens: Float[Tensor, "B G K E"],
        mask: Bool[Tensor, "#B G 1 K"] | None,
        angles: Float[Tensor, "#B G K P"] | None = None,
    ) -> Float[Tensor, "B G K E"]:
        """Return the tokens after they met; those where ``mask`` is False are not attended to."""
        half = tokens.shape[2] // 2
        for index, layer in enumerate(self.layers):
            shift = half if index % 2 else 0
            x, seen = shift_groups(tokens, shift), mask
            turned = None if angles is None else shift_groups(angles, shift)
            if mask is not None:
                seen = shift_groups(mask.transpose(2, 3), shift).transpose(2, 3)
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(layer, x, seen, turned, use_reentrant=False)
            else:
                x = layer(x, seen, turned)
            tokens = shift_groups(x, -shift)
        return tokens

    @torch.no_grad()
    def start_near(self) -> None:
        """Let elements be compared by position from the first step on (``share_scores``).

        The layers add nothing at the start: random ones would bury the content of tokens, which is
        small beside their positions.
        """
        for layer in self.layers:
            assert isinstance(layer, SelfAttentionLayer)
            q, k, _ = layer.attention.qkv.weight.split(layer.attention.widths)
            k.copy_(share_scores(q, layer.attention.num_heads))
            for last in (layer.attention.out, layer.mlp.out):
                nn.init.zeros_(last.weight)


def share_scores(queries: Float[Tensor, "D E"], heads: int) -> Float[Tensor, "D E"]:
    """Return weights of keys under which a score is high where queries and elements agree.

    Attention then starts as a kernel around each query, every head with a width of its own.
    """
    sharpness = SHARPNESS * (torch.linspace(0.5, 1.5, heads) if heads > 1 else torch.ones(1))
    scale = sharpness.repeat_interleave(queries.shape[0] // heads).unsqueeze(1)
    return queries * scale.to(queries)


def shift_groups(x: Tensor, shift: int) -> Tensor:
    """Move the slots of ``[B, G, K, C]`` by ``shift`` towards the front, across groups."""
    if shift == 0:
        return x
    return x.flatten(1, 2).roll(-shift, 1).unflatten(1, x.shape[1:3])
