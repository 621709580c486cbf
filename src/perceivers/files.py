"""Writing files so that a reader, or a resumed run, never meets a half-written one."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perceivers.errors import CheckpointError

_UNFINISHED = re.compile(r"\..+\.\d+\.tmp")  # as write_atomic names them


def write_atomic(path: Path, content: bytes | str) -> Path:
    """Write beside ``path``, flush to disk, then rename; the old file survives any failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    data = content.encode() if isinstance(content, str) else content
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def remove_leftovers(folder: Path) -> None:
    """Delete what writers that were killed left in a folder; nobody else may be writing there."""
    for path in folder.rglob(".*.tmp"):
        if _UNFINISHED.fullmatch(path.name):
            path.unlink(missing_ok=True)


def write_json(path: Path, data: Mapping[str, Any]) -> Path:
    """Write indented JSON atomically."""
    return write_atomic(path, json.dumps(data, indent=2, sort_keys=False) + "\n")


def read_json_file(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: The file is missing, unreadable or not an object.
    """
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a {type(data).__name__}, not an object")
    return data
