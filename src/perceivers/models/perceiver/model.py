"""The Perceiver: a small latent array reads a large input array again and again; its mean answers.

Legend: B batch, N latents, D their channels, K outputs.
Paper: Perceiver (arXiv 2103.03206); docs/perceiver.md maps its sections to this folder.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from perceivers.adapters import ElementAdapter
from perceivers.adapters.config import TokenConfig
from perceivers.adapters.multimodal import TokenReaders
from perceivers.models.base import SavedModule
from perceivers.models.flat.config import complete_tokens, config_from_json, config_to_json
from perceivers.models.flat.trunk import (
    Encoded,
    Trunk,
    TrunkConfig,
    carry_tables,
    check_resizable,
    flat_layer_depths,
    initialise,
    pin_tokens,
    token_tables,
)
from perceivers.nn.blocks import Read, SelfAttentionLayer
from perceivers.nn.linear import Linear
from perceivers.settings import Natural, Settings, UsedIf, change
from perceivers.types import ModalitySpec

# -- What a Perceiver is made of. Paper: Perceiver (arXiv 2103.03206) Sec. 3 and App. C ----------

JOINED = UsedIf("num_inputs", above=1, otherwise="on a single modality")


@dataclass(frozen=True, kw_only=True)
class PerceiverConfig(Settings, prefix=""):
    """A complete Perceiver; variants are made with ``dataclasses.replace``."""

    inputs: Mapping[str, ModalitySpec]
    """Modalities by name."""
    trunk: TrunkConfig
    """The latent array, how often it reads, and what is shared."""
    num_outputs: Natural
    """Values K that the mean of the latents becomes; 0 returns the mean itself."""
    tokens: Mapping[str, TokenConfig] = field(default_factory=dict)
    """How each modality becomes tokens; raw elements with Fourier positions where not given."""
    min_padding: Annotated[Natural, JOINED] = 4
    """Several modalities: channels of the smallest learned vector that pads a token."""
    mask_tokens: Annotated[bool, JOINED] = False
    """Several modalities: make a mask token for each."""
    init: Literal["balanced", "paper"] = "balanced"
    """Learned positions and latents of deviation 0.5; or the paper's: 1 and 0.02."""

    def __post_init__(self) -> None:
        """Complete the tokens and reject contradictory settings."""
        super().__post_init__()
        object.__setattr__(self, "tokens", complete_tokens(self.inputs, self.tokens))
        object.__setattr__(self, "inputs", dict(self.inputs))

    @property
    def num_inputs(self) -> int:
        """Modalities that are read together."""
        return len(self.inputs)

    @property
    def data_inputs(self) -> dict[str, ModalitySpec]:
        """The modalities that a data set must bring."""
        return dict(self.inputs)

    @property
    def num_classes(self) -> int:
        """Logits."""
        return self.num_outputs

    def to_json(self) -> dict[str, Any]:
        """Return plain data; ``from_json`` restores it."""
        return config_to_json(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "PerceiverConfig":
        """Rebuild a config.

        Raises:
            ConfigError: A field is missing, unknown or invalid.
        """
        return config_from_json(cls, data, {"tokens": TokenConfig})


# -- The Perceiver -------------------------------------------------------------------------------

# Learned pixel positions of the paper's Table 2.
POSITION_SIGMA = 1.0


class Perceiver(SavedModule):
    """The original Perceiver for any modalities.

    Calling it returns ``[B, K]``: the mean of the latents, then a Linear (in this order; the first
    version of the paper averaged logits). One bare tensor is accepted when there is one modality.

    Args:
        config: The complete description.
    """

    family = "perceiver"
    # What fine-tuning carries over: everything up to the latents.
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
        """Initialise every parameter; ``models/flat/trunk.py`` lists how; the head is zero."""
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
            inputs: Raw tensors by name, or one bare tensor.
            valid: Which tokens may be attended to ``[B, M]``, by modality.
            present: Which samples hold a modality, bool ``[B]``, by name; all where not given. What
                stands in ``inputs`` where a sample has none is not looked at.

        Raises:
            InputError: An input or a mask is unknown or misshapen, or nothing was given.
        """
        pooled = self.forward_features(inputs, valid=valid, present=present).latents.mean(1)
        return pooled if self.head is None else self.head(pooled)

    def forward_features(
        self,
        inputs: Mapping[str, Tensor] | Tensor,
        *,
        valid: Mapping[str, Tensor] | None = None,
        present: Mapping[str, Tensor] | None = None,
    ) -> Encoded:
        """Return the latents and the tokens they read."""
        dtype = self.trunk.latents.dtype
        given = self.as_dict(inputs)
        tokens = self.inputs(given, valid=valid, present=present, dtype=dtype)
        return Encoded(latents=self.trunk(tokens.array, tokens.valid), tokens=tokens)

    def adapter(self, name: str) -> ElementAdapter:
        """Return the adapter of a modality."""
        return self.inputs.reader(name).adapter

    def layer_depths(self) -> dict[str, int]:
        """Return a depth per parameter, for layer-wise learning rates: inputs 0, the head last."""
        return flat_layer_depths(self, self.trunk)

    def set_recompute(self, on: bool = True) -> None:
        """Recompute the trunk's layers in the backward pass: less memory, more time."""
        self.trunk.recompute = on

    def resized(self, inputs: Mapping[str, ModalitySpec]) -> "Perceiver":
        """Return a copy for other input sizes: learned positions are interpolated on their grid.

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
