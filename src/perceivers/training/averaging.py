"""An exponential moving average of a model's parameters, whole or spread over processes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from perceivers.errors import CheckpointError
from perceivers.training.sharding import own_part, spread_like


class WeightAverage:
    """Average of the parameters; buffers are the model's own, as they follow it anyway.

    Args:
        model: Whose parameters; already on its device and spread over the processes.
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
        """Move towards the parameters; the first update takes them as they are."""
        mine = [own_part(tensor) for tensor in self.parameters.values()]
        current = [own_part(tensor.detach()) for tensor in self.model.parameters()]
        if first:
            torch._foreach_copy_(mine, current)  # pyright: ignore[reportPrivateImportUsage]
        else:
            # The same call as torch's own average makes.
            torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
                mine, current, 1.0 - self.decay
            )

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Give the model the average for a while, to evaluate and to save it."""
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
        """Take over what was saved.

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
