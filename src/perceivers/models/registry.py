"""The one table of model names. ``create_model`` builds; nothing here downloads or loads."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import Any

from torch import nn

from perceivers.errors import ConfigError, suggest
from perceivers.models.hip import HiP, HiPConfig, HiPHead
from perceivers.models.hip import variants as hip
from perceivers.types import ModalitySpec


@dataclass(frozen=True)
class Family:
    """One system: its config class, its module, its named variants and their papers."""

    config: type[HiPConfig]
    module: type[HiP]
    variants: Mapping[str, Mapping[str, Any]]
    paper: str


FAMILIES: dict[str, Family] = {
    "hip": Family(HiPConfig, HiP, hip.VARIANTS, "arXiv 2202.10890"),
}


def list_models(pattern: str = "*") -> list[str]:
    """Return the variant names that match a shell pattern such as ``hip_*``."""
    names = [name for family in FAMILIES.values() for name in family.variants]
    return [name for name in names if fnmatch(name, pattern)]


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


def family_of(model: nn.Module) -> str:
    """Return the family name of a built model."""
    return next(name for name, entry in FAMILIES.items() if type(model) is entry.module)


def create_model(
    name: str,
    *,
    inputs: Mapping[str, ModalitySpec],
    num_classes: int | None = None,
    head: str | HiPHead = "query",
    **overrides: Any,
) -> HiP:
    """Build a variant with fresh weights from the global random generator.

    Args:
        name: A name from ``list_models``.
        inputs: Modalities by name, in group order.
        num_classes: Sugar for a classifier: an encoder with ``head`` and without a decoder.
        head: With ``num_classes`` the name ``query`` or ``mean``; without, a complete ``HiPHead``.
        overrides: Fields of the family's config, for instance ``drop_path_rate=0.1``.

    Raises:
        ConfigError: The name or a field is unknown, or the settings contradict one another.
    """
    family = FAMILIES[find_family(name)]
    unknown = sorted(overrides.keys() - family.config.__dataclass_fields__.keys())
    if unknown:
        fields = family.config.__dataclass_fields__
        raise ConfigError(
            f"{name} has no setting {unknown[0]!r}; its settings are {sorted(fields)}"
            + suggest(unknown[0], fields)
        )
    settings = {**family.variants[name], **overrides}
    if isinstance(head, HiPHead):
        if num_classes is not None:
            raise ConfigError(
                f"num_classes={num_classes} and {head} both describe the read-out; give one of them"
            )
        settings["head"] = head
    elif num_classes is None and head != "query":
        raise ConfigError(f"head={head!r} needs num_classes, or give a complete HiPHead")
    elif num_classes is not None:
        settings = {
            "decoder": False,
            "head": HiPHead(kind=head, num_outputs=num_classes),  # pyright: ignore[reportArgumentType]
            **settings,
        }
    return family.module(family.config(inputs=inputs, **settings))


def rebuild(model: HiP, **changes: Any) -> HiP:
    """Build a fresh model from another's config with some fields replaced."""
    return type(model)(replace(model.config, **changes))
