"""Writing files atomically, so that readers and resumed runs never find a partial file."""

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

_UNFINISHED = re.compile(r"\..+\.\d+\.tmp")  # as named by write_atomic


# Folders locked by this process, by absolute path, each with a check that raises if the lock was
# lost. The check precedes every write, so that a lost folder is never created again.
HELD: dict[str, Callable[[], None]] = {}


def check_held(path: Path) -> None:
    """Raise if a path is in a locked folder whose lock was lost; see ``training/run_lock.py``."""
    root = _held_root(path)
    if root is not None:
        HELD[root]()


def make_folder(path: Path) -> None:
    """Create a folder and its parents, but never a locked folder that was lost."""
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
    """Turn ``FileNotFoundError`` into the error of a lost folder, if that is the cause."""
    try:
        yield
    except FileNotFoundError:
        check_held(path)
        raise


def append_line(path: Path, line: str) -> None:
    """Append a line to a file, creating the file but not its folder."""
    check_held(path)
    with inside_held(path), path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f"{line}\n")


def _held_root(path: Path) -> str | None:
    text = os.path.abspath(path)  # noqa: PTH100 - links stay links
    return next((root for root in HELD if text == root or text.startswith(root + os.sep)), None)


def write_atomic(path: Path, content: bytes | str | Callable[[IO[bytes]], None]) -> Path:
    """Write a temporary file beside ``path``, flush it to disk, then rename it.

    The old file survives any failure.

    Args:
        path: The file.
        content: Content of the file, or a function that writes it into an open file.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # Escape what UTF-8 cannot encode (odd file names), rather than lose the result.
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
        # The error of a full disk does not name a file, but the message should.
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    return path


def real_path(path: Path | str) -> Path:
    """Resolve all links of a path; unlike ``Path.resolve``, do not raise on circular links."""
    return Path(os.path.realpath(path))


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files of killed writers in a run folder locked by this process."""
    for path in folder.rglob(".*.tmp"):
        # Evaluation needs no lock, so it may be writing its results right now.
        if _UNFINISHED.fullmatch(path.name) and not path.name.startswith(".results.json."):
            path.unlink(missing_ok=True)


def write_json(path: Path, data: Mapping[str, Any]) -> Path:
    """Write indented JSON atomically."""
    return write_atomic(path, json.dumps(show_all(data), indent=2, sort_keys=False) + "\n")


def read_json_file(path: Path) -> dict[str, Any]:
    """Read a JSON object written by ``write_json``.

    Raises:
        CheckpointError: The file is missing, unreadable, too large or not an object.
    """
    if not os.path.lexists(path):
        raise CheckpointError(f"{path} does not exist")
    text = read_file(path, limit="json", error=CheckpointError)
    # Data addresses may contain names that are not UTF-8, and metrics may be NaN.
    data = parse_json(text, str(path), error=CheckpointError, constants=True, halves=True)
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} contains a {type(data).__name__}, not a JSON object")
    return data
