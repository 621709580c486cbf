"""Opening what users name: the only place where files are opened for reading.

Only regular files are opened. A pipe would wait for a writer for ever, and a device such as
``/dev/zero`` has no end, so a path is looked at before it is opened, and what was opened is looked
at again.
"""

import os
import stat
from io import BufferedReader
from pathlib import Path

from perceivers.errors import DataError, UserError
from perceivers.limits import check_limit

KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
# Not every system has these; where there are no pipes in folders, nothing waits for them.
FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
FLAGS |= getattr(os, "O_BINARY", 0)


def check_file(
    path: str | os.PathLike[str], *, error: type[UserError] = DataError
) -> os.stat_result:
    """Return size and times of a regular file, for libraries that open files by their paths.

    Args:
        path: The file; links are followed.
        error: What is raised.

    Raises:
        UserError: It does not exist, cannot be reached, or is no regular file; of the type that is
            given, caused by the ``OSError`` where there was one.
    """
    try:
        status = Path(path).stat()
    except (OSError, ValueError) as reason:
        raise _unreadable(path, reason, error) from reason
    return _check_status(path, status, error)


def open_file(
    path: str | os.PathLike[str], *, error: type[UserError] = DataError
) -> BufferedReader:
    """Open a regular file for reading bytes; closed by the caller.

    Args:
        path: The file; links are followed.
        error: What is raised.

    Raises:
        UserError: As ``check_file``.
    """
    check_file(path, error=error)
    try:
        # Not waiting for a writer, should a pipe have taken the file's place.
        file = os.fdopen(os.open(path, FLAGS), "rb")
    except (OSError, ValueError) as reason:
        raise _unreadable(path, reason, error) from reason
    try:
        # Another file may have taken its place.
        _check_status(path, os.fstat(file.fileno()), error)
    except UserError:
        file.close()
        raise
    return file


def read_file(
    path: str | os.PathLike[str], *, limit: str = "file", error: type[UserError] = DataError
) -> bytes:
    """Return the bytes of a regular file.

    Args:
        path: The file; links are followed.
        limit: Which of ``limits.LIMITS`` its size is held against before it is read.
        error: What is raised.

    Raises:
        UserError: As ``check_file``, or the file is too large.
    """
    with open_file(path, error=error) as file:
        size = os.fstat(file.fileno()).st_size
        check_limit(limit, size, os.fspath(path), error=error)
        try:
            data = file.read(size)
            # What grows meanwhile, or states no size, as in /proc.
            while more := file.read(1 << 20):
                data += more
                check_limit(limit, len(data), os.fspath(path), error=error)
        except OSError as reason:
            raise _unreadable(path, reason, error) from reason
    return data


def _check_status(
    path: str | os.PathLike[str], status: os.stat_result, error: type[UserError]
) -> os.stat_result:
    if stat.S_ISREG(status.st_mode):
        return status
    kind = next((word for test, word in KINDS if test(status.st_mode)), "no file")
    raise error(
        f"{os.fspath(path)}: cannot be read (it is {kind}); only regular files are read, so give "
        f"one, or save what comes from there to one"
    )


def _unreadable(
    path: str | os.PathLike[str], reason: Exception, error: type[UserError]
) -> UserError:
    """Name the file and what the system says of it."""
    said = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return error(f"{os.fspath(path)}: cannot be read ({said})")
