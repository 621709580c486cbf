"""Read-outs other than the reconstruction: classes from the processor, values per element.

Legend: B batch, N latents of the processor, C channels, K outputs.
Paper: HiP (arXiv 2202.10890) Sec. 4 uses the encoder alone for classification but does not say how
it pools; the query head is Perceiver IO's decoder (arXiv 2107.14795) with one learned query.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from perceivers.models.hip.config import HiPConfig
from perceivers.nn.blocks import Read
from perceivers.nn.linear import Linear


class QueryHead(nn.Module):
    """One learned query reads the processor's latents; a Linear gives the logits."""

    def __init__(self, config: HiPConfig) -> None:
        super().__init__()
        dim = config.levels[config.processor].latent_dim
        self.query = nn.Parameter(torch.zeros(1, dim))
        self.read = Read(query_dim=dim, token_dim=dim, activation=config.activation, residual=False)
        self.logits = Linear(dim, config.head.num_outputs)

    def forward(self, latents: Float[Tensor, "B 1 N C"]) -> Float[Tensor, "B K"]:
        """Return logits."""
        return self.logits(self.read(self.query[None, None], latents)).flatten(1)


class MeanHead(nn.Module):
    """The normalised mean of the processor's latents; a Linear gives the logits."""

    def __init__(self, config: HiPConfig) -> None:
        super().__init__()
        dim = config.levels[config.processor].latent_dim
        self.norm = nn.LayerNorm(dim)
        self.logits = Linear(dim, config.head.num_outputs)

    def forward(self, latents: Float[Tensor, "B 1 N C"]) -> Float[Tensor, "B K"]:
        """Return logits."""
        return self.logits(self.norm(latents).mean((1, 2)))
