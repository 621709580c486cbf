"""Entity sets: a Perceiver IO that replaces the entity Transformer of AlphaStar, and a pointer.

Every entity queries the latents with its own token. ReLU and a linear layer turn the decoder output
into the embedding of the entity; the mean over real entities, a linear layer and ReLU give the
embedding of the set. The pointer compares a query computed from the latter with keys computed from
the former, which gives one score per slot.

Legend: B batch, N entity slots, C features, E embedding.
Paper: Perceiver IO (arXiv 2107.14795) App. B.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from perceivers.adapters import ElementAdapter
from perceivers.adapters.config import TokenConfig, change_fields
from perceivers.errors import ConfigError
from perceivers.models.attention_maps import Answer, Explanation, Field
from perceivers.models.base import SavedModule
from perceivers.models.flat.attention import IDENTITY, trace
from perceivers.models.flat.trunk import (
    TrunkConfig,
    TrunkEncoded,
    check_resizable,
    config_from_json,
    config_to_json,
    describe_trunk,
    flat_layer_depths,
)
from perceivers.models.perceiver_io import DecoderConfig, Output, PerceiverIO, PerceiverIOConfig
from perceivers.models.perceiver_io.attention import query_weights
from perceivers.nn.blocks import Read, SelfAttentionLayer
from perceivers.nn.linear import Linear, init_linears_
from perceivers.settings import Count, Settings, change, named, settle
from perceivers.types import ModalitySpec, Points

OWN_DECODER = DecoderConfig(num_heads=2, residual=True)


def count_entities(inputs: Mapping[str, ModalitySpec]) -> int:
    """Return the number of entity slots of the input.

    Args:
        inputs: Modalities by name.

    Raises:
        ConfigError: The input is not exactly one modality of points.
    """
    kinds = [spec.kind for spec in inputs.values()]
    if kinds != ["points"]:
        raise ConfigError(
            f"an entity set reads exactly one modality of points, not {kinds}: every point is an "
            f"entity, and its values are the features; for other data use a variant of "
            f"perceiver_io"
        )
    return next(iter(inputs.values())).num_tokens


@dataclass(frozen=True, kw_only=True)
class EntitySetConfig(Settings, prefix=""):
    """Configuration of an entity-set model."""

    inputs: Mapping[str, ModalitySpec]
    """One modality of points: entity slots with their features; rows with NaN are empty slots."""
    trunk: TrunkConfig
    """The latent array."""
    token_dim: Count = 128
    """Channels of an entity token."""
    embed_dim: Count = 256
    """Channels E of the embeddings of entities and of the set."""
    decoder: DecoderConfig = OWN_DECODER
    """Cross-attention from entities to latents."""
    pointer: bool = True
    """Build the pointer; without it a call returns the embedding of the set."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "inputs", dict(self.inputs))
        count_entities(self.inputs)

    @property
    def data_inputs(self) -> dict[str, ModalitySpec]:
        """Modalities that the data set must provide."""
        return dict(self.inputs)

    @property
    def num_classes(self) -> int:
        """Number of choices of the pointer, which is the number of slots; 0 without a pointer."""
        return next(iter(self.inputs.values())).num_tokens if self.pointer else 0

    @property
    def body(self) -> PerceiverIOConfig:
        """Config of the Perceiver IO inside, with one query per entity."""
        (name,) = self.inputs
        # No position embeddings: a set has no order.
        return PerceiverIOConfig(
            inputs=self.inputs,
            tokens={name: TokenConfig(dim=self.token_dim)},
            trunk=self.trunk,
            outputs={"entities": Output(queries="tokens", modality=name)},
            decoder=self.decoder,
        )

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-serialisable data; ``from_json`` is the inverse."""
        return config_to_json(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "EntitySetConfig":
        """Rebuild a config from the output of ``to_json``.

        Raises:
            ConfigError: A field is missing, unknown or invalid.
        """
        return config_from_json(cls, data, {})


class Entities(NamedTuple):
    """Embeddings of entities ``[B, N, E]`` and set ``[B, E]``, and non-empty slots ``[B, N]``."""

    each: Float[Tensor, "B N E"]
    pooled: Float[Tensor, "B E"]
    valid: Tensor


class EntitySet(SavedModule):
    """Perceiver IO over a set of entities, with a pointer that chooses one of them.

    Calling it returns the pointer score of every slot ``[B, N]`` (minus infinity for empty slots),
    or without a pointer the embedding of the set ``[B, E]``.

    Args:
        config: The full configuration.
    """

    family = "entity_set"
    # Fine-tuning transfers everything but the embeddings and the pointer.
    core = ("body.",)
    repeated = (Read, SelfAttentionLayer)
    config: EntitySetConfig

    def __init__(self, config: EntitySetConfig) -> None:
        super().__init__()
        self.config = config
        (self.name,) = config.inputs
        dim = config.embed_dim
        self.body = PerceiverIO(config.body)
        self.embed = Linear(self.body.decoder.dim, dim)
        self.pool = Linear(self.body.decoder.dim, dim)
        self.pointer_query = Linear(dim, dim) if config.pointer else None
        self.pointer_key = Linear(dim, dim) if config.pointer else None
        for module in (self.embed, self.pool, self.pointer_query, self.pointer_key):
            if module is not None:
                init_linears_(module)

    def entities(self, inputs: Mapping[str, Tensor] | Tensor) -> Entities:
        """Return the embeddings of all entities and of the set."""
        encoded = self.body.encode(self.as_dict(inputs))
        answers = self.body.decode(encoded)
        valid = encoded.tokens.real.get(self.name)
        if valid is None:
            valid = answers.new_ones(answers.shape[:2], dtype=torch.bool)
        each = self.embed(F.relu(answers))
        weight = valid.unsqueeze(-1).to(answers.dtype)
        mean = (answers * weight).sum(1) / weight.sum(1).clamp(min=1.0)
        return Entities(each=each, pooled=F.relu(self.pool(mean)), valid=valid)

    def forward(self, inputs: Mapping[str, Tensor] | Tensor) -> Float[Tensor, "B K"]:
        """Return scores per slot, or without a pointer the embedding of the set.

        Raises:
            InputError: The input is unknown or has a wrong shape.
        """
        entities = self.entities(inputs)
        if self.pointer_query is None or self.pointer_key is None:
            return entities.pooled
        query, keys = self.pointer_query(entities.pooled), self.pointer_key(entities.each)
        scores = (keys @ query.unsqueeze(-1)).squeeze(-1) * query.shape[-1] ** -0.5
        return scores.masked_fill(~entities.valid, float("-inf"))

    def adapter(self, name: str) -> ElementAdapter:
        """Return the adapter of the entities."""
        return self.body.adapter(name)

    def features(
        self, inputs: Mapping[str, Tensor], *, present: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return the latents, ``[B, N, D]``."""
        return self.body.features(inputs, present=present)

    def describe(self) -> tuple[str, str]:
        """Return the size of the latents, and reads and layers."""
        return describe_trunk(self.config.trunk)

    def layer_depths(self) -> dict[str, int]:
        """Return a depth per parameter, for layer-wise learning-rate decay."""
        inner = flat_layer_depths(self.body, self.body.trunk)
        depths = {f"body.{name}": depth for name, depth in inner.items()}
        last = max(depths.values()) + 1
        return {name: depths.get(name, last) for name, _ in self.named_parameters()}

    def set_recompute(self, on: bool = True) -> None:
        """Recompute layers in the backward pass (activation checkpointing) to save memory."""
        self.body.set_recompute(on)

    def resized(self, inputs: Mapping[str, ModalitySpec]) -> "EntitySet":
        """Return a copy for another number of slots; a set has no positions to resize.

        Raises:
            ConfigError: The modality or its features differ.
        """
        check_resizable(self.config.inputs, inputs)
        model = type(self)(change(self.config, inputs=inputs)).to(next(self.parameters()))
        model.load_state_dict(self.state_dict())
        return model.train(self.training)


# -- Named variants: the StarCraft II model of the paper, and a small model for CPUs -------------
#
# Paper: Perceiver IO (arXiv 2107.14795) App. B: 512 slots of 128 features, 3 layers, 32 latents.

VARIANTS: dict[str, Mapping[str, Any]] = {
    "entity_set_starcraft": {
        "inputs": {"points": Points(512, 128, ragged=True)},
        "trunk": TrunkConfig(
            num_latents=32, latent_dim=128, depth=3, num_heads=2, num_cross_heads=2, mlp_ratio=4
        ),
        "token_dim": 128,
        "embed_dim": 256,
    },
    "entity_set_nano": {
        "trunk": TrunkConfig(
            num_latents=16, latent_dim=64, depth=2, num_heads=4, num_cross_heads=4, mlp_ratio=2
        ),
        "token_dim": 64,
        "embed_dim": 64,
    },
}


def example(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return keywords of ``create_model`` for inputs that a variant is typically used with."""
    return {"inputs": settings.get("inputs") or {"points": Points(32, 6, ragged=True)}}


def configure(
    settings: Mapping[str, Any],
    *,
    inputs: Mapping[str, ModalitySpec] | None,
    num_classes: int | Mapping[str, int] | None,
    head: str,
    overrides: Mapping[str, Any],
) -> EntitySetConfig:
    """Return the full configuration of a variant.

    Args:
        settings: Settings of the variant.
        inputs: One modality of points; that of the variant by default.
        num_classes: Number of choices; must be the number of slots if given.
        head: Must be ``query``.
        overrides: Fields of ``EntitySetConfig``; ``trunk`` and ``decoder`` may be mappings of
            single fields.

    Raises:
        ConfigError: There are no inputs, ``num_classes`` is not the number of slots, or the head is
            another one.
    """
    inputs = inputs or settings.get("inputs")
    if inputs is None:
        raise ConfigError("this variant reads any set; describe it with inputs={name: Points(...)}")
    slots = count_entities(inputs)
    _check_choice(slots if num_classes is None else num_classes, slots, head)
    values = {**settings, **overrides, "inputs": inputs}
    for name, own in (("trunk", settings["trunk"]), ("decoder", EntitySetConfig.decoder)):
        if isinstance(overrides.get(name), Mapping):
            values[name] = change_fields(own, overrides[name])
    return settle(EntitySetConfig, values, named(overrides))


def as_classifier(
    config: EntitySetConfig, num_classes: int | Mapping[str, int], head: str
) -> EntitySetConfig:
    """Return the same config: the pointer is the classifier.

    Raises:
        ConfigError: ``num_classes`` is not the number of slots, or the head is another one.
    """
    _check_choice(num_classes, config.num_classes, head)
    return config


def _check_choice(num_classes: int | Mapping[str, int], slots: int, head: str) -> None:
    if num_classes != slots:
        found = f"{num_classes} classes" if isinstance(num_classes, int) else f"tasks {num_classes}"
        raise ConfigError(
            f"{found}, but the pointer of an entity set chooses one of its {slots} entities, so "
            f"that a label must be the row of an entity, 0 to {slots - 1}; give data with "
            f"{slots} such classes (the built-in 'selection' has 32), or classify whole sets with "
            f"a variant of perceiver or perceiver_io"
        )
    if head != "query":
        raise ConfigError(f"head={head!r}: an entity set has only its pointer; leave head out")


# -- Attention maps: the entities that a choice depends on ---------------------------------------
#
# Legend: N latents, M tokens (entities).


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
    encoded: TrunkEncoded,
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
