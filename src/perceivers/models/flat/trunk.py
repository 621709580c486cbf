"""The latent array of the two flat systems: latents read the tokens, then talk, once or many times.

Legend: B batch, M tokens, N latents, C channels of a token, D of a latent.
Papers: Perceiver (arXiv 2103.03206) Sec. 3; Perceiver IO (arXiv 2107.14795) Sec. 3 and App. E.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from perceivers.adapters.config import PositionConfig, TokenConfig
from perceivers.adapters.multimodal import TokenReaders, Tokens
from perceivers.errors import ConfigError
from perceivers.nn.attention import Attention
from perceivers.nn.blocks import Mlp, Read, SelfAttentionLayer, get_activation
from perceivers.nn.linear import TRUNCATED_STD, truncated_normal_
from perceivers.nn.positions import LearnedPositions, resize_table
from perceivers.settings import Count, Natural, Rate, Settings, UsedIf, change
from perceivers.types import ModalitySpec

# -- What the trunk of a flat system leaves behind -----------------------------------------------
#
# Legend: B batch, N latents, D their channels.


@dataclass(frozen=True)
class Encoded:
    """The latents, and what they read.

    Attributes:
        latents: ``[B, N, D]``.
        tokens: What was read; queries made of tokens need it.
    """

    latents: Float[Tensor, "B N D"]
    tokens: Tokens


# -- Initial weights of the flat systems ---------------------------------------------------------
#
# | parameter | init |
# |---|---|
# | Linears of attention and MLPs | normal, deviation 1 / sqrt(fan_in), cut at two sigma |
# | other Linears and convolutions | the same without making up for the cut |
# | biases | 0 |
# | norms | the identity |
# | latents, queries, positions, padding, mask vectors | ``paper``: sigma 0.02; ``balanced``: 0.5 |
# | byte embedding | sigma 1 |
#
# All draws are normal and cut at two sigma. The released code makes the outputs of flow and the
# classic mean-pool head start at zero; the models do that themselves. Papers: Perceiver (arXiv
# 2103.03206) App. C; the released initialisers.

PAPER_SIGMA = 0.02
# Large enough to matter beside the content they meet, whatever the paper's long runs do.
BALANCED = 0.5
TRANSPOSED = (nn.ConvTranspose2d, nn.ConvTranspose3d)


def cut_normal_(weight: Tensor, sigma: float) -> Tensor:
    """Fill with a normal of ``sigma`` cut at two sigma, without making up for the cut."""
    return truncated_normal_(weight, sigma * TRUNCATED_STD)


@torch.no_grad()
def initialise(
    model: nn.Module,
    init: Literal["balanced", "paper"],
    *,
    arrays: list[nn.Parameter] | None = None,
    position_sigma: float = PAPER_SIGMA,
) -> None:
    """Initialise every parameter of a flat model.

    Args:
        model: With its modules built.
        init: Scale of learned arrays.
        arrays: Learned arrays of the model itself, such as queries.
        position_sigma: Sigma of learned input positions under ``paper``.
    """
    inner = {
        id(linear)
        for module in model.modules()
        if isinstance(module, Attention | Mlp)
        for linear in module.modules()
        if isinstance(linear, nn.Linear)
    }
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, *TRANSPOSED)):
            # Those of a transposed convolution are [in, out, ...].
            fan_in = module.weight.select(int(isinstance(module, TRANSPOSED)), 0).numel()
            sigma = fan_in**-0.5
            draw = truncated_normal_ if id(module) in inner else cut_normal_
            draw(module.weight, sigma)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            cut_normal_(module.weight, 1.0)
        elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            module.reset_parameters()
    learned = list(arrays or [])
    for module in model.modules():
        if isinstance(module, Trunk):
            learned.append(module.latents)
        elif isinstance(module, TokenReaders):
            learned += [*module.padding.values(), *module.mask.values()]
        elif isinstance(module, LearnedPositions):
            cut_normal_(module.table, position_sigma if init == "paper" else BALANCED)
    for array in learned:
        cut_normal_(array, PAPER_SIGMA if init == "paper" else BALANCED)


# -- The latent array of the two flat systems ----------------------------------------------------

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


# -- Carrying a flat model's weights to other input sizes, and ordering its parameters by depth --

# Of a learned table: the old grid, the new one, and whether rows are cut instead of interpolated.
Grids = tuple[tuple[int, ...], tuple[int, ...], bool]


def check_resizable(old: Mapping[str, ModalitySpec], new: Mapping[str, ModalitySpec]) -> None:
    """Require the same modalities with the same channels; texts may only become shorter.

    Raises:
        ConfigError: They differ.
    """
    if list(new) != list(old) or any(
        (type(new[n]), new[n].channels) != (type(old[n]), old[n].channels) for n in old
    ):
        raise ConfigError(
            f"a model of {dict(old)} cannot be resized to {dict(new)}: names, kinds and channels "
            f"must stay"
        )
    for name, spec in new.items():
        if spec.kind == "bytes" and spec.num_tokens > old[name].num_tokens:
            raise ConfigError(
                f"a model of texts of {old[name].num_tokens} bytes has no positions for "
                f"{spec.num_tokens}; text positions are cut, never stretched"
            )


def pin_waves(positions: PositionConfig, grid: tuple[int, ...]) -> PositionConfig:
    """Return positions whose frequencies stay those that weights were trained with on ``grid``."""
    if positions.kind != "fourier" or positions.max_resolution is not None:
        return positions
    return change(positions, (), max_resolution=grid)


def pin_tokens(tokens: Mapping[str, TokenConfig], readers: TokenReaders) -> dict[str, TokenConfig]:
    """Return how modalities become tokens, with the frequencies that weights were trained with.

    Args:
        tokens: As they were.
        readers: What was built of them.
    """
    return {
        name: change(how, (), positions=pin_waves(how.positions, readers.reader(name).grid))
        for name, how in tokens.items()
    }


def token_tables(
    inputs: Mapping[str, ModalitySpec], old: TokenReaders, new: TokenReaders
) -> dict[str, Grids]:
    """Return the tables of learned token positions, for ``carry_tables``; those of texts are cut.

    Args:
        inputs: Modalities by name.
        old: The readers that weights come from.
        new: The readers that they go to.
    """
    return {
        f"inputs.readers.{name}.positions.source.table": (
            old.reader(name).grid,
            new.reader(name).grid,
            spec.kind == "bytes",
        )
        for name, spec in inputs.items()
    }


def carry_tables(state: Mapping[str, Tensor], grids: Mapping[str, Grids]) -> dict[str, Tensor]:
    """Return the state with learned tables fitted to new grids.

    Args:
        state: Weights by name.
        grids: Table name -> old grid, new grid, and whether rows are cut instead of interpolated.
    """
    carried = dict(state)
    for name, (old, new, cut) in grids.items():
        if name in carried:
            table = carried[name]
            carried[name] = table[: new[0]].clone() if cut else resize_table(table, old, new)
    return carried


def flat_layer_depths(model: nn.Module, trunk: Trunk) -> dict[str, int]:
    """Depth per parameter: inputs 0, every read and layer one more, outputs share the last.

    Weights that are used again keep their first depth and count once: else the layers of a model
    that shares them would lie so far below its head that they would hardly learn.
    """
    order: list[str] = []
    for step, index in trunk.steps:
        if step == "read":
            order.append(f"trunk.reads.{index}.")
        else:
            order += [f"trunk.blocks.{index}.{layer}." for layer in range(trunk.config.depth)]
    depths = {"inputs.": 0, "trunk.latents": 1}
    depths |= {prefix: depth for depth, prefix in enumerate(dict.fromkeys(order), start=1)}
    last = max(depths.values()) + 1
    return {
        name: next((at for prefix, at in depths.items() if name.startswith(prefix)), last)
        for name, _ in model.named_parameters()
    }
