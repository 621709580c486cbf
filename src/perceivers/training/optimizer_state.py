"""The optimizer's state by parameter name, so that any number of processes can take it over."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from perceivers.errors import CheckpointError
from perceivers.training.sharding import spread_like

Named = dict[str, dict[str, Any]]


def state_by_name(optimizer: torch.optim.Optimizer, model: nn.Module) -> tuple[Named, list[Any]]:
    """Return the state of each parameter by name, and the groups with names for parameters."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    groups = [
        {**group, "params": [names[parameter] for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]
    states = {names[parameter]: dict(state) for parameter, state in optimizer.state.items()}
    return states, groups


def load_by_name(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    states: Mapping[str, Mapping[str, Any]],
    groups: list[dict[str, Any]],
) -> None:
    """Take over what ``state_by_name`` returned, spread as the parameters are.

    Raises:
        CheckpointError: The parameters are grouped differently.
    """
    parameters = dict(model.named_parameters())
    names = {parameter: name for name, parameter in parameters.items()}
    order = [[names[p] for p in group["params"]] for group in optimizer.param_groups]
    if order != [group["params"] for group in groups]:
        raise CheckpointError(
            f"the saved optimizer has {len(groups)} groups of parameters that are not those of "
            f"this run ({len(order)}); optimizer settings cannot change when a run is resumed"
        )
    places = {name: place for place, name in enumerate(n for group in order for n in group)}
    optimizer.load_state_dict(
        {
            "state": {
                places[name]: {
                    key: _spread(value, parameters[name]) for key, value in state.items()
                }
                for name, state in states.items()
            },
            "param_groups": [
                {**group, "params": [places[name] for name in group["params"]]} for group in groups
            ],
        }
    )


def _spread(value: Any, parameter: Tensor) -> Any:
    return spread_like(value, parameter) if isinstance(value, Tensor) else value
