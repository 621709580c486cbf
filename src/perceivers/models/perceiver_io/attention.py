"""Attention maps of Perceiver IO: the inputs that output queries depend on.

Legend: N latents, M tokens, O queries, K values.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from perceivers.models.attention_maps import Answer, Explanation, Field, record
from perceivers.models.flat.attention import IDENTITY, trace
from perceivers.models.flat.trunk import TrunkEncoded
from perceivers.models.perceiver_io.model import PerceiverIO
from perceivers.types import MASK, Labels

# Hidden bytes of one text that are traced back.
MAX_MASKED = 6


def read_attention(
    model: PerceiverIO, inputs: Mapping[str, Tensor], *, head: str | int, latents: int
) -> Explanation:
    """Return the attention maps of one sample; see ``perceivers.models.flat.attention.trace``."""
    return trace(
        model,
        inputs,
        encode=lambda raw: encode_blind(model, raw),
        answer=lambda *found: _answer_queries(model, *found),
        head=head,
        latents=latents,
    )


def encode_blind(body: PerceiverIO, inputs: Mapping[str, Tensor]) -> TrunkEncoded:
    """Encode with labels hidden, as in evaluation: by mask token if there is one, else unknown."""
    given, hidden = dict(inputs), {}
    size = next(iter(inputs.values())).shape[0]
    for name, spec in body.config.inputs.items():
        if not isinstance(spec, Labels) or name in given:
            continue
        masked = name in body.inputs.mask
        given[name] = torch.full((size, *spec.raw_shape), 0 if masked else -1, dtype=torch.int64)
        if masked:
            hidden[name] = torch.ones(size, spec.num_tokens, dtype=torch.bool)
    return body.encode(given, hidden=hidden)


def _answer_queries(
    model: PerceiverIO,
    inputs: Mapping[str, Tensor],
    encoded: TrunkEncoded,
    inward: Float[Tensor, "N M"],
    field: Field,
) -> tuple[tuple[Answer, ...], str]:
    answers = []
    for name, output in model.config.outputs.items():
        if output.modality and output.modality not in encoded.tokens.parts:
            continue
        queries = choose_queries(model, name, inputs, encoded)
        with_place = bool(output.modality)
        grid = model.query_grid(name) if with_place else ()
        values = model.decode(encoded, name, ids=torch.tensor(queries))[0].float()
        weights = query_weights(model, encoded, name, queries)
        for index, value, outward in zip(queries, values, weights, strict=True):
            cell = torch.unravel_index(torch.tensor(index), grid) if grid else ()
            place = tuple((int(c) + 0.5) / size for c, size in zip(cell, grid, strict=True))
            found = field.map(name, outward @ inward)
            answers.append(Answer(name, value, found, output.modality, index, place))
    route = (
        f"Attention of the output query to the latents (mean of heads), times attention of the "
        f"latents to the input; {IDENTITY}."
    )
    if model.config.trunk.num_reads > 1:
        route += " Several reads are averaged: attention does not show which one mattered."
    return tuple(answers), route


def choose_queries(
    model: PerceiverIO, name: str, inputs: Mapping[str, Tensor], encoded: TrunkEncoded
) -> list[int]:
    """Choose the queries to trace back: those of hidden bytes, otherwise the middle valid query."""
    output = model.config.outputs[name]
    total = model.num_queries(name)
    if name in model.config.byte_outputs:
        hidden = (inputs[output.modality][0].flatten() == MASK).nonzero().flatten().tolist()
        if hidden:
            return hidden[:MAX_MASKED]
    if not output.modality:
        return [total // 2]
    real = encoded.tokens.real.get(output.modality)
    if real is not None and real.shape[1] == total:
        places = real[0].nonzero().flatten().tolist()
        return [places[len(places) // 2]]
    grid = model.query_grid(name)
    index = 0
    for size in grid:
        index = index * size + size // 2
    return [index]


def query_weights(
    body: PerceiverIO, encoded: TrunkEncoded, name: str, queries: list[int]
) -> Float[Tensor, "O 1 N"]:
    """Return the attention of some queries to the latents, averaged over heads."""
    attention: nn.Module = body.decoder.read.attention
    ids: Any = torch.tensor(queries)
    with record(body, [attention]) as recorded:
        body.decode(encoded, name, ids=ids)
    joined = torch.cat([weights[0].mean(0) for weights in recorded.of([attention])])  # [O, N]
    if body.config.outputs[name].head == "conv":  # it decodes the whole grid
        joined = joined[ids.to(joined.device)]
    return joined.unsqueeze(1)
