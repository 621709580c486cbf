"""Attention maps of Perceiver, whose output is the mean of its latents.

Legend: N latents, M tokens.
"""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from perceivers.models.attention_maps import Answer, Explanation, Field
from perceivers.models.flat.attention import IDENTITY, trace
from perceivers.models.flat.trunk import Encoded
from perceivers.models.perceiver.model import Perceiver


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
    encoded: Encoded,
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
