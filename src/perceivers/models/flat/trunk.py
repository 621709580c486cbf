"""Trunk of the flat model families, Perceiver and Perceiver IO, and their weight handling.

Latents cross-attend to the tokens and pass self-attention blocks, once or several times. Tokens are
made in ``adapters``; each model adds its own output.

Legend: B batch, M tokens, N latents, C channels of a token, D channels of a latent.
Papers: Perceiver (arXiv 2103.03206) Sec. 3; Perceiver IO (arXiv 2107.14795) Sec. 3 and App. E.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from perceivers.adapters import ElementAdapter
from perceivers.adapters.config import PositionConfig, TokenConfig, build_nested, covered_grid
from perceivers.adapters.multimodal import TokenReaders, Tokens
from perceivers.adapters.tokens import default_tokens
from perceivers.errors import ConfigError, suggest
from perceivers.models.base import SavedModule
from perceivers.nn.attention import Attention
from perceivers.nn.blocks import Mlp, Read, SelfAttentionLayer, get_activation
from perceivers.nn.linear import TRUNCATED_STD, truncated_normal_
from perceivers.nn.positions import LearnedPositions, resize_table
from perceivers.settings import Count, Natural, Rate, Settings, UsedIf, change
from perceivers.types import ModalitySpec, spec_from_json, spec_to_json

# -- Output of the trunk -------------------------------------------------------------------------
#
# Legend: B batch, N latents, D their channels.


@dataclass(frozen=True)
class TrunkEncoded:
    """The latents and the tokens that they attended to.

    Attributes:
        latents: ``[B, N, D]``.
        tokens: The input tokens; decoder queries may be built from them.
    """

    latents: Float[Tensor, "B N D"]
    tokens: Tokens


def learned_positions(readers: TokenReaders, names: Iterable[str]) -> dict[str, LearnedPositions]:
    """Return the learned positions of token readers, by modality."""
    sources = {name: readers.reader(name).positions for name in names}
    found = {name: each.source for name, each in sources.items() if each is not None}
    return {name: each for name, each in found.items() if isinstance(each, LearnedPositions)}


# -- Weight initialisation of the flat models ----------------------------------------------------
#
# | parameter | init |
# |---|---|
# | linear layers of attention and MLPs | standard deviation exactly 1 / sqrt(fan_in) |
# | other linear layers and convolutions | the same, without correcting for the truncation |
# | biases | 0 |
# | norms | the identity |
# | latents, queries, positions, padding, mask vectors | ``paper``: sigma 0.02; ``balanced``: 0.5 |
# | byte embedding | sigma 1 |
#
# All distributions are normal, truncated at two sigma. In the released code, the flow output and
# the classic mean-pooling head start at zero; the models take care of that. Papers: Perceiver
# (arXiv 2103.03206) App. C; the released initialisers.

PAPER_SIGMA = 0.02
# Large enough to matter next to the features that they meet, even in short training runs.
BALANCED = 0.5
TRANSPOSED = (nn.ConvTranspose2d, nn.ConvTranspose3d)


def cut_normal_(weight: Tensor, sigma: float) -> Tensor:
    """Fill with N(0, ``sigma``) truncated at two sigma, without correcting the lost variance."""
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
        model: A model whose modules are all built.
        init: Scale of the learned arrays.
        arrays: Learned arrays that belong to the model itself, such as queries.
        position_sigma: Sigma of learned input positions with ``paper``.
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
            # The weights of a transposed convolution are [in, out, ...], not [out, in, ...].
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


# -- The trunk -----------------------------------------------------------------------------------

DEEP, REREAD = UsedIf("depth", above=0), UsedIf("num_reads", above=1)
Step = tuple[Literal["read", "block"], int]


@dataclass(frozen=True, kw_only=True)
class TrunkConfig(Settings, prefix="trunk."):
    """Sizes of the latent array, its cross-attention to the tokens, and its self-attention."""

    num_latents: Count
    """Number of latents N."""
    latent_dim: Count
    """Channels D of a latent."""
    depth: Natural
    """Self-attention layers per block."""
    num_blocks: Count = 1
    """Number of self-attention blocks."""
    share_blocks: Annotated[bool, UsedIf("num_blocks", above=1)] = True
    """Share one set of weights between all blocks."""
    num_reads: Count = 1
    """Number of cross-attention layers."""
    reads: Annotated[Literal["interleaved", "at_start"], REREAD] = "interleaved"
    """Spread cross-attention layers evenly over the blocks, or place all before the first."""
    share_reads: Annotated[Literal["none", "all", "all_but_first"], REREAD] = "all_but_first"
    """Which cross-attention layers share weights. In the paper the first one has its own, because
    sharing it made training unstable."""
    num_heads: Annotated[Count, DEEP] = 8
    """Self-attention heads."""
    num_cross_heads: Count = 1
    """Cross-attention heads."""
    qk_dim: Count | None = None
    """Width of queries and keys everywhere in the trunk; see attention_width when None."""
    v_dim: Count | None = None
    """Width of values everywhere in the trunk; qk_dim when None."""
    attention_width: Annotated[Literal["tokens", "latents"], UsedIf("qk_dim", None)] = "tokens"
    """Width of queries and keys in cross-attention when qk_dim is None."""
    mlp_ratio: Annotated[Count, DEEP] = 1
    """MLP expansion ratio in self-attention layers."""
    cross_mlp_ratio: Count = 1
    """MLP expansion ratio after cross-attention."""
    residual: bool = True
    """Use a residual connection around cross-attention."""
    activation: str = "gelu_tanh"
    """Activation of every MLP; the released weights were trained with the tanh approximation."""
    dropout_rate: Annotated[Rate, DEEP] = 0.0
    """Dropout on residual branches of self-attention layers; 0 in every released model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        get_activation(self.activation)
        if self.reads == "interleaved" and self.num_reads > self.num_blocks:
            raise ConfigError(
                f"{self.num_reads} interleaved reads need at least as many blocks, but num_blocks "
                f"is {self.num_blocks}; use reads='at_start', or more blocks"
            )

    @property
    def steps(self) -> tuple[Step, ...]:
        """Layers in the order of execution, each with the index of the weights that it uses."""
        # An interleaved read i comes before block i * num_blocks // num_reads.
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


def describe_trunk(config: TrunkConfig) -> tuple[str, str]:
    """Return the size of the latents, and the reads and layers, for tables of models."""
    shared = " shared" if config.share_blocks and config.num_blocks > 1 else ""
    return (
        f"{config.num_latents} x {config.latent_dim}",
        f"{config.num_reads} read, {config.num_blocks} x {config.depth} layers{shared}",
    )


class Trunk(nn.Module):
    """Learned latents that cross-attend to an array of tokens and pass self-attention blocks.

    Args:
        config: Sizes and weight sharing.
        token_dim: Channels C of the tokens.

    Attributes:
        recompute: Use activation checkpointing: recompute layers in the backward pass.
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
        """Return the latents; tokens that are not ``valid`` are not attended to."""
        array = tokens.unsqueeze(1)
        mask = None if valid is None else valid[:, None, None]
        # Not expanded to the batch: before the first read the latents are the same for all samples.
        x = self.latents[None, None]
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


# -- Transfer of weights to other input sizes, and depths of parameters --------------------------

# For a table of embeddings: old grid, new grid, and whether to truncate instead of interpolate.
Grids = tuple[tuple[int, ...], tuple[int, ...], bool]


def check_resizable(old: Mapping[str, ModalitySpec], new: Mapping[str, ModalitySpec]) -> None:
    """Require the same modalities with the same channels; texts may only become shorter.

    Raises:
        ConfigError: The modalities or channels differ, or a text becomes longer.
    """
    if list(new) != list(old) or any(
        (type(new[n]), new[n].channels) != (type(old[n]), old[n].channels) for n in old
    ):
        raise ConfigError(
            f"a model of {dict(old)} cannot be resized to {dict(new)}: names, kinds and channels "
            f"must stay the same"
        )
    for name, spec in new.items():
        if spec.kind == "bytes" and spec.num_tokens > old[name].num_tokens:
            raise ConfigError(
                f"a model of texts of {old[name].num_tokens} bytes has no position embeddings for "
                f"{spec.num_tokens}; text positions are cut, never stretched"
            )


def pin_waves(positions: PositionConfig, grid: tuple[int, ...]) -> PositionConfig:
    """Fix the Fourier frequencies to those of ``grid``, with which the weights were trained.

    Unless ``max_resolution`` is set, frequencies depend on the input size and would change with it.
    """
    if positions.kind != "fourier" or positions.max_resolution is not None:
        return positions
    return change(positions, (), max_resolution=grid)


def pin_tokens(tokens: Mapping[str, TokenConfig], readers: TokenReaders) -> dict[str, TokenConfig]:
    """Apply ``pin_waves`` to the token configs of all modalities.

    Args:
        tokens: Token configs of the trained model.
        readers: The modules that were built from them.
    """
    return {
        name: change(how, (), positions=pin_waves(how.positions, readers.reader(name).grid))
        for name, how in tokens.items()
    }


def token_tables(
    inputs: Mapping[str, ModalitySpec], old: TokenReaders, new: TokenReaders
) -> dict[str, Grids]:
    """Return the learned token positions to resize with ``carry_tables``; texts are truncated.

    Args:
        inputs: Modalities by name.
        old: Token readers of the source model.
        new: Token readers of the target model.
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
    """Return a copy of the state dict with learned tables resized to new grids.

    Args:
        state: Weights by name.
        grids: Table name -> old grid, new grid, and whether to truncate instead of interpolate.
    """
    carried = dict(state)
    for name, (old, new, cut) in grids.items():
        if name in carried:
            table = carried[name]
            carried[name] = table[: new[0]].clone() if cut else resize_table(table, old, new)
    return carried


def flat_layer_depths(model: nn.Module, trunk: Trunk) -> dict[str, int]:
    """Return a depth per parameter, for layer-wise learning-rate decay.

    Inputs have depth 0, every cross-attention and self-attention layer adds one, and outputs share
    the last depth. Shared weights count once, at their first use: otherwise the layers of a model
    with shared weights would be so far from its head that they would hardly learn.
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


class FlatModel(SavedModule):
    """Base class of models with readers of tokens and one trunk.

    Attributes:
        inputs: Readers of the tokens of every modality.
        trunk: Latents, their reads and layers.
    """

    inputs: TokenReaders
    trunk: Trunk

    @abstractmethod
    def forward_features(
        self, inputs: Mapping[str, Tensor] | Tensor, *, present: Mapping[str, Tensor] | None = None
    ) -> TrunkEncoded:
        """Return the latents and the tokens that they attended to."""

    def adapter(self, name: str) -> ElementAdapter:
        """Return the adapter of a modality."""
        return self.inputs.reader(name).adapter

    def features(
        self, inputs: Mapping[str, Tensor], *, present: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return the latents, ``[B, N, D]``."""
        return {"latents": self.forward_features(inputs, present=present).latents}

    def covered_grid(self, name: str) -> tuple[int, ...]:
        """Return the grid of elements that the tokens of a modality cover."""
        return covered_grid(self.config.inputs[name], self.inputs.reader(name).config)

    def count_tokens(self) -> dict[str, tuple[int, int]]:
        """Return the number of tokens of every modality of the data; there is one group."""
        return {name: (self.inputs.num_tokens[name], 1) for name in self.config.data_inputs}

    def position_tables(self) -> dict[str, LearnedPositions]:
        """Return the learned positions of the inputs, by modality."""
        return learned_positions(self.inputs, self.config.inputs)

    def describe(self) -> tuple[str, str]:
        """Return the size of the latents, and reads and layers."""
        return describe_trunk(self.config.trunk)

    def layer_depths(self) -> dict[str, int]:
        """Return a depth per parameter, for layer-wise learning-rate decay."""
        return flat_layer_depths(self, self.trunk)

    def set_recompute(self, on: bool = True) -> None:
        """Recompute layers in the backward pass (activation checkpointing) to save memory."""
        self.trunk.recompute = on


# -- Configs as JSON, and the token configs of a model -------------------------------------------


def complete_tokens(
    inputs: Mapping[str, ModalitySpec], tokens: Mapping[str, TokenConfig]
) -> dict[str, TokenConfig]:
    """Return a token config for every modality, with defaults for those not in ``tokens``.

    Raises:
        ConfigError: There is no modality, its name is invalid, or ``tokens`` has an unknown one.
    """
    if not inputs:
        raise ConfigError("a model needs at least one input modality")
    # Names become keys of module dictionaries, which may not contain dots.
    if any("." in name or not name for name in inputs):
        raise ConfigError(f"modality names {list(inputs)} must be non-empty and without dots")
    unknown = sorted(tokens.keys() - inputs.keys())
    if unknown:
        raise ConfigError(
            f"tokens are described for {unknown}, but the inputs are {list(inputs)}"
            + suggest(unknown[0], inputs)
        )
    return {name: tokens.get(name) or default_tokens(spec) for name, spec in inputs.items()}


def choose_tokens(
    inputs: Mapping[str, ModalitySpec], settings: Mapping[str, Any], overrides: Mapping[str, Any]
) -> dict[str, TokenConfig]:
    """Return a token config for every modality: from ``overrides``, else from the variant.

    Raises:
        ConfigError: A setting is invalid, or belongs to an unknown modality.
    """
    if "tokens" in overrides:
        tokens = overrides["tokens"]
    else:
        tokens = {n: t for n, t in settings.get("tokens", {}).items() if n in inputs}
    built = {name: build_nested(TokenConfig, entry) for name, entry in tokens.items()}
    return complete_tokens(inputs, built)


def config_to_json(config: Any) -> dict[str, Any]:
    """Convert a config to JSON-serialisable data; ``config_from_json`` is the inverse."""
    data = asdict(config)
    data["inputs"] = {name: spec_to_json(spec) for name, spec in config.inputs.items()}
    return data


def config_from_json(kind: Any, data: Mapping[str, Any], tables: Mapping[str, type]) -> Any:
    """Rebuild a config from the output of ``config_to_json``.

    Args:
        kind: Class of the config.
        data: JSON data.
        tables: Fields that hold configs by name -> class of these configs.

    Raises:
        ConfigError: A field is missing, unknown or invalid.
    """
    values = dict(data)
    try:
        if "inputs" in values:
            values["inputs"] = {n: spec_from_json(s) for n, s in values["inputs"].items()}
        for table, entry in tables.items():
            if table in values:
                values[table] = {
                    n: build_nested(entry, v, given=()) for n, v in values[table].items()
                }
    except (AttributeError, TypeError) as error:
        raise ConfigError(f"{kind.__name__} is malformed: {error}") from error
    return build_nested(kind, values, given=())
