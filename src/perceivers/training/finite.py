"""Numbers that are not finite stop a run before they can replace a finite checkpoint.

Two things are looked at. Loss and gradient norm of every step, before the step changes a weight:
reading them waits for the device, so on a GPU that is done once per record. And the whole state
(weights, batch norms, optimizer, average) before any of it is written: a step may have spoiled it
although its loss and gradient were finite. All processes find the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from perceivers.errors import RunError
from perceivers.finite import list_names, names_not_finite
from perceivers.training.runtime import Runtime

# The remedy is one of these wherever training itself diverged.
SETTINGS = "lower optimizer.lr (now {lr}) or limit gradients with optimizer.clip (now {clip})"


@dataclass(frozen=True)
class Spoiled:
    """The first step whose loss or gradient norm was not finite, over all processes.

    Attributes:
        step: Its number; its update has been made if it is not the current one.
        what: ``loss`` or ``gradient norm``.
        value: What was found.
        indices: Samples of the batch, of the processes that found a bad loss if any did.
    """

    step: int
    what: str
    value: float
    indices: list[int]


@dataclass(frozen=True)
class _Step:
    number: int
    loss: Tensor
    norm: Tensor
    indices: Sequence[int]


@dataclass
class FiniteGuard:
    """Keeps what steps have computed until it is looked at.

    Attributes:
        runtime: Of all processes.
        state: Returns every tensor that a checkpoint holds, by name.
        every: Steps between two looks on devices that one waits for.
    """

    runtime: Runtime
    state: Callable[[], Mapping[str, Tensor]]
    every: int
    _steps: list[_Step] = field(default_factory=list)

    def add(self, number: int, loss: Tensor, norm: Tensor, indices: Sequence[int]) -> bool:
        """Remember a step that is about to change the weights; tell whether to look now."""
        self._steps.append(_Step(number, loss.detach(), norm.detach(), indices))
        return self.runtime.device.type == "cpu" or number % self.every == 0

    def find_step(self) -> Spoiled | None:
        """Look at the steps since the last look; all processes must call this."""
        steps, self._steps = self._steps, []
        found = None
        if steps:
            values = torch.stack([torch.stack([s.loss.float(), s.norm.float()]) for s in steps])
            bad = (~values.isfinite()).any(1).tolist()
            found = next((place for place, is_bad in enumerate(bad) if is_bad), None)
        if not self.runtime.any(found is not None)[0]:
            return None
        # A norm is the same everywhere, a loss is each process's own.
        mine = None
        if found is not None:
            step = steps[found]
            mine = (step.number, float(step.loss), float(step.norm), list(step.indices))
        every = [each for each in self.runtime.gather(mine) if each is not None]
        first = min(number for number, *_ in every)
        every = [each for each in every if each[0] == first]
        with_bad_loss = [each for each in every if not _is_finite(each[1])]
        what, place = ("loss", 1) if with_bad_loss else ("gradient norm", 2)
        chosen = with_bad_loss or every
        indices = [index for each in chosen for index in each[3]]
        return Spoiled(first, what, chosen[0][place], indices)

    def find_tensors(self) -> list[str]:
        """Return names of state tensors that are not finite; all processes must call this."""
        found = self.runtime.gather(names_not_finite(self.state()))
        return list(dict.fromkeys(name for names in found for name in names))


def step_error(found: Spoiled, batch: str, kept: str, settings: str) -> RunError:
    """Return what to say of a step.

    Args:
        found: The step.
        batch: Where its sample indices are written.
        kept: Which state is on disk.
        settings: The remedy.
    """
    return RunError(
        f"the {found.what} is {found.value} at step {found.step}; {kept}, and the batch's sample "
        f"indices in {batch}. Look at those samples, or {settings} and start again"
    )


def state_error(names: Sequence[str], step: int, kept: str, settings: str) -> RunError:
    """Return what to say of a state that must not be written; arguments as for ``step_error``."""
    return RunError(
        f"{len(names)} tensors of the run's state hold NaN or infinity after {step} steps "
        f"({list_names(names)}), and were not saved; {kept}. Training diverged: {settings} and "
        f"start again"
    )


def _is_finite(value: float) -> bool:
    return abs(value) < float("inf")
