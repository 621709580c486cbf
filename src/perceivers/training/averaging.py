"""Exponential moving average (EMA) of a model's parameters, sharded or not."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from perceivers.errors import CheckpointError
from perceivers.training.sharding import own_part, spread_like


class WeightAverage:
    """Exponential moving average of a model's parameters; buffers are not averaged.

    Args:
        model: Model to average, already on its device and sharded.
        decay: Weight of the average so far at each update, 0..1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self.decay = decay
        self.parameters: dict[str, Tensor] = {
            name: parameter.detach().clone() for name, parameter in model.named_parameters()
        }

    @torch.no_grad()
    def update(self, *, first: bool) -> None:
        """Move the average towards the parameters; the first update copies them."""
        mine = [own_part(tensor) for tensor in self.parameters.values()]
        current = [own_part(tensor.detach()) for tensor in self.model.parameters()]
        if first:
            torch._foreach_copy_(mine, current)  # pyright: ignore[reportPrivateImportUsage]
        else:
            # The same call as in torch.optim.swa_utils.
            torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
                mine, current, 1.0 - self.decay
            )

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Swap the average into the model inside the block, to evaluate or save it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.model.named_parameters():
            inside, outside = own_part(parameter.detach()), own_part(self.parameters[name])
            held = inside.clone()
            inside.copy_(outside)
            outside.copy_(held)

    def load(self, parameters: Mapping[str, Tensor]) -> None:
        """Load a saved average.

        Raises:
            CheckpointError: A parameter is missing or has another shape.
        """
        for name, mine in self.parameters.items():
            if name not in parameters or parameters[name].shape != mine.shape:
                found = tuple(parameters[name].shape) if name in parameters else "missing"
                raise CheckpointError(
                    f"the saved average does not fit the model: {name} is {found}, expected "
                    f"{tuple(mine.shape)}"
                )
            own_part(mine).copy_(own_part(spread_like(parameters[name], mine)))
