"""Tables that are computed from results rather than copied from settings."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceivers.errors import InputError, RunError, UserError
from perceivers.foreign import parse_json
from perceivers.reading import read_file
from perceivers.report.html import Table
from perceivers.report.style import percent

# -- Reading ``metrics.jsonl``, the record a run writes line by line while it trains -------------


# What every reader of records takes for a number.
NUMBERS = ("step", "loss", "lr", "seconds", "samples_per_second", "data_wait")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read one record per line; a torn last line is what a killed run leaves, and is dropped.

    Args:
        path: A file of JSON objects, one per line; blank lines are skipped.

    Returns:
        The records in the order of the file; an empty file gives none.

    Raises:
        RunError: If the file cannot be read, or a line other than the last is no JSON object.
    """
    if not os.path.lexists(path):
        raise RunError(f"{path} does not exist; give the folder of a run that has started training")
    lines = read_file(path, error=RunError).split(b"\n")
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    records: list[dict[str, Any]] = []
    for number, line in numbered:
        record = _parse(line)
        if record is not None:
            records.append(record)
        elif number != numbered[-1][0]:
            raise RunError(
                f"{path} line {number} is no record, an object with a step: {line[:60]!r}; only "
                f"the last line may be torn, so delete this line or restore the file"
            )
    return records


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return the record on a line, or None if it holds none."""
    try:
        # Figures may be NaN, which JSON does not know.
        record = parse_json(line, "a record", constants=True, halves=True)
    except UserError:  # bad JSON, or bytes cut inside a character
        return None
    return record if is_record(record) else None


def is_record(value: Any) -> bool:
    """Tell whether what a line holds is a record: an object of numbers, with a step."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("step"), int)
        and all(isinstance(value.get(name, 0), int | float) for name in NUMBERS)
        and all(isinstance(entry, int | float | str | None) for entry in value.values())
    )


_UNDEFINED = "-"


def per_class_table(matrix: NDArray[Any], classes: Sequence[str]) -> Table:
    """Tell for every class how many there are, how many are found, and what they are taken for.

    Args:
        matrix: Counts ``[K, K]``; rows are true classes, columns predicted ones.
        classes: The K class names.

    Returns:
        One row per class: name, support, recall (the accuracy within the class), precision, and the
        most common wrong answer. A ratio without a denominator is shown as ``-``.

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
        f"{int(right.sum()):,} of {total:,} samples are right: accuracy "
        f"{percent(float(right.sum()) / total)}."
        if total
        else "No samples."
    )
    header = ("class", "support", "recall", "precision", "most common confusion")
    return Table(header=header, rows=rows, note=note)


def fill_table(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """Compare the errors of filling in each modality with those of two baselines.

    Args:
        found: As ``results.json`` records them, by modality.
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
        "input errs less than the mean sample does, and clearly more with another sample's input."
    )
    return Table(header=header, rows=rows, note=note)


def check_confusion(matrix: NDArray[Any], classes: Sequence[str]) -> NDArray[np.int64]:
    """Return the counts as integers, or say why they are no confusion matrix."""
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
    """Format a share, or a dash when there is nothing to share."""
    return percent(float(part) / float(whole)) if whole else _UNDEFINED
