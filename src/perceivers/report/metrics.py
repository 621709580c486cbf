"""Reading ``metrics.jsonl``, the record a run writes line by line while it trains."""

import json
from pathlib import Path
from typing import Any

from perceivers.errors import RunError


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read one record per line; a torn last line is what a killed run leaves, and is dropped.

    Args:
        path: A file of JSON objects, one per line; blank lines are skipped.

    Returns:
        The records in the order of the file; an empty file gives none.

    Raises:
        RunError: If the file cannot be read, or a line other than the last is no JSON object.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise RunError(
            f"cannot read the metrics {path}: {error.strerror}; give the folder of a run that has "
            f"started training"
        ) from error
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    records: list[dict[str, Any]] = []
    for number, line in numbered:
        record = _parse(line)
        if record is not None:
            records.append(record)
        elif number != numbered[-1][0]:
            raise RunError(
                f"{path} line {number} is not a JSON object: {line[:60]!r}; only the last line may "
                f"be torn, so delete this line or restore the file"
            )
    return records


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return the object on a line, or None if it holds none."""
    try:
        record = json.loads(line)
    except ValueError:  # bad JSON, or bytes cut inside a character
        return None
    return record if isinstance(record, dict) else None
