"""Writing files so that a reader, or a resumed run, never meets a half-written one."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perceivers.errors import CheckpointError
from perceivers.foreign import parse_json
from perceivers.reading import read_file
from perceivers.text_names import show_all, show_name

_UNFINISHED = re.compile(r"\..+\.\d+\.tmp")  # as write_atomic names them


def write_atomic(path: Path, content: bytes | str) -> Path:
    """Write beside ``path``, flush to disk, then rename; the old file survives any failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # An answer is never lost for a name.
    data = show_name(content).encode() if isinstance(content, str) else content
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.filename is None:  # a full disk, which whoever reads the message must find
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    return path


def real_path(path: Path | str) -> Path:
    """Follow all links of a path; unlike ``Path.resolve`` this does not raise on circular ones."""
    return Path(os.path.realpath(path))


def remove_leftovers(folder: Path) -> None:
    """Delete what writers that were killed left in a folder; nobody else may be writing there."""
    for path in folder.rglob(".*.tmp"):
        if _UNFINISHED.fullmatch(path.name):
            path.unlink(missing_ok=True)


def write_json(path: Path, data: Mapping[str, Any]) -> Path:
    """Write indented JSON atomically."""
    return write_atomic(path, json.dumps(show_all(data), indent=2, sort_keys=False) + "\n")


def read_json_file(path: Path) -> dict[str, Any]:
    """Read a JSON object, as ``write_json`` writes it.

    Raises:
        CheckpointError: The file is missing, unreadable, too large or not an object.
    """
    if not os.path.lexists(path):
        raise CheckpointError(f"{path} does not exist")
    text = read_file(path, limit="json", error=CheckpointError)
    # Addresses of data may hold names that are no UTF-8, and figures may be NaN.
    data = parse_json(text, str(path), error=CheckpointError, constants=True, halves=True)
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a {type(data).__name__}, not an object")
    return data
