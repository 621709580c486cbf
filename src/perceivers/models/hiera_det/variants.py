"""The named HieraDets: the trunks of SAM 2, and a small one of ours for two CPU cores.

They are backbones without a read-out; ``num_classes`` gives them one.
Paper: SAM 2 (arXiv 2408.00714) App. D; the numbers are those of the released configurations.
"""

from collections.abc import Mapping
from typing import Any

from perceivers.types import IMAGENET_MEAN, IMAGENET_STD, Image

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
