"""From a variant, an input and a read-out to a complete HieraDet configuration."""

from collections.abc import Mapping
from typing import Any

from perceivers.errors import ConfigError
from perceivers.models.hiera import HieraHead
from perceivers.models.hiera.build import make_head
from perceivers.models.hiera_det.config import HieraDetConfig
from perceivers.settings import change, named, settle
from perceivers.types import ModalitySpec


def configure(
    settings: Mapping[str, Any],
    *,
    inputs: Mapping[str, ModalitySpec] | None,
    num_classes: int | Mapping[str, int] | None,
    head: Any,
    overrides: Mapping[str, Any],
) -> HieraDetConfig:
    """Complete a variant.

    Args:
        settings: The variant's.
        inputs: One modality; the variant's own when not given.
        num_classes: Logits; without them the model is a backbone.
        head: ``mean`` or the default, or a complete ``HieraHead``.
        overrides: Fields of ``HieraDetConfig``.

    Raises:
        ConfigError: Something is missing, or contradicts the rest.
    """
    values: dict[str, Any] = {**settings, **overrides}
    values["inputs"] = inputs or settings.get("inputs")
    if values["inputs"] is None:
        raise ConfigError("this variant reads any size; say what with inputs={name: spec}")
    if num_classes is not None:
        values["head"] = make_head(num_classes, head)
    elif isinstance(head, HieraHead):
        values["head"] = head
    elif head != "query":  # the default for every system
        raise ConfigError(f"head={head!r} needs num_classes")
    return settle(HieraDetConfig, values, named(overrides))


def as_classifier(
    config: HieraDetConfig, num_classes: int | Mapping[str, int], head: Any
) -> HieraDetConfig:
    """Return the config of a classifier with the same encoder.

    Raises:
        ConfigError: Several tasks, or an unknown head.
    """
    return change(config, head=make_head(num_classes, head))
