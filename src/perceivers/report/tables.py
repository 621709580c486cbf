"""Tables of results: metrics per class, and errors of filled-in modalities."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceivers.errors import InputError
from perceivers.report.html import Table
from perceivers.report.style import percent

_UNDEFINED = "-"


def per_class_table(matrix: NDArray[Any], classes: Sequence[str]) -> Table:
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
    return Table(header=header, rows=rows, note=note)


def fill_table(found: Mapping[str, Mapping[str, Any]]) -> Table:
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
    return Table(header=header, rows=rows, note=note)


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
