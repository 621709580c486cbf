"""Hiera's encoder: patches with positions, in mask units, through stages that pool and widen.

Legend: B batch, C channels, U mask units, K kept ones, T tokens of a unit.
Paper: Hiera (arXiv 2306.00989) Sec. 3, Fig. 2; sparse encoding is that of its masked auto-encoding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from perceivers.models.hiera.block import HieraBlock
from perceivers.models.hiera.config import HieraConfig
from perceivers.models.hiera.positions import HieraPositions
from perceivers.nn.mask_units import gather_units

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
