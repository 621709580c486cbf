"""Training metrics between two records."""

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

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
