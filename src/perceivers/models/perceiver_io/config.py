"""What a Perceiver IO is made of: inputs, how they become tokens, the latent array, the outputs.

Paper: Perceiver IO (arXiv 2107.14795) Sec. 3, Fig. 3 (queries) and the tables of App. E.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Annotated, Any, Literal

from perceivers.adapters.config import (
    PositionConfig,
    TokenConfig,
    covered_grid,
)
from perceivers.adapters.upsampling import count_doublings
from perceivers.errors import ConfigError, suggest
from perceivers.models.flat.config import complete_tokens, config_from_json, config_to_json
from perceivers.models.flat.trunk import TrunkConfig
from perceivers.settings import Count, Natural, Positive, Settings, UsedIf
from perceivers.types import BYTE_VOCABULARY, Bytes, Labels, ModalitySpec

LEARNED, PLACED = UsedIf("queries", "learned"), UsedIf("queries", "positions")
ON_GRID = UsedIf("queries", "positions", "tokens")
JOINED = UsedIf("num_inputs", above=1, otherwise="on a single modality")
ASKED_TOGETHER = UsedIf("num_outputs", above=1, otherwise="on a single output", part="min_padding")


@dataclass(frozen=True, kw_only=True)
class Output(Settings, prefix="output."):
    """One thing the model answers: its queries, and what an answer becomes."""

    queries: Literal["learned", "positions", "tokens"] = "learned"
    """learned: an array of its own; positions: of a modality's elements; tokens: the modality's
    own tokens, content and positions."""
    length: Annotated[Count, LEARNED] = 1
    """learned: queries O; as many as the modality's elements when one is named."""
    dim: Annotated[Natural, LEARNED] = 0
    """learned: channels of a query."""
    modality: str = ""
    """positions and tokens: the modality that is spoken of. learned: the modality whose padding the
    queries share (byte outputs), or none."""
    positions: Annotated[PositionConfig, PLACED] = field(default_factory=PositionConfig)
    """positions: their kind, over the output's own grid."""
    patch: Annotated[tuple[Count, ...], ON_GRID] = ()
    """positions and tokens: elements per query along each axis; all one when empty. A conv head
    needs one."""
    sampled: Annotated[Literal["grid", "cell"], PLACED] = "grid"
    """positions: coordinates of a query, -1 to 1 with both ends, or -1 + 2 index / size, which
    never reaches 1; the released auto-encoder was trained with the latter."""
    channels: Natural = 0
    """Values per query (per element, with a patch); 0 gives the answer itself."""
    head: Literal["linear", "tanh_mlp", "tied", "conv"] = "linear"
    """linear; two layers with a tanh between (App. F.4); the transposed byte embedding; or
    transposed convolutions over the grid of answers, which make a patch of each."""
    mask_padding: bool = True
    """Queries of padded elements attend to nothing; the Hugging Face port lets them."""
    divide_by: Positive = 1.0
    """Values are divided by this (flow: 100)."""

    def __post_init__(self) -> None:
        """Reject contradictory settings."""
        super().__post_init__()
        if self.queries == "learned" and self.dim < 1:
            raise ConfigError(f"output.dim is {self.dim}; learned queries need at least 1")
        if self.queries != "learned" and not self.modality:
            raise ConfigError(f"{self.queries} queries need the modality they speak of")
        if self.queries == "positions" and self.positions.kind == "none":
            raise ConfigError("positions queries need positions: fourier or learned")
        if self.positions.combine != "concat":
            raise ConfigError(
                f"queries are their positions; combine={self.positions.combine!r} has nothing to "
                f"add them to"
            )
        if self.head == "tied" and self.channels:
            raise ConfigError("a tied head has as many channels as the vocabulary; leave them out")
        if not self.channels and (self.patch or self.head in {"tanh_mlp", "conv"}):
            raise ConfigError(
                f"output with patch={self.patch} and head={self.head!r} needs channels: values "
                f"per element"
            )
        if self.head == "conv":
            if self.queries == "learned":
                raise ConfigError(
                    "a conv head needs answers on the grid of a modality; learned queries have "
                    "none: ask with positions or tokens"
                )
            count_doublings(self.patch)


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(Settings, prefix="decoder."):
    """The one cross-attend with which all queries read the latents."""

    num_heads: Count = 1
    """Heads."""
    qk_dim: Count | None = None
    """Width of queries and keys; that of the latents when None."""
    v_dim: Count | None = None
    """Width of values; qk_dim when None."""
    residual: bool = False
    """Add the queries to what they read."""
    mlp_ratio: Count = 1
    """Hidden channels per channel after the cross-attend."""
    project: Natural = 0
    """Map every answer to this width by one Linear, which all outputs share, before the heads; 0
    does not."""
    min_padding: Natural = 2
    """Several outputs: channels of the smallest learned vector that pads a query."""
    chunk: Count = 16384
    """Queries that are alive at once; more are answered in chunks, which changes nothing else."""


@dataclass(frozen=True, kw_only=True)
class PerceiverIOConfig(Settings, prefix=""):
    """A complete Perceiver IO; variants are made with ``dataclasses.replace``."""

    inputs: Mapping[str, ModalitySpec]
    """Modalities by name."""
    trunk: TrunkConfig
    """The latent array."""
    outputs: Mapping[str, Output]
    """What the model answers, by name; one answer is returned bare."""
    tokens: Mapping[str, TokenConfig] = field(default_factory=dict)
    """How each modality becomes tokens; raw elements with Fourier positions where not given."""
    decoder: Annotated[DecoderConfig, ASKED_TOGETHER] = field(default_factory=DecoderConfig)
    """How the outputs read the latents."""
    min_padding: Annotated[Natural, JOINED] = 4
    """Several modalities: channels of the smallest learned vector that pads a token."""
    mask_tokens: Annotated[bool, JOINED] = False
    """Several modalities: make a mask token for each."""
    init: Literal["balanced", "paper"] = "balanced"
    """Learned positions, latents and queries of deviation 0.5, or (as released) 0.02."""

    def __post_init__(self) -> None:
        """Complete the tokens and reject contradictory settings."""
        super().__post_init__()
        tokens = complete_tokens(self.inputs, self.tokens)
        for name, value in (("inputs", self.inputs), ("tokens", tokens), ("outputs", self.outputs)):
            object.__setattr__(self, name, dict(value))
        if not self.outputs or any("." in name or not name for name in self.outputs):
            raise ConfigError(
                f"outputs are {list(self.outputs)}; a model needs at least one, with names without "
                f"dots"
            )
        for name, output in self.outputs.items():
            self._check_output(name, output)

    def _check_output(self, name: str, output: Output) -> None:
        if output.modality and output.modality not in self.inputs:
            raise ConfigError(
                f"output {name!r} speaks of {output.modality!r}, but the inputs are "
                f"{list(self.inputs)}" + suggest(output.modality, self.inputs)
            )
        spec = self.inputs.get(output.modality)
        if output.head == "tied" and (spec is None or spec.kind != "bytes"):
            raise ConfigError(f"output {name!r}: a tied head needs the modality of its bytes")
        if output.queries == "learned" and spec is not None and output.length != spec.num_tokens:
            raise ConfigError(
                f"output {name!r}: {output.length} learned queries share the padding of "
                f"{output.modality!r}, which has {spec.num_tokens} elements; make them as many, or "
                f"name no modality"
            )
        if output.patch and spec is not None:
            grid = self.answered_grid(output)
            if len(grid) != len(output.patch) or any(
                n % p for n, p in zip(grid, output.patch, strict=True)
            ):
                raise ConfigError(
                    f"output {name!r}: patch {output.patch} does not divide the grid {grid}"
                )

    def answered_grid(self, output: Output) -> tuple[int, ...]:
        """Return the grid of elements that an output speaks of, patches or not.

        Tokens that hold both frames of a pair are asked about one frame.
        """
        spec = self.inputs[output.modality]
        if output.queries != "tokens":
            return spec.grid
        return covered_grid(spec, self.tokens[output.modality])

    def grid(self, output: Output) -> tuple[int, ...]:
        """Return the grid of an output's queries: one per patch of the raw elements."""
        grid = self.answered_grid(output)
        patch = output.patch or (1,) * len(grid)
        return tuple(n // p for n, p in zip(grid, patch, strict=True))

    @property
    def num_inputs(self) -> int:
        """Modalities that are read together."""
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        """Outputs that queries of one width ask for."""
        return len(self.outputs)

    @property
    def data_inputs(self) -> dict[str, ModalitySpec]:
        """The modalities that a data set must bring; labels are those of the samples."""
        found = {n: s for n, s in self.inputs.items() if not isinstance(s, Labels)}
        return found or dict(self.inputs)

    @property
    def num_classes(self) -> int:
        """Logits of a classifier, which answers one learned query; 0 for other models."""
        outputs = list(self.outputs.values())
        single = len(outputs) == 1 and outputs[0].queries == "learned" and outputs[0].length == 1
        return outputs[0].channels if single else 0

    @property
    def byte_outputs(self) -> tuple[str, ...]:
        """The outputs that score every entry of the byte vocabulary, for each byte of a text."""
        return tuple(
            name
            for name, output in self.outputs.items()
            if isinstance(self.inputs.get(output.modality), Bytes)
            and (output.head == "tied" or output.channels == BYTE_VOCABULARY)
        )

    @property
    def num_queries(self) -> dict[str, int]:
        """Queries of the learned and the positions outputs, by name."""
        return {
            name: output.length if output.queries == "learned" else prod(self.grid(output))
            for name, output in self.outputs.items()
            if output.queries != "tokens"
        }

    def to_json(self) -> dict[str, Any]:
        """Return plain data; ``from_json`` restores it."""
        return config_to_json(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "PerceiverIOConfig":
        """Rebuild a config.

        Raises:
            ConfigError: A field is missing, unknown or invalid.
        """
        return config_from_json(cls, data, {"tokens": TokenConfig, "outputs": Output})
