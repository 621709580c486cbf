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

from perceivers.adapters.config import change_fields
from perceivers.errors import ConfigError
from perceivers.models.hiera.config import HieraConfig, HieraDecoder, HieraHead
from perceivers.settings import change, named, settle
from perceivers.types import IMAGENET_MEAN, IMAGENET_STD, Image, ModalitySpec, Video

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


# -- From a variant, an input and a read-out to a complete Hiera configuration -------------------

# The default of ``create_model`` for every system; a Hiera has no queries.
DEFAULT_HEAD = "query"


def configure(
    settings: Mapping[str, Any],
    *,
    inputs: Mapping[str, ModalitySpec] | None,
    num_classes: int | Mapping[str, int] | None,
    head: Any,
    overrides: Mapping[str, Any],
) -> HieraConfig:
    """Complete a variant.

    Args:
        settings: The variant's.
        inputs: One modality; the variant's own when not given.
        num_classes: Logits; the variant's own when not given.
        head: ``mean`` or the default, ``segmentation``, or a complete ``HieraHead``.
        overrides: Fields of ``HieraConfig``. ``decoder`` may be ``True`` for the variant's own,
            which makes an auto-encoder, or name single fields of it.

    Raises:
        ConfigError: Something is missing, or contradicts the rest.
    """
    values: dict[str, Any] = dict(settings)
    own_decoder, own_classes = values.pop("decoder", None), values.pop("num_outputs", None)
    autoencoder = values.pop("autoencoder", False)
    values |= overrides
    values["inputs"] = inputs or settings.get("inputs")
    if values["inputs"] is None:
        raise ConfigError("this variant reads any size; say what with inputs={name: spec}")
    decoder = values.pop("decoder", True if autoencoder and num_classes is None else None)
    if decoder is True:
        decoder = own_decoder
    elif isinstance(decoder, Mapping):
        decoder = change_fields(own_decoder, decoder)
    if isinstance(decoder, HieraDecoder):
        if num_classes is not None or head != DEFAULT_HEAD:
            raise ConfigError(
                f"num_classes={num_classes}, head={head!r}: an auto-encoder has no classes"
            )
        values = {"init": "autoencoder", **values, "decoder": decoder}
        return settle(HieraConfig, values, named(overrides))
    if decoder not in {None, False}:
        raise ConfigError(
            f"decoder={decoder!r}: say True for the variant's own, name single fields of it, or "
            f"give a complete HieraDecoder"
        )
    classes = own_classes if num_classes is None else num_classes
    values["head"] = make_head(classes, head)
    return settle(HieraConfig, values, named(overrides))


def make_head(num_classes: int | Mapping[str, int] | None, head: Any) -> HieraHead:
    """Return a head by name; without classes and name none.

    Args:
        num_classes: Logits; those of a complete head when not given.
        head: ``query``, ``mean``, ``segmentation`` or a complete ``HieraHead``.

    Raises:
        ConfigError: Several tasks, an unknown name, or a head without classes.
    """
    if isinstance(num_classes, Mapping):
        raise ConfigError(
            f"num_classes={dict(num_classes)}: a Hiera has one head; several tasks at once are for "
            f"the perceiver_io variants"
        )
    if isinstance(head, HieraHead):
        return head if num_classes is None else change(head, (), num_outputs=num_classes)
    if head not in {DEFAULT_HEAD, "mean", "segmentation"}:
        raise ConfigError(f"head={head!r}: a Hiera answers with its mean token, or by segmentation")
    if num_classes is None:
        if head != DEFAULT_HEAD:
            raise ConfigError(f"head={head!r} needs num_classes")
        return HieraHead()
    kind = "segmentation" if head == "segmentation" else "mean"
    return HieraHead(kind=kind, num_outputs=num_classes)


def as_classifier(
    config: HieraConfig, num_classes: int | Mapping[str, int], head: Any
) -> HieraConfig:
    """Return the config of a classifier with the same encoder, every stage pooling.

    Raises:
        ConfigError: Several tasks, or an unknown head.
    """
    made = make_head(num_classes, head)
    if not isinstance(head, HieraHead):
        made = change(made, (), dim=config.head.dim) if made.kind == config.head.kind else made
    init = config.init if config.decoder is None else "paper"
    return change(config, decoder=None, num_pools=None, head=made, init=init)


def as_segmenter(config: HieraConfig, num_classes: int, modality: str, head: str) -> HieraConfig:
    """Return the config of a Hiera that answers with classes for every element of its input.

    Args:
        config: Whose input and stages stay; every stage pools, as in a classifier.
        num_classes: Logits per element.
        modality: The input's name.
        head: ``family`` or ``pyramid``: all stages are read.

    Raises:
        ConfigError: Another head, or another modality.
    """
    if head not in {"family", "pyramid"} or modality != config.name:
        raise ConfigError(
            f"head={head!r} for {modality!r}: a Hiera answers for every element of "
            f"{config.name!r} from the 'pyramid' of its stages"
        )
    return as_classifier(config, num_classes, "segmentation")


def with_latent_head(config: HieraConfig) -> HieraConfig:
    """Return a config whose decoder, which it must have, also predicts latents."""
    assert config.decoder is not None
    return change(config, decoder=change(config.decoder, latent_head=True))
