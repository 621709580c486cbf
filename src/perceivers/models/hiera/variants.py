"""The named Hieras: the releases for pictures and clips, the released window variants, and ours.

Every name has a twin ``mae_...`` with the decoder of masked auto-encoding, whose last stage does
not pool. Ours, for two CPU cores, have smaller units, so that small inputs have enough to hide:
hiera_nano (seconds), hiera_pico (minutes), the same for clips, hiera_nano_audio, hiera_nano_text
(patches of bytes) and hiera_pico_text (single bytes).
Paper: Hiera (arXiv 2306.00989) App. A, the table of variants; clips of 16 frames at 224.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from perceivers.models.hiera.config import HieraDecoder
from perceivers.types import IMAGENET_MEAN, IMAGENET_STD, Image, Video

IMAGENET_CLASSES, KINETICS_CLASSES = 1000, 400
STATISTICS: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
CLIP: dict[str, Any] = {
    "inputs": {"video": Video(16, 224, 224, 3, **STATISTICS)},
    "num_outputs": KINETICS_CLASSES,
    "patch_kernel": (3, 7, 7),
    "patch_stride": (2, 4, 4),
    "mask_unit": (1, 8, 8),
    "pool": (1, 2, 2),
    "positions": "separable",
    "decoder": HieraDecoder(order="channels_last"),
}


def picture(size: int = 224) -> dict[str, Any]:
    """An ImageNet classifier."""
    return {
        "inputs": {"image": Image(size, size, 3, **STATISTICS)},
        "num_outputs": IMAGENET_CLASSES,
        "decoder": HieraDecoder(),
    }


SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"dim": 96, "num_heads": 1, "depths": (1, 2, 7, 2)},
    "small": {"dim": 96, "num_heads": 1, "depths": (1, 2, 11, 2)},
    "base": {"dim": 96, "num_heads": 1, "depths": (2, 3, 16, 3)},
    "base_plus": {"dim": 112, "num_heads": 2, "depths": (2, 3, 16, 3)},
    "large": {"dim": 144, "num_heads": 2, "depths": (2, 6, 36, 4)},
    "huge": {"dim": 256, "num_heads": 4, "depths": (2, 6, 36, 4)},
}
VIDEO_SIZES = ("base", "base_plus", "large", "huge")
# timm's own window variants, trained at 256 with layer scale.
WINDOW: dict[str, Any] = {**picture(256), "positions": "window", "layer_scale": 1e-5}
# A deviation of 0.02 is too small for narrow layers: from scratch they hardly learn (docs/log.md).
OURS: dict[str, Any] = {"local_stages": 2, "init": "autoencoder"}
NANO: dict[str, Any] = {**OURS, "dim": 32, "num_heads": 1, "depths": (1, 1, 2)}
PICO: dict[str, Any] = {**OURS, "dim": 64, "num_heads": 2, "depths": (1, 2, 5)}
# Units of 16 x 16 pixels.
SMALL_UNITS: dict[str, Any] = {"mask_unit": (4, 4)}
SMALL_CLIP: dict[str, Any] = {
    **{key: CLIP[key] for key in ("patch_kernel", "patch_stride", "pool", "positions")},
    "mask_unit": (1, 4, 4),
}
SMALL_DECODERS = {
    "nano": HieraDecoder(dim=64, depth=1, num_heads=2),
    "pico": HieraDecoder(dim=128, depth=2, num_heads=4),
}


def _ours() -> dict[str, dict[str, Any]]:
    """The small variants; they read any size that their data have."""
    made: dict[str, dict[str, Any]] = {}
    for name, settings in (("nano", NANO), ("pico", PICO)):
        decoder = SMALL_DECODERS[name]
        made[f"hiera_{name}"] = {**settings, **SMALL_UNITS, "decoder": decoder}
        clips = replace(decoder, order="channels_last", all_frames=True)
        made[f"hiera_{name}_video"] = {**settings, **SMALL_CLIP, "decoder": clips}
    made["hiera_nano_audio"] = {
        **NANO,
        "patch_kernel": (31,),
        "patch_stride": (16,),
        "mask_unit": (16,),
        "pool": (4,),
        "decoder": SMALL_DECODERS["nano"],
    }
    made["hiera_nano_text"] = {
        **NANO,
        "patch_kernel": (9,),
        "patch_stride": (4,),
        "mask_unit": (16,),
        "pool": (4,),
        "decoder": SMALL_DECODERS["nano"],
    }
    # A token per byte, and units that hold a few words: what is near decides which byte it is.
    made["hiera_pico_text"] = {
        **NANO,
        "dim": 64,
        "num_heads": 2,
        "depths": (3, 1, 2),
        "patch_kernel": (7,),
        "patch_stride": (1,),
        "mask_unit": (64,),
        "pool": (4,),
        "decoder": HieraDecoder(dim=192, depth=1, num_heads=4),
    }
    return made


CLASSIFIERS: dict[str, dict[str, Any]] = {
    **{f"hiera_{name}_224": {**picture(), **size} for name, size in SIZES.items()},
    **{f"hiera_{name}_16x224": {**CLIP, **SIZES[name]} for name in VIDEO_SIZES},
    "hiera_small_abswin_256": {
        **WINDOW,
        **SIZES["small"],
        "position_grid": (16, 16),
        "shortcut": "pool",
    },
    "hiera_base_abswin_256": {**WINDOW, **SIZES["base"], "position_grid": (14, 14)},
    **_ours(),
}

VARIANTS: dict[str, Mapping[str, Any]] = {
    **CLASSIFIERS,
    **{
        f"mae_{name}": {**settings, "autoencoder": True}
        for name, settings in CLASSIFIERS.items()
        if settings.get("shortcut") != "pool"
    },
}
