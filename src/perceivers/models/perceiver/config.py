"""What a Perceiver is made of. Paper: Perceiver (arXiv 2103.03206) Sec. 3 and App. C."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from perceivers.adapters.config import TokenConfig
from perceivers.models.flat.config import complete_tokens, config_from_json, config_to_json
from perceivers.models.flat.trunk import TrunkConfig
from perceivers.settings import Natural, Settings, UsedIf
from perceivers.types import ModalitySpec

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
