"""What a Perceiver IO is made of: inputs, how they become tokens, the latent array, the outputs.

Paper: Perceiver IO (arXiv 2107.14795) Sec. 3, Fig. 3 (queries) and the tables of App. E.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

from perceivers.adapters.config import (
    PositionConfig,
    TokenConfig,
    check_choices,
    check_unused,
    covered_grid,
)
from perceivers.adapters.upsampling import count_doublings
from perceivers.errors import ConfigError, suggest
from perceivers.models.flat.config import complete_tokens, config_from_json, config_to_json
from perceivers.models.flat.trunk import TrunkConfig
from perceivers.types import BYTE_VOCABULARY, Bytes, Labels, ModalitySpec


@dataclass(frozen=True, kw_only=True)
class Output:
    """One thing the model answers: its queries, and what an answer becomes."""

    queries: Literal["learned", "positions", "tokens"] = "learned"
    """learned: an array of its own; positions: of a modality's elements; tokens: the modality's
    own tokens, content and positions."""
    length: int = 1
    """learned: queries O; as many as the modality's elements when one is named."""
    dim: int = 0
    """learned: channels of a query."""
    modality: str = ""
    """positions and tokens: the modality that is spoken of. learned: the modality whose padding the
    queries share (byte outputs), or none."""
    positions: PositionConfig = field(default_factory=PositionConfig)
    """positions: their kind, over the output's own grid."""
    patch: tuple[int, ...] = ()
    """positions and tokens: elements per query along each axis; all one when empty. A conv head
    needs one."""
    sampled: Literal["grid", "cell"] = "grid"
    """positions: coordinates of a query, -1 to 1 with both ends, or -1 + 2 index / size, which
    never reaches 1; the released auto-encoder was trained with the latter."""
    channels: int = 0
    """Values per query (per element, with a patch); 0 gives the answer itself."""
    head: Literal["linear", "tanh_mlp", "tied", "conv"] = "linear"
    """linear; two layers with a tanh between (App. F.4); the transposed byte embedding; or
    transposed convolutions over the grid of answers, which make a patch of each."""
    mask_padding: bool = True
    """Queries of padded elements attend to nothing; the Hugging Face port lets them."""
    divide_by: float = 1.0
    """Values are divided by this (flow: 100)."""

    def __post_init__(self) -> None:
        """Reject contradictory settings."""
        check_choices(self)
        object.__setattr__(self, "patch", tuple(self.patch))
        if self.queries == "learned" and (self.length < 1 or self.dim < 1):
            raise ConfigError(
                f"learned queries need length and dim of at least 1, got {self.length} and "
                f"{self.dim}"
            )
        if self.queries != "learned" and not self.modality:
            raise ConfigError(f"{self.queries} queries need the modality they speak of")
        if self.queries == "positions" and self.positions.kind == "none":
            raise ConfigError("positions queries need positions: fourier or learned")
        if self.positions.combine != "concat":
            raise ConfigError(
                f"queries are their positions; combine={self.positions.combine!r} has nothing to "
                f"add them to"
            )
        if any(size < 1 for size in self.patch):
            raise ConfigError(f"output patch {self.patch} must be at least 1 along every axis")
        if self.channels < 0 or self.divide_by <= 0:
            raise ConfigError(
                f"output channels={self.channels} must not be negative and divide_by="
                f"{self.divide_by} must be positive"
            )
        if self.head == "tied" and self.channels:
            raise ConfigError("a tied head has as many channels as the vocabulary; leave them out")
        if not self.channels and (self.patch or self.head in {"tanh_mlp", "conv"}):
            raise ConfigError(
                f"output with patch={self.patch} and head={self.head!r} needs channels: values "
                f"per element"
            )
        if self.queries != "positions" and self.positions != PositionConfig():
            raise ConfigError(
                f"{self.queries} queries have no positions of their own; leave them out"
            )
        check_unused(self, f"an output with {self.queries} queries", self._unused)
        if self.head == "conv":
            if self.queries == "learned":
                raise ConfigError(
                    "a conv head needs answers on the grid of a modality; learned queries have "
                    "none: ask with positions or tokens"
                )
            count_doublings(self.patch)

    @property
    def _unused(self) -> tuple[str, ...]:
        if self.queries == "learned":
            return ("sampled", "patch")
        return ("length", "dim", *(("sampled",) if self.queries == "tokens" else ()))


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The one cross-attend with which all queries read the latents."""

    num_heads: int = 1
    """Heads."""
    qk_dim: int | None = None
    """Width of queries and keys; that of the latents when None."""
    v_dim: int | None = None
    """Width of values; qk_dim when None."""
    residual: bool = False
    """Add the queries to what they read."""
    mlp_ratio: int = 1
    """Hidden channels per channel after the cross-attend."""
    project: int = 0
    """Several outputs: map every answer to this width by one Linear before the heads; 0 does
    not."""
    min_padding: int = 2
    """Several outputs: channels of the smallest learned vector that pads a query."""
    chunk: int = 16384
    """Queries that are alive at once; more are answered in chunks, which changes nothing else."""

    def __post_init__(self) -> None:
        """Reject sizes below one."""
        least = dict.fromkeys(("num_heads", "mlp_ratio", "chunk", "qk_dim", "v_dim"), 1)
        for name, value in {**least, "project": 0, "min_padding": 0}.items():
            found = getattr(self, name)
            if found is not None and found < value:
                raise ConfigError(f"decoder {name} is {found}; it must be at least {value}")


@dataclass(frozen=True, kw_only=True)
class PerceiverIOConfig:
    """A complete Perceiver IO; variants are made with ``dataclasses.replace``."""

    inputs: Mapping[str, ModalitySpec]
    """Modalities by name."""
    trunk: TrunkConfig
    """The latent array."""
    outputs: Mapping[str, Output]
    """What the model answers, by name; one answer is returned bare."""
    tokens: Mapping[str, TokenConfig] = field(default_factory=dict)
    """How each modality becomes tokens; raw elements with Fourier positions where not given."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """How the outputs read the latents."""
    min_padding: int = 4
    """Several modalities: channels of the smallest learned vector that pads a token."""
    mask_tokens: bool = False
    """Several modalities: make a mask token for each."""
    init: Literal["balanced", "paper"] = "balanced"
    """Learned positions, latents and queries of deviation 0.5, or (as released) 0.02."""

    def __post_init__(self) -> None:
        """Complete the tokens and reject contradictory settings."""
        check_choices(self)
        tokens = complete_tokens(self.inputs, self.tokens)
        for name, value in (("inputs", self.inputs), ("tokens", tokens), ("outputs", self.outputs)):
            object.__setattr__(self, name, dict(value))
        if not self.outputs or any("." in name or not name for name in self.outputs):
            raise ConfigError(
                f"outputs are {list(self.outputs)}; a model needs at least one, with names without "
                f"dots"
            )
        if self.min_padding < 0:
            raise ConfigError(f"min_padding={self.min_padding} must not be negative")
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
