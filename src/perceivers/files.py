"""Writing files so that a reader, or a resumed run, never meets a half-written one."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from perceivers.errors import CheckpointError
from perceivers.foreign import parse_json
from perceivers.reading import read_file
from perceivers.text_names import show_all, show_name

_UNFINISHED = re.compile(r"\..+\.\d+\.tmp")  # as write_atomic names them


# Folders that this process holds, by absolute path, each with a check that raises once the folder
# is no longer its own. Nothing is written into them without it, so a lost one is never made again.
HELD: dict[str, Callable[[], None]] = {}


def check_held(path: Path) -> None:
    """Raise if a path lies in a held folder that is lost; see ``training/run_lock.py``."""
    root = _held_root(path)
    if root is not None:
        HELD[root]()


def make_folder(path: Path) -> None:
    """Make a folder and what lies above it, but never a held folder that is lost."""
    root = _held_root(path)
    if root is None:
        path.mkdir(parents=True, exist_ok=True)
        return
    HELD[root]()
    with inside_held(path):
        inner = Path(os.path.relpath(path, root))
        for part in reversed([inner, *inner.parents][:-1]):
            (Path(root) / part).mkdir(exist_ok=True)


@contextmanager
def inside_held(path: Path) -> Iterator[None]:
    """Say what is lost where a file cannot be found because its folder went away meanwhile."""
    try:
        yield
    except FileNotFoundError:
        check_held(path)
        raise


def append_line(path: Path, line: str) -> None:
    """Append a line to a file, which is made where its folder exists."""
    check_held(path)
    with inside_held(path), path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f"{line}\n")


def _held_root(path: Path) -> str | None:
    text = os.path.abspath(path)  # noqa: PTH100 - links stay links
    return next((root for root in HELD if text == root or text.startswith(root + os.sep)), None)


def write_atomic(path: Path, content: bytes | str | Callable[[IO[bytes]], None]) -> Path:
    """Write beside ``path``, flush to disk, then rename; the old file survives any failure.

    Args:
        path: The file.
        content: What it will hold, or a function that writes that into an open file.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # An answer is never lost for a name.
    data = show_name(content).encode() if isinstance(content, str) else content
    try:
        with inside_held(path):
            with temporary.open("wb") as file:
                if isinstance(data, bytes):
                    file.write(data)
                else:
                    data(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    except OSError as error:
        # A full disk names no file, and whoever reads the message must find it.
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    return path


def real_path(path: Path | str) -> Path:
    """Follow all links of a path; unlike ``Path.resolve`` this does not raise on circular ones."""
    return Path(os.path.realpath(path))


def remove_leftovers(folder: Path) -> None:
    """Delete what writers that were killed left in a run folder that this process holds.

    An evaluation of its model may be writing results into it meanwhile.
    """
    for path in folder.rglob(".*.tmp"):
        if _UNFINISHED.fullmatch(path.name) and not path.name.startswith(".results.json."):
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
