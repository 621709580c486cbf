"""Measure models side by side: rounds of processes, then tables, a figure and JSON.

Rounds are interleaved (A B C A B C), so that what else the machine does falls on all alike.
"""

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from perceivers.bench.child import Request
from perceivers.bench.children import Measurement, describe_environment, describe_machine, run_child
from perceivers.bench.searching import Largest, Search
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
from perceivers.plan.machines import Free, free_device_memory, free_host_memory
from perceivers.report.figures.throughput import Line, draw_throughput
from perceivers.version import __version__

# What a measurement may take of the free memory, where no limit is given: a machine that runs out
# of it ends processes, not always the one that took it.
USABLE = 0.95
# Load per core above which times say little.
BUSY = 0.5
RECORD, TABLE, FIGURE = "bench.json", "table.md", "bench.png"
Report = Callable[[str], None]


@dataclass(frozen=True)
class Bench:
    """What was measured, and the folder that holds it.

    Args:
        folder: With ``bench.json``, ``table.md`` and ``bench.png``.
        rows: One per size, model and pass.
        largest: One per model and memory limit.
        table: The tables as Markdown.
    """

    folder: Path
    rows: Sequence[Row]
    largest: Sequence[Largest]
    table: str

    @property
    def failures(self) -> list[Row]:
        """What ended with an error other than time or memory."""
        return [row for row in self.rows if row.status == "failed"]


def run_bench(
    settings: BenchSettings,
    out: str | Path,
    *,
    overwrite: bool = False,
    command: str = "",
    report: Report | None = None,
) -> Bench:
    """Measure models side by side and write what was found, after every round.

    Args:
        settings: What is measured, and how often.
        out: Folder for ``bench.json``, ``table.md`` and ``bench.png``.
        overwrite: Replace those of an earlier bench.
        command: The command line, for the record.
        report: Called with a line per measurement.

    Raises:
        ConfigError: A model is unknown or cannot have a size, or a limit exceeds the free memory.
        RunError: The folder holds an earlier bench.
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
    make_folder(folder)  # what cannot be written is known before anything is measured
    runner = Runner(settings, subjects, folder, command, report or (lambda line: None))
    return runner.run()


def check_limits(settings: BenchSettings) -> None:
    """Make sure that the memory that a search may take is there.

    Raises:
        ConfigError: It is not.
    """
    free = find_free(settings)
    most = max(settings.memory_limit, default=0.0)
    if most * GB > free.bytes:
        raise ConfigError(
            f"memory_limit={most:g} GB, but {free.limit} leaves {free.bytes / GB:.1f} GB; give a "
            f"lower limit, or free memory first"
        )


def find_free(settings: BenchSettings) -> Free:
    """Return the free memory where the models compute."""
    if settings.computes_on == "cuda":
        return free_device_memory(torch.device("cuda"))
    return free_host_memory()


class Runner:
    """One bench.

    Args:
        settings: What is measured, and how often.
        subjects: All models, in the order of a round.
        folder: Where results go.
        command: The command line, for the record.
        report: Called with a line per measurement.
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
        """Measure everything."""
        bench = None
        machine = self._about["machine"]
        load, cores = machine["load_average"][0], machine["cores"] or 1
        if load > BUSY * cores:
            self._report(
                f"note: other programs compute too (load average {load} on {cores} cores), so "
                f"times are longer than on a quiet machine; memory is not affected"
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
        """Measure a model at a size, but for the passes of which the end is known."""
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
        """Return why a pass is not tried: it failed here, or was too much for a smaller size."""
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
        """Find the largest size of a model within each limit."""

        def probe(size: int, limit: float) -> Measurement:
            request = self._request(subject, size, ("step",), limit, timed=False)
            (done,) = run_child(request, timeout=self.settings.timeout)
            within = f"largest within {limit / GB:g} GB"
            self._report(f"{within}, {size} px, {subject.label}: {show_measurement(done)}")
            return done

        search = Search(subject.name, probe, min(self.settings.sizes))
        return [search.find(limit * GB) for limit in sorted(self.settings.memory_limit)]

    def _write(self) -> Bench:
        """Write what is there so far."""
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
    """Return a measurement in a few words."""
    if done.status != "measured":
        return f"{done.name}: {done.message if done.status == 'failed' else done.status}"
    time = "fits" if done.seconds is None else f"{done.seconds:.3g} s"
    return f"{done.name} {time}, {(done.peak_bytes or 0) / GB:.3g} GB"


def lines_of(rows: Sequence[Row], name: Pass) -> Mapping[str, Line]:
    """Return the lines of one kind of pass for the figure, by the models' labels."""
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
