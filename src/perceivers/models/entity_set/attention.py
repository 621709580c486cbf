"""Attention maps of entity sets: the entities that a choice depends on.

Legend: N latents, M tokens (entities).
"""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from perceivers.models.attention_maps import Answer, Explanation, Field
from perceivers.models.entity_set.model import EntitySet
from perceivers.models.flat.attention import IDENTITY, trace
from perceivers.models.flat.trunk import Encoded
from perceivers.models.perceiver_io.attention import query_weights


def read_attention(
    model: EntitySet, inputs: Mapping[str, Tensor], *, head: str | int, latents: int
) -> Explanation:
    """Return the attention maps of one sample; see ``perceivers.models.flat.attention.trace``."""
    return trace(
        model.body,
        inputs,
        encode=model.body.encode,
        answer=lambda *found: _answer_choice(model, *found),
        head=head,
        latents=latents,
    )


def _answer_choice(
    model: EntitySet,
    inputs: Mapping[str, Tensor],
    encoded: Encoded,
    inward: Float[Tensor, "N M"],
    field: Field,
) -> tuple[tuple[Answer, ...], str]:
    scores = model(inputs)[0].float()
    if model.pointer_query is None:
        return (), "This model returns an embedding of the whole set; there is no choice to trace."
    chosen = int(scores.argmax())
    outward = query_weights(model.body, encoded, "entities", [chosen])[0]
    found = field.map(f"row {chosen}", outward @ inward)
    place = ((chosen + 0.5) / model.config.num_classes,)
    answer = Answer("", scores, found, model.name, chosen, place, is_choice=True)
    route = (
        f"Attention of the chosen entity's query to the latents, times attention of the latents to "
        f"the entities; {IDENTITY}. The pointer also compares it with the mean of all entities, "
        f"which is not in the map."
    )
    return (answer,), route
