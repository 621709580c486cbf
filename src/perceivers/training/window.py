"""Metrics of the steps between two records, and checks that every step and the state are finite."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from perceivers.errors import RunError
from perceivers.finite import list_names, names_not_finite
from perceivers.training.runtime import Runtime


@dataclass
class Window:
    """Losses and timings of the steps since the last record."""

    losses: list[Tensor] = field(default_factory=list)
    parts: list[dict[str, Tensor]] = field(default_factory=list)
    seconds: float = 0.0
    samples: int = 0
    waited: float = 0.0
    """Seconds that this process spent waiting for batches."""
    began: float = field(default_factory=time.perf_counter)

    @property
    def data_wait(self) -> float:
        """Fraction of the time since the last record spent waiting for batches, 0..1."""
        return self.waited / max(time.perf_counter() - self.began, 1e-9)

    def add(self, loss: Tensor, parts: dict[str, Tensor], *, samples: int, seconds: float) -> None:
        """Add the losses and timings of a step."""
        self.losses.append(loss)
        self.parts.append(parts)
        self.seconds += seconds
        self.samples += samples

    def means(self, runtime: Runtime) -> tuple[float, dict[str, float]]:
        """Return the mean loss and the means of its parts, over steps and processes."""
        loss = float(runtime.mean(torch.stack(self.losses).mean()))
        parts = {
            name: float(runtime.mean(torch.stack([p[name] for p in self.parts]).mean()))
            for name in self.parts[-1]
        }
        return loss, parts

    def share(self, runtime: Runtime) -> None:
        """Replace the losses of this process by their means over all processes."""
        self.losses = [runtime.mean(loss) for loss in self.losses]
        self.parts = [{n: runtime.mean(p) for n, p in parts.items()} for parts in self.parts]

    def to_state(self) -> list[dict[str, Tensor]]:
        """Return the losses: a resumed run must report the same values; timings differ anyway."""
        return [{"": loss, **parts} for loss, parts in zip(self.losses, self.parts, strict=True)]

    @classmethod
    def from_state(cls, steps: list[dict[str, Tensor]], device: torch.device) -> "Window":
        """Rebuild a window from the result of ``to_state``."""
        moved = [{name: value.to(device) for name, value in step.items()} for step in steps]
        return cls(losses=[step.pop("") for step in moved], parts=moved)


# -- Stop a run at NaN or infinity before it can replace a finite checkpoint -----------------------
#
# Two things are checked. First, loss and gradient norm of every step, before the weights change;
# on a GPU this is done once per record, because reading them waits for the device. Second, the
# whole state (weights, batch norms, optimizer, average) before any of it is written, because a
# step can corrupt it although its loss and gradient were finite. All processes come to the same
# result.


# Advice in the message when training has diverged.
SETTINGS = "lower optimizer.lr (now {lr}) or limit gradients with optimizer.clip (now {clip})"


@dataclass(frozen=True)
class Spoiled:
    """The first step with a non-finite loss or gradient norm, over all processes.

    Attributes:
        step: Its number; unless it is the current step, its update has been applied.
        what: ``loss`` or ``gradient norm``.
        value: The value found.
        indices: Sample indices of the batch; only of the processes with a bad loss, if there are
            any.
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
    """Collects loss and gradient norm of every step until they are checked.

    Attributes:
        runtime: Runtime of the run.
        state: Returns every tensor of a checkpoint by name.
        every: Steps between two checks on devices other than the CPU.
    """

    runtime: Runtime
    state: Callable[[], Mapping[str, Tensor]]
    every: int
    _steps: list[_Step] = field(default_factory=list)

    def add(self, number: int, loss: Tensor, norm: Tensor, indices: Sequence[int]) -> bool:
        """Add a step whose update has not been applied yet; return whether to check now."""
        self._steps.append(_Step(number, loss.detach(), norm.detach(), indices))
        return self.runtime.device.type == "cpu" or number % self.every == 0

    def find_step(self) -> Spoiled | None:
        """Check the steps since the last check; all processes must call this."""
        steps, self._steps = self._steps, []
        found = None
        if steps:
            # Stacked, so that all steps need a single transfer from the device.
            values = torch.stack([torch.stack([s.loss.float(), s.norm.float()]) for s in steps])
            bad = (~values.isfinite()).any(1).tolist()
            found = next((place for place, is_bad in enumerate(bad) if is_bad), None)
        if not self.runtime.any(found is not None)[0]:
            return None
        # The gradient norm is the same in all processes; the loss is not.
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
        """Return the names of non-finite state tensors; all processes must call this."""
        found = self.runtime.gather(names_not_finite(self.state()))
        return list(dict.fromkeys(name for names in found for name in names))


def step_error(found: Spoiled, batch: str, kept: str, settings: str) -> RunError:
    """Return the error for a non-finite step.

    Args:
        found: The step.
        batch: File with its sample indices.
        kept: Says which state is on disk.
        settings: Advice on settings.
    """
    return RunError(
        f"the {found.what} is {found.value} at step {found.step}; {kept}, and the batch's sample "
        f"indices in {batch}. Look at those samples, or {settings} and start again"
    )


def state_error(names: Sequence[str], step: int, kept: str, settings: str) -> RunError:
    """Return the error for a state that must not be written; arguments as for ``step_error``."""
    return RunError(
        f"{len(names)} tensors of the run's state hold NaN or infinity after {step} steps "
        f"({list_names(names)}), and were not saved; {kept}. Training diverged: {settings} and "
        f"start again"
    )


def _is_finite(value: float) -> bool:
    return abs(value) < float("inf")
