"""Configuration of Perceiver IO: inputs and their tokens, the latent array, decoder and outputs.

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
from perceivers.models.flat.trunk import (
    TrunkConfig,
    complete_tokens,
    config_from_json,
    config_to_json,
)
from perceivers.settings import Count, Natural, Positive, Settings, UsedIf
from perceivers.types import BYTE_VOCABULARY, Bytes, Labels, ModalitySpec

LEARNED, PLACED = UsedIf("queries", "learned"), UsedIf("queries", "positions")
ON_GRID = UsedIf("queries", "positions", "tokens")
JOINED = UsedIf("num_inputs", above=1, otherwise="on a single modality")
ASKED_TOGETHER = UsedIf("num_outputs", above=1, otherwise="on a single output", part="min_padding")


@dataclass(frozen=True, kw_only=True)
class Output(Settings, prefix="output."):
    """One output of the model: its queries, and its head."""

    queries: Literal["learned", "positions", "tokens"] = "learned"
    """Queries: a learned array (learned), the position embeddings of a modality (positions), or the
    input tokens of a modality with content and positions (tokens)."""
    length: Annotated[Count, LEARNED] = 1
    """learned: number of queries O; with a modality, its number of elements."""
    dim: Annotated[Natural, LEARNED] = 0
    """learned: channels of a query."""
    modality: str = ""
    """positions and tokens: the modality to predict. learned: a modality whose padding also masks
    the queries (byte outputs), or none."""
    positions: Annotated[PositionConfig, PLACED] = field(default_factory=PositionConfig)
    """positions: kind of position embeddings, on the grid of the queries."""
    patch: Annotated[tuple[Count, ...], ON_GRID] = ()
    """positions and tokens: elements per query along each axis; 1 when empty. Required by a conv
    head."""
    sampled: Annotated[Literal["grid", "cell"], PLACED] = "grid"
    """positions: coordinates of the queries, from -1 to 1 inclusive (grid), or -1 + 2 index / size,
    which never reaches 1 (cell); the released multimodal autoencoder was trained with the
    latter."""
    channels: Natural = 0
    """Values per query (per element, with a patch); 0 returns the decoder output itself."""
    head: Literal["linear", "tanh_mlp", "tied", "conv"] = "linear"
    """Head: one linear layer (linear), two with a tanh between them (tanh_mlp, App. F.4), the
    transposed byte embedding (tied), or transposed convolutions over the grid of decoder outputs,
    each of which becomes a patch (conv)."""
    mask_padding: bool = True
    """Queries of padding attend to nothing; in the Hugging Face port they attend to the latents."""
    divide_by: Positive = 1.0
    """Divisor of the values (flow: 100)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.queries == "learned" and self.dim < 1:
            raise ConfigError(f"output.dim is {self.dim}; learned queries need at least 1")
        if self.queries != "learned" and not self.modality:
            raise ConfigError(f"{self.queries} queries need a modality; set output.modality")
        if self.queries == "positions" and self.positions.kind == "none":
            raise ConfigError("positions queries need positions: fourier or learned")
        if self.positions.combine != "concat":
            raise ConfigError(
                f"queries are position embeddings alone; combine={self.positions.combine!r} has no "
                f"content to add them to"
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
                    "a conv head needs queries on the grid of a modality; learned queries have no "
                    "grid: use queries='positions' or 'tokens'"
                )
            count_doublings(self.patch)


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(Settings, prefix="decoder."):
    """Cross-attention from the queries of all outputs to the latents."""

    num_heads: Count = 1
    """Attention heads."""
    qk_dim: Count | None = None
    """Width of queries and keys; that of the latents when None."""
    v_dim: Count | None = None
    """Width of values; qk_dim when None."""
    residual: bool = False
    """Use a residual connection around cross-attention."""
    mlp_ratio: Count = 1
    """MLP expansion ratio after cross-attention."""
    project: Natural = 0
    """Project decoder outputs to this width before the heads, with one linear layer for all
    outputs; 0: no projection."""
    min_padding: Natural = 2
    """Several outputs: minimum number of learned channels that pad a query."""
    chunk: Count = 16384
    """Maximum number of queries in memory; more are decoded in chunks, with the same result."""


@dataclass(frozen=True, kw_only=True)
class PerceiverIOConfig(Settings, prefix=""):
    """Configuration of a Perceiver IO; use ``dataclasses.replace`` to change fields."""

    inputs: Mapping[str, ModalitySpec]
    """Modalities by name."""
    trunk: TrunkConfig
    """The latent array."""
    outputs: Mapping[str, Output]
    """Outputs by name; a model with one output returns a tensor instead of a dict."""
    tokens: Mapping[str, TokenConfig] = field(default_factory=dict)
    """How each modality is converted to tokens; by default raw elements with Fourier positions."""
    decoder: Annotated[DecoderConfig, ASKED_TOGETHER] = field(default_factory=DecoderConfig)
    """Cross-attention from queries to latents."""
    min_padding: Annotated[Natural, JOINED] = 4
    """Several modalities: minimum number of learned channels that pad a token."""
    mask_tokens: Annotated[bool, JOINED] = False
    """Several modalities: learn a mask token for each."""
    init: Literal["balanced", "paper"] = "balanced"
    """Standard deviation of learned positions, latents and queries: 0.5 (balanced), or 0.02 as
    released (paper)."""

    def __post_init__(self) -> None:
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
                f"output {name!r} has the modality {output.modality!r}, but the inputs are "
                f"{list(self.inputs)}" + suggest(output.modality, self.inputs)
            )
        spec = self.inputs.get(output.modality)
        if output.head == "tied" and (spec is None or spec.kind != "bytes"):
            raise ConfigError(f"output {name!r}: a tied head needs the modality of its bytes")
        if output.queries == "learned" and spec is not None and output.length != spec.num_tokens:
            raise ConfigError(
                f"output {name!r}: {output.length} learned queries share the padding of "
                f"{output.modality!r}, which has {spec.num_tokens} elements; set length to that "
                f"number, or leave modality out"
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
        """Return the grid of elements that an output predicts, before division into patches.

        For tokens that contain both frames of a pair, this is the grid of one frame.
        """
        spec = self.inputs[output.modality]
        if output.queries != "tokens":
            return spec.grid
        return covered_grid(spec, self.tokens[output.modality])

    def grid(self, output: Output) -> tuple[int, ...]:
        """Return the grid of the queries of an output: one query per patch."""
        grid = self.answered_grid(output)
        patch = output.patch or (1,) * len(grid)
        return tuple(n // p for n, p in zip(grid, patch, strict=True))

    @property
    def num_inputs(self) -> int:
        """Number of input modalities."""
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        """Number of outputs."""
        return len(self.outputs)

    @property
    def data_inputs(self) -> dict[str, ModalitySpec]:
        """Modalities that the data set must provide; labels are taken from the samples."""
        found = {n: s for n, s in self.inputs.items() if not isinstance(s, Labels)}
        return found or dict(self.inputs)

    @property
    def num_classes(self) -> int:
        """Number of classes of a classifier (one learned query); 0 for other models."""
        outputs = list(self.outputs.values())
        single = len(outputs) == 1 and outputs[0].queries == "learned" and outputs[0].length == 1
        return outputs[0].channels if single else 0

    @property
    def byte_outputs(self) -> tuple[str, ...]:
        """Names of the outputs with scores over the byte vocabulary for each byte of a text."""
        return tuple(
            name
            for name, output in self.outputs.items()
            if isinstance(self.inputs.get(output.modality), Bytes)
            and (output.head == "tied" or output.channels == BYTE_VOCABULARY)
        )

    @property
    def num_queries(self) -> dict[str, int]:
        """Number of queries by output; outputs with ``tokens`` queries are left out."""
        return {
            name: output.length if output.queries == "learned" else prod(self.grid(output))
            for name, output in self.outputs.items()
            if output.queries != "tokens"
        }

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-serialisable data; ``from_json`` is the inverse."""
        return config_to_json(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "PerceiverIOConfig":
        """Rebuild a config from the output of ``to_json``.

        Raises:
            ConfigError: A field is missing, unknown or invalid.
        """
        return config_from_json(cls, data, {"tokens": TokenConfig, "outputs": Output})
