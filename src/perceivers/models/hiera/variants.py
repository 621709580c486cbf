"""Named Hiera variants, and their completion to a full configuration.

Released image and video models, the released window variants, and small models of this library.
``mae_...`` is the same model with a decoder for masked autoencoding, whose last stage does not
pool. Our models are for two CPU cores: hiera_nano trains in seconds, hiera_pico in minutes; both
exist for videos too, and there are hiera_nano_audio, hiera_nano_text (patches of bytes) and
hiera_pico_text (single bytes). Their mask units are small, so that small inputs have enough of them
to mask.
Paper: Hiera (arXiv 2306.00989) App. A, table of variants; videos of 16 frames at 224 x 224.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from perceivers.adapters.config import change_fields
from perceivers.errors import ConfigError
from perceivers.models.hiera.config import HieraConfig, HieraDecoder, HieraHead
from perceivers.settings import change, named, settle
from perceivers.types import IMAGENET_MEAN, IMAGENET_STD, Audio, Image, ModalitySpec, Video

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
    """Return the settings of an ImageNet classifier for square images."""
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
# With a standard deviation of 0.02 as in the paper, narrow layers hardly learn from scratch
# (docs/log.md).
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
    """Return the small variants, which have no native input size of their own."""
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
    # One token per byte, and three blocks inside units of a few words: a byte is predicted mostly
    # from its neighbours.
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


# -- Full configuration from a variant, an input and a head --------------------------------------

# Default of ``create_model`` for every model family; here it means the mean token.
DEFAULT_HEAD = "query"


# By number of axes: one second of audio, an image, a video.
EXAMPLES: dict[int, dict[str, ModalitySpec]] = {
    1: {"audio": Audio(16384, 1, sample_rate=16000)},
    2: {"image": Image(224, 224, 3)},
    3: {"video": Video(16, 224, 224, 3)},
}


def example(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return keywords of ``create_model`` for inputs that a variant is typically used with."""
    axes = len(settings.get("mask_unit", (8, 8)))
    return {"inputs": settings.get("inputs") or EXAMPLES[axes]}


def configure(
    settings: Mapping[str, Any],
    *,
    inputs: Mapping[str, ModalitySpec] | None,
    num_classes: int | Mapping[str, int] | None,
    head: Any,
    overrides: Mapping[str, Any],
) -> HieraConfig:
    """Return the full configuration of a variant.

    Args:
        settings: Settings of the variant.
        inputs: One modality; that of the variant by default.
        num_classes: Number of classes; that of the variant by default.
        head: ``mean`` or the default, ``segmentation``, or a ``HieraHead``.
        overrides: Fields of ``HieraConfig``. ``decoder`` makes an autoencoder: ``True`` for the
            decoder of the variant, or a mapping that changes some of its fields.

    Raises:
        ConfigError: A setting is missing, or contradicts another one.
    """
    values: dict[str, Any] = dict(settings)
    own_decoder, own_classes = values.pop("decoder", None), values.pop("num_outputs", None)
    autoencoder = values.pop("autoencoder", False)
    values |= overrides
    values["inputs"] = inputs or settings.get("inputs")
    if values["inputs"] is None:
        raise ConfigError("this variant has no input size; describe it with inputs={name: spec}")
    decoder = values.pop("decoder", True if autoencoder and num_classes is None else None)
    if decoder is True:
        decoder = own_decoder
    elif isinstance(decoder, Mapping):
        decoder = change_fields(own_decoder, decoder)
    if isinstance(decoder, HieraDecoder):
        if num_classes is not None or head != DEFAULT_HEAD:
            raise ConfigError(
                f"num_classes={num_classes}, head={head!r}: an autoencoder has no classes"
            )
        values = {"init": "autoencoder", **values, "decoder": decoder}
        return settle(HieraConfig, values, named(overrides))
    if decoder not in {None, False}:
        raise ConfigError(
            f"decoder={decoder!r}: pass True for the decoder of the variant, a mapping of fields "
            f"to change in it, or a HieraDecoder"
        )
    classes = own_classes if num_classes is None else num_classes
    values["head"] = make_head(classes, head)
    return settle(HieraConfig, values, named(overrides))


def make_head(num_classes: int | Mapping[str, int] | None, head: Any) -> HieraHead:
    """Return the config of a head; kind ``none`` if neither classes nor a head are given.

    Args:
        num_classes: Number of classes; that of a ``HieraHead`` by default.
        head: ``query`` (default), ``mean``, ``segmentation`` or a ``HieraHead``.

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
        raise ConfigError(f"head={head!r}: a Hiera has the heads 'mean' and 'segmentation'")
    if num_classes is None:
        if head != DEFAULT_HEAD:
            raise ConfigError(f"head={head!r} needs num_classes")
        return HieraHead()
    kind = "segmentation" if head == "segmentation" else "mean"
    return HieraHead(kind=kind, num_outputs=num_classes)


def as_classifier(
    config: HieraConfig, num_classes: int | Mapping[str, int], head: Any
) -> HieraConfig:
    """Return the config of a classifier with the same encoder, in which every stage pools.

    Raises:
        ConfigError: Several tasks, or an unknown head.
    """
    made = make_head(num_classes, head)
    if not isinstance(head, HieraHead):
        made = change(made, (), dim=config.head.dim) if made.kind == config.head.kind else made
    init = config.init if config.decoder is None else "paper"
    return change(config, decoder=None, num_pools=None, head=made, init=init)


def as_segmenter(config: HieraConfig, num_classes: int, modality: str, head: str) -> HieraConfig:
    """Return the config of a segmentation model with the same encoder, in which every stage pools.

    Args:
        config: Config of the source model.
        num_classes: Number of classes.
        modality: Name of the input.
        head: ``family`` or ``pyramid``; both use the feature maps of all stages.

    Raises:
        ConfigError: Another head, or another modality.
    """
    if head not in {"family", "pyramid"} or modality != config.name:
        raise ConfigError(
            f"head={head!r} for {modality!r}: a Hiera segments {config.name!r}, with head='pyramid'"
        )
    return as_classifier(config, num_classes, "segmentation")


def with_latent_head(config: HieraConfig) -> HieraConfig:
    """Return a config whose decoder also predicts latents; ``config`` must have a decoder."""
    assert config.decoder is not None
    return change(config, decoder=change(config.decoder, latent_head=True))
