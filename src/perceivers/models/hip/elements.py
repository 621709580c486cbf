"""Self-attention between raw elements before the first cross-attention; not in the paper.

A latent attends to a weighted mean of the elements of its group, so that relations between two
elements are available only through several latents. These layers relate elements to each other
first. In every second layer groups are shifted by half their length, as in shifted windows.

Legend: B batch, G groups, K visible slots of a group, E channels of a token, P pairs of channels.
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

# Scale of initial keys relative to queries (mean over heads): the larger, the narrower the kernel.
SHARPNESS = 2.0


class ElementMixing(nn.Module):
    """Self-attention layers on input tokens inside groups, shifted in every second layer.

    Args:
        config: Configuration of the model.
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
            # The prefix avoids clashes between names of modalities and attributes of the module.
            angles = rotary_angles(spec.grid, pairs)
            self.register_buffer(f"angles_{name}", angles, persistent=False)

    def angles(
        self, layout: GroupLayout, pick: Callable[[Tensor, Share], Tensor]
    ) -> Float[Tensor, "b G K P"] | None:
        """Return the rotary angles of the visible slots; None without rotary positions.

        Args:
            layout: Assignment of groups to modalities.
            pick: Selects the visible slots of a modality from ``[1, g, S, P]``.
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
        """Return the transformed tokens; those where ``mask`` is False are not attended to."""
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
        """Initialise attention so that it compares elements by position (``share_scores``).

        Output layers start at zero: random ones would drown the content of tokens, which is small
        compared to their positions.
        """
        for layer in self.layers:
            assert isinstance(layer, SelfAttentionLayer)
            q, k, _ = layer.attention.qkv.weight.split(layer.attention.widths)
            k.copy_(share_scores(q, layer.attention.num_heads))
            for last in (layer.attention.out, layer.mlp.out):
                nn.init.zeros_(last.weight)


def share_scores(queries: Float[Tensor, "D E"], heads: int) -> Float[Tensor, "D E"]:
    """Return key weights with which scores are high where queries and elements are similar.

    Attention then starts as a kernel around each query, with a different width for each head.
    """
    sharpness = SHARPNESS * (torch.linspace(0.5, 1.5, heads) if heads > 1 else torch.ones(1))
    scale = sharpness.repeat_interleave(queries.shape[0] // heads).unsqueeze(1)
    return queries * scale.to(queries)


def shift_groups(x: Tensor, shift: int) -> Tensor:
    """Roll the slots of ``[B, G, K, C]`` by ``shift`` towards the front, across groups."""
    if shift == 0:
        return x
    return x.flatten(1, 2).roll(-shift, 1).unflatten(1, x.shape[1:3])
