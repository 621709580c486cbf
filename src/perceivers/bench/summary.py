"""From single measurements to what is reported: medians, ranges, speeds, bytes per input."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from perceivers.bench.children import Measurement, Status
from perceivers.bench.paper import paper_speed
from perceivers.bench.settings import PERCEIVER_IO, BenchSettings, Pass

Key = tuple[int, str, Pass]


@dataclass(frozen=True)
class Spread:
    """A median with its range."""

    median: float
    least: float
    most: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One pass of one model at one size, over all rounds.

    Args:
        model: As it was asked for.
        size: Pixels per side.
        inputs: Pixels of an image.
        name: The pass.
        status: Of the first round that went wrong; else ``measured``.
        seconds: Over the rounds; None where none was measured.
        speed: The reference's time over this one, of the same rounds.
        paper: The ratio in the HiP paper, or a word such as "runs" where it gives none.
        peak_bytes: The most of all rounds.
        kept_bytes: For the backward pass.
        message: Why it was not measured.
    """

    model: str
    size: int
    inputs: int
    name: Pass
    status: Status
    seconds: Spread | None
    speed: Spread | None
    paper: float | str | None
    peak_bytes: int | None
    kept_bytes: int | None
    message: str


def spread(values: Iterable[float]) -> Spread | None:
    """Return the median and the range of numbers; None for an empty list."""
    found = list(values)
    return Spread(median(found), min(found), max(found)) if found else None


def choose_reference(settings: BenchSettings, models: Sequence[str]) -> str:
    """Return the model that speeds are relative to."""
    if settings.reference:
        return settings.reference
    return PERCEIVER_IO if PERCEIVER_IO in models else models[0]


def summarise(measured: Sequence[Measurement], reference: str) -> list[Row]:
    """Return one row per size, model and pass: by size, then in the order of a round.

    Args:
        measured: Of any number of rounds.
        reference: A model among them.
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
        # Of neighbours in time, so that what else the machine does falls out.
        speed=spread(base[turn] / times[turn] for turn in times if turn in base),
        paper=paper_speed(model, reference, size) if name == "step" else None,
        peak_bytes=max(peaks, default=None),
        kept_bytes=next((m.kept_bytes for m in mine if m.kept_bytes is not None), None),
        message="" if wrong is None else wrong.message,
    )


def _times(measured: Iterable[Measurement]) -> dict[int, float]:
    return {m.round: m.seconds for m in measured if m.seconds is not None}


def kept_per_input(rows: Sequence[Row], model: str, batch_size: int) -> float | None:
    """Return the bytes that one more input of a sample leaves for the backward pass.

    Args:
        rows: Of several sizes.
        model: Which.
        batch_size: Samples of a step.

    Returns:
        The slope between the two largest sizes, as models may compute small inputs in another way;
        None with fewer than two.
    """
    kept = {r.inputs: r.kept_bytes for r in rows if r.model == model and r.kept_bytes is not None}
    if len(kept) < 2:
        return None
    small, large = sorted(kept)[-2:]
    return (kept[large] - kept[small]) / (batch_size * (large - small))
