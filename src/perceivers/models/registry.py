"""Registry of model families and named variants; builds models, but does not load weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from perceivers.errors import ConfigError, suggest
from perceivers.models.attention_maps import Explanation
from perceivers.models.entity_set import EntitySet, EntitySetConfig
from perceivers.models.entity_set import model as entity_set
from perceivers.models.graphs import Graph
from perceivers.models.hiera import Hiera, HieraConfig, HieraHead
from perceivers.models.hiera import variants as hiera
from perceivers.models.hiera.objective import PatchErrors, PatchObjective
from perceivers.models.hiera_det import HieraDet, HieraDetConfig
from perceivers.models.hiera_det import config as hiera_det
from perceivers.models.hip import HiP, HiPConfig, HiPHead
from perceivers.models.hip import attention as hip_attention
from perceivers.models.hip import variants as hip
from perceivers.models.hip.objective import ElementErrors, ElementObjective
from perceivers.models.masked import ErrorMaps, MaskedObjective
from perceivers.models.perceiver import Perceiver, PerceiverConfig
from perceivers.models.perceiver import model as perceiver_model
from perceivers.models.perceiver import variants as perceiver
from perceivers.models.perceiver_io import PerceiverIO, PerceiverIOConfig
from perceivers.models.perceiver_io import attention as io_attention
from perceivers.models.perceiver_io import graph as io_graph
from perceivers.models.perceiver_io import variants as perceiver_io
from perceivers.models.perceiver_io.hidden_errors import TokenErrors
from perceivers.types import Image, ModalitySpec


def image_example(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs of a variant, or an image of 224 x 224 pixels."""
    return {"inputs": settings.get("inputs") or {"image": Image(224, 224, 3)}}


@dataclass(frozen=True)
class Family:
    """A model family: its config class, module, named variants and paper.

    ``configure(settings, inputs=, num_classes=, head=, overrides=)`` returns the full configuration
    of a variant; ``as_classifier(config, num_classes, head)`` the config of a classifier with the
    same encoder.
    """

    config: Any
    module: Any
    variants: Mapping[str, Mapping[str, Any]]
    configure: Callable[..., Any]
    as_classifier: Callable[..., Any]
    paper: str
    example: Callable[[Mapping[str, Any]], dict[str, Any]] = image_example
    """``example(settings)`` returns keywords of ``create_model`` for typical inputs of a variant,
    for which its parameters are counted."""
    autoencoder: Mapping[str, Any] | None = None
    """Settings that give a variant a decoder for masked autoencoding; None if not supported."""
    with_latent_head: Callable[[Any], Any] | None = None
    """Return a config whose decoder also predicts latents; None if not supported."""
    objective: Callable[[Any], MaskedObjective] | None = None
    """Masked autoencoding of a model with a decoder; None if not supported."""
    hidden_errors: Callable[..., ErrorMaps] | None = None
    """``hidden_errors(model, settings, repeats, generator)`` measures errors of hidden elements;
    None without an objective."""
    token_errors: Callable[..., ErrorMaps] | None = None
    """``token_errors(model, ratio, repeats, generator)`` does so for an autoencoder trained with
    hidden tokens; None if not supported."""
    read_attention: Callable[..., Explanation] | None = None
    """``read_attention(model, inputs, head=, latents=)`` returns the attention maps of one sample;
    None if the family has no latents."""
    traces_bytes: bool = False
    """Whether attention maps include those of the decoded bytes of texts."""
    decoder_graph: Callable[[Any, str | None], Graph] | None = None
    """``decoder_graph(model, output)`` returns the decoder of an output as a graph for export; None
    if the decoder cannot be exported alone."""
    as_segmenter: Callable[..., Any] | None = None
    """``as_segmenter(config, num_classes, modality, head)`` returns the config of a model that
    predicts a class for every element of a modality; None if not supported."""


FAMILIES: dict[str, Family] = {
    "hip": Family(
        HiPConfig,
        HiP,
        hip.VARIANTS,
        hip.configure,
        hip.as_classifier,
        "arXiv 2202.10890",
        autoencoder={},
        objective=ElementObjective,
        hidden_errors=ElementErrors,
        read_attention=hip_attention.read_attention,
        with_latent_head=hip.with_latent_head,
        as_segmenter=hip.as_segmenter,
    ),
    "perceiver": Family(
        PerceiverConfig,
        Perceiver,
        perceiver.VARIANTS,
        perceiver.configure,
        perceiver.as_classifier,
        "arXiv 2103.03206",
        example=perceiver.example,
        read_attention=perceiver_model.read_attention,
    ),
    "perceiver_io": Family(
        PerceiverIOConfig,
        PerceiverIO,
        perceiver_io.VARIANTS,
        perceiver_io.configure,
        perceiver_io.as_classifier,
        "arXiv 2107.14795",
        example=perceiver_io.example,
        read_attention=io_attention.read_attention,
        traces_bytes=True,
        token_errors=TokenErrors,
        decoder_graph=io_graph.decoder_graph,
        as_segmenter=perceiver_io.as_segmenter,
    ),
    "hiera": Family(
        HieraConfig,
        Hiera,
        hiera.VARIANTS,
        hiera.configure,
        hiera.as_classifier,
        "arXiv 2306.00989",
        example=hiera.example,
        autoencoder={"decoder": True},
        objective=PatchObjective,
        hidden_errors=PatchErrors,
        with_latent_head=hiera.with_latent_head,
        as_segmenter=hiera.as_segmenter,
    ),
    "hiera_det": Family(
        HieraDetConfig,
        HieraDet,
        hiera_det.VARIANTS,
        hiera_det.configure,
        hiera_det.as_classifier,
        "arXiv 2408.00714",
    ),
    "entity_set": Family(
        EntitySetConfig,
        EntitySet,
        entity_set.VARIANTS,
        entity_set.configure,
        entity_set.as_classifier,
        "arXiv 2107.14795",
        example=entity_set.example,
        read_attention=entity_set.read_attention,
    ),
}


def list_models(pattern: str = "*") -> list[str]:
    """Return the variant names that match a shell pattern such as ``hip_*``."""
    names = [name for family in FAMILIES.values() for name in family.variants]
    return [name for name in names if fnmatch(name, pattern)]


def families_with(field: str) -> list[str]:
    """Return the families that support something, by the name of a field of ``Family``."""
    return [name for name, family in FAMILIES.items() if getattr(family, field) is not None]


def find_family(name: str) -> str:
    """Return the family of a variant.

    Raises:
        ConfigError: No variant has this name.
    """
    for family, entry in FAMILIES.items():
        if name in entry.variants:
            return family
    raise ConfigError(
        f"model {name!r} is unknown; 'perceivers models' lists all names"
        + suggest(name, list_models())
    )


def create_model(
    name: str,
    *,
    inputs: Mapping[str, ModalitySpec] | None = None,
    num_classes: int | Mapping[str, int] | None = None,
    head: str | HiPHead | HieraHead = "query",
    **overrides: Any,
) -> Any:
    """Build a variant with random weights from the global random generator.

    Args:
        name: A name from ``list_models``.
        inputs: Modalities by name; most released variants have their own.
        num_classes: Number of classes, for a classifier; a mapping of task name -> number of
            classes for several tasks (Perceiver IO only).
        head: With ``num_classes`` the name of a head such as ``query`` or ``mean``; or a
            ``HiPHead`` or ``HieraHead`` for these families.
        overrides: Fields of the config, for instance ``drop_path_rate=0.1``, or for Perceiver and
            Perceiver IO ``trunk={"depth": 4}``.

    Returns:
        An ``nn.Module`` that implements ``perceivers.models.base.Model``.

    Raises:
        ConfigError: The name or a field is unknown, or the settings contradict one another.
    """
    family = FAMILIES[find_family(name)]
    fields = family.config.__dataclass_fields__
    unknown = sorted(overrides.keys() - fields.keys())
    if unknown:
        raise ConfigError(
            f"{name} has no setting {unknown[0]!r}; its settings are {sorted(fields)}"
            + suggest(unknown[0], fields)
        )
    config = family.configure(
        family.variants[name],
        inputs=inputs,
        num_classes=num_classes,
        head=head,
        overrides=overrides,
    )
    return family.module(config)
