"""What models read of a sample: HiP, Perceiver, Perceiver IO and entity sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from perceivers.adapters.multimodal import Tokens
from perceivers.models.entity_set import EntitySet
from perceivers.models.flat.trunk import Encoded
from perceivers.models.hip import HiP
from perceivers.models.hip.decoder import QueryHead
from perceivers.models.perceiver import Perceiver
from perceivers.models.perceiver_io import PerceiverIO
from perceivers.models.saving import ModelInfo
from perceivers.nn.grouping import GroupLayout, Regroup, regroup
from perceivers.report import style
from perceivers.tasks.base import is_answer
from perceivers.tasks.flow import FLOW_SCALE, TARGET
from perceivers.types import FIRST_BYTE, MASK, Labels
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

# -- Answers in words: the class with its probability, the hidden byte, the flow, the value ------

# Labels of a model that gives any number of them.
LISTED = 3
SHOWN_VALUES = 4
SURE = 0.9995


@dataclass(frozen=True)
class Speaker:
    """Says what a model's answers mean.

    Args:
        model: Whose answers.
        info: What travelled with it: its task and the names of its classes.
        flow_scale: Pixels per unit of a flow model's output.
    """

    model: Any
    info: ModelInfo
    flow_scale: float = FLOW_SCALE

    def say(self, answer: Answer, truth: Mapping[int, int]) -> str:
        """Return one answer in words.

        Args:
            answer: What the model returned.
            truth: Ids of bytes that were hidden here, by their place.
        """
        output = getattr(self.model.config, "outputs", {}).get(answer.output)
        if not bool(is_answer(answer.values.flatten())):
            return "no answer: it holds NaN or infinity"
        if isinstance(self.model, EntitySet):
            chance = float(answer.values.softmax(-1)[answer.index])
            return f"chosen: row {answer.index}, {show_chance(chance)}"
        if answer.output in getattr(self.model.config, "byte_outputs", ()):
            return _say_byte(answer, truth.get(answer.index))
        if answer.output == TARGET and self.info.task in {"", "flow"} and answer.modality:
            # Adding zero turns a rounded -0.0 into 0.0.
            values = self._at_the_mark(answer) * self.flow_scale
            right, down = (round(v, 1) + 0.0 for v in values.tolist())
            return f"flow at the cross: {right:.1f} px to the right, {down:.1f} px down"
        if output is not None and answer.modality and not self._is_label(answer.output):
            return f"{answer.output} at the mark: {self._say_values(answer)}"
        if self.info.task == "multilabel":
            return _say_labels(answer.values.sigmoid(), self.info.classes)
        names = self.info.columns.get(answer.output) or self.info.classes
        chance = answer.values.softmax(-1)
        best = int(chance.argmax())
        name = names[best] if len(names) == len(chance) else f"class {best}"
        words = f"{name}, {show_chance(float(chance[best]))}"
        return f"{answer.output}: {words}" if answer.output and self._is_one_of_many else words

    def _at_the_mark(self, answer: Answer) -> Tensor:
        """Values of the element in the middle, where a query answers a whole patch of them."""
        output = self.model.config.outputs[answer.output]
        middle = tuple(size // 2 for size in output.patch)
        return answer.values.reshape(*output.patch, output.channels)[middle]

    @property
    def _is_one_of_many(self) -> bool:
        return len(getattr(self.model.config, "outputs", {})) > 1

    def _is_label(self, output: str) -> bool:
        return isinstance(self.model.config.inputs.get(output), Labels)

    def _say_values(self, answer: Answer) -> str:
        """The first element of an answer, in the units of the raw input."""
        spec = self.model.config.inputs[answer.modality]
        values = answer.values[: spec.channels].reshape(1, 1, -1)
        adapter = self.model.adapter(answer.modality)
        if values.shape[-1] == spec.channels:
            values = values * adapter.std.to(values) + adapter.mean.to(values)
        shown = [style.number(value) for value in values.flatten()[:SHOWN_VALUES].tolist()]
        return ", ".join(shown)


def show_chance(chance: float) -> str:
    """Return a probability in percent, not to more digits than a reader wants."""
    return "over 99.9 %" if chance > SURE else style.percent(chance)


def show_byte(number: int) -> str:
    """Return an id as a reader knows it: the character, or the byte in hexadecimal."""
    if number < FIRST_BYTE:
        return f"special id {number}"
    char = chr(number - FIRST_BYTE)
    return repr(char) if char.isascii() and char.isprintable() else f"byte {number - FIRST_BYTE:#x}"


def _say_byte(answer: Answer, truth: int | None) -> str:
    chance = answer.values.softmax(-1)
    best = int(chance.argmax())
    hidden = "" if truth is None else f" (hidden: {show_byte(truth)})"
    return f"place {answer.index}{hidden}: {show_byte(best)}, {show_chance(float(chance[best]))}"


def _say_labels(chances: Tensor, names: Sequence[str]) -> str:
    """The likeliest of labels of which any number may hold."""
    best = torch.topk(chances, min(LISTED, len(chances)))
    found = []
    for chance, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        name = names[place] if len(names) == len(chances) else f"label {place}"
        found.append(f"{name} {show_chance(chance)}")
    return f"likeliest labels: {', '.join(found)}"


# -- What the flat systems read of a sample: Perceiver, Perceiver IO and entity sets -------------
#
# An answer is followed back as attention roll-out does: the attention of its query to the latents
# times the attention of the latents to the tokens. The self-attention between is taken as the
# identity: every latent is taken to carry what it read itself.
#
# Legend: H heads, N latents, M tokens, O queries, K values.

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


# ------------------------------------------------------------------------------------------------
# What a Hierarchical Perceiver reads of a sample, group by group, and where its answer looks.
#
# The first level reads the raw elements inside each group. A class answer reads the processor,
# whose latents read regrouped latents of the level below, and so on; the product of these
# attentions is a map over the elements, if the self-attention of every level is taken as the
# identity.
#
# Legend: G groups, H heads, N latents per group, M tokens per group, S slots per group.

NO_ROUTE = (
    "This model answers with values per element, through a decoder that also takes what every "
    "level had read (skip connections); which way the information went is not a product of "
    "attentions, so only the first level is drawn."
)


def read_hip(
    model: HiP, inputs: Mapping[str, Tensor], *, head: str | int, latents: int
) -> Explanation:
    """Return the maps of one sample.

    Args:
        model: In evaluation mode.
        inputs: Raw tensors ``[1, ...]`` by name.
        head: Heads of the first level: ``mean``, ``all`` or a number; the answer follows their
            mean, or that one. Heads of other levels are averaged.
        latents: Latents singled out per head.

    Raises:
        UserError: The head does not exist, or the maps do not fit into memory.
    """
    config = model.config
    first = config.levels[0]
    layout = config.layout(tuple(inputs))
    slots = max(share.slots for share in layout.shares)
    if layout.axis == "slots":
        slots = sum(share.slots for share in layout.shares)
    check_head(head, first.num_cross_heads)
    check_scores(
        {
            "groups": layout.num_groups,
            "heads": first.num_cross_heads,
            "latents": first.num_latents,
            "elements": slots,
        }
    )
    answering = config.head.kind in {"query", "mean", "label"}
    attentions = [block.get_submodule("read.attention") for block in model.encoder.blocks]
    asked = _answer_attention(model)
    with record(model, [*attentions, *asked]) as recorded:
        values = model(inputs)[0].float() if answering else None
        if values is None:
            model.encode(model.as_dict(inputs))
    levels = recorded.of(attentions)
    field = group_field(model, layout, inputs)
    reads = []
    for words, chosen in choose_heads(levels[0], head):
        title = f"First level, {layout.num_groups} group{'' if layout.num_groups == 1 else 's'}"
        title = f"{title}, {words}" if words else title
        reads.append(ReadMaps(title, single_out(chosen, field, latents)))
    if values is None:
        return Explanation(tuple(reads), (), NO_ROUTE)
    levels = [rollout_heads(levels[0], head), *(weights.mean(1) for weights in levels[1:])]
    outward = recorded.of(asked)[0][0].mean(0) if asked else None  # [1, N]
    weights, lost = follow_down(levels, outward, model.config.regroup)
    note = f"{100 * lost:.1f} % on label tokens left out" if lost > 0 else ""
    found = field.map("the answer", weights, note)
    route = _route(model) + say_heads(head, first.num_cross_heads)
    return Explanation(tuple(reads), (Answer("", values, found),), route)


def _answer_attention(model: HiP) -> list[nn.Module]:
    """The attention with which a class answer reads the processor; none for the mean of latents."""
    if isinstance(model.head, QueryHead):
        return [model.head.read.attention]
    if model.config.head.kind == "label":
        readout = model.head if model.decoder is None else model.decoder.label_readout
        assert readout is not None
        return [readout.get_submodule("read.attention")]
    return []


def _route(model: HiP) -> str:
    start = {
        "query": "The class query to the processor's latents",
        "label": "The label's query to the processor's latents",
        "mean": "The mean of the processor's latents",
    }[model.config.head.kind]
    return (
        f"{start}, followed down through the reads of all {len(model.encoder.blocks)} levels to "
        f"the elements (other levels: mean of heads); the self-attention of every level is taken "
        f"as the identity, which is rougher the more levels there are."
    )


def group_field(model: HiP, layout: GroupLayout, given: Mapping[str, Tensor]) -> Field:
    """Describe the slots of the first level: which hold an element, and where it lies."""
    embedding, parts = model.encoder.inputs, []
    device = next(iter(given.values())).device
    for share in layout.shares:
        raw = given.get(share.name)
        real = embedding.real(raw, share, device)
        parts.append(real & (raw is not None))
    real = layout.join(parts)[0]  # [G, S]

    def unfold(values: Float[Tensor, "G S"]) -> dict[str, Tensor]:
        whole = values[None, ..., None]
        return {
            share.name: share.merge(layout.part(whole, share.name))[0, :, 0].unflatten(
                0, model.config.inputs[share.name].grid
            )
            for share in layout.shares
            if share.name in given
        }

    return Field(real, unfold)


def follow_down(
    levels: Sequence[Float[Tensor, "G N M"]], outward: Float[Tensor, "1 N"] | None, how: Regroup
) -> tuple[Float[Tensor, "G S"], float]:
    """Follow attention from the processor's latents to the slots of the first level.

    Args:
        levels: Attention of every encoder level, first to processor.
        outward: Attention of the answer to the processor's latents; None weighs them alike.
        how: Which latents of one level form a group of the next.

    Returns:
        Attention per slot, which sums to at most 1, and the share that fell on label tokens.
    """
    processor = levels[-1]
    weights = processor.new_full((1, processor.shape[1]), 1.0 / processor.shape[1])
    weights = weights if outward is None else outward
    lost = 0.0
    for index in range(len(levels) - 1, -1, -1):
        weights = torch.einsum("gn,gnm->gm", weights, levels[index])
        if index == 0:
            break
        groups, count, _ = levels[index - 1].shape
        places = _sources(groups, count, weights.shape[0], how)
        kept = weights[:, : places.shape[1]]
        lost += float((weights.sum() - kept.sum()).clamp(min=0.0))
        below = weights.new_zeros(groups * count)
        weights = below.index_add(0, places.flatten(), kept.flatten()).unflatten(0, (groups, count))
    return weights, lost if lost > 1e-6 else 0.0


def _sources(groups: int, count: int, groups_above: int, how: Regroup) -> Tensor:
    """Flat index of the latent that each token of the level above was, ``[g, M]``."""
    order = torch.arange(groups * count, dtype=torch.float64).reshape(1, groups, count, 1)
    return regroup(order, groups_above, how)[0, ..., 0].long()
