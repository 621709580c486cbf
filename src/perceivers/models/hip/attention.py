"""Attention maps of HiP: what each group reads, and which elements a class output depends on.

The first level reads the raw elements inside each group. A class output reads the processor,
whose latents read regrouped latents of the level below, and so on. The product of these
attentions is a map over the elements if the self-attention of every level is taken as the
identity.

Legend: G groups, H heads, N latents per group, M tokens per group, S slots per group.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

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
from perceivers.models.hip.decoder import QueryHead
from perceivers.models.hip.model import HiP
from perceivers.nn.grouping import GroupLayout, Regroup, regroup

NO_ROUTE = (
    "This model predicts values per element through a decoder with skip connections from every "
    "level, so the path of the information is not a product of attentions; only the first level is "
    "drawn."
)


def read_attention(
    model: HiP, inputs: Mapping[str, Tensor], *, head: str | int, latents: int
) -> Explanation:
    """Return the attention maps of one sample.

    Args:
        model: A model in evaluation mode.
        inputs: Raw tensors ``[1, ...]`` by name.
        head: Heads of the first level: ``mean``, ``all`` or a number. The output is traced back
            through the mean of the heads, or through the chosen head. Heads of other levels are
            averaged.
        latents: Number of single latents to show per head.

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
    found = field.map("the output", weights, note)
    route = _route(model) + say_heads(head, first.num_cross_heads)
    return Explanation(tuple(reads), (Answer("", values, found),), route)


def _answer_attention(model: HiP) -> list[nn.Module]:
    """Return the attention from the class query to the processor; none for mean pooling."""
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
        f"{start}, traced down through the reads of all {len(model.encoder.blocks)} levels to the "
        f"elements (other levels: mean of heads); the self-attention of every level is taken as "
        f"the identity, an approximation that gets coarser with the number of levels."
    )


def group_field(model: HiP, layout: GroupLayout, given: Mapping[str, Tensor]) -> Field:
    """Describe the slots of the first level: which hold an element, and its position."""
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
    levels: Sequence[Float[Tensor, "_ _ _"]], outward: Float[Tensor, "1 _"] | None, how: Regroup
) -> tuple[Float[Tensor, "_ _"], float]:
    """Trace attention from the processor's latents down to the slots of the first level.

    Args:
        levels: Attention of every encoder level, from the first to the processor.
        outward: Attention of the output query to the processor's latents; None weights them
            equally.
        how: Rule that regroups the latents of one level for the next.

    Returns:
        Attention per slot, which sums to at most 1, and the fraction that fell on label tokens.
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
        # Label tokens come after the regrouped latents and lead to no element.
        kept = weights[:, : places.shape[1]]
        lost += float((weights.sum() - kept.sum()).clamp(min=0.0))
        below = weights.new_zeros(groups * count)
        weights = below.index_add(0, places.flatten(), kept.flatten()).unflatten(0, (groups, count))
    return weights, lost if lost > 1e-6 else 0.0  # below is rounding


def _sources(groups: int, count: int, groups_above: int, how: Regroup) -> Tensor:
    """Return ``[g, M]``: for each token of the level above, the flat index of its latent below."""
    order = torch.arange(groups * count, dtype=torch.float64).reshape(1, groups, count, 1)
    return regroup(order, groups_above, how)[0, ..., 0].long()
