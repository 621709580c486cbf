"""From a variant, inputs and a head to a complete HiP configuration."""

from collections.abc import Mapping
from typing import Any

from perceivers.errors import ConfigError
from perceivers.models.hip.config import HiPConfig, HiPHead
from perceivers.settings import change, named, settle
from perceivers.types import ModalitySpec


def configure(
    settings: Mapping[str, Any],
    *,
    inputs: Mapping[str, ModalitySpec] | None,
    num_classes: int | Mapping[str, int] | None,
    head: str | HiPHead,
    overrides: Mapping[str, Any],
) -> HiPConfig:
    """Complete a variant.

    Args:
        settings: The variant's.
        inputs: Modalities by name, in group order.
        num_classes: Sugar for a classifier: an encoder with ``head`` and without a decoder.
        head: With ``num_classes`` the name ``query`` or ``mean``; without, a complete ``HiPHead``.
        overrides: Fields of ``HiPConfig``.

    Raises:
        ConfigError: The settings contradict one another.
    """
    if inputs is None:
        raise ConfigError("a HiP has no inputs of its own; say what it reads with inputs={...}")
    if isinstance(num_classes, Mapping):
        raise ConfigError(
            f"num_classes={dict(num_classes)}: a HiP has one head; several tasks at once are for "
            f"the perceiver_io variants"
        )
    values: dict[str, Any] = {**settings, **overrides, "inputs": inputs}
    if isinstance(head, HiPHead):
        if num_classes is not None:
            raise ConfigError(
                f"num_classes={num_classes} and {head} both describe the read-out; give one of them"
            )
        values["head"] = head
    elif num_classes is None and head != "query":
        raise ConfigError(f"head={head!r} needs num_classes, or give a complete HiPHead")
    elif num_classes is not None:
        made = HiPHead(kind=head, num_outputs=num_classes)  # pyright: ignore[reportArgumentType]
        values = {"decoder": False, "head": made, **values}
    return settle(HiPConfig, values, named(overrides))


def as_classifier(config: HiPConfig, num_classes: int | Mapping[str, int], head: str) -> HiPConfig:
    """Return the config of an encoder with a classifying head.

    Raises:
        ConfigError: Several tasks, or an unknown head.
    """
    if isinstance(num_classes, Mapping):
        raise ConfigError(f"num_classes={dict(num_classes)}: a HiP has one head")
    made = HiPHead(kind=head, num_outputs=num_classes)  # pyright: ignore[reportArgumentType]
    return change(config, decoder=False, head=made)


def as_segmenter(config: HiPConfig, num_classes: int, modality: str, head: str) -> HiPConfig:
    """Return the config of a HiP that answers with classes for every element of a modality.

    Args:
        config: Whose inputs and levels stay.
        num_classes: Logits per element.
        modality: Whose elements.
        head: ``family`` or ``bottleneck`` reads the processor; ``full`` the whole decoder.

    Raises:
        ConfigError: Another head, or a modality that is not read.
    """
    if head not in {"family", "bottleneck", "full"}:
        raise ConfigError(
            f"head={head!r}: a HiP answers element by element from its 'bottleneck' or its 'full' "
            f"decoder"
        )
    full = head == "full"
    kind = "dense_full" if full else "dense_bottleneck"
    made = HiPHead(kind=kind, num_outputs=num_classes, modality=modality)
    return change(config, decoder=full, head=made)


def with_latent_head(config: HiPConfig) -> HiPConfig:
    """Return a config whose decoder also predicts latents."""
    return change(config, latent_head=True)
