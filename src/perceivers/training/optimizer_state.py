"""The optimizer's state by parameter name, so that any number of processes can take it over."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

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
    """Take over what ``state_by_name`` returned and ``StateChecker`` accepted.

    Tensors are spread as the parameters are.
    """
    parameters = dict(model.named_parameters())
    places = {name: place for place, name in enumerate(n for g in groups for n in g["params"])}
    optimizer.load_state_dict(
        {
            "state": {
                places[name]: {
                    key: _spread(value, parameters[name]) for key, value in state.items()
                }
                for name, state in states.items()
            },
            "param_groups": [
                # Settings that an older library did not save are this run's.
                {**mine, **group, "params": [places[name] for name in group["params"]]}
                for mine, group in zip(optimizer.param_groups, groups, strict=True)
            ],
        }
    )


def _spread(value: Any, parameter: Tensor) -> Any:
    return spread_like(value, parameter) if isinstance(value, Tensor) else value
