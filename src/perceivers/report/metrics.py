"""Reading ``metrics.jsonl``, the record a run writes line by line while it trains."""

import os
from pathlib import Path
from typing import Any

from perceivers.errors import RunError, UserError
from perceivers.foreign import parse_json
from perceivers.reading import read_file

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
