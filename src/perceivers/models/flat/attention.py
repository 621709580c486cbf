"""Attention maps of flat models: what the latents read, and which tokens an output depends on.

An output is traced back as in attention rollout: the attention of its query to the latents times
the attention of the latents to the tokens. The self-attention in between is taken as the
identity, that is, each latent is assumed to carry only what it read itself. What the output is,
each family knows itself.

Legend: H heads, N latents, M tokens.
"""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from perceivers.adapters.multimodal import Tokens
from perceivers.models.attention_maps import (
    Answer,
    Explanation,
    Field,
    ReadMaps,
    check_head,
    check_scores,
    choose_heads,
    record,
    rollout_heads,
    say_heads,
    single_out,
)
from perceivers.models.flat.trunk import TrunkEncoded

IDENTITY = (
    "the self-attention in between is taken as the identity, as if each latent carried only what "
    "it read itself"
)
# The output of one sample and its route, from its inputs, encoding, attention [N, M] and layout.
AnswerOf = Callable[
    [Mapping[str, Tensor], TrunkEncoded, Tensor, Field], tuple[tuple[Answer, ...], str]
]


def trace(
    body: Any,
    inputs: Mapping[str, Tensor],
    *,
    encode: Callable[[Mapping[str, Tensor]], TrunkEncoded],
    answer: AnswerOf,
    head: str | int,
    latents: int,
) -> Explanation:
    """Return the attention maps of one sample.

    Args:
        body: A model with a trunk and readers of tokens, in evaluation mode.
        inputs: Raw tensors ``[1, ...]`` by name.
        encode: Encodes the sample; the attention of this call is recorded.
        answer: Traces the family's output back to the tokens.
        head: Heads of the reads: ``mean``, ``all`` or a number. Outputs are traced back through
            the mean of the heads, or through the chosen head.
        latents: Number of single latents to show per read and head.

    Raises:
        UserError: The head does not exist, or the maps do not fit into memory.
    """
    config = body.config.trunk
    hidden = [
        n for n, spec in body.config.inputs.items() if n not in inputs and spec.kind == "labels"
    ]
    tokens = sum(body.inputs.num_tokens[name] for name in (*inputs, *hidden))
    check_head(head, config.num_cross_heads)
    check_scores(
        {
            "reads": config.num_reads,
            "heads": config.num_cross_heads,
            "latents": config.num_latents,
            "tokens": tokens,
        }
    )
    attentions = [m.get_submodule("attention") for m in body.trunk.reads]
    with record(body, attentions) as recorded:
        encoded = encode(inputs)
    field = token_field(body, encoded.tokens)
    weights = recorded.of(attentions)
    reads = []
    for number, each in enumerate(weights, 1):
        for words, chosen in choose_heads(each, head):
            title = "Latents to input" if len(weights) == 1 else f"Read {number} of {len(weights)}"
            title = f"{title}, {words}" if words else title
            reads.append(ReadMaps(title, single_out(chosen, field, latents)))
    # Each read contributes alike: how much of it survives later reads is unknown.
    inward = torch.zeros_like(weights[0][0, 0])  # [N, M]
    for each in weights:
        inward += rollout_heads(each, head)[0] / len(weights)
    answers, route = answer(inputs, encoded, inward, field)
    route += say_heads(head, config.num_cross_heads) if answers else ""
    return Explanation(tuple(reads), answers, route)


def token_field(body: Any, tokens: Tokens) -> Field:
    """Describe the token array of a sample: which tokens are valid, and their modalities."""
    grids = {name: body.inputs.reader(name).grid for name in tokens.parts}
    sizes = [prod(grid) for grid in grids.values()]
    count = tokens.array.shape[1]
    real = torch.ones(1, count, dtype=torch.bool) if tokens.valid is None else tokens.valid[:1]

    def unfold(values: Float[Tensor, "1 M"]) -> dict[str, Tensor]:
        parts = values[0].split(sizes)
        return {
            name: part.unflatten(0, grid)
            for (name, grid), part in zip(grids.items(), parts, strict=True)
        }

    return Field(real.cpu(), unfold)
