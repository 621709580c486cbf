"""The results as Markdown, so that a page can include them as they are."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from perceivers.bench.paper import LARGEST as PAPER_LARGEST
from perceivers.bench.searching import LARGEST, Largest
from perceivers.bench.settings import PASSES, BenchSettings, Pass
from perceivers.bench.subjects import find_subject
from perceivers.bench.summary import Row, Spread, kept_per_input

GB = 1e9
TITLES: dict[Pass, str] = {
    "step": "Training step (forward and backward, classification)",
    "forward": "Forward pass, without gradients",
}
MISSING = "-"


def write_tables(
    settings: BenchSettings,
    rows: Sequence[Row],
    largest: Sequence[Largest],
    *,
    reference: str,
    about: Mapping[str, Any],
) -> str:
    """Return all tables as Markdown.

    Args:
        settings: What was measured.
        rows: From ``summarise``.
        largest: One per model and limit; may be empty.
        reference: Model that speeds are relative to.
        about: ``machine``, ``date`` and ``command``.
    """
    models = list(dict.fromkeys(row.model for row in rows))
    parts = [f"`{about['command']}`", describe(settings, about)]
    passes: list[Pass] = [name for name in reversed(PASSES) if name in settings.passes]
    for name in passes:
        own = [row for row in rows if row.name == name]
        parts += [f"**{TITLES[name]}: time and peak memory**", _grid(own, models, show_cost)]
        if len(models) > 1:
            label = find_subject(reference).label
            title = f"**{TITLES[name]}: speed relative to {label}**"
            parts += [title, _grid(own, models, show_speed)]
    if "step" in settings.passes:
        own = [row for row in rows if row.name == "step"]
        title = "**MB that the forward pass of a step keeps for its backward pass**"
        parts += [title, _kept(own, models, settings.batch_size)]
    if largest:
        title = "**The largest image that trains (two steps, forward and backward)**"
        parts += [title, _largest(largest)]
    notes = dict.fromkeys(
        f"- {find_subject(row.model).label}, {row.size}, {row.name}: {row.message}"
        for row in rows
        if row.status == "failed"
    )
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])]) + "\n"


def describe(settings: BenchSettings, about: Mapping[str, Any], *, ranges: bool = True) -> str:
    """Say on one line what was measured, on what and how.

    Args:
        settings: What was measured.
        about: ``machine``, ``date`` and ``rounds``.
        ranges: Whether ranges are shown too.
    """
    machine = about["machine"]
    load = machine["load_average"][0]
    where = machine["gpu"] if settings.computes_on == "cuda" else machine["cpu"]
    threads = _count(settings.threads or machine["threads"], "thread")
    held = "on the GPU" if settings.computes_on == "cuda" else "of the whole process"
    rounds = _count(about["rounds"], "round") + (" with their range" if ranges else "")
    return (
        f"{where}, {threads}, torch {machine['torch']}, {settings.computes_in}, batch "
        f"{settings.batch_size}, {about['date']}, load average {load} before. "
        f"Medians of {rounds}; peak memory {held}; GB is 10^9 bytes."
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def show_cost(row: Row) -> str:
    """Return time and memory: ``0.84 s [0.83-0.86], 1.3 GB``."""
    if row.seconds is None:
        return row.status
    memory = "" if row.peak_bytes is None else f", {row.peak_bytes / GB:.3g} GB"
    broken = "" if row.status == "measured" else f" ({row.status})"
    return f"{show_spread(row.seconds)} s{memory}{broken}".replace("] s", "]").replace(" [", " s [")


def show_speed(row: Row) -> str:
    """Return the speed, and beside it the paper's: ``7.4 [7.2-7.5] (paper 3.7)``."""
    shown = MISSING if row.speed is None else show_spread(row.speed)
    if row.status != "measured":
        shown = row.status
    if row.paper is None:
        return shown
    paper = row.paper if isinstance(row.paper, str) else f"{row.paper:.3g}"
    return f"{shown} (paper: {paper})"


def show_spread(values: Spread) -> str:
    """Return a median with its range, in three digits: ``7.4 [7.2-7.5]``."""
    middle, least, most = (number(v) for v in (values.median, values.least, values.most))
    return middle if least == most else f"{middle} [{least}-{most}]"


def number(value: float) -> str:
    """Return three significant digits without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


def _grid(rows: Sequence[Row], models: Sequence[str], show: Callable[[Row], str]) -> str:
    """A row per size and a column per model."""
    found = {(row.size, row.model): show(row) for row in rows}
    body = [
        [f"{size} ({size**2:,})", *(found.get((size, model), MISSING) for model in models)]
        for size in dict.fromkeys(row.size for row in rows)
    ]
    return markdown(["size (inputs)", *(find_subject(m).label for m in models)], body)


def _kept(rows: Sequence[Row], models: Sequence[str], batch_size: int) -> str:
    def show(row: Row) -> str:
        return MISSING if row.kept_bytes is None else number(row.kept_bytes / 1e6)

    slopes = [kept_per_input(rows, model, batch_size) for model in models]
    last = ["bytes per further input", *(MISSING if s is None else number(s) for s in slopes)]
    grid = _grid(rows, models, show)
    return f"{grid}\n| {' | '.join(last)} |"


def _largest(found: Sequence[Largest]) -> str:
    body = []
    for each in sorted(found, key=lambda f: (f.limit, -f.size)):
        fits = f"{each.size} x {each.size}" if each.size else "none"
        fits = f"at least {fits}" if each.size >= LARGEST else fits
        peak = MISSING if each.peak_bytes is None else f"{each.peak_bytes / GB:.3g} GB"
        after = MISSING if each.next_size is None else f"{each.next_size}: {each.next_status}"
        label = find_subject(each.model).label
        inputs = f"{each.size**2:,}" if each.size else MISSING
        paper = PAPER_LARGEST.get(each.model)
        cells = [f"{each.limit / GB:g} GB", label, fits, inputs, peak, after]
        body.append([*cells, MISSING if paper is None else f"{paper} x {paper}"])
    columns = ["limit", "model", "largest image", "inputs", "peak memory", "next size tried"]
    columns.append("largest in the paper's table")
    return markdown(columns, body)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
