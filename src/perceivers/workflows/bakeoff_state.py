"""Settings and state of a bake-off, and its tables and figure; ``bakeoff`` runs the training."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from perceivers.errors import ConfigError
from perceivers.files import read_json_file, write_atomic, write_json
from perceivers.models.registry import find_family
from perceivers.report.figures.trials import Curve, Trial, draw_bakeoff
from perceivers.report.style import number
from perceivers.settings import Natural, NonNegative, Positive, Range, Seed, Settings
from perceivers.version import __version__
from perceivers.workflows.arms import TABLE, Arm, Outcome, check_shared, read_outcome
from perceivers.workflows.candidates import LEARNING_RATES, Entrant, find_front, rank

# -- Settings and state: stored in one file, from which an interrupted bake-off continues --------

RECORD = "bakeoff.json"


@dataclass(frozen=True, kw_only=True)
class BakeoffSettings(Settings, prefix=""):
    """Settings of a bake-off."""

    data: str
    """A data address."""
    minutes: NonNegative = 0.0
    """Total time of training and evaluation, for all candidates together."""
    steps: Natural = 0
    """Instead of minutes: steps of each candidate in the first rung, for bit-identical results;
    each further rung takes reduce times as many."""
    reduce: Annotated[int, Range(2)] = 3
    """One in this many candidates advances to the next rung."""
    task: str = ""
    """Task to train; chosen from the data if not given."""
    labels: list[str] = field(default_factory=list)
    """Label columns to learn, if the data have several."""
    targets: list[str] = field(default_factory=list)
    """Numeric columns to predict."""
    models: list[str] = field(default_factory=list)
    """Variants that compete; if empty, all small ones and the proposal of data check."""
    rates: list[Positive] = field(default_factory=lambda: list(LEARNING_RATES))
    """Peak learning rates to try with each variant."""
    seed: Seed = 0
    """Seed of all runs."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Further training settings of all candidates, such as {batch_size: 32}."""

    def __post_init__(self) -> None:
        """Reject values out of range and settings that the bake-off sets itself."""
        super().__post_init__()
        if bool(self.minutes) == bool(self.steps):
            raise ConfigError(
                f"minutes={self.minutes:g} and steps={self.steps}: give one of them, the total "
                f"time or the steps of each candidate in the first rung"
            )
        if not self.rates:
            raise ConfigError("rates is empty; give at least one learning rate")
        check_shared(self.settings)


@dataclass(frozen=True)
class Rung:
    """One round, in which all candidates train equally long.

    Args:
        seconds: Time per candidate; 0 if the number of steps is fixed instead.
        steps: Training steps by entry.
        eval_every: Steps between evaluations by entry.
        kept: Entries that advance, best first; empty until the rung is finished.
    """

    seconds: float
    steps: Mapping[str, int]
    eval_every: Mapping[str, int]
    kept: Sequence[str] = ()


@dataclass(frozen=True)
class Bakeoff:
    """State of a bake-off, as stored in ``bakeoff.json``.

    Args:
        settings: Fields of ``BakeoffSettings``.
        task: The task.
        metric: Validation metric that selects candidates.
        higher_is_better: Direction of the metric.
        splits: Splits of the data.
        entries: All candidates, including those that do not compete.
        rungs: Rungs that have begun.
        constant: Constant baseline: its description under ``what``, and its metric by split.
        winner: Slug of the winner; empty until the end.
        test: Test metrics of the winner; empty without a test split.
        command: Command that trains the winner longer.
    """

    settings: Mapping[str, Any]
    task: str
    metric: str
    higher_is_better: bool
    splits: Sequence[str]
    entries: Sequence[Entrant]
    rungs: Sequence[Rung] = ()
    constant: Mapping[str, Any] = field(default_factory=dict)
    winner: str = ""
    test: Mapping[str, float] = field(default_factory=dict)
    command: str = ""

    @property
    def competing(self) -> list[Entrant]:
        """Entries that train in the first rung."""
        return [entry for entry in self.entries if not entry.reason]

    def entry(self, slug: str) -> Entrant:
        """Return an entry by its slug."""
        return next(entry for entry in self.entries if entry.slug == slug)


def arm_of(state: Bakeoff, folder: Path, rung: int, entry: Entrant) -> Arm:
    """Return the training run of an entry in a rung."""
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
    """Read the recorded outcomes of every rung, by entry."""
    found = []
    for place, rung in enumerate(state.rungs):
        arms = {slug: arm_of(state, folder, place, state.entry(slug)) for slug in rung.steps}
        done = {slug: arm.record for slug, arm in arms.items() if arm.record.exists()}
        found.append({slug: read_outcome(path) for slug, path in done.items()})
    return found


def load_state(folder: Path) -> Bakeoff | None:
    """Load the state of an earlier call; None if there is none."""
    path = folder / RECORD
    if not path.exists():
        return None
    found = read_json_file(path)
    known = {each.name for each in fields(Bakeoff)}
    found = {key: value for key, value in found.items() if key in known}
    found["entries"] = [Entrant(**entry) for entry in found["entries"]]
    found["rungs"] = [Rung(**rung) for rung in found["rungs"]]
    return Bakeoff(**found)


def save_state(state: Bakeoff, folder: Path) -> Bakeoff:
    """Write the state to ``bakeoff.json``, and return it."""
    write_json(folder / RECORD, {"version": __version__, **asdict(state)})
    return state


FIGURE = "bakeoff.png"
Rungs = Sequence[Mapping[str, Outcome]]


def write_report(state: Bakeoff, folder: Path, outcomes: Rungs) -> str:
    """Write ``table.md`` and ``bakeoff.png``, and return the tables.

    Args:
        state: The state.
        folder: Output folder.
        outcomes: Outcomes of each rung, by entry.
    """
    text = write_tables(state, outcomes)
    write_atomic(folder / TABLE, text)
    last = last_outcomes(outcomes)
    if any(not outcome.has_failed for outcome in last.values()):
        _draw(state, folder, outcomes)
    return text


def last_outcomes(outcomes: Rungs) -> dict[str, Outcome]:
    """Return the outcome of every entry in the last rung that it took part in."""
    return {slug: outcome for found in outcomes for slug, outcome in found.items()}


def order_entries(state: Bakeoff, outcomes: Rungs) -> list[str]:
    """Rank the entries: those of later rungs first, then by metric, failed ones last."""
    ordered: list[str] = []
    for found in reversed(outcomes):
        rows = [Outcome(**{**vars(outcome), "name": slug}) for slug, outcome in found.items()]
        ranked = rank(rows, higher_is_better=state.higher_is_better)
        ordered += [outcome.name for outcome in ranked if outcome.name not in ordered]
    return ordered


def write_tables(state: Bakeoff, outcomes: Rungs) -> str:
    """Return Markdown with the ranking, the failed candidates and the winner."""
    rungs = [f"rung {index + 1}" for index in range(len(state.rungs))]
    header = ["candidate", "parameters", *rungs, "steps", "training time, s", "best at step"]
    rows = [_row(state, slug, outcomes) for slug in order_entries(state, outcomes)]
    if value := state.constant.get("val"):
        rows.append([f"constant: {state.constant['what']}", "0", *[number(value, 4)] * len(rungs)])
    rows = [row + ["-"] * (len(header) - len(row)) for row in rows]
    better = "higher" if state.higher_is_better else "lower"
    lines = [
        f"Validation {state.metric} ({better} is better), {_describe_length(state)}:",
        "",
        *_table(header, rows),
    ]
    failed = _failures(state, outcomes)
    if failed:
        lines += ["", "Did not compete, or failed:", "", *_table(["candidate", "reason"], failed)]
    if state.winner:
        lines += ["", *_winner_lines(state, outcomes)]
    return "\n".join(lines) + "\n"


def _describe_length(state: Bakeoff) -> str:
    settings = state.settings
    if settings["steps"]:
        counts = " and ".join(f"{max(rung.steps.values()):,}" for rung in state.rungs)
        return f"{counts} steps in the rungs, each from scratch"
    seconds = ", ".join(f"{rung.seconds:.0f}" for rung in state.rungs)
    return (
        f"{settings['minutes']:g} minutes in all: {seconds} s per candidate in the rungs, each "
        f"from scratch"
    )


def _row(state: Bakeoff, slug: str, outcomes: Rungs) -> list[str]:
    entry, last = state.entry(slug), last_outcomes(outcomes)[slug]
    values = [_value(found.get(slug)) for found in outcomes]
    name = f"**{entry.name}**" if slug == state.winner else entry.name
    if last.has_failed:
        return [name, f"{entry.parameters:,}", *values]
    lengths = [f"{last.steps:,}", f"{last.seconds:.1f}", f"{last.best_step:,}"]
    return [name, f"{entry.parameters:,}", *values, *lengths]


def _value(outcome: Outcome | None) -> str:
    if outcome is None:
        return "-"
    return "failed" if outcome.value is None or outcome.has_failed else number(outcome.value, 4)


def _failures(state: Bakeoff, outcomes: Rungs) -> list[list[str]]:
    """Return names and reasons of candidates that did not compete or failed."""
    found = [[entry.name, entry.reason] for entry in state.entries if entry.reason]
    for slug, outcome in last_outcomes(outcomes).items():
        if outcome.has_failed:
            found.append([state.entry(slug).name, outcome.reason or "its metric is not finite"])
    return found


def _winner_lines(state: Bakeoff, outcomes: Rungs) -> list[str]:
    value = last_outcomes(outcomes)[state.winner].value
    assert value is not None
    held = f"validation {state.metric} {number(value, 4)}"
    if state.metric in state.test:
        held += f", test {number(state.test[state.metric], 4)} (measured once)"
        constant = state.constant.get("test")
        held += "" if constant is None else f", constant baseline {number(constant, 4)}"
    return [
        f"Winner: {state.entry(state.winner).name}: {held}. Longer:",
        "",
        "```bash",
        state.command,
        "```",
    ]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows]
    return [
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
        *(f"| {' | '.join(row)} |" for row in cells),
    ]


def _draw(state: Bakeoff, folder: Path, outcomes: Rungs) -> None:
    last = last_outcomes(outcomes)
    done = {slug: outcome for slug, outcome in last.items() if not outcome.has_failed}
    points = {s: (o.parameters, float(o.value or 0.0)) for s, o in done.items()}
    front = find_front(points, higher_is_better=state.higher_is_better)
    families = {s: find_family(str(state.entry(s).settings["model"])) for s in last}
    curves = [
        Curve(
            name=state.entry(slug).name,
            family=families[slug],
            rung=number,
            seconds=[point[1] for point in outcome.curve],
            values=[point[2] for point in outcome.curve],
        )
        for number, found in enumerate(outcomes)
        for slug, outcome in found.items()
        if outcome.curve
    ]
    candidates = [
        Trial(
            name=state.entry(slug).name,
            family=families[slug],
            rung=max(number for number, found in enumerate(outcomes) if slug in found),
            parameters=parameters,
            value=value,
            on_front=slug in front,
            has_won=slug == state.winner,
        )
        for slug, (parameters, value) in points.items()
    ]
    draw_bakeoff(
        folder / FIGURE,
        curves=curves,
        candidates=candidates,
        metric=f"validation {state.metric}",
        higher_is_better=state.higher_is_better,
        constant=state.constant.get("val"),
        title=f"Bake-off on {state.settings['data']}",
        note=(
            f"Validation {state.metric}, {_describe_length(state)}. Strong lines and filled "
            f"points: the last rung."
        ),
    )
