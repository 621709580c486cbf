"""Summarise measurements as Markdown tables: medians, ranges, speeds, and ratios of the paper."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from perceivers.bench.children import LARGEST, Largest, Measurement, Status
from perceivers.bench.settings import PASSES, PERCEIVER_IO, BenchSettings, Pass
from perceivers.bench.subjects import find_subject

# -- Training speeds reported in the HiP paper, for comparison with ours -------------------------
#
# Steps per second relative to Perceiver IO, on TPUv3 with batch size 8 per core, without decoders;
# computed from the throughput table of Hierarchical Perceiver (arXiv 2202.10890).


REFERENCES = (PERCEIVER_IO, f"transformers:{PERCEIVER_IO}")
SPEEDS: dict[str, dict[int, float]] = {
    "hip_16": {224: 3.72, 384: 3.71, 512: 3.50},
    "hip_256": {224: 3.07, 384: 3.38, 512: 3.85},
    "transformers:resnet_50": {224: 15.86, 384: 8.62, 512: 6.25},
    "transformers:resnet_101": {224: 10.62, 384: 5.92, 512: 4.35},
}
# Largest size in the paper at which each model ran; Perceiver IO ran out of memory from 1024 on.
PAPER_LARGEST = {
    PERCEIVER_IO: 512,
    "hip_16": 1024,
    "hip_256": 2048,
    "transformers:resnet_50": 1024,
    "transformers:resnet_101": 1024,
}
SIZES = (224, 384, 512, 1024, 2048)


def paper_speed(model: str, reference: str, size: int) -> float | str | None:
    """Return the speed of a training step relative to Perceiver IO, as reported in the HiP paper.

    Returns:
        The ratio; a string if a model ran out of memory; None if the paper has no such entry.
    """
    if reference not in REFERENCES or model not in SPEEDS or size not in SIZES:
        return None
    if size > PAPER_LARGEST[model]:
        return "out of memory"
    return SPEEDS[model].get(size, "Perceiver IO out of memory")


# -- Summaries of measurements: medians, ranges, speeds, bytes per input -------------------------


Key = tuple[int, str, Pass]


@dataclass(frozen=True)
class MedianRange:
    """A median with minimum and maximum."""

    median: float
    least: float
    most: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One pass of one model at one size, over all rounds.

    Args:
        model: Name as given by the user.
        size: Side of the images in pixels.
        inputs: Number of pixels of an image.
        name: The pass.
        status: Status of the first round that failed; otherwise ``measured``.
        seconds: Time over all rounds; None if none was measured.
        speed: Time of the reference divided by that of this model, in the same rounds.
        paper: Speed in the HiP paper; a string if a model ran out of memory; None without an entry.
        peak_bytes: Maximum peak memory of all rounds.
        kept_bytes: Bytes saved for the backward pass.
        message: Reason why it was not measured.
    """

    model: str
    size: int
    inputs: int
    name: Pass
    status: Status
    seconds: MedianRange | None
    speed: MedianRange | None
    paper: float | str | None
    peak_bytes: int | None
    kept_bytes: int | None
    message: str


def spread(values: Iterable[float]) -> MedianRange | None:
    """Return median, minimum and maximum of numbers; None if there are none."""
    found = list(values)
    return MedianRange(median(found), min(found), max(found)) if found else None


def choose_reference(settings: BenchSettings, models: Sequence[str]) -> str:
    """Return the model that speeds are relative to."""
    if settings.reference:
        return settings.reference
    return PERCEIVER_IO if PERCEIVER_IO in models else models[0]


def summarise(measured: Sequence[Measurement], reference: str) -> list[Row]:
    """Return one row per size, model and pass, sorted by size.

    Args:
        measured: Measurements of any number of rounds.
        reference: Model that speeds are relative to.
    """
    keys: dict[Key, None] = dict.fromkeys((m.size, m.model, m.name) for m in measured)
    return [_row(measured, key, reference) for key in sorted(keys, key=lambda key: key[0])]


def _row(measured: Sequence[Measurement], key: Key, reference: str) -> Row:
    size, model, name = key
    mine = [m for m in measured if (m.size, m.model, m.name) == key]
    times = _times(mine)
    base = _times([m for m in measured if (m.size, m.model, m.name) == (size, reference, name)])
    wrong = next((m for m in mine if m.status != "measured"), None)
    peaks = [m.peak_bytes for m in mine if m.status == "measured" and m.peak_bytes is not None]
    return Row(
        model=model,
        size=size,
        inputs=size**2,
        name=name,
        status="measured" if wrong is None else wrong.status,
        seconds=spread(times.values()),
        # Compare within a round, so that changes in the load of the machine matter less.
        speed=spread(base[turn] / times[turn] for turn in times if turn in base),
        paper=paper_speed(model, reference, size) if name == "step" else None,
        peak_bytes=max(peaks, default=None),
        kept_bytes=next((m.kept_bytes for m in mine if m.kept_bytes is not None), None),
        message="" if wrong is None else wrong.message,
    )


def _times(measured: Iterable[Measurement]) -> dict[int, float]:
    return {m.round: m.seconds for m in measured if m.seconds is not None}


def kept_per_input(rows: Sequence[Row], model: str, batch_size: int) -> float | None:
    """Return the bytes saved for the backward pass per additional input element of a sample.

    Args:
        rows: Rows of several sizes.
        model: Model to compute it for.
        batch_size: Samples per step.

    Returns:
        The slope between the two largest sizes, because models may process small inputs
        differently; None with fewer than two sizes.
    """
    kept = {r.inputs: r.kept_bytes for r in rows if r.model == model and r.kept_bytes is not None}
    if len(kept) < 2:
        return None
    small, large = sorted(kept)[-2:]
    return (kept[large] - kept[small]) / (batch_size * (large - small))


# -- Results as Markdown, which documentation pages can include unchanged ------------------------


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
        settings: Settings of the benchmark.
        rows: Result of ``summarise``.
        largest: One entry per model and limit; may be empty.
        reference: Model that speeds are relative to.
        about: ``machine``, ``date``, ``rounds`` and ``command``.
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
    """Describe on one line how and on which machine the measurements were made.

    Args:
        settings: Settings of the benchmark.
        about: ``machine``, ``date`` and ``rounds``.
        ranges: Whether the results show ranges.
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
    """Return time and memory, such as ``0.84 s [0.83-0.86], 1.3 GB``."""
    if row.seconds is None:
        return row.status
    memory = "" if row.peak_bytes is None else f", {row.peak_bytes / GB:.3g} GB"
    broken = "" if row.status == "measured" else f" ({row.status})"
    return f"{show_spread(row.seconds)} s{memory}{broken}".replace("] s", "]").replace(" [", " s [")


def show_speed(row: Row) -> str:
    """Return the speed here and in the paper, such as ``7.4 [7.2-7.5] (paper: 3.7)``."""
    shown = MISSING if row.speed is None else show_spread(row.speed)
    if row.status != "measured":
        shown = row.status
    if row.paper is None:
        return shown
    paper = row.paper if isinstance(row.paper, str) else f"{row.paper:.3g}"
    return f"{shown} (paper: {paper})"


def show_spread(values: MedianRange) -> str:
    """Return a median with its range in three digits, such as ``7.4 [7.2-7.5]``."""
    middle, least, most = (number(v) for v in (values.median, values.least, values.most))
    return middle if least == most else f"{middle} [{least}-{most}]"


def number(value: float) -> str:
    """Format a number with three significant digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


def _grid(rows: Sequence[Row], models: Sequence[str], show: Callable[[Row], str]) -> str:
    """Return a table with a row per size and a column per model."""
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
    """Return a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
