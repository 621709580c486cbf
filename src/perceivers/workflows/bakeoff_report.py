"""Tables and figure of a bake-off, finished or not."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from perceivers.files import write_atomic
from perceivers.models.registry import find_family
from perceivers.report.figures.trials import Candidate, Curve, draw_bakeoff
from perceivers.report.style import number
from perceivers.workflows.arms import TABLE, Outcome
from perceivers.workflows.bakeoff_state import Bakeoff
from perceivers.workflows.halving import find_front, rank

FIGURE = "bakeoff.png"
Rungs = Sequence[Mapping[str, Outcome]]


def write_report(state: Bakeoff, folder: Path, outcomes: Rungs) -> str:
    """Write ``table.md`` and ``bakeoff.png``, and return the tables.

    Args:
        state: What was found.
        folder: Where they go.
        outcomes: What came of every rung, by entry.
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
    """Return entries from the winner to those that failed: later rungs first, best first."""
    ordered: list[str] = []
    for found in reversed(outcomes):
        rows = [Outcome(**{**vars(outcome), "name": slug}) for slug, outcome in found.items()]
        ranked = rank(rows, higher_is_better=state.higher_is_better)
        ordered += [outcome.name for outcome in ranked if outcome.name not in ordered]
    return ordered


def write_tables(state: Bakeoff, outcomes: Rungs) -> str:
    """Return the ranking, what did not compete, and the winner, as Markdown."""
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
    """Say how long candidates train."""
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
    """Return who did not compete or failed, and why."""
    found = [[entry.name, entry.reason] for entry in state.entries if entry.reason]
    for slug, outcome in last_outcomes(outcomes).items():
        if outcome.has_failed:
            found.append([state.entry(slug).name, outcome.reason or "its metric is not finite"])
    return found


def _winner_lines(state: Bakeoff, outcomes: Rungs) -> list[str]:
    """Return the winner's metrics, and the command that trains it longer."""
    value = last_outcomes(outcomes)[state.winner].value
    assert value is not None
    held = f"validation {state.metric} {number(value, 4)}"
    if state.metric in state.test:
        held += f", test {number(state.test[state.metric], 4)} (measured once)"
        constant = state.constant.get("test")
        held += "" if constant is None else f", constant answer {number(constant, 4)}"
    return [
        f"Winner: {state.entry(state.winner).name}: {held}. Longer:",
        "",
        "```bash",
        state.command,
        "```",
    ]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table."""
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows]
    return [
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
        *(f"| {' | '.join(row)} |" for row in cells),
    ]


def _draw(state: Bakeoff, folder: Path, outcomes: Rungs) -> None:
    """Draw the metric over time, and over parameters."""
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
        Candidate(
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
