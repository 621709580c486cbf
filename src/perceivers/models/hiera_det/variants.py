"""Named HieraDet variants, and their completion to a full configuration.

The image encoder trunks of SAM 2, and a small model for two CPU cores. They are backbones without a
head; ``num_classes`` adds one.
Paper: SAM 2 (arXiv 2408.00714) App. D; sizes as in the released configurations.
"""

from collections.abc import Mapping
from typing import Any

from perceivers.errors import ConfigError
from perceivers.models.hiera import HieraHead
from perceivers.models.hiera.variants import make_head
from perceivers.models.hiera_det.config import HieraDetConfig
from perceivers.settings import change, named, settle
from perceivers.types import IMAGENET_MEAN, IMAGENET_STD, Image, ModalitySpec

# Image size and normalisation with which SAM 2 was trained.
SAM2_INPUT = {"image": Image(1024, 1024, 3, mean=IMAGENET_MEAN, std=IMAGENET_STD)}

VARIANTS: dict[str, Mapping[str, Any]] = {
    "hiera_det_tiny": {
        "inputs": SAM2_INPUT,
        "dim": 96,
        "num_heads": 1,
        "depths": (1, 2, 7, 2),
        "global_blocks": (5, 7, 9),
    },
    "hiera_det_small": {
        "inputs": SAM2_INPUT,
        "dim": 96,
        "num_heads": 1,
        "depths": (1, 2, 11, 2),
        "global_blocks": (7, 10, 13),
    },
    "hiera_det_base_plus": {
        "inputs": SAM2_INPUT,
        "dim": 112,
        "num_heads": 2,
        "depths": (2, 3, 16, 3),
        "global_blocks": (12, 16, 20),
        "position_grid": (14, 14),
    },
    "hiera_det_large": {
        "inputs": SAM2_INPUT,
        "dim": 144,
        "num_heads": 2,
        "depths": (2, 6, 36, 4),
        "windows": (8, 4, 16, 8),
        "global_blocks": (23, 33, 43),
    },
    # No native input size of its own: it is taken from the data.
    "hiera_det_nano": {
        "dim": 32,
        "num_heads": 1,
        "depths": (1, 1, 3),
        "windows": (4, 2, 4),
        "global_blocks": (3,),
        "position_grid": (4, 4),
    },
}


# -- Full configuration from a variant, an input and a head --------------------------------------


def configure(
    settings: Mapping[str, Any],
    *,
    inputs: Mapping[str, ModalitySpec] | None,
    num_classes: int | Mapping[str, int] | None,
    head: Any,
    overrides: Mapping[str, Any],
) -> HieraDetConfig:
    """Return the full configuration of a variant.

    Args:
        settings: Settings of the variant.
        inputs: One modality; that of the variant by default.
        num_classes: Number of classes; without it the model is a backbone.
        head: ``mean`` or the default, or a ``HieraHead``.
        overrides: Fields of ``HieraDetConfig``.

    Raises:
        ConfigError: A setting is missing, or contradicts another one.
    """
    values: dict[str, Any] = {**settings, **overrides}
    values["inputs"] = inputs or settings.get("inputs")
    if values["inputs"] is None:
        raise ConfigError("this variant has no input size; describe it with inputs={name: spec}")
    if num_classes is not None:
        values["head"] = make_head(num_classes, head)
    elif isinstance(head, HieraHead):
        values["head"] = head
    elif head != "query":  # the default of every model family
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
