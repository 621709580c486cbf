"""From a variant, an input and a read-out to a complete Hiera configuration."""

from collections.abc import Mapping
from typing import Any

from perceivers.adapters.config import change_fields
from perceivers.errors import ConfigError
from perceivers.models.hiera.config import HieraConfig, HieraDecoder, HieraHead
from perceivers.settings import change, named, settle
from perceivers.types import ModalitySpec

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
