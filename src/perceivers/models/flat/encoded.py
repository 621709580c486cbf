"""What the trunk of a flat system leaves behind.

Legend: B batch, N latents, D their channels.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from perceivers.adapters.multimodal import Tokens


@dataclass(frozen=True)
class Encoded:
    """The latents, and what they read.

    Attributes:
        latents: ``[B, N, D]``.
        tokens: What was read; queries made of tokens need it.
    """

    latents: Float[Tensor, "B N D"]
    tokens: Tokens
