"""What the flat systems read of a sample: Perceiver, Perceiver IO and entity sets.

An answer is followed back as attention roll-out does: the attention of its query to the latents
times the attention of the latents to the tokens. The self-attention between is taken as the
identity: every latent is taken to carry what it read itself.

Legend: H heads, N latents, M tokens, O queries, K values.
"""

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from perceivers.adapters.multimodal import Tokens
from perceivers.models.entity_set import EntitySet
from perceivers.models.flat.trunk import Encoded
from perceivers.models.perceiver import Perceiver
from perceivers.models.perceiver_io import PerceiverIO
from perceivers.types import MASK, Labels
from perceivers.workflows.attention_maps import (
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

# Hidden bytes of one text that are followed back.
MAX_MASKED = 6
IDENTITY = (
    "the self-attention between is taken as the identity, as if every latent kept just what it read"
)


def read_flat(
    model: Perceiver | PerceiverIO | EntitySet,
    inputs: Mapping[str, Tensor],
    *,
    head: str | int,
    latents: int,
) -> Explanation:
    """Return the maps of one sample.

    Args:
        model: In evaluation mode.
        inputs: Raw tensors ``[1, ...]`` by name.
        head: Heads of the reads: ``mean``, ``all`` or a number; answers follow their mean, or that
            one.
        latents: Latents singled out per read and head.

    Raises:
        UserError: The head does not exist, or the maps do not fit into memory.
    """
    body = model.body if isinstance(model, EntitySet) else model
    config = body.config.trunk
    names = [name for name in body.config.inputs if name in inputs or is_label(body, name)]
    tokens = sum(body.inputs.num_tokens[name] for name in names)
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
        if isinstance(body, Perceiver):
            encoded = body.forward_features(inputs)
        else:
            encoded = encode_blind(body, inputs)
    field = token_field(body, encoded.tokens)
    weights = recorded.of(attentions)
    reads = []
    for number, each in enumerate(weights, 1):
        for words, chosen in choose_heads(each, head):
            title = "Latents to input" if len(weights) == 1 else f"Read {number} of {len(weights)}"
            title = f"{title}, {words}" if words else title
            reads.append(ReadMaps(title, single_out(chosen, field, latents)))
    inward = torch.zeros_like(weights[0][0, 0])  # [N, M]
    for each in weights:
        inward += rollout_heads(each, head)[0] / len(weights)
    if isinstance(model, Perceiver):
        answers, route = _answer_mean(model, encoded, inward, field, len(weights))
    elif isinstance(model, EntitySet):
        answers, route = _answer_choice(model, inputs, encoded, inward, field)
    else:
        answers, route = _answer_queries(model, inputs, encoded, inward, field)
    route += say_heads(head, config.num_cross_heads) if answers else ""
    return Explanation(tuple(reads), answers, route)


def is_label(body: Perceiver | PerceiverIO, name: str) -> bool:
    """Whether an input is the label that a Perceiver IO gives back, which is always hidden here."""
    return isinstance(body, PerceiverIO) and isinstance(body.config.inputs[name], Labels)


def encode_blind(body: PerceiverIO, inputs: Mapping[str, Tensor]) -> Encoded:
    """Encode with labels hidden, as in evaluation: by the mask token, or as unknown without one."""
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


def token_field(body: Perceiver | PerceiverIO, tokens: Tokens) -> Field:
    """Describe the one array of tokens of a sample: which are real, and whose they are."""
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


def _answer_mean(
    model: Perceiver,
    encoded: Encoded,
    inward: Float[Tensor, "N M"],
    field: Field,
    reads: int,
) -> tuple[tuple[Answer, ...], str]:
    """The mean of the latents answers, so all of them weigh alike."""
    if model.head is None:
        return (), "This model returns the mean of its latents; there is no answer to follow back."
    values = model.head(encoded.latents.mean(1))[0].float()
    found = field.map("the answer", inward.mean(0, keepdim=True))
    route = f"The answer is made of the mean of all latents, so each counts alike; {IDENTITY}."
    if reads > 1:
        route += f" The {reads} reads are averaged: attention does not say which of them mattered."
    return (Answer("", values, found),), route


def _answer_choice(
    model: EntitySet,
    inputs: Mapping[str, Tensor],
    encoded: Encoded,
    inward: Float[Tensor, "N M"],
    field: Field,
) -> tuple[tuple[Answer, ...], str]:
    """The entity that the pointer chooses asks the latents with its own features."""
    scores = model(inputs)[0].float()
    if model.pointer_query is None:
        return (), "This model returns an embedding of the whole set; there is no choice to follow."
    chosen = int(scores.argmax())
    outward = _query_weights(model.body, encoded, "entities", [chosen])[0]
    found = field.map(f"row {chosen}", outward @ inward)
    answer = Answer(
        "", scores, found, model.name, chosen, ((chosen + 0.5) / model.config.num_classes,)
    )
    route = (
        f"The query of the chosen entity to the latents, times the latents to the entities; "
        f"{IDENTITY}. The pointer also compares it with the mean of all entities, which is not in "
        f"the map."
    )
    return (answer,), route


def _answer_queries(
    model: PerceiverIO,
    inputs: Mapping[str, Tensor],
    encoded: Encoded,
    inward: Float[Tensor, "N M"],
    field: Field,
) -> tuple[tuple[Answer, ...], str]:
    """Every output: its one query, the queries of hidden bytes, or the query in the middle."""
    answers = []
    for name, output in model.config.outputs.items():
        if output.modality and output.modality not in encoded.tokens.parts:
            continue
        queries = choose_queries(model, name, inputs, encoded)
        with_place = bool(output.modality)
        grid = model.query_grid(name) if with_place else ()
        values = model.decode(encoded, name, ids=torch.tensor(queries))[0].float()
        weights = _query_weights(model, encoded, name, queries)
        for index, value, outward in zip(queries, values, weights, strict=True):
            cell = torch.unravel_index(torch.tensor(index), grid) if grid else ()
            place = tuple((int(c) + 0.5) / size for c, size in zip(cell, grid, strict=True))
            found = field.map(name, outward @ inward)
            answers.append(Answer(name, value, found, output.modality, index, place))
    route = (
        f"The answer's query to the latents (mean of its heads), times the latents to the input; "
        f"{IDENTITY}."
    )
    if model.config.trunk.num_reads > 1:
        route += " Several reads are averaged: attention does not say which of them mattered."
    return tuple(answers), route


def choose_queries(
    model: PerceiverIO, name: str, inputs: Mapping[str, Tensor], encoded: Encoded
) -> list[int]:
    """Return the queries to follow: those of hidden bytes, else the middle one of the real ones."""
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


def _query_weights(
    body: PerceiverIO, encoded: Encoded, name: str, queries: list[int]
) -> Float[Tensor, "O 1 N"]:
    """Attention of some queries to the latents, the mean of the heads."""
    attention: nn.Module = body.decoder.read.attention
    ids: Any = torch.tensor(queries)
    with record(body, [attention]) as recorded:
        body.decode(encoded, name, ids=ids)
    joined = torch.cat([weights[0].mean(0) for weights in recorded.of([attention])])  # [O, N]
    if body.config.outputs[name].head == "conv":  # all were asked
        joined = joined[ids.to(joined.device)]
    return joined.unsqueeze(1)
