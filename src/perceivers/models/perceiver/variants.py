"""Named Perceiver variants, and their completion to a full configuration.

Variants as in the paper, and small models for two CPU cores (nano, tiny).
Paper: Perceiver (arXiv 2103.03206) Sec. 4: ImageNet (8 cross-attention layers, of which all but the
first share weights, and one set of 6 self-attention layers), AudioSet (twice cross-attention and 8
layers, nothing shared), ModelNet40 (twice cross-attention and 6 layers).
"""

from collections.abc import Mapping
from typing import Any

from perceivers.adapters.config import (
    PositionConfig,
    TokenConfig,
    change_fields,
)
from perceivers.errors import ConfigError
from perceivers.models.flat.trunk import TrunkConfig, choose_tokens
from perceivers.models.perceiver.model import PerceiverConfig
from perceivers.settings import change, named, settle
from perceivers.types import IMAGENET_MEAN, IMAGENET_STD, Audio, Image, ModalitySpec, Points, Video


def _pixels(**trunk: Any) -> Mapping[str, Any]:
    settings = {"num_latents": 512, "latent_dim": 1024, "depth": 6, "num_blocks": 8, **trunk}
    return {
        "inputs": {"image": Image(224, 224, 3, mean=IMAGENET_MEAN, std=IMAGENET_STD)},
        "tokens": {"image": TokenConfig(positions=_fourier(64, 224, 224))},
        "trunk": TrunkConfig(**settings),
        "num_outputs": 1000,
        "init": "paper",
    }


def _fourier(bands: int, *resolution: int) -> PositionConfig:
    return PositionConfig(kind="fourier", num_bands=bands, max_resolution=resolution)


VARIANTS: dict[str, Mapping[str, Any]] = {
    "perceiver_imagenet": _pixels(num_reads=8),
    "perceiver_imagenet_unshared": _pixels(num_reads=8, share_reads="none", share_blocks=False),
    "perceiver_imagenet_1x": _pixels(),
    "perceiver_imagenet_learned": {
        **_pixels(),
        "tokens": {"image": TokenConfig(positions=PositionConfig(kind="learned", dim=128))},
    },
    "perceiver_audioset": {
        "inputs": {
            "audio": Audio(61440, sample_rate=48000),
            "video": Video(32, 224, 224, 3, frame_rate=25.0),
        },
        "tokens": {
            "audio": TokenConfig(content="patches", patch=(128,), positions=_fourier(64, 480)),
            "video": TokenConfig(
                content="patches", patch=(2, 8, 8), positions=_fourier(16, 16, 28, 28)
            ),
        },
        "trunk": TrunkConfig(
            num_latents=512,
            latent_dim=1024,
            depth=8,
            num_blocks=2,
            num_reads=2,
            share_reads="none",
            share_blocks=False,
        ),
        "num_outputs": 527,
        "init": "paper",
    },
    "perceiver_modelnet40": {
        "inputs": {"points": Points(2048, 3, ragged=True, scale="unit")},
        # The highest frequency in the paper is 1120; the resolution is twice that (Nyquist).
        "tokens": {
            "points": TokenConfig(content="coordinates", positions=_fourier(64, 2240, 2240, 2240))
        },
        "trunk": TrunkConfig(num_latents=512, latent_dim=1024, depth=6, num_blocks=2, num_reads=2),
        "num_outputs": 40,
        "init": "paper",
    },
    "perceiver_nano": {
        "trunk": TrunkConfig(
            num_latents=32,
            latent_dim=64,
            depth=2,
            num_blocks=2,
            num_reads=2,
            num_heads=4,
            mlp_ratio=2,
        )
    },
    "perceiver_tiny": {
        "trunk": TrunkConfig(
            num_latents=64,
            latent_dim=192,
            depth=3,
            num_blocks=3,
            num_reads=3,
            num_heads=6,
            mlp_ratio=2,
        )
    },
}


def example(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return keywords of ``create_model`` for inputs that a variant is typically used with."""
    if settings.get("inputs"):
        return {"inputs": settings["inputs"]}
    return {"inputs": {"image": Image(224, 224, 3)}, "num_classes": 1000}


def configure(
    settings: Mapping[str, Any],
    *,
    inputs: Mapping[str, ModalitySpec] | None,
    num_classes: int | Mapping[str, int] | None,
    head: str,
    overrides: Mapping[str, Any],
) -> PerceiverConfig:
    """Return the full configuration of a variant.

    Args:
        settings: Settings of the variant.
        inputs: Modalities by name; those of the variant by default.
        num_classes: Number of classes; that of the variant by default.
        head: ``mean``, or the default.
        overrides: Fields of ``PerceiverConfig``; ``trunk`` may be a mapping of single fields.

    Raises:
        ConfigError: A setting is missing, or a Perceiver does not support it.
    """
    inputs = inputs or settings.get("inputs")
    outputs = num_classes if num_classes is not None else settings.get("num_outputs")
    if num_classes is not None and "num_outputs" in overrides:
        raise ConfigError("num_classes and num_outputs are the same thing; give one of them")
    outputs = overrides.get("num_outputs", outputs)
    if inputs is None:
        raise ConfigError("this variant has no inputs; describe them with inputs={name: spec}")
    if not isinstance(outputs, int):
        raise ConfigError(
            f"a Perceiver returns one array of logits; give num_classes as one number, not "
            f"{outputs!r} (for several tasks, reconstruction or dense outputs use perceiver_io)"
        )
    if head not in {"query", "mean"}:
        raise ConfigError(f"head={head!r}: a Perceiver has only the head 'mean'")
    values = {**settings, **overrides, "inputs": inputs, "num_outputs": outputs}
    if isinstance(overrides.get("trunk"), Mapping):
        values["trunk"] = change_fields(settings["trunk"], overrides["trunk"])
    values["tokens"] = choose_tokens(inputs, settings, overrides)
    return settle(PerceiverConfig, values, named(overrides))


def as_classifier(
    config: PerceiverConfig, num_classes: int | Mapping[str, int], head: str
) -> PerceiverConfig:
    """Return the config of a classifier with the same inputs and latents.

    Raises:
        ConfigError: Several tasks, or a head that a Perceiver does not have.
    """
    if not isinstance(num_classes, int) or head not in {"query", "mean"}:
        raise ConfigError(
            f"num_classes={num_classes}, head={head!r}: a Perceiver returns one array of logits, "
            f"computed from the mean of its latents (head 'mean')"
        )
    return change(config, num_outputs=num_classes)
