"""Entity sets: a Perceiver IO in the place of AlphaStar's entity Transformer, and a pointer.

Every entity slot asks the latents with its own features as the query; its answer, through ReLU and
a Linear, is the entity's embedding. The mean over real entities, through a Linear and ReLU, is the
embedding of the whole set. The pointer compares a query made of the latter with keys made of the
former: one score per slot, minus infinity where there is no entity.

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
from perceivers.models.base import SavedModule
from perceivers.models.flat.config import config_from_json, config_to_json
from perceivers.models.flat.trunk import TrunkConfig, check_resizable, flat_layer_depths
from perceivers.models.perceiver_io import DecoderConfig, Output, PerceiverIO, PerceiverIOConfig
from perceivers.nn.blocks import Read, SelfAttentionLayer
from perceivers.nn.linear import Linear, init_linears_
from perceivers.settings import Count, Settings, change, named, settle
from perceivers.types import ModalitySpec, Points

OWN_DECODER = DecoderConfig(num_heads=2, residual=True)


def count_entities(inputs: Mapping[str, ModalitySpec]) -> int:
    """Return the slots of the set that a model reads.

    Args:
        inputs: Modalities by name.

    Raises:
        ConfigError: They are anything but one modality of points.
    """
    kinds = [spec.kind for spec in inputs.values()]
    if kinds != ["points"]:
        raise ConfigError(
            f"an entity set reads exactly one modality of points, not {kinds}: every point is an "
            f"entity, and its values are the features; for other data take a variant of "
            f"perceiver_io"
        )
    return next(iter(inputs.values())).num_tokens


@dataclass(frozen=True, kw_only=True)
class EntitySetConfig(Settings, prefix=""):
    """A complete entity-set model."""

    inputs: Mapping[str, ModalitySpec]
    """One modality of points: slots and features per entity; NaN rows hold no entity."""
    trunk: TrunkConfig
    """The latent array between the entities."""
    token_dim: Count = 128
    """Channels to which an entity's features are mapped."""
    embed_dim: Count = 256
    """Channels E of the entities' embeddings and of the set's."""
    decoder: DecoderConfig = OWN_DECODER
    """How entities read the latents."""
    pointer: bool = True
    """Build the pointer; without it a call returns the set's embedding."""

    def __post_init__(self) -> None:
        """Require one modality of points."""
        super().__post_init__()
        object.__setattr__(self, "inputs", dict(self.inputs))
        count_entities(self.inputs)

    @property
    def data_inputs(self) -> dict[str, ModalitySpec]:
        """The modalities that a data set must bring."""
        return dict(self.inputs)

    @property
    def num_classes(self) -> int:
        """Choices of the pointer: the slots; 0 without one."""
        return next(iter(self.inputs.values())).num_tokens if self.pointer else 0

    @property
    def body(self) -> PerceiverIOConfig:
        """The Perceiver IO inside: entities in, one answer per entity out; a set has no places."""
        (name,) = self.inputs
        return PerceiverIOConfig(
            inputs=self.inputs,
            tokens={name: TokenConfig(dim=self.token_dim)},
            trunk=self.trunk,
            outputs={"entities": Output(queries="tokens", modality=name)},
            decoder=self.decoder,
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain data; ``from_json`` restores it."""
        return config_to_json(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "EntitySetConfig":
        """Rebuild a config.

        Raises:
            ConfigError: A field is missing, unknown or invalid.
        """
        return config_from_json(cls, data, {})


class Entities(NamedTuple):
    """Embeddings of the entities ``[B, N, E]``, of the set ``[B, E]``, and which slots are real."""

    each: Float[Tensor, "B N E"]
    pooled: Float[Tensor, "B E"]
    valid: Tensor


class EntitySet(SavedModule):
    """Entities in, embeddings and a choice out.

    Calling it returns the pointer's score of every slot ``[B, N]`` (minus infinity where there is
    no entity), or without a pointer the set's embedding ``[B, E]``.

    Args:
        config: The complete description.
    """

    family = "entity_set"
    # What fine-tuning carries over: everything but the embeddings and the pointer.
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
        """Return the embeddings of every entity and of the set."""
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
        """Return scores per slot, or the set's embedding.

        Raises:
            InputError: The input is unknown or misshapen.
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

    def layer_depths(self) -> dict[str, int]:
        """Return a depth per parameter, for layer-wise learning rates: inputs 0, pointer last."""
        inner = flat_layer_depths(self.body, self.body.trunk)
        depths = {f"body.{name}": depth for name, depth in inner.items()}
        last = max(depths.values()) + 1
        return {name: depths.get(name, last) for name, _ in self.named_parameters()}

    def set_recompute(self, on: bool = True) -> None:
        """Recompute the trunk's layers in the backward pass: less memory, more time."""
        self.body.set_recompute(on)

    def resized(self, inputs: Mapping[str, ModalitySpec]) -> "EntitySet":
        """Return a copy for another number of slots; a set has no positions to fit.

        Raises:
            ConfigError: The modality or its features differ.
        """
        check_resizable(self.config.inputs, inputs)
        model = type(self)(change(self.config, inputs=inputs)).to(next(self.parameters()))
        model.load_state_dict(self.state_dict())
        return model.train(self.training)


# -- The named entity-set models: the paper's for StarCraft II, and ours for a CPU ---------------
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


def configure(
    settings: Mapping[str, Any],
    *,
    inputs: Mapping[str, ModalitySpec] | None,
    num_classes: int | Mapping[str, int] | None,
    head: str,
    overrides: Mapping[str, Any],
) -> EntitySetConfig:
    """Complete a variant.

    Args:
        settings: The variant's.
        inputs: One modality of points; the variant's own when not given.
        num_classes: Choices; must be the number of slots when given.
        head: Must be ``query``.
        overrides: Fields of ``EntitySetConfig``; ``trunk`` and ``decoder`` may name single fields.

    Raises:
        ConfigError: There are no inputs, or as many choices as slots were not asked for.
    """
    inputs = inputs or settings.get("inputs")
    if inputs is None:
        raise ConfigError("this variant reads any set; say which with inputs={name: Points(...)}")
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
        ConfigError: There are not as many choices as slots.
    """
    _check_choice(num_classes, config.num_classes, head)
    return config


def _check_choice(num_classes: int | Mapping[str, int], slots: int, head: str) -> None:
    """Require one class per slot, and no other head than the pointer."""
    if num_classes != slots:
        found = f"{num_classes} classes" if isinstance(num_classes, int) else f"tasks {num_classes}"
        raise ConfigError(
            f"{found}, but the pointer of an entity set chooses one of its {slots} entities, so "
            f"that a label must be the row of an entity, 0 to {slots - 1}; give data with "
            f"{slots} such classes (the built-in 'selection' has 32), or sort whole sets into "
            f"classes with a variant of perceiver or perceiver_io"
        )
    if head != "query":
        raise ConfigError(f"head={head!r}: an entity set answers with its pointer; leave it out")
