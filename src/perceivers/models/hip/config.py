"""Configuration of HiP: levels, inputs, positions, decoder and head, with their checks.

Paper: HiP (arXiv 2202.10890) Sec. 3 and the table of model configurations; docs/hip.md lists where
the released code differs.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Annotated, Any, Literal

from torch import nn

from perceivers.errors import ConfigError, suggest
from perceivers.nn.blocks import get_activation
from perceivers.nn.grouping import GroupLayout, concatenate, deal_groups
from perceivers.nn.positions import fourier_dim
from perceivers.settings import Count, Natural, Positive, Rate, Settings, UsedIf, settle
from perceivers.types import Bytes, ModalitySpec, spec_from_json, spec_to_json

HeadKind = Literal["none", "query", "mean", "label", "dense_bottleneck", "dense_full"]
WITH_OUTPUTS = UsedIf("kind", "query", "mean", "dense_bottleneck", "dense_full")
OF_MODALITY = UsedIf("kind", "label", "dense_bottleneck", "dense_full")
DEEP, DEALT = UsedIf("depth", above=0), UsedIf("grouping", "deal")


@dataclass(frozen=True, kw_only=True)
class HiPLevel(Settings, prefix="level "):
    """One level of the hierarchy, as in the table of configurations in the paper."""

    num_groups: Count
    """Number of groups G; the middle level has one."""
    num_latents: Count
    """Latents per group."""
    latent_dim: Count
    """Channels of a latent."""
    depth: Natural
    """Number of self-attention layers."""
    num_heads: Count
    """Self-attention heads."""
    num_cross_heads: Count = 1
    """Heads of the cross-attention to the previous level."""
    cross_dim: Count | None = None
    """Width of queries, keys and values in cross-attention, a multiple of num_cross_heads; None:
    the width of the previous level, as released."""
    mlp_ratio: Annotated[Count, DEEP] = 4
    """MLP expansion ratio in self-attention layers."""
    cross_mlp_ratio: Count = 1
    """MLP expansion ratio after cross-attention."""
    train_latents: Count | None = None
    """Latents per group used in training, sampled at random (middle level only); None: all."""


@dataclass(frozen=True, kw_only=True)
class HiPHead(Settings, prefix="head."):
    """Output head: what the model returns when called."""

    kind: HeadKind = "none"
    """none: the reconstruction; query or mean: logits from the processor; label: logits of a label
    modality; dense_bottleneck and dense_full: values per element, from the processor or the
    decoder."""
    num_outputs: Annotated[Natural, WITH_OUTPUTS] = 0
    """Number of classes, or values per element; unused by none and label."""
    modality: Annotated[str, OF_MODALITY] = ""
    """Modality that label and dense heads predict."""


@dataclass(frozen=True, kw_only=True)
class HiPConfig(Settings, prefix=""):
    """Configuration of a HiP; use ``dataclasses.replace`` to change fields."""

    inputs: Mapping[str, ModalitySpec]
    """Modalities by name, in the order in which groups are assigned to them."""
    levels: tuple[HiPLevel, ...]
    """Levels from the inputs through the processor (the middle one) to the outputs."""
    token_dim: Count
    """Channels E of an embedded element."""
    position_dim: Count
    """Channels of a learned position embedding; normally equal to token_dim."""
    positions: Literal["learned", "fourier"] = "learned"
    """Position embeddings: learned ones are added to the embedded element, Fourier features are
    concatenated to it."""
    num_bands: Annotated[Count, UsedIf("positions", "fourier")] = 64
    """Frequencies per axis of Fourier positions."""
    project_positions: Literal["none", "modality", "slot"] = "none"
    """Project position embeddings to token_dim by a linear layer without bias: one per modality, or
    (as released) one per slot, that is, per modality in the order of a call."""
    position_slots: Natural = 0
    """Number of linear layers with project_positions='slot': the maximum number of modalities in a
    call."""
    position_stride: Annotated[Count, UsedIf("positions", "learned")] = 1
    """Stride of the grid of learned position embeddings along every axis; those in between are
    interpolated. For inputs of tens of millions of elements, whose table would take gigabytes."""
    position_init: Annotated[Literal["normal", "fourier"], UsedIf("positions", "learned")] = (
        "normal"
    )
    """Initialise learned position embeddings with noise, or with sines and cosines of the
    coordinates."""
    position_product: Annotated[bool, UsedIf("positions", "learned")] = False
    """Add to every token the product of its embedded content and a linear map of its position
    embedding. A latent can then extract several functionals of a group instead of nearly one."""
    embed_scale: Positive = 1.0
    """Factor on the initial weights of the content embedding. The first cross-attention normalises
    tokens, which compresses elements of large magnitude; content that is small compared to
    positions stays nearly linear."""
    element_layers: Annotated[Natural, UsedIf("grouping", "deal")] = 0
    """Self-attention layers between the elements of a group, before the first cross-attention. In
    every second layer groups are shifted by half their length, so that neighbouring elements in
    different groups interact too. Time grows with the square of the visible elements per group."""
    element_heads: Annotated[Count, UsedIf("element_layers", above=0)] = 4
    """Heads of these layers; must divide the channels of a token."""
    element_rotary: Annotated[bool, UsedIf("element_layers", above=0)] = False
    """Use rotary position embeddings in these layers, so that attention depends on the distance
    between elements. A head needs two channels per axis."""
    query_residual: Annotated[bool, UsedIf("decoder", True)] = False
    """Use a residual connection around the cross-attention of reconstruction queries."""
    query_product: Annotated[bool, UsedIf("decoder", True)] = False
    """Add to the output of a reconstruction query its product with a linear map of the query: the
    counterpart of position_product."""
    query_heads: Annotated[Count, UsedIf("decoder", True)] = 1
    """Cross-attention heads of reconstruction queries."""
    query_elements: Annotated[bool, UsedIf("decoder", True)] = False
    """Let reconstruction queries attend to the visible elements of their group besides its latents:
    a skip connection from the inputs. If the last level is at least as wide as the tokens, it is
    initialised as an interpolation between nearby elements."""
    latent_head: Annotated[bool, UsedIf("decoder", True)] = False
    """Add a linear layer per decoder level that predicts the latents of the mirrored encoder level
    for the whole input; it is trained with mask.target latent."""
    element_order: Annotated[Literal["raster", "morton"], UsedIf("grouping", "deal")] = "raster"
    """Order in which the elements of a grid are divided into groups: row by row (as released), or
    along a Z-order curve, which makes groups blocks instead of strips; this copies inputs and
    positions once."""
    grouping: Literal["deal", "concatenate"] = "deal"
    """Assign groups to modalities (HiP), or put all elements into one group (flat Perceiver IO)."""
    deal_over: Annotated[Literal["declared", "present"], DEALT] = "declared"
    """Assign groups to all declared modalities and mask those that are absent, or (as released)
    only to those present in a call."""
    mask_padding: Annotated[bool, DEALT] = True
    """Mask the slots that pad a group; in the released code the latents attend to them. Padding of
    texts and missing points are masked in either case."""
    regroup: Annotated[Literal["reshape", "transpose_reshape"], DEALT] = "reshape"
    """How the latents of one level are divided into the groups of the next."""
    labels: tuple[str, ...] = ()
    """Modalities that enter and leave at the processor (class-bottleneck template)."""
    decoder: bool = True
    """Build the decoder from the processor to the inputs."""
    head: HiPHead = field(default_factory=HiPHead)
    """Output head."""
    activation: str = "squared_relu"
    """Activation of every MLP."""
    dropout_rate: Rate = 0.0
    """Dropout in self-attention layers."""
    drop_path_rate: Rate = 0.0
    """Stochastic depth in self-attention layers."""
    drop_path_schedule: Annotated[
        Literal["constant", "linear"], UsedIf("drop_path_rate", above=0)
    ] = "constant"
    """Use the same rate in all layers (as released), or increase it linearly from zero."""
    drop_path_rescale: bool = True
    """Divide retained branches by the keep probability; the released code does not."""
    init: Literal["balanced", "paper"] = "balanced"
    """balanced: position embeddings and latents are large enough to matter next to the content,
    for any input length; paper: their variance is 1 / rows, as released, which is tiny for long
    inputs."""
    decode_chunk: Annotated[Count, UsedIf("decoder", True)] = 1024
    """Maximum number of reconstruction queries per group in memory; more are computed in chunks."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", dict(self.inputs))
        super().__post_init__()
        check_levels(self)
        check_inputs(self)
        check_head(self)
        if self.element_layers:
            check_elements(self)
        if self.decoder:
            check_queries(self)
        if self.latent_head and not self.processor:
            raise ConfigError(
                "latent_head predicts the latents of levels below the processor; a flat model has "
                "one level only, so leave it out"
            )
        get_activation(self.activation)

    @property
    def processor(self) -> int:
        """Index of the middle level."""
        return len(self.levels) // 2

    @property
    def grouped_inputs(self) -> dict[str, ModalitySpec]:
        """Modalities that pass through the hierarchy: all but the bottleneck labels."""
        return {name: spec for name, spec in self.inputs.items() if name not in self.labels}

    @property
    def data_inputs(self) -> dict[str, ModalitySpec]:
        """Modalities that the data set must provide."""
        return self.grouped_inputs

    @property
    def byte_outputs(self) -> tuple[str, ...]:
        """Names of the texts for which a call returns scores over the byte vocabulary."""
        if self.head.kind != "none":
            return ()
        return tuple(n for n, spec in self.grouped_inputs.items() if isinstance(spec, Bytes))

    @property
    def num_classes(self) -> int:
        """Number of classes of a classifier; 0 for other heads."""
        return self.head.num_outputs if self.head.kind in {"query", "mean"} else 0

    @property
    def fourier_dim(self) -> int:
        """Channels of Fourier positions, set by the modality with the most axes."""
        return max(fourier_dim(len(s.grid), self.num_bands) for s in self.grouped_inputs.values())

    @property
    def query_dim(self) -> int:
        """Channels of a reconstruction query: a position embedding, or Fourier features."""
        return self.token_dim if self.positions == "learned" else self.fourier_dim

    @property
    def input_dim(self) -> int:
        """Channels of a token at the input of the first level."""
        return self.token_dim + (0 if self.positions == "learned" else self.fourier_dim)

    @property
    def multiplies_positions(self) -> bool:
        """Whether tokens include products of content and learned positions."""
        return self.position_product and self.positions == "learned"

    @property
    def carries_elements(self) -> bool:
        """Whether the decoder attends to the input tokens."""
        return self.query_elements and self.decoder

    @property
    def label_dim(self) -> int:
        """Channels of a label token: those of the level before the processor."""
        return self.levels[self.processor - 1].latent_dim if self.processor else self.input_dim

    def layout(self, present: tuple[str, ...] | None = None) -> GroupLayout:
        """Return the assignment of groups to modalities.

        Args:
            present: Modalities of a call, which matter only with ``deal_over="present"``.
        """
        lengths = {name: spec.num_tokens for name, spec in self.grouped_inputs.items()}
        if present is not None and self.deal_over == "present":
            lengths = {name: lengths[name] for name in present if name in lengths}
        if self.grouping == "concatenate":
            return concatenate(lengths)
        grids = {}
        if self.element_order == "morton":
            grids = {name: self.grouped_inputs[name].grid for name in lengths}
        return deal_groups(lengths, self.levels[0].num_groups, grids)

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-serialisable data; ``from_json`` is the inverse."""
        data = asdict(self)
        data["inputs"] = {name: spec_to_json(spec) for name, spec in self.inputs.items()}
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "HiPConfig":
        """Rebuild a config from the output of ``to_json``.

        Raises:
            ConfigError: A field is missing, unknown or invalid.
        """
        values = dict(data)
        unknown = sorted(values.keys() - cls.__dataclass_fields__.keys())
        if unknown:
            hint = suggest(unknown[0], cls.__dataclass_fields__)
            raise ConfigError(f"HiP config has unknown fields {unknown}{hint}")
        try:
            values["inputs"] = {n: spec_from_json(s) for n, s in values["inputs"].items()}
            values["levels"] = tuple(settle(HiPLevel, level) for level in values["levels"])
            values["head"] = settle(HiPHead, values.get("head", {}))
            values["labels"] = tuple(values.get("labels", ()))
            return settle(cls, values)
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"HiP config is incomplete or malformed: {error}") from error


def check_levels(config: HiPConfig) -> None:
    """Check the number of levels, the middle level, mirrored groups and divisible widths."""
    levels = config.levels
    flat = config.grouping == "concatenate"
    if (flat and len(levels) != 1) or (not flat and (len(levels) < 3 or len(levels) % 2 == 0)):
        raise ConfigError(
            f"{len(levels)} levels with grouping={config.grouping!r}; a hierarchy has an odd "
            f"number of at least 3 levels (encoder, one processor, decoder), a flat model exactly 1"
        )
    middle = levels[len(levels) // 2]
    if middle.num_groups != 1:
        raise ConfigError(f"the middle level has {middle.num_groups} groups; it must have 1")
    below = config.input_dim
    for index, level in enumerate(levels):
        width = level.cross_dim or below
        if level.latent_dim % level.num_heads or width % level.num_cross_heads:
            what = f"cross_dim={width}" if level.cross_dim else f"the {width} channels below it"
            raise ConfigError(
                f"level {index}: latent_dim={level.latent_dim} must be a multiple of "
                f"num_heads={level.num_heads}, and {what} of "
                f"num_cross_heads={level.num_cross_heads}"
            )
        mirror = levels[len(levels) - 1 - index]
        if (level.num_groups, level.num_latents) != (mirror.num_groups, mirror.num_latents):
            raise ConfigError(
                f"level {index} has {level.num_groups} groups of {level.num_latents} latents, its "
                f"mirror {mirror.num_groups} of {mirror.num_latents}; they must be equal for skip "
                f"connections"
            )
        if level.train_latents is not None and (
            level is not middle or not 0 < level.train_latents <= level.num_latents
        ):
            raise ConfigError(
                f"level {index}: train_latents={level.train_latents}; only the middle level may "
                f"use fewer latents in training, between 1 and num_latents={level.num_latents}"
            )
        below = level.latent_dim
    for before, after in pairwise(levels):
        for each in (before.num_latents, before.train_latents or before.num_latents):
            if before.num_groups * each % after.num_groups:
                raise ConfigError(
                    f"{before.num_groups * each} latents of one level cannot be dealt into "
                    f"{after.num_groups} groups of the next; choose num_latents so that they divide"
                )


def check_queries(config: HiPConfig) -> None:
    """Check the heads of reconstruction queries."""
    width = config.levels[-1].latent_dim
    if width % config.query_heads:
        raise ConfigError(
            f"query_heads={config.query_heads} must divide the {width} channels of the last level"
        )


def check_elements(config: HiPConfig) -> None:
    """Check that tokens are wide enough for the heads of element layers."""
    width, heads = config.input_dim, config.element_heads
    if width % heads:
        raise ConfigError(f"element_heads={heads} must divide the {width} channels of a token")
    axes = max(len(spec.grid) for spec in config.grouped_inputs.values())
    if config.element_rotary and (width // heads % 2 or width // heads < 2 * axes):
        raise ConfigError(
            f"element_rotary rotates pairs of channels, one or more per axis: a head has "
            f"{width // heads} channels ({width} over element_heads={heads}), which must be even "
            f"and at least {2 * axes} for inputs of {axes} axes"
        )


def check_inputs(config: HiPConfig) -> None:
    """Check modalities, labels and positions."""
    if not config.grouped_inputs:
        raise ConfigError("a model needs at least one input modality that is not a label")
    unknown = [name for name in config.labels if name not in config.inputs]
    if unknown:
        raise ConfigError(f"labels {unknown} are not among the inputs {list(config.inputs)}")
    padded = [
        name
        for name in config.labels
        if isinstance(spec := config.inputs[name], Bytes) or getattr(spec, "ragged", False)
    ]
    if padded:
        raise ConfigError(
            f"labels {padded} are texts or ragged points, which may be padded; a bottleneck label "
            f"must be complete, so use them as inputs and not as labels"
        )
    if config.labels and config.grouping == "concatenate":
        raise ConfigError("bottleneck labels need a hierarchy; a flat model takes labels as inputs")
    if any("." in name or not name for name in config.inputs):
        raise ConfigError(
            f"modality names {list(config.inputs)} must be non-empty and without dots"
        )
    # Modules of a modality are stored under its name in a ModuleDict.
    taken = [name for name in config.inputs if hasattr(nn.ModuleDict(), name)]
    if taken:
        raise ConfigError(f"modality names {taken} are taken by torch's ModuleDict; rename them")
    if config.positions == "fourier" and config.project_positions != "none":
        raise ConfigError("Fourier positions are never projected; use project_positions='none'")
    if (
        config.positions == "learned"
        and config.project_positions == "none"
        and config.position_dim != config.token_dim
    ):
        raise ConfigError(
            f"position_dim={config.position_dim} differs from token_dim={config.token_dim}; set "
            f"project_positions='modality', or make them equal"
        )
    if (config.project_positions == "slot") != (config.position_slots > 0):
        raise ConfigError(
            f"position_slots={config.position_slots} with project_positions="
            f"{config.project_positions!r}; 'slot' needs at least one, the others none"
        )
    config.layout()


def check_head(config: HiPConfig) -> None:
    """Check that the inputs and the decoder that a head needs exist."""
    head = config.head
    if head.kind not in {"none", "label"} and head.num_outputs < 1:
        raise ConfigError(
            f"head {head.kind!r} needs num_outputs of at least 1, got {head.num_outputs}"
        )
    if head.kind == "label" and head.modality not in config.labels:
        raise ConfigError(
            f"head 'label' needs modality in labels={config.labels}, got {head.modality!r}"
        )
    if head.kind.startswith("dense") and head.modality not in config.grouped_inputs:
        raise ConfigError(
            f"head {head.kind!r} needs a modality of {list(config.grouped_inputs)}, "
            f"got {head.modality!r}"
        )
    if head.kind in {"none", "dense_full"} and not config.decoder:
        raise ConfigError(f"head {head.kind!r} needs decoder=True")
