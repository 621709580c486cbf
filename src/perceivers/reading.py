"""Opening files named by users; all reading of files goes through here.

Only regular files are opened: a pipe may block forever, and a device such as ``/dev/zero`` has no
end. The type is checked before opening, and again on the open file.
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
# Not every system has these flags; those without O_NONBLOCK have no named pipes in folders.
FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
FLAGS |= getattr(os, "O_BINARY", 0)


def check_file(
    path: str | os.PathLike[str], *, error: type[UserError] = DataError
) -> os.stat_result:
    """Check that a path is a regular file, and return its size and times.

    For libraries that open files by path.

    Args:
        path: The file; links are followed.
        error: Type of the error.

    Raises:
        UserError: The file does not exist, cannot be accessed, or is not a regular file; of type
            ``error``, with the ``OSError`` as its cause if there is one.
    """
    try:
        status = Path(path).stat()
    except (OSError, ValueError) as reason:
        raise _unreadable(path, reason, error) from reason
    return _check_status(path, status, error)


def open_file(
    path: str | os.PathLike[str], *, error: type[UserError] = DataError
) -> BufferedReader:
    """Open a regular file for reading bytes; the caller closes it.

    Args:
        path: The file; links are followed.
        error: Type of the error.

    Raises:
        UserError: As for ``check_file``.
    """
    check_file(path, error=error)
    try:
        # O_NONBLOCK: if a pipe has replaced the file by now, do not wait for a writer.
        file = os.fdopen(os.open(path, FLAGS), "rb")
    except (OSError, ValueError) as reason:
        raise _unreadable(path, reason, error) from reason
    try:
        # The file may have been replaced since the first check.
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
        limit: Name of the size limit (``limits.LIMITS``), checked before reading.
        error: Type of the error.

    Raises:
        UserError: As for ``check_file``, or the file is too large.
    """
    with open_file(path, error=error) as file:
        size = os.fstat(file.fileno()).st_size
        check_limit(limit, size, os.fspath(path), error=error)
        try:
            data = file.read(size)
            # Files may grow meanwhile, and those in /proc have size 0.
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
    kind = next((word for test, word in KINDS if test(status.st_mode)), "not a regular file")
    raise error(
        f"{os.fspath(path)}: cannot be read (it is {kind}); only regular files can be read, so "
        f"save the content to a file first"
    )


def _unreadable(
    path: str | os.PathLike[str], reason: Exception, error: type[UserError]
) -> UserError:
    said = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return error(f"{os.fspath(path)}: cannot be read ({said})")
