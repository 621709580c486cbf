"""Listeners: records in the run folder, and a progress bar with rate and time left."""

import json
import os
import sys
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

from perceivers.errors import RunError, UserError
from perceivers.files import write_atomic
from perceivers.foreign import parse_json
from perceivers.reading import read_file
from perceivers.training.events import Evaluated, Event, Noted, Started, Stepped, Unreadable


class JsonlWriter:
    """Append a record per event to ``metrics.jsonl``.

    Args:
        path: The file; records beyond the step at which a run starts are cut off first.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, event: Event) -> None:
        """Record training and validation figures."""
        if isinstance(event, Started):
            cut_records(self.path, event.step)
        else:
            record = as_record(event)
            if record is not None:
                with self.path.open("a") as file:
                    file.write(json.dumps(record) + "\n")


def as_record(event: Event) -> dict[str, Any] | None:
    """Return what is recorded of an event; None when nothing is.

    ``step`` and ``split`` come first, then figures by name: training has ``loss``, its parts as
    ``loss/NAME``, ``lr``, ``samples_per_second`` and the training time so far in ``seconds``.
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
        }
    if isinstance(event, Evaluated):
        return {"step": event.step, "split": "val", **event.figures}
    return None


def cut_records(path: Path, step: int) -> None:
    """Drop records of steps beyond ``step`` and a torn last line, as a killed run leaves them."""
    if path.exists():
        kept = (json.dumps(record) + "\n" for record in records_up_to(path, step))
        write_atomic(path, "".join(kept))


def records_up_to(path: Path, step: int) -> list[dict[str, Any]]:
    """Read the whole records of steps up to ``step``; a file that is not there has none."""
    if not path.exists():
        return []
    kept = []
    for line in read_file(path, error=RunError).split(b"\n"):
        try:
            record = parse_json(line, "a record", constants=True, halves=True)
        except UserError:
            continue
        known = isinstance(record, dict) and isinstance(record.get("step"), int)
        if known and record["step"] <= step:
            kept.append(record)
    return kept


class UnreadableWriter:
    """Append a record per unreadable sample to ``unreadable.jsonl``, each sample once.

    Args:
        path: The file; like those of ``metrics.jsonl``, records of later steps are cut off first.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: set[tuple[str, str]] = set()

    def __call__(self, event: Event) -> None:
        """Record a sample that was not recorded before."""
        if isinstance(event, Started):
            cut_records(self.path, event.step)
            known = records_up_to(self.path, event.step)
            self._known = {(str(r.get("split")), str(r.get("sample"))) for r in known}
        elif isinstance(event, Unreadable):
            name, _, reason = event.text.partition(": ")
            if (event.split, name) not in self._known:
                self._known.add((event.split, name))
                record = {"step": event.step, "split": event.split, "sample": name}
                with self.path.open("a") as file:
                    file.write(json.dumps({**record, "reason": reason}) + "\n")


class ConsoleProgress:
    """A bar on a terminal; elsewhere a line per evaluation, so that logs stay short.

    Args:
        label: What is being done, such as "pre-training".
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
            self._last = f"loss {event.loss:.4f}  {event.samples_per_second:,.0f} samples/s"
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
