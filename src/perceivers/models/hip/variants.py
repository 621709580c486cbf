"""Named HiP variants, and their completion to a full configuration.

Released models: hip_16, hip_256, hip_mini, hip_16x3 and the flat io_*. Small models for two CPU
cores: hip_nano (64 to 1,024 elements, trains in seconds) and hip_tiny (1,024 to 16,384 elements,
minutes), built as in the paper; hip_tiny_64 (up to a million elements) and hip_small (a step takes
about four times as long as with hip_tiny), with settings that make raw elements learnable in
minutes (docs/learning.md); hip_text_tiny for texts of 64 to 1,024 bytes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from perceivers.errors import ConfigError
from perceivers.models.hip.config import HiPConfig, HiPHead, HiPLevel
from perceivers.settings import change, named, settle
from perceivers.types import ModalitySpec


def hierarchy(
    *,
    groups: Sequence[int],
    depth: Sequence[int],
    latents: Sequence[int],
    dims: Sequence[int],
    heads: Sequence[int],
) -> tuple[HiPLevel, ...]:
    """Build levels from columns, the layout of the table in the paper."""
    return tuple(
        HiPLevel(num_groups=g, depth=s, num_latents=n, latent_dim=c, num_heads=h)
        for g, s, n, c, h in zip(groups, depth, latents, dims, heads, strict=True)
    )


def flat(
    *,
    depth: int,
    latents: int,
    dim: int,
    cross_heads: int,
    heads: int,
    cross_ratio: int,
    ratio: int,
) -> Mapping[str, Any]:
    """Return the settings of the released flat Perceiver IO; tokens are as wide as latents."""
    level = HiPLevel(
        num_groups=1,
        num_latents=latents,
        latent_dim=dim,
        depth=depth,
        num_heads=heads,
        num_cross_heads=cross_heads,
        mlp_ratio=ratio,
        cross_mlp_ratio=cross_ratio,
    )
    return {
        "levels": (level,),
        "token_dim": dim,
        "position_dim": dim,
        "grouping": "concatenate",
    }


# Settings that make raw images and raw audio learnable (docs/learning.md).
LEARNABLE: Mapping[str, Any] = {
    "position_init": "fourier",
    "position_product": True,
    "embed_scale": 0.25,
    "element_order": "morton",
    "query_product": True,
    "query_heads": 4,
    "query_elements": True,
}

VARIANTS: dict[str, Mapping[str, Any]] = {
    "hip_16": {
        "levels": hierarchy(
            groups=(16, 4, 1, 1, 1, 4, 16),
            depth=(2, 2, 18, 2, 1, 1, 1),
            latents=(128, 256, 256, 64, 256, 256, 128),
            dims=(128, 256, 512, 1024, 512, 256, 128),
            heads=(4, 8, 16, 32, 16, 8, 4),
        ),
        "token_dim": 32,
        "position_dim": 32,
    },
    "hip_256": {
        "levels": hierarchy(
            groups=(256, 64, 16, 4, 1, 1, 1, 4, 16, 64, 256),
            depth=(1, 1, 2, 2, 18, 2, 1, 1, 1, 1, 1),
            latents=(32, 64, 128, 256, 256, 64, 256, 256, 128, 64, 32),
            dims=(64, 96, 128, 256, 512, 1024, 256, 128, 64, 32, 16),
            heads=(1, 2, 4, 8, 16, 32, 16, 8, 4, 2, 1),
        ),
        "token_dim": 16,
        "position_dim": 16,
    },
    "hip_mini": {
        "levels": hierarchy(
            groups=(16, 1, 16),
            depth=(2, 1, 1),
            latents=(128, 64, 128),
            dims=(128, 1024, 128),
            heads=(4, 32, 4),
        ),
        "token_dim": 32,
        "position_dim": 32,
    },
    "hip_16x3": {
        "levels": hierarchy(
            groups=(16, 1, 16),
            depth=(2, 18, 2),
            latents=(128, 256, 128),
            dims=(128, 1024, 128),
            heads=(4, 32, 4),
        ),
        "token_dim": 32,
        "position_dim": 32,
    },
    "io_mini": flat(depth=2, latents=128, dim=128, cross_heads=1, heads=2, cross_ratio=1, ratio=2),
    "io_c_50m": flat(
        depth=8, latents=1024, dim=512, cross_heads=8, heads=8, cross_ratio=4, ratio=4
    ),
    "io_c_150m": flat(
        depth=12, latents=1024, dim=896, cross_heads=16, heads=16, cross_ratio=4, ratio=4
    ),
    "hip_nano": {
        "levels": hierarchy(
            groups=(4, 1, 4),
            depth=(1, 2, 1),
            latents=(8, 16, 8),
            dims=(64, 128, 64),
            heads=(2, 4, 2),
        ),
        "token_dim": 32,
        "position_dim": 32,
    },
    "hip_tiny": {
        "levels": hierarchy(
            groups=(16, 4, 1, 4, 16),
            depth=(1, 1, 3, 1, 1),
            latents=(16, 32, 64, 32, 16),
            dims=(64, 128, 192, 128, 64),
            heads=(2, 4, 6, 4, 2),
        ),
        "token_dim": 32,
        "position_dim": 32,
    },
    "hip_tiny_64": {
        "levels": hierarchy(
            groups=(64, 16, 1, 16, 64),
            depth=(1, 1, 3, 1, 1),
            latents=(16, 32, 64, 32, 16),
            dims=(64, 128, 192, 128, 64),
            heads=(2, 4, 6, 4, 2),
        ),
        "token_dim": 32,
        "position_dim": 32,
        **LEARNABLE,
    },
    "hip_small": {
        "levels": hierarchy(
            groups=(16, 4, 1, 4, 16),
            depth=(2, 2, 3, 2, 2),
            latents=(32, 64, 64, 64, 32),
            dims=(128, 256, 384, 256, 128),
            heads=(4, 8, 12, 8, 4),
        ),
        "token_dim": 32,
        "position_dim": 32,
        **LEARNABLE,
        "element_layers": 3,
    },
    "hip_text_tiny": {
        "levels": hierarchy(
            groups=(4, 1, 4),
            depth=(1, 2, 1),
            latents=(16, 32, 16),
            dims=(128, 256, 128),
            heads=(4, 8, 4),
        ),
        "token_dim": 128,
        "position_dim": 128,
        **LEARNABLE,
        # The embedding of a byte has no magnitude to preserve: it counts as much as its position.
        "embed_scale": 1.0,
        "element_layers": 4,
    },
}


# -- Full configuration from a variant, inputs and a head ----------------------------------------


def configure(
    settings: Mapping[str, Any],
    *,
    inputs: Mapping[str, ModalitySpec] | None,
    num_classes: int | Mapping[str, int] | None,
    head: str | HiPHead,
    overrides: Mapping[str, Any],
) -> HiPConfig:
    """Return the full configuration of a variant.

    Args:
        settings: Settings of the variant.
        inputs: Modalities by name, in the order in which groups are assigned to them.
        num_classes: Number of classes; makes a classifier: an encoder with ``head`` and without a
            decoder.
        head: With ``num_classes`` the name ``query`` or ``mean``; without, a ``HiPHead``.
        overrides: Fields of ``HiPConfig``.

    Raises:
        ConfigError: The settings contradict one another.
    """
    if inputs is None:
        raise ConfigError("a HiP has no inputs of its own; describe them with inputs={...}")
    if isinstance(num_classes, Mapping):
        raise ConfigError(
            f"num_classes={dict(num_classes)}: a HiP has one head; several tasks at once are for "
            f"the perceiver_io variants"
        )
    values: dict[str, Any] = {**settings, **overrides, "inputs": inputs}
    if isinstance(head, HiPHead):
        if num_classes is not None:
            raise ConfigError(
                f"num_classes={num_classes} and {head} both describe the output; give one of them"
            )
        values["head"] = head
    elif num_classes is None and head != "query":
        raise ConfigError(f"head={head!r} needs num_classes, or give a HiPHead")
    elif num_classes is not None:
        made = HiPHead(kind=head, num_outputs=num_classes)  # pyright: ignore[reportArgumentType]
        values = {"decoder": False, "head": made, **values}
    return settle(HiPConfig, values, named(overrides))


def as_classifier(config: HiPConfig, num_classes: int | Mapping[str, int], head: str) -> HiPConfig:
    """Return the config of a classifier with the same encoder.

    Raises:
        ConfigError: Several tasks, or an unknown head.
    """
    if isinstance(num_classes, Mapping):
        raise ConfigError(f"num_classes={dict(num_classes)}: a HiP has one head")
    made = HiPHead(kind=head, num_outputs=num_classes)  # pyright: ignore[reportArgumentType]
    return change(config, decoder=False, head=made)


def as_segmenter(config: HiPConfig, num_classes: int, modality: str, head: str) -> HiPConfig:
    """Return the config of a HiP that predicts a class for every element of a modality.

    Args:
        config: Config of the source model, whose inputs and levels are kept.
        num_classes: Number of classes.
        modality: Modality to segment.
        head: ``family`` or ``bottleneck`` attends to the processor, ``full`` to the last level of
            the decoder.

    Raises:
        ConfigError: Another head, or a modality that is not an input.
    """
    if head not in {"family", "bottleneck", "full"}:
        raise ConfigError(
            f"head={head!r}: a HiP predicts values per element with the heads 'bottleneck' and "
            f"'full'"
        )
    full = head == "full"
    kind = "dense_full" if full else "dense_bottleneck"
    made = HiPHead(kind=kind, num_outputs=num_classes, modality=modality)
    return change(config, decoder=full, head=made)


def with_latent_head(config: HiPConfig) -> HiPConfig:
    """Return a config whose decoder also predicts latents."""
    return change(config, latent_head=True)
