"""The named HieraDets: the trunks of SAM 2, and a small one of ours for two CPU cores.

They are backbones without a read-out; ``num_classes`` gives them one.
Paper: SAM 2 (arXiv 2408.00714) App. D; the numbers are those of the released configurations.
"""

from collections.abc import Mapping
from typing import Any

from perceivers.errors import ConfigError
from perceivers.models.hiera import HieraHead
from perceivers.models.hiera.variants import make_head
from perceivers.models.hiera_det.config import HieraDetConfig
from perceivers.settings import change, named, settle
from perceivers.types import IMAGENET_MEAN, IMAGENET_STD, Image, ModalitySpec

# The size that SAM 2 was trained at, and its normalisation.
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
    # Reads any size that its data have.
    "hiera_det_nano": {
        "dim": 32,
        "num_heads": 1,
        "depths": (1, 1, 3),
        "windows": (4, 2, 4),
        "global_blocks": (3,),
        "position_grid": (4, 4),
    },
}


# -- From a variant, an input and a read-out to a complete HieraDet configuration ----------------


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
