"""What the loop tells the world. Listeners decide what becomes of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Started:
    """The loop begins (or resumes) at ``step`` of ``total``."""

    step: int
    total: int


@dataclass(frozen=True)
class Stepped:
    """Training figures averaged since the last such event.

    ``data_wait`` is the part of the time since then in which the main process waited for batches.
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
    """Validation figures, and whether they are the best so far."""

    step: int
    figures: Mapping[str, float]
    is_best: bool


@dataclass(frozen=True)
class Noted:
    """Something a person should read."""

    text: str


@dataclass(frozen=True)
class Unreadable:
    """A sample of ``split`` that could not be read; ``text`` is ``name: reason``."""

    step: int
    split: str
    text: str


@dataclass(frozen=True)
class Finished:
    """The loop ended at ``step``; why."""

    step: int
    reason: str


@dataclass(frozen=True)
class Rescued:
    """The run folder was lost; what belongs in it is written into ``folder``."""

    folder: Path


Event = Started | Stepped | Evaluated | Noted | Unreadable | Finished | Rescued
Listener = Callable[[Event], None]
