"""The latent array of the two flat systems: latents read the tokens, then talk, once or many times.

Legend: B batch, M tokens, N latents, C channels of a token, D of a latent.
Papers: Perceiver (arXiv 2103.03206) Sec. 3; Perceiver IO (arXiv 2107.14795) Sec. 3 and App. E.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from perceivers.errors import ConfigError
from perceivers.nn.blocks import Read, SelfAttentionLayer, get_activation
from perceivers.settings import Count, Natural, Rate, Settings, UsedIf

DEEP, REREAD = UsedIf("depth", above=0), UsedIf("num_reads", above=1)
Step = tuple[Literal["read", "block"], int]


@dataclass(frozen=True, kw_only=True)
class TrunkConfig(Settings, prefix="trunk."):
    """Latents, how they read the tokens, and the self-attention between the reads."""

    num_latents: Count
    """Latents N."""
    latent_dim: Count
    """Channels D of a latent."""
    depth: Natural
    """Self-attention layers of a block."""
    num_blocks: Count = 1
    """Blocks of self-attention."""
    share_blocks: Annotated[bool, UsedIf("num_blocks", above=1)] = True
    """All blocks are one set of layers."""
    num_reads: Count = 1
    """Cross-attends."""
    reads: Annotated[Literal["interleaved", "at_start"], REREAD] = "interleaved"
    """Spread evenly before the blocks, or all before the first."""
    share_reads: Annotated[Literal["none", "all", "all_but_first"], REREAD] = "all_but_first"
    """Which cross-attends are one set of weights; the paper's first stays apart, because sharing it
    was unstable."""
    num_heads: Annotated[Count, DEEP] = 8
    """Self-attention heads."""
    num_cross_heads: Count = 1
    """Heads of a cross-attend."""
    qk_dim: Count | None = None
    """Width of queries and keys everywhere in the trunk; see attention_width when None."""
    v_dim: Count | None = None
    """Width of values everywhere in the trunk; qk_dim when None."""
    attention_width: Annotated[Literal["tokens", "latents"], UsedIf("qk_dim", None)] = "tokens"
    """Width of the cross-attend's queries and keys when qk_dim is None."""
    mlp_ratio: Annotated[Count, DEEP] = 1
    """Hidden channels per channel in self-attention layers."""
    cross_mlp_ratio: Count = 1
    """Hidden channels per channel after a cross-attend."""
    residual: bool = True
    """Add the latents to what they read."""
    activation: str = "gelu_tanh"
    """Activation of every MLP; the released weights were trained with the tanh approximation."""
    dropout_rate: Annotated[Rate, DEEP] = 0.0
    """Dropout on residual branches of self-attention layers; every released model has none."""

    def __post_init__(self) -> None:
        """Reject sizes below one and widths that heads do not divide."""
        super().__post_init__()
        get_activation(self.activation)
        if self.reads == "interleaved" and self.num_reads > self.num_blocks:
            raise ConfigError(
                f"{self.num_reads} interleaved reads need as many blocks, there are "
                f"{self.num_blocks}; use reads='at_start', or more blocks"
            )

    @property
    def steps(self) -> tuple[Step, ...]:
        """What happens in order, with the index of the weights that are used."""
        places = [
            i * self.num_blocks // self.num_reads if self.reads == "interleaved" else 0
            for i in range(self.num_reads)
        ]
        weights = {
            "none": list(range(self.num_reads)),
            "all": [0] * self.num_reads,
            "all_but_first": [min(i, 1) for i in range(self.num_reads)],
        }[self.share_reads]
        steps: list[Step] = []
        for block in range(self.num_blocks):
            for place, weight in zip(places, weights, strict=True):
                if place == block:
                    steps.append(("read", weight))
            steps.append(("block", 0 if self.share_blocks else block))
        return tuple(steps)


class Trunk(nn.Module):
    """Learned latents that read an array of tokens and pass blocks of self-attention.

    Args:
        config: Its sizes.
        token_dim: Channels C of the tokens.
    """

    def __init__(self, config: TrunkConfig, token_dim: int) -> None:
        super().__init__()
        self.config = config
        self.steps = config.steps
        self.recompute = False
        self.latents = nn.Parameter(torch.zeros(config.num_latents, config.latent_dim))
        width = config.qk_dim
        if width is None and config.attention_width == "latents":
            width = config.latent_dim
        self.reads = nn.ModuleList(
            Read(
                query_dim=config.latent_dim,
                token_dim=token_dim,
                num_heads=config.num_cross_heads,
                mlp_ratio=config.cross_mlp_ratio,
                activation=config.activation,
                residual=config.residual,
                qk_dim=width,
                v_dim=config.v_dim,
            )
            for _ in range(self._count("read"))
        )
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                SelfAttentionLayer(
                    dim=config.latent_dim,
                    num_heads=config.num_heads,
                    mlp_ratio=config.mlp_ratio,
                    activation=config.activation,
                    dropout_rate=config.dropout_rate,
                    qk_dim=config.qk_dim,
                    v_dim=config.v_dim or config.qk_dim,
                )
                for _ in range(config.depth)
            )
            for _ in range(self._count("block"))
        )

    def _count(self, kind: str) -> int:
        return 1 + max(index for step, index in self.steps if step == kind)

    def forward(
        self, tokens: Float[Tensor, "B M C"], valid: Bool[Tensor, "B M"] | None = None
    ) -> Float[Tensor, "B N D"]:
        """Return the latents; with ``recompute`` the backward pass computes layers again."""
        array = tokens.unsqueeze(1)
        mask = None if valid is None else valid[:, None, None]
        x = self.latents[None, None]  # one copy until the first read: it is no sample's own
        for step, index in self.steps:
            if step == "read":
                x = self._run(self.reads[index], x, array, mask)
                continue
            layers = self.blocks[index]
            assert isinstance(layers, nn.ModuleList)
            for layer in layers:
                x = self._run(layer, x)
        return x.squeeze(1)

    def _run(self, module: nn.Module, *arguments: Tensor | None) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            out = checkpoint(module, *arguments, use_reentrant=False)
            assert isinstance(out, Tensor)
            return out
        return module(*arguments)
