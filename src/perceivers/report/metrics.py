"""Reads ``metrics.jsonl``, to which a training run appends one record per line."""

import os
from pathlib import Path
from typing import Any

from perceivers.errors import RunError, UserError
from perceivers.foreign import parse_json
from perceivers.reading import read_file

# Readers of records use these as numbers without checking.
NUMBERS = ("step", "loss", "lr", "seconds", "samples_per_second", "data_wait")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read one record per line, without an incomplete last line.

    A run that is killed while writing leaves an incomplete line.

    Args:
        path: File with one JSON object per line; blank lines are skipped.

    Returns:
        The records in file order; none for an empty file.

    Raises:
        RunError: If the file cannot be read, or a line other than the last is not a record.
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
                f"{path} line {number} is not a record (object with a step): {line[:60]!r}; only "
                f"the last line may be incomplete, so delete this line or restore the file"
            )
    return records


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        # Metrics may be NaN, which standard JSON does not have.
        record = parse_json(line, "a record", constants=True, halves=True)
    except UserError:  # invalid JSON, or UTF-8 cut inside a character
        return None
    return record if is_record(record) else None


def is_record(value: Any) -> bool:
    """Check whether a value is a record: an object with a step and numeric metrics."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("step"), int)
        and all(isinstance(value.get(name, 0), int | float) for name in NUMBERS)
        and all(isinstance(entry, int | float | str | None) for entry in value.values())
    )
