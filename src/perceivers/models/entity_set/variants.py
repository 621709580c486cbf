"""The named entity-set models: the paper's for StarCraft II, and ours for a CPU.

Paper: Perceiver IO (arXiv 2107.14795) App. B: 512 slots of 128 features, 3 layers, 32 latents.
"""

from collections.abc import Mapping
from typing import Any

from perceivers.adapters.config import change_fields
from perceivers.errors import ConfigError
from perceivers.models.entity_set.model import EntitySetConfig, count_entities
from perceivers.models.flat.trunk import TrunkConfig
from perceivers.settings import named, settle
from perceivers.types import ModalitySpec, Points

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
