"""Benchmark several models: measure each in its own process, then write tables, figure and JSON.

Rounds are interleaved (A B C A B C), so that other load on the machine affects all models alike.
"""

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from perceivers.bench.child import Request
from perceivers.bench.children import (
    Largest,
    Measurement,
    Search,
    describe_environment,
    describe_machine,
    run_child,
)
from perceivers.bench.settings import PASSES, BenchSettings, Pass
from perceivers.bench.subjects import Subject, add_peers, check_sizes, find_subject
from perceivers.bench.tables import (
    GB,
    TITLES,
    Row,
    choose_reference,
    describe,
    summarise,
    write_tables,
)
from perceivers.errors import ConfigError, RunError
from perceivers.files import make_folder, write_atomic, write_json
from perceivers.plan.estimates import Free, free_device_memory, free_host_memory
from perceivers.report.console import Shown
from perceivers.report.figures.throughput import Line, draw_throughput
from perceivers.version import __version__

# Fraction of the free memory that a measurement may use if no limit is given: when memory runs
# out, the system kills processes, and not always the one that used it.
USABLE = 0.95
# Load per core above which times are unreliable.
BUSY = 0.5
RECORD, TABLE, FIGURE = "bench.json", "table.md", "bench.png"
Report = Callable[[str], None]


@dataclass(frozen=True)
class Bench:
    """Results of a benchmark.

    Args:
        folder: Folder with ``bench.json``, ``table.md`` and ``bench.png``.
        rows: One row per size, model and pass.
        largest: Largest size per model and memory limit.
        table: The tables as Markdown.
    """

    folder: Path
    rows: Sequence[Row]
    largest: Sequence[Largest]
    table: str

    @property
    def failures(self) -> list[Row]:
        """Rows that ended with an error other than a time or memory limit."""
        return [row for row in self.rows if row.status == "failed"]


def run_bench(
    settings: BenchSettings,
    out: str | Path = "runs/bench",
    *,
    overwrite: bool = False,
    command: str = "",
    report: Report | None = None,
) -> Bench:
    """Compare models, each in its own process: time and peak memory of forward passes and steps.

    A step is a forward and a backward pass, without an optimizer. Results are written after every
    round.

    Args:
        settings: Models, sizes, passes and number of rounds.
        out: Folder for ``bench.json``, ``table.md`` and ``bench.png``.
        overwrite: Replace the files of an earlier benchmark.
        command: Command line to store in the record.
        report: Called with one line per measurement.

    Raises:
        ConfigError: A model is unknown or does not support a size, or a limit exceeds the free
            memory.
        RunError: The folder holds an earlier benchmark.
    """
    folder = Path(out)
    if (folder / RECORD).exists() and not overwrite:
        raise RunError(
            f"{folder} holds an earlier bench ({RECORD}); give another --out, or --overwrite"
        )
    names = add_peers(settings.models) if settings.peers else list(settings.models)
    subjects = [find_subject(name) for name in names]
    if settings.reference and settings.reference not in names:
        raise ConfigError(f"reference {settings.reference!r} is not measured; choose from {names}")
    check_sizes(subjects, settings.sizes)
    check_limits(settings)
    make_folder(folder)  # fails here, not after the first round, if it cannot be written
    runner = Runner(settings, subjects, folder, command, report or (lambda line: None))
    return runner.run()


def check_limits(settings: BenchSettings) -> None:
    """Check that the free memory covers the largest ``memory_limit``.

    Raises:
        ConfigError: It does not.
    """
    free = find_free(settings)
    most = max(settings.memory_limit, default=0.0)
    if most * GB > free.bytes:
        raise ConfigError(
            f"memory_limit={most:g} GB, but {free.limit} leaves {free.bytes / GB:.1f} GB; give a "
            f"lower limit, or free memory first"
        )


def find_free(settings: BenchSettings) -> Free:
    """Return the free memory of the device on which the models run."""
    if settings.computes_on == "cuda":
        return free_device_memory(torch.device("cuda"))
    return free_host_memory()


class Runner:
    """Runs one benchmark.

    Args:
        settings: Models, sizes, passes and number of rounds.
        subjects: All models, in the order of a round.
        folder: Output folder.
        command: Command line to store in the record.
        report: Called with one line per measurement.
    """

    def __init__(
        self,
        settings: BenchSettings,
        subjects: Sequence[Subject],
        folder: Path,
        command: str,
        report: Report,
    ) -> None:
        self.settings, self.subjects, self.folder = settings, subjects, folder
        self._report = report
        self._reference = choose_reference(settings, [subject.name for subject in subjects])
        self._about: dict[str, Any] = {
            "command": command or "perceivers bench",
            "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
            "machine": describe_machine(),
            "rounds": 0,
        }
        self.measured: list[Measurement] = []
        self.largest: list[Largest] = []

    def run(self) -> Bench:
        """Run all rounds, then the search for the largest sizes."""
        bench = None
        machine = self._about["machine"]
        load, cores = machine["load_average"][0], machine["cores"] or 1
        if load > BUSY * cores:
            self._report(
                f"note: other programs are running (load average {load} on {cores} cores), so "
                f"times are longer than on an idle machine; memory is not affected"
            )
        for turn in range(1, self.settings.rounds + 1):
            for size in sorted(self.settings.sizes):
                for subject in self.subjects:
                    self._measure(subject, size, turn)
            self._about["rounds"] = turn
            bench = self._write()
        if self.settings.memory_limit:
            for subject in self.subjects:
                self.largest += self._search(subject)
                bench = self._write()
        assert bench is not None
        return bench

    def _measure(self, subject: Subject, size: int, turn: int) -> None:
        """Measure a model at a size, except for passes whose result can be inferred."""
        known = {name: self._known_end(subject, size, name) for name in self.settings.passes}
        wanted: list[Pass] = [name for name in PASSES if name in known and known[name] is None]
        found = {
            name: replace(end, size=size, round=turn, inferred=True)
            for name, end in known.items()
            if end is not None
        }
        if wanted:
            request = self._request(subject, size, tuple(wanted), self._limit())
            done = run_child(request, timeout=self.settings.timeout, turn=turn)
            found |= {each.name: each for each in done}
        ordered = [found[name] for name in PASSES if name in found]
        self.measured += ordered
        self._report(
            f"round {turn} of {self.settings.rounds}, {size} px, {subject.label}: "
            + ", ".join(map(show_measurement, ordered))
        )

    def _known_end(self, subject: Subject, size: int, name: Pass) -> Measurement | None:
        """Return an earlier failure at this size, or a time or memory limit at a smaller size."""
        for each in self.measured:
            if (each.model, each.name) != (subject.name, name) or each.status == "measured":
                continue
            if each.size == size or (each.size < size and each.status != "failed"):
                return each
        return None

    def _limit(self) -> float:
        free = find_free(self.settings).bytes * USABLE
        return (
            min(max(self.settings.memory_limit) * GB, free) if self.settings.memory_limit else free
        )

    def _request(
        self, subject: Subject, size: int, passes: tuple[Pass, ...], limit: float, **changes: Any
    ) -> Request:
        settings = self.settings
        return Request(
            model=subject.name,
            size=size,
            batch_size=settings.batch_size,
            passes=passes,
            device=settings.computes_on,
            precision=settings.computes_in,
            threads=settings.threads,
            # JSON has no infinity.
            limit=min(limit, 1e18),
            **changes,
        )

    def _search(self, subject: Subject) -> list[Largest]:
        """Find the largest size of a model within each memory limit."""

        def probe(size: int, limit: float) -> Measurement:
            request = self._request(subject, size, ("step",), limit, timed=False)
            (done,) = run_child(request, timeout=self.settings.timeout)
            within = f"largest within {limit / GB:g} GB"
            self._report(f"{within}, {size} px, {subject.label}: {show_measurement(done)}")
            return done

        search = Search(subject.name, probe, min(self.settings.sizes))
        return [search.find(limit * GB) for limit in sorted(self.settings.memory_limit)]

    def _write(self) -> Bench:
        """Write the results so far."""
        rows = summarise(self.measured, self._reference)
        settings, about = self.settings, self._about
        table = write_tables(settings, rows, self.largest, reference=self._reference, about=about)
        record = {
            "version": __version__,
            **about,
            "environment": describe_environment(),
            "settings": asdict(settings),
            "device": settings.computes_on,
            "precision": settings.computes_in,
            "reference": self._reference,
            "models": [
                {"name": s.name, "label": s.label, "library": s.library, "version": s.version}
                for s in self.subjects
            ],
            "measurements": [asdict(each) for each in self.measured],
            "rows": [asdict(row) for row in rows],
            "largest": [asdict(each) for each in self.largest],
        }
        write_json(self.folder / RECORD, record)
        write_atomic(self.folder / TABLE, table)
        self._draw(rows)
        return Bench(self.folder, rows, self.largest, table)

    def _draw(self, rows: Sequence[Row]) -> None:
        settings = self.settings
        passes = {
            TITLES[name].partition(" (")[0].partition(",")[0]: lines_of(rows, name)
            for name in reversed(PASSES)
            if name in settings.passes
        }
        crosses = any(line.stopped for lines in passes.values() for line in lines.values())
        draw_throughput(
            self.folder / FIGURE,
            passes=passes,
            limits=settings.memory_limit,
            title="Time and memory over the number of inputs",
            note=describe(settings, self._about, ranges=False)
            + (" A cross marks the first size at which memory ran out." if crosses else "")
            + (" Dashed: --memory_limit." if settings.memory_limit else ""),
        )


def show_measurement(done: Measurement) -> str:
    """Format a measurement for the console."""
    if done.status != "measured":
        return f"{done.name}: {done.message if done.status == 'failed' else done.status}"
    time = "fits" if done.seconds is None else f"{done.seconds:.3g} s"
    return f"{done.name} {time}, {(done.peak_bytes or 0) / GB:.3g} GB"


def lines_of(rows: Sequence[Row], name: Pass) -> Mapping[str, Line]:
    """Return the curves of one kind of pass for the figure, by model label."""
    lines: dict[str, Line] = {}
    for model in dict.fromkeys(row.model for row in rows):
        own = [row for row in rows if (row.model, row.name) == (model, name)]
        there = [row for row in own if row.seconds is not None]
        out = [row.size for row in own if row.status == "out of memory"]
        lines[find_subject(model).label] = Line(
            sizes=[row.size for row in there],
            seconds=[row.seconds.median for row in there if row.seconds is not None],
            memory=[(row.peak_bytes or 0) / GB for row in there],
            stopped=min(out, default=None),
        )
    return lines


def show(done: Bench) -> Shown:
    """Show the tables, and the files; the status is 1 if a measurement failed."""
    files = [str(done.folder / name) for name in (RECORD, TABLE, FIGURE)]
    return Shown([done.table, *files], status=1 if done.failures else 0)
