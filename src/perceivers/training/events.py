"""Events that the training loop emits; listeners decide what to do with them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Started:
    """The loop starts (or resumes) at ``step`` of ``total``."""

    step: int
    total: int


@dataclass(frozen=True)
class Stepped:
    """Training metrics, averaged since the previous event of this kind.

    ``seconds`` is the training time so far; ``data_wait`` is the fraction of the time since the
    previous event that the main process spent waiting for batches, 0..1.
    """

    step: int
    total: int
    loss: float
    parts: Mapping[str, float]
    lr: float
    samples_per_second: float
    seconds: float
    data_wait: float = 0.0


@dataclass(frozen=True)
class Evaluated:
    """Validation metrics, and whether they are the best so far."""

    step: int
    figures: Mapping[str, float]
    is_best: bool


@dataclass(frozen=True)
class Noted:
    """A message for the user."""

    text: str


@dataclass(frozen=True)
class Unreadable:
    """A sample of ``split`` that could not be read; ``text`` is ``name: reason``."""

    step: int
    split: str
    text: str


@dataclass(frozen=True)
class Finished:
    """The loop ended at ``step``, for the given reason."""

    step: int
    reason: str


@dataclass(frozen=True)
class Rescued:
    """The run folder was lost; records are now written to ``folder``."""

    folder: Path


Event = Started | Stepped | Evaluated | Noted | Unreadable | Finished | Rescued
Listener = Callable[[Event], None]
