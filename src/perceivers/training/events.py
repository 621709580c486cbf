"""Events of the training loop, and the listeners that record them.

The loop emits events and knows nothing of files or terminals; listeners write records into the run
folder and draw a progress bar.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from perceivers.errors import CheckpointError, FolderLostError
from perceivers.files import append_line, write_atomic
from perceivers.foreign import parse_json
from perceivers.reading import read_file


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


# -- Event listeners: records in the run folder, and a progress bar --------------------------------


class Lines:
    """A file of JSON records that can be written again if its folder is lost.

    Args:
        path: The file; records after the step at which a run starts are removed first.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # All records of the run, also in memory; they are small compared with any model.
        self.records: list[dict[str, Any]] = []

    def start(self, step: int) -> None:
        """Remove records of later steps, which a killed run may have left."""
        cut_records(self.path, step)
        self.records = records_up_to(self.path, step)

    def append(self, record: dict[str, Any]) -> None:
        """Append a record; if the folder is lost, ``move`` writes it later."""
        self.records.append(record)
        with suppress(FolderLostError):  # the loop checks the folder itself, in all processes
            append_line(self.path, json.dumps(record))

    def move(self, folder: Path) -> None:
        """Write all records to another folder and continue there."""
        self.path = folder / self.path.name
        if self.records:
            write_atomic(self.path, "".join(json.dumps(r) + "\n" for r in self.records))


class JsonlWriter:
    """Appends a record per event to ``metrics.jsonl``.

    Args:
        path: The file; records after the step at which a run starts are removed first.
    """

    def __init__(self, path: Path) -> None:
        self.lines = Lines(path)

    def __call__(self, event: Event) -> None:
        """Record training and validation metrics."""
        if isinstance(event, Started):
            self.lines.start(event.step)
        elif isinstance(event, Rescued):
            self.lines.move(event.folder)
        else:
            record = as_record(event)
            if record is not None:
                self.lines.append(record)


def as_record(event: Event) -> dict[str, Any] | None:
    """Return the record of an event; None for events that are not recorded.

    ``step`` and ``split`` come first, then metrics by name: training has ``loss``, its parts as
    ``loss/NAME``, ``lr``, ``samples_per_second``, the training time so far in ``seconds``, and in
    ``data_wait`` the fraction of the time since the last record that was spent waiting for data.
    """
    if isinstance(event, Stepped):
        return {
            "step": event.step,
            "split": "train",
            "loss": event.loss,
            **{f"loss/{name}": value for name, value in event.parts.items()},
            "lr": event.lr,
            "samples_per_second": round(event.samples_per_second, 2),
            "seconds": round(event.seconds, 2),
            "data_wait": round(event.data_wait, 4),
        }
    if isinstance(event, Evaluated):
        return {"step": event.step, "split": "val", **event.figures}
    return None


def cut_records(path: Path, step: int) -> None:
    """Remove records after ``step`` and an incomplete last line, as left by a killed run."""
    if path.exists():
        kept = (json.dumps(record) + "\n" for record in records_up_to(path, step))
        write_atomic(path, "".join(kept))


def records_up_to(path: Path, step: int) -> list[dict[str, Any]]:
    """Return the complete records up to ``step``; none if the file does not exist."""
    return [record for _, record in _read_lines(path) if record and record["step"] <= step]


def check_records(path: Path) -> list[str]:
    """Return notes on damaged lines, and keep a copy of the file if there are any.

    An incomplete last line is normal after a killed run and is not reported.
    """
    bad = [number for number, record in _read_lines(path) if record is None]
    if not bad:
        return []
    copy = path.with_name(f"{path.stem}.damaged{path.suffix}")
    shutil.copyfile(path, copy)
    return [
        f"{path}: {len(bad)} lines are not valid records and are ignored, the first is line "
        f"{bad[0]}; the original file is kept as {copy}"
    ]


def _read_lines(path: Path) -> list[tuple[int, dict[str, Any] | None]]:
    """Return numbered records; None for a damaged line, except an incomplete last one."""
    if not path.exists():
        return []
    lines = read_file(path, limit="json", error=CheckpointError).split(b"\n")
    found: list[tuple[int, dict[str, Any] | None]] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                record = parse_json(
                    line, str(path), error=CheckpointError, constants=True, halves=True
                )
            except CheckpointError:
                record = None
            step = record.get("step") if isinstance(record, dict) else None
            sound = isinstance(step, int) and not isinstance(step, bool)
            if sound or number < len(lines):
                found.append((number, record if sound else None))
    return found


class UnreadableWriter:
    """Appends a record per unreadable sample to ``unreadable.jsonl``, each sample once.

    Args:
        path: The file; records after the step at which a run starts are removed first.
    """

    def __init__(self, path: Path) -> None:
        self.lines = Lines(path)
        self._known: set[tuple[str, str]] = set()

    def __call__(self, event: Event) -> None:
        """Record a sample unless it has been recorded before."""
        if isinstance(event, Started):
            self.lines.start(event.step)
            known = self.lines.records
            self._known = {(str(r.get("split")), str(r.get("sample"))) for r in known}
        elif isinstance(event, Rescued):
            self.lines.move(event.folder)
        elif isinstance(event, Unreadable):
            name, _, reason = event.text.partition(": ")
            if (event.split, name) not in self._known:
                self._known.add((event.split, name))
                record = {"step": event.step, "split": event.split, "sample": name}
                self.lines.append({**record, "reason": reason})


class ConsoleProgress:
    """Progress bar on a terminal; elsewhere one line per evaluation, so that logs stay short.

    Args:
        label: Name of the activity, such as "pre-training".
        quiet: Show nothing.
    """

    def __init__(self, label: str, *, quiet: bool = False) -> None:
        self.label = label
        self.quiet = quiet
        self.console = Console(stderr=True)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._last = ""

    def __call__(self, event: Event) -> None:
        """Show the event."""
        if self.quiet:
            return
        if isinstance(event, Started):
            self._start(event)
        elif isinstance(event, Stepped):
            self._last = (
                f"loss {event.loss:.4f}  {event.samples_per_second:,.0f} samples/s  "
                f"data wait {100 * event.data_wait:.0f} %"
            )
            if self._progress is not None and self._task is not None:
                self._progress.update(self._task, completed=event.step, figures=self._last)
        elif isinstance(event, Evaluated):
            figures = "  ".join(f"{name} {value:.4f}" for name, value in event.figures.items())
            mark = "  (best so far)" if event.is_best else ""
            self._print(f"{self.label} step {event.step}: {self._last}  val {figures}{mark}")
        elif isinstance(event, Noted):
            self._print(event.text)
        elif isinstance(event, Unreadable):
            self._print(f"skipped an unreadable sample: {event.text}")
        elif self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _start(self, event: Started) -> None:
        if self.console.is_terminal and os.environ.get("TERM") != "dumb":
            self._progress = Progress(
                TextColumn(self.label),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
                console=self.console,
            )
            self._progress.start()
            self._task = self._progress.add_task(
                self.label, total=event.total, completed=event.step, figures=""
            )

    def _print(self, text: str) -> None:
        if self._progress is not None:
            self._progress.console.print(text, highlight=False, markup=False)
        else:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()
