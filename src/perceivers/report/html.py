"""Report pages: HTML with embedded figures, and tables of the metrics and results of a run."""

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from statistics import median
from struct import unpack
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray

from perceivers.errors import InputError, RunError
from perceivers.files import real_path, write_atomic
from perceivers.reading import read_file
from perceivers.report.style import DENSITY, number, percent

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_NUMERIC = re.compile(r"[-+\u2212]?[\d.,]+(e[-+]?\d+)?( ?%)?|-|")


@dataclass(frozen=True)
class HtmlTable:
    """Table of text cells with a header; ``note`` is a line below it."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Section:
    """One section of a report, in the order tiles, text, figures, tables, code.

    Args:
        title: Heading, and entry in the table of contents.
        text: Plain text; blank lines separate paragraphs.
        figures: PNG files with captions, which are also the alternative texts.
        tables: Tables; columns of numbers are right-aligned.
        code: Commands or YAML, shown verbatim with a copy button.
        facts: Pairs of a value and its label, shown as tiles.
    """

    title: str
    text: str = ""
    figures: Sequence[tuple[Path, str]] = ()
    tables: Sequence[HtmlTable] = ()
    code: str = ""
    facts: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class _Figure:
    """Figure for the template; sizes are CSS pixels."""

    source: str
    caption: str
    width: int
    height: int


def write_html(
    path: Path, *, title: str, subtitle: str, sections: Sequence[Section], footer: str = ""
) -> Path:
    """Write a report atomically: a reader sees the old file or the new one, never a part.

    Args:
        path: File to write.
        title: Heading of the page.
        subtitle: One line under it.
        sections: Sections in order.
        footer: Last line, such as version and date.

    Returns:
        The path.

    Raises:
        RunError: If a figure is missing or is not a PNG.
    """
    template = _environment().from_string(
        files("perceivers.report").joinpath("template.html").read_text(encoding="utf-8")
    )
    page = template.render(
        title=title,
        subtitle=subtitle,
        footer=footer,
        parts=[
            {
                "id": f"section-{index}",
                "section": section,
                "paragraphs": paragraphs(section.text),
                "figures": [_load_figure(png, caption) for png, caption in section.figures],
                "tables": [(table, _numeric_columns(table)) for table in section.tables],
            }
            for index, section in enumerate(sections, start=1)
        ],
    )
    write_atomic(path, page)
    return path


def paragraphs(text: str) -> list[str]:
    """Split plain text into paragraphs at blank lines."""
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]


def _environment() -> Environment:
    return Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _load_figure(path: Path, caption: str) -> _Figure:
    content = read_file(path, error=RunError)
    if not content.startswith(_PNG_SIGNATURE) or len(content) < 24:
        raise RunError(f"the figure {path} is not a PNG file; regenerate the report of the run")
    width, height = unpack(">II", content[16:24])  # from the IHDR chunk
    return _Figure(
        source="data:image/png;base64," + b64encode(content).decode("ascii"),
        caption=caption,
        width=max(width // DENSITY, 1),
        height=max(height // DENSITY, 1),
    )


def _numeric_columns(table: HtmlTable) -> list[bool]:
    """Mark the columns with numbers only; the first column has the row names."""
    return [
        index > 0
        and bool(table.rows)
        and all(_NUMERIC.fullmatch(row[index].strip()) for row in table.rows if index < len(row))
        for index in range(len(table.header))
    ]


# -- Tables of results: metrics per class, and errors of filled-in modalities ----------------------


_UNDEFINED = "-"


def per_class_table(matrix: NDArray[Any], classes: Sequence[str]) -> HtmlTable:
    """Return support, recall, precision and the most common confusion of every class.

    Args:
        matrix: Counts ``[K, K]``; rows are true classes, columns predicted classes.
        classes: The K class names.

    Returns:
        One row per class: name, support, recall (the accuracy within the class), precision, and the
        most common wrong prediction. A ratio with denominator 0 is shown as ``-``.

    Raises:
        InputError: If the matrix is not square or does not match the class names.
    """
    counts = check_confusion(matrix, classes)
    support, predicted, right = counts.sum(axis=1), counts.sum(axis=0), np.diag(counts)
    wrong = counts - np.diag(right)
    rows: list[tuple[str, ...]] = []
    for index, name in enumerate(classes):
        worst = int(wrong[index].argmax()) if len(classes) else 0
        times = int(wrong[index, worst])
        rows.append(
            (
                name,
                f"{int(support[index]):,}",
                _ratio(right[index], support[index]),
                _ratio(right[index], predicted[index]),
                f"{classes[worst]} ({times:,})" if times else _UNDEFINED,
            )
        )
    total = int(support.sum())
    note = (
        f"{int(right.sum()):,} of {total:,} samples are correct: accuracy "
        f"{percent(float(right.sum()) / total)}."
        if total
        else "No samples."
    )
    header = ("class", "support", "recall", "precision", "most common confusion")
    return HtmlTable(header=header, rows=rows, note=note)


def fill_table(found: Mapping[str, Mapping[str, Any]]) -> HtmlTable:
    """Compare the errors of filling in each modality with those of two baselines.

    Args:
        found: Results by modality, as recorded in ``results.json``.
    """
    splits = sorted({str(each["mean_of"]) for each in found.values()})
    header = (
        *("filled in", "from", "samples", "error", f"mean of {' or '.join(splits)}"),
        *("input of another sample", "unit"),
    )
    rows = [
        (
            name,
            " + ".join(each["given"]),
            f"{each['samples']:,}",
            *(
                _UNDEFINED if each[key] is None else f"{each[key]:.4f}"
                for key in ("error", "mean_error", "other_error")
            ),
            str(each["unit"]),
        )
        for name, each in found.items()
    ]
    note = (
        "Each modality is hidden as a whole and filled in from the others. A model that uses its "
        "input has a lower error than the mean sample, and a clearly higher error with the input "
        "of another sample."
    )
    return HtmlTable(header=header, rows=rows, note=note)


def check_confusion(matrix: NDArray[Any], classes: Sequence[str]) -> NDArray[np.int64]:
    """Return the counts as integers; raise InputError if they are not a confusion matrix."""
    counts = np.asarray(matrix)
    size = len(classes)
    if counts.shape != (size, size):
        raise InputError(
            f"the confusion matrix has shape {counts.shape} for {size} classes; it must be "
            f"({size}, {size}), rows true and columns predicted"
        )
    if counts.size and (not np.isfinite(counts).all() or counts.min() < 0):
        raise InputError("the confusion matrix holds negative or non-finite values; give counts")
    return counts.astype(np.int64)


def _ratio(part: Any, whole: Any) -> str:
    return percent(float(part) / float(whole)) if whole else _UNDEFINED


# -- Summaries of runs side by side --------------------------------------------------------------


_ABSENT = "-"
# The output folder always differs and does not change what is computed.
_NOT_COMPARED = {"out"}


@dataclass(frozen=True)
class Summary:
    """Settings and results of one run.

    Attributes:
        name: Short name, unique among the compared runs.
        settings: All settings by dotted name, and versions and hardware as ``environment.NAME``.
        records: Lines of ``metrics.jsonl``.
        best: Metrics of the best model on the validation split.
        best_step: Step of that model; None if it does not exist yet.
        results: Metrics on other splits, by split.
        parameters: Number of parameters of the model; None if it does not exist yet.
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
        """Last recorded step."""
        return max((int(record["step"]) for record in self.records), default=0)

    @property
    def seconds(self) -> float:
        """Training time in seconds, without evaluation and waiting for data."""
        return max((float(record.get("seconds", 0.0)) for record in self.records), default=0.0)

    @property
    def rate(self) -> float | None:
        """Median of the recorded samples per second."""
        rates = [r["samples_per_second"] for r in self.records if "samples_per_second" in r]
        return float(median(rates)) if rates else None

    @property
    def data_wait(self) -> float | None:
        """Median fraction of the time spent waiting for data."""
        waits = [r["data_wait"] for r in self.records if "data_wait" in r]
        return float(median(waits)) if waits else None

    @property
    def last(self) -> Mapping[str, float]:
        """Metrics of the last evaluation on the validation split."""
        found = [record for record in self.records if record.get("split") == "val"]
        return {k: v for k, v in found[-1].items() if k not in {"step", "split"}} if found else {}


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest path endings of equal length that are unique."""
    resolved = [real_path(path) for path in paths]
    longest = max((len(path.parts) for path in resolved), default=1)
    for count in range(1, longest + 1):
        names = ["/".join(path.parts[-count:]) for path in resolved]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def differences_table(runs: Sequence[Summary]) -> HtmlTable:
    """List every setting, version and device in which the runs differ."""
    names = list(dict.fromkeys(name for run in runs for name in run.settings))
    names = [name for name in names if name not in _NOT_COMPARED]
    rows = []
    for name in names:
        cells = [_show(run.settings.get(name, _ABSENT)) for run in runs]
        if len(set(cells)) > 1:
            rows.append((name, *cells))
    same = len(names) - len(rows)
    note = f"{same} other settings are the same." if rows else f"All {same} settings are the same."
    return HtmlTable(header=("setting", *(run.name for run in runs)), rows=rows, note=note)


def results_table(runs: Sequence[Summary]) -> HtmlTable:
    """List the metrics of every run: of its best model, its last evaluation and other splits."""
    rows: list[tuple[str, ...]] = []
    for name in _all_names([run.best for run in runs] + [run.last for run in runs]):
        rows.append((f"val {name}, best model", *(_figure(run.best.get(name)) for run in runs)))
        rows.append((f"val {name}, last", *(_figure(run.last.get(name)) for run in runs)))
    for split in dict.fromkeys(split for run in runs for split in run.results):
        held = [run.results.get(split, {}) for run in runs]
        for name in _all_names(held):
            rows.append((f"{split} {name}", *(_figure(figures.get(name)) for figures in held)))
    return HtmlTable(header=("metric", *(run.name for run in runs)), rows=rows)


def costs_table(runs: Sequence[Summary]) -> HtmlTable:
    """List parameters, steps, training time and speed of every run."""
    rows = [
        ("parameters", *(_count(run.parameters) for run in runs)),
        ("steps", *(_count(run.steps) for run in runs)),
        ("best model at step", *(_count(run.best_step) for run in runs)),
        ("training time, seconds", *(f"{run.seconds:,.1f}" for run in runs)),
        ("samples per second", *(_figure(run.rate) for run in runs)),
        ("data wait, fraction", *(_figure(run.data_wait) for run in runs)),
    ]
    note = "Training time excludes evaluation and waiting for data; rates and waits are medians."
    return HtmlTable(header=("", *(run.name for run in runs)), rows=rows, note=note)


def _all_names(figures: Sequence[Mapping[str, Any]]) -> list[str]:
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
    # Spelled as in YAML.
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
