"""Addresses in a run's settings: absolute in ``config.yaml``, as they were typed beside it.

So a run is resumed, evaluated and repeated from any folder, while model cards and titles show what
the user wrote.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from perceivers.checkpoints.loading import absolute_model, is_model_present
from perceivers.data.locating import absolute_address, is_present
from perceivers.training.config import TrainConfig

C = TypeVar("C", bound=TrainConfig)
# Setting -> how it is made absolute, and how its presence is found out.
ADDRESSES = {
    "data": (absolute_address, is_present),
    "model": (absolute_model, is_model_present),
}


def make_absolute(config: C) -> C:
    """Return settings whose addresses mean the same in every folder."""
    return replace(
        config, **{name: make(getattr(config, name)) for name, (make, _) in ADDRESSES.items()}
    )


def describe_addresses(typed: TrainConfig, absolute: TrainConfig) -> dict[str, dict[str, str]]:
    """Return typed and absolute addresses by setting, as a run folder keeps them."""
    return {
        name: {"typed": getattr(typed, name), "absolute": getattr(absolute, name)}
        for name in ADDRESSES
    }


def find_addresses(config: C, recorded: Mapping[str, Any]) -> C:
    """Return settings whose addresses exist, where either form of them does.

    A project that was moved or is mounted elsewhere is found by what was typed, from its folder.

    Args:
        config: As ``config.yaml`` holds it.
        recorded: From ``describe_addresses``.
    """
    found: dict[str, str] = {}
    for name, (make, is_there) in ADDRESSES.items():
        address, typed = getattr(config, name), _typed(config, recorded, name)
        if typed != address and not is_there(address) and is_there(typed):
            found[name] = make(typed)
    return replace(config, **found)


def as_typed(config: C, recorded: Mapping[str, Any]) -> C:
    """Return settings with the addresses as the user typed them."""
    return replace(config, **{name: _typed(config, recorded, name) for name in ADDRESSES})


def _typed(config: TrainConfig, recorded: Mapping[str, Any], name: str) -> str:
    """Return an address as it was typed; as it is where it was changed since."""
    address, entry = getattr(config, name), recorded.get(name)
    if not isinstance(entry, Mapping) or entry.get("absolute") != address:
        return address
    typed = entry.get("typed")
    return typed if isinstance(typed, str) else address
