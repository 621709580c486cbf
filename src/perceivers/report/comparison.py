"""Several runs side by side: what was set differently, and what came of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from perceivers.files import real_path
from perceivers.report.html import Table
from perceivers.report.style import number

_ABSENT = "-"
# Where a run is written is no setting of what it computes.
_NOT_COMPARED = {"out"}


@dataclass(frozen=True)
class Summary:
    """One run, as it is compared.

    Attributes:
        name: As short as tells it from the others.
        settings: All settings by dotted name, and versions and hardware as ``environment.NAME``.
        records: Lines of ``metrics.jsonl``.
        best: Figures of the best model on the validation split.
        best_step: Step of that model; None when there is none yet.
        results: Figures on other splits, by split.
        parameters: How many the model has; None when there is none yet.
    """

    name: str
    settings: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    best: Mapping[str, float] = field(default_factory=dict)
    best_step: int | None = None
    results: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    parameters: int | None = None

    @property
    def steps(self) -> int:
        """The last step recorded."""
        return max((int(record["step"]) for record in self.records), default=0)

    @property
    def seconds(self) -> float:
        """Training time, without evaluation and waiting for data."""
        return max((float(record.get("seconds", 0.0)) for record in self.records), default=0.0)

    @property
    def rate(self) -> float | None:
        """Samples per second, the median of all records."""
        rates = [r["samples_per_second"] for r in self.records if "samples_per_second" in r]
        return float(median(rates)) if rates else None

    @property
    def data_wait(self) -> float | None:
        """Fraction of the time spent waiting for data, the median of all records."""
        waits = [r["data_wait"] for r in self.records if "data_wait" in r]
        return float(median(waits)) if waits else None

    @property
    def last(self) -> Mapping[str, float]:
        """Figures of the last evaluation on the validation split."""
        found = [record for record in self.records if record.get("split") == "val"]
        return {k: v for k, v in found[-1].items() if k not in {"step", "split"}} if found else {}


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return as many last parts of each path as tell them all apart."""
    resolved = [real_path(path) for path in paths]
    longest = max((len(path.parts) for path in resolved), default=1)
    for count in range(1, longest + 1):
        names = ["/".join(path.parts[-count:]) for path in resolved]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def differences_table(runs: Sequence[Summary]) -> Table:
    """Tell every setting, version and device in which the runs differ."""
    names = list(dict.fromkeys(name for run in runs for name in run.settings))
    names = [name for name in names if name not in _NOT_COMPARED]
    rows = []
    for name in names:
        cells = [_show(run.settings.get(name, _ABSENT)) for run in runs]
        if len(set(cells)) > 1:
            rows.append((name, *cells))
    same = len(names) - len(rows)
    note = f"{same} other settings are the same." if rows else f"All {same} settings are the same."
    return Table(header=("setting", *(run.name for run in runs)), rows=rows, note=note)


def results_table(runs: Sequence[Summary]) -> Table:
    """Tell the figures of every run: its best model, its last evaluation, other splits."""
    rows: list[tuple[str, ...]] = []
    for name in _all_names([run.best for run in runs] + [run.last for run in runs]):
        rows.append((f"val {name}, best model", *(_figure(run.best.get(name)) for run in runs)))
        rows.append((f"val {name}, last", *(_figure(run.last.get(name)) for run in runs)))
    for split in dict.fromkeys(split for run in runs for split in run.results):
        held = [run.results.get(split, {}) for run in runs]
        for name in _all_names(held):
            rows.append((f"{split} {name}", *(_figure(figures.get(name)) for figures in held)))
    return Table(header=("figure", *(run.name for run in runs)), rows=rows)


def costs_table(runs: Sequence[Summary]) -> Table:
    """Tell what every run took."""
    rows = [
        ("parameters", *(_count(run.parameters) for run in runs)),
        ("steps", *(_count(run.steps) for run in runs)),
        ("best model at step", *(_count(run.best_step) for run in runs)),
        ("training time, seconds", *(f"{run.seconds:,.1f}" for run in runs)),
        ("samples per second", *(_figure(run.rate) for run in runs)),
        ("data wait, fraction", *(_figure(run.data_wait) for run in runs)),
    ]
    note = "Training time leaves out evaluation and waiting for data; rates and waits are medians."
    return Table(header=("", *(run.name for run in runs)), rows=rows, note=note)


def _all_names(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of all plain numbers, in order of appearance."""
    return list(
        dict.fromkeys(
            name
            for held in figures
            for name, value in held.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        )
    )


def _figure(value: Any) -> str:
    return _ABSENT if not isinstance(value, int | float) else number(float(value), digits=4)


def _count(value: int | None) -> str:
    return _ABSENT if value is None else f"{value:,}"


def _show(value: Any) -> str:
    """Write a setting as YAML would."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
