"""The Perceiver: a latent array with repeated cross-attention to the inputs, and a mean head.

The latent array is the trunk in ``models/flat``, shared with Perceiver IO.

Legend: B batch, N latents, D their channels, K outputs.
Paper: Perceiver (arXiv 2103.03206); docs/perceiver.md maps its sections to this folder.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from perceivers.adapters.config import TokenConfig
from perceivers.adapters.multimodal import TokenReaders
from perceivers.models.attention_maps import Answer, Explanation, Field
from perceivers.models.flat.attention import IDENTITY, trace
from perceivers.models.flat.trunk import (
    FlatModel,
    Trunk,
    TrunkConfig,
    TrunkEncoded,
    carry_tables,
    check_resizable,
    complete_tokens,
    config_from_json,
    config_to_json,
    initialise,
    pin_tokens,
    token_tables,
)
from perceivers.nn.blocks import Read, SelfAttentionLayer
from perceivers.nn.linear import Linear
from perceivers.settings import Natural, Settings, UsedIf, change
from perceivers.types import ModalitySpec

# -- Configuration. Paper: Perceiver (arXiv 2103.03206) Sec. 3 and App. C ------------------------

JOINED = UsedIf("num_inputs", above=1, otherwise="on a single modality")


@dataclass(frozen=True, kw_only=True)
class PerceiverConfig(Settings, prefix=""):
    """Configuration of a Perceiver; use ``dataclasses.replace`` to change fields."""

    inputs: Mapping[str, ModalitySpec]
    """Modalities by name."""
    trunk: TrunkConfig
    """The latent array, its cross-attention, and weight sharing."""
    num_outputs: Natural
    """Size K of the output computed from the mean of the latents; 0 returns the mean itself."""
    tokens: Mapping[str, TokenConfig] = field(default_factory=dict)
    """How each modality is converted to tokens; by default raw elements with Fourier positions."""
    min_padding: Annotated[Natural, JOINED] = 4
    """Several modalities: minimum number of learned channels that pad a token."""
    mask_tokens: Annotated[bool, JOINED] = False
    """Several modalities: learn a mask token for each."""
    init: Literal["balanced", "paper"] = "balanced"
    """Standard deviation of learned positions and latents: 0.5 for both (balanced), or 1 and 0.02
    as in the paper."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "tokens", complete_tokens(self.inputs, self.tokens))
        object.__setattr__(self, "inputs", dict(self.inputs))

    @property
    def num_inputs(self) -> int:
        """Number of modalities."""
        return len(self.inputs)

    @property
    def data_inputs(self) -> dict[str, ModalitySpec]:
        """Modalities that the data set must provide."""
        return dict(self.inputs)

    @property
    def num_classes(self) -> int:
        """Number of outputs, which are the logits of a classifier."""
        return self.num_outputs

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-serialisable data; ``from_json`` is the inverse."""
        return config_to_json(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "PerceiverConfig":
        """Rebuild a config from the output of ``to_json``.

        Raises:
            ConfigError: A field is missing, unknown or invalid.
        """
        return config_from_json(cls, data, {"tokens": TokenConfig})


# -- Model ---------------------------------------------------------------------------------------

# Standard deviation of learned pixel positions with init="paper" (Table 2 of the paper).
POSITION_SIGMA = 1.0


class Perceiver(FlatModel):
    """The original Perceiver for any modalities.

    Calling it returns ``[B, K]``: a linear layer applied to the mean of the latents (in this order;
    the first version of the paper averaged logits).

    Args:
        config: The full configuration.
    """

    family = "perceiver"
    # Fine-tuning transfers everything up to the latents.
    core = ("inputs.", "trunk.")
    repeated = (Read, SelfAttentionLayer)
    config: PerceiverConfig

    def __init__(self, config: PerceiverConfig) -> None:
        super().__init__()
        self.config = config
        self.inputs = TokenReaders(
            config.inputs,
            config.tokens,
            min_padding=config.min_padding,
            mask_tokens=config.mask_tokens,
        )
        self.trunk = Trunk(config.trunk, self.inputs.dim)
        dim, outputs = config.trunk.latent_dim, config.num_outputs
        self.head = Linear(dim, outputs) if outputs else None
        self.init_weights()

    def init_weights(self) -> None:
        """Initialise every parameter as listed in ``models/flat/trunk.py``; the head is zero."""
        initialise(self, self.config.init, position_sigma=POSITION_SIGMA)
        if self.head is not None:
            nn.init.zeros_(self.head.weight)

    def forward(
        self,
        inputs: Mapping[str, Tensor] | Tensor,
        *,
        valid: Mapping[str, Tensor] | None = None,
        present: Mapping[str, Tensor] | None = None,
    ) -> Float[Tensor, "B K"]:
        """Return logits.

        Args:
            inputs: Raw tensors by modality name; a single tensor if there is one modality.
            valid: Tokens that may be attended to, bool ``[B, M]``, by modality.
            present: Samples in which a modality is present, bool ``[B]``, by modality; all by
                default. The values in ``inputs`` for other samples are ignored.

        Raises:
            InputError: An input or a mask is unknown or has a wrong shape, or there is no input.
        """
        pooled = self.forward_features(inputs, valid=valid, present=present).latents.mean(1)
        return pooled if self.head is None else self.head(pooled)

    def forward_features(
        self,
        inputs: Mapping[str, Tensor] | Tensor,
        *,
        valid: Mapping[str, Tensor] | None = None,
        present: Mapping[str, Tensor] | None = None,
    ) -> TrunkEncoded:
        """Return the latents and the tokens that they attended to; arguments as in ``forward``."""
        dtype = self.trunk.latents.dtype
        given = self.as_dict(inputs)
        tokens = self.inputs(given, valid=valid, present=present, dtype=dtype)
        return TrunkEncoded(latents=self.trunk(tokens.array, tokens.valid), tokens=tokens)

    def resized(self, inputs: Mapping[str, ModalitySpec]) -> "Perceiver":
        """Return a copy for other input sizes, with learned positions interpolated.

        Raises:
            ConfigError: The modalities, their kinds or their channels differ.
        """
        check_resizable(self.config.inputs, inputs)
        tokens = pin_tokens(self.config.tokens, self.inputs)
        model = type(self)(change(self.config, inputs=inputs, tokens=tokens)).to(
            next(self.parameters())
        )
        grids = token_tables(inputs, self.inputs, model.inputs)
        model.load_state_dict(carry_tables(self.state_dict(), grids))
        return model.train(self.training)


# -- Attention maps: the output is the mean of the latents ---------------------------------------
#
# Legend: N latents, M tokens.


def read_attention(
    model: Perceiver, inputs: Mapping[str, Tensor], *, head: str | int, latents: int
) -> Explanation:
    """Return the attention maps of one sample; see ``perceivers.models.flat.attention.trace``."""
    return trace(
        model,
        inputs,
        encode=model.forward_features,
        answer=lambda *found: _answer_mean(model, *found),
        head=head,
        latents=latents,
    )


def _answer_mean(
    model: Perceiver,
    inputs: Mapping[str, Tensor],
    encoded: TrunkEncoded,
    inward: Float[Tensor, "N M"],
    field: Field,
) -> tuple[tuple[Answer, ...], str]:
    if model.head is None:
        return (), "This model returns the mean of its latents; there is no output to trace back."
    values = model.head(encoded.latents.mean(1))[0].float()
    found = field.map("the output", inward.mean(0, keepdim=True))
    route = f"The output uses the mean of all latents, so all have equal weight; {IDENTITY}."
    reads = model.config.trunk.num_reads
    if reads > 1:
        route += f" The {reads} reads are averaged: attention does not show which one mattered."
    return (Answer("", values, found),), route
