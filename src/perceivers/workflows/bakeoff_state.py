"""What a bake-off is asked for, and what it has found so far: one file that it continues from."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from perceivers.errors import ConfigError
from perceivers.files import read_json_file, write_json
from perceivers.settings import Natural, NonNegative, Positive, Range, Seed, Settings
from perceivers.version import __version__
from perceivers.workflows.arms import Arm, Outcome, check_shared, read_outcome
from perceivers.workflows.candidates import LEARNING_RATES
from perceivers.workflows.entries import Entry

RECORD = "bakeoff.json"


@dataclass(frozen=True, kw_only=True)
class BakeoffSettings(Settings, prefix=""):
    """What competes, and for how long."""

    data: str
    """A data address."""
    minutes: NonNegative = 0.0
    """Time for training and its evaluations, of all candidates together."""
    steps: Natural = 0
    """Instead of minutes: steps of each candidate in the first rung, for equal results to the last
    bit; a later rung takes as many times more as it has fewer candidates (reduce)."""
    reduce: Annotated[int, Range(2)] = 3
    """One of this many candidates reaches the next rung."""
    task: str = ""
    """What is learned; what the data are for when not given."""
    labels: list[str] = field(default_factory=list)
    """Label columns to learn, where the data have several."""
    targets: list[str] = field(default_factory=list)
    """Columns of numbers to be predicted."""
    models: list[str] = field(default_factory=list)
    """Variants that compete; all small ones, and what data check proposes, when empty."""
    rates: list[Positive] = field(default_factory=lambda: list(LEARNING_RATES))
    """Peak learning rates that every variant is tried with."""
    seed: Seed = 0
    """Seed of all runs."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Further training settings of all candidates, such as {batch_size: 32}."""

    def __post_init__(self) -> None:
        """Reject values out of range, and settings that are decided here."""
        super().__post_init__()
        if bool(self.minutes) == bool(self.steps):
            raise ConfigError(
                f"minutes={self.minutes:g} and steps={self.steps}: give one of them, the time of "
                f"everything or the steps of each candidate in the first rung"
            )
        if not self.rates:
            raise ConfigError("rates is empty; give at least one learning rate")
        check_shared(self.settings)


@dataclass(frozen=True)
class Rung:
    """One round, in which all candidates train equally long.

    Args:
        seconds: Of each candidate; 0 where steps are equal instead.
        steps: By entry.
        eval_every: By entry.
        kept: Those that went on, best first; empty while it is not finished.
    """

    seconds: float
    steps: Mapping[str, int]
    eval_every: Mapping[str, int]
    kept: Sequence[str] = ()


@dataclass(frozen=True)
class Bakeoff:
    """What is known so far; ``bakeoff.json`` holds it.

    Args:
        settings: What was asked.
        task: What is learned.
        metric: The validation metric that chooses.
        higher_is_better: Its direction.
        splits: Splits of the data.
        entries: All candidates, also those that do not compete.
        rungs: Those that have begun.
        constant: The constant answer: what it is, and its metric by split.
        winner: The entry that won; empty before the end.
        test: Metrics of the winner on test; empty without such a split.
        command: What trains the winner longer.
    """

    settings: Mapping[str, Any]
    task: str
    metric: str
    higher_is_better: bool
    splits: Sequence[str]
    entries: Sequence[Entry]
    rungs: Sequence[Rung] = ()
    constant: Mapping[str, Any] = field(default_factory=dict)
    winner: str = ""
    test: Mapping[str, float] = field(default_factory=dict)
    command: str = ""

    @property
    def competing(self) -> list[Entry]:
        """Entries that train in the first rung."""
        return [entry for entry in self.entries if not entry.reason]

    def entry(self, slug: str) -> Entry:
        """Return an entry by its slug."""
        return next(entry for entry in self.entries if entry.slug == slug)


def arm_of(state: Bakeoff, folder: Path, rung: int, entry: Entry) -> Arm:
    """Return the run of an entry in a rung."""
    settings, plan = state.settings, state.rungs[rung]
    every = plan.eval_every[entry.slug]
    length = {
        "steps": plan.steps[entry.slug],
        "eval_every": every,
        "log_every": every,
        "checkpoint_every": every,
    }
    data = {"data": settings["data"], "seed": settings["seed"]}
    name = f"rung{rung + 1}_{entry.slug}"
    return Arm(name, state.task, {**entry.settings, **data, **length}, folder)


def read_outcomes(state: Bakeoff, folder: Path) -> list[dict[str, Outcome]]:
    """Return what is recorded of every rung, by entry."""
    found = []
    for number, rung in enumerate(state.rungs):
        arms = {slug: arm_of(state, folder, number, state.entry(slug)) for slug in rung.steps}
        done = {slug: arm.record for slug, arm in arms.items() if arm.record.exists()}
        found.append({slug: read_outcome(path) for slug, path in done.items()})
    return found


def load_state(folder: Path) -> Bakeoff | None:
    """Return what an earlier call recorded; None where there is nothing."""
    path = folder / RECORD
    if not path.exists():
        return None
    found = read_json_file(path)
    known = {each.name for each in fields(Bakeoff)}
    found = {key: value for key, value in found.items() if key in known}
    found["entries"] = [Entry(**entry) for entry in found["entries"]]
    found["rungs"] = [Rung(**rung) for rung in found["rungs"]]
    return Bakeoff(**found)


def save_state(state: Bakeoff, folder: Path) -> Bakeoff:
    """Record what is known, and return it."""
    write_json(folder / RECORD, {"version": __version__, **asdict(state)})
    return state
