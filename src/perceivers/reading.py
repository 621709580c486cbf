"""Reading of files named by users, within limits that are checked before memory is allocated."""

import io
import os
import stat
import zipfile
from io import BufferedReader
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from numpy.lib import format as npy
from numpy.typing import NDArray

from perceivers.errors import ConfigError, DataError, UserError

GIB = 1 << 30


class Limit(NamedTuple):
    """Environment variable of a limit, its default and its unit."""

    variable: str
    default: int
    unit: str


LIMITS = MappingProxyType(
    {
        # For images, tables and point clouds, which are read whole; tars, videos and texts are not.
        "file": Limit("PERCEIVERS_MAX_FILE_BYTES", 4 * GIB, "bytes"),
        # Settings and records.
        "json": Limit("PERCEIVERS_MAX_JSON_BYTES", GIB // 4, "bytes of JSON"),
        # PyYAML takes 10 s for a million bytes.
        "yaml": Limit("PERCEIVERS_MAX_YAML_BYTES", 1 << 20, "bytes of YAML"),
        # Counted with aliases expanded, as when settings are copied or printed.
        "yaml values": Limit("PERCEIVERS_MAX_YAML_VALUES", 100_000, "values in YAML"),
        "array": Limit("PERCEIVERS_MAX_ARRAY_BYTES", 32 * GIB, "bytes in one array"),
        # Pillow's own limit: half a gigabyte at three bytes per pixel.
        "pixels": Limit("PERCEIVERS_MAX_PIXELS", 178_956_970, "pixels"),
        # Size of one sample as model input: 4 GiB of 32-bit numbers.
        "values": Limit("PERCEIVERS_MAX_SAMPLE_VALUES", 1 << 30, "values in one sample"),
        "addresses": Limit("PERCEIVERS_MAX_ADDRESSES", 1_000_000, "addresses"),
        "answer": Limit("PERCEIVERS_MAX_ANSWER_BYTES", GIB, "bytes in one response"),
    }
)


def get_limit(name: str) -> int:
    """Return one of ``LIMITS``.

    Raises:
        ConfigError: Its environment variable is not a positive integer.
    """
    variable, default, unit = LIMITS[name]
    text = os.environ.get(variable, "").strip()
    if not text:
        return default
    # Python refuses to convert strings of thousands of digits.
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text)):
        raise ConfigError(
            f"the environment variable {variable} is {text[:40]!r}; it limits the {unit} to read, "
            f"and must be a whole number of at least 1 (default {default})"
        )
    return int(text)


def check_limit(
    name: str, found: int, where: str, *, error: type[UserError] = DataError, remedy: str = ""
) -> None:
    """Raise if a size exceeds one of ``LIMITS``.

    Args:
        name: Name of the limit.
        found: The size, as measured or as declared by a header.
        where: Name of what is read, for messages.
        error: Type of the error.
        remedy: What else the user can do if the size is intended, besides setting the variable.

    Raises:
        UserError: The size exceeds the limit; of type ``error``.
    """
    most = get_limit(name)
    if found > most:
        limit = LIMITS[name]
        raise error(
            f"{where}: {found:,} {limit.unit}, but at most {most:,} are read; "
            f"{remedy}{', or ' if remedy else ''}"
            f"set {limit.variable} if this size is intended"
        )


# -- Opening files named by users; all reading of files goes through here --------------------------
#
# Only regular files are opened: a pipe may block forever, and a device such as ``/dev/zero`` has
# no end. The type is checked before opening, and again on the open file.


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


# -- Reading ``.npy`` and ``.npz`` files, whose headers are checked before memory is allocated -----
#
# A header of 128 bytes can declare terabytes, and NumPy would allocate them.


HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
# Deflate expands one byte to at most 1,032.
DEFLATED, SLACK = 1032, 1024


def load_npy(path: str | os.PathLike[str], *, error: type[UserError] = DataError) -> NDArray:
    """Return the array of an ``.npy`` file; pickled data are never loaded.

    Raises:
        UserError: The file cannot be read, is not an array of plain values, or is shorter than its
            header declares; of type ``error``.
    """
    with open_file(path, error=error) as file:
        return _load_only(file, os.fstat(file.fileno()).st_size, os.fspath(path), error)


def parse_npy(data: bytes, where: str, *, error: type[UserError] = DataError) -> NDArray:
    """Return the array in the bytes of an ``.npy`` file.

    Raises:
        UserError: As for ``load_npy``.
    """
    return _load_only(io.BytesIO(data), len(data), where, error)


def load_npz(
    path: str | os.PathLike[str], *, error: type[UserError] = DataError
) -> dict[str, NDArray]:
    """Return the arrays of an ``.npz`` file by name; pickled data are never loaded.

    Raises:
        UserError: As for ``load_npy``, for any of the arrays.
    """
    where = os.fspath(path)
    with open_file(path, error=error) as file:
        # zipfile raises many types for damaged files (BadZipFile, NotImplementedError,
        # RuntimeError, zlib.error, struct.error, KeyError, ...).
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                promised = sum(member.file_size for member in members)
                check_limit("array", promised, where, error=error)
                return {m.filename.removesuffix(".npy"): _load_member(archive, m) for m in members}
        except UserError:
            raise
        except Exception as reason:
            raise error(
                f"{where}: not an .npz file of plain arrays ({_first_line(reason)}); write it with "
                f"numpy.savez"
            ) from reason


def _load_only(file: Any, size: int, where: str, error: type[UserError]) -> NDArray:
    # NumPy parses the header as a Python literal, which may raise many types.
    try:
        return _load(file, size)
    except Exception as reason:
        raise error(
            f"{where}: not an .npy file of a plain array ({_first_line(reason)}); write it with "
            f"numpy.save"
        ) from reason


def _load_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray:
    most = {
        zipfile.ZIP_STORED: member.compress_size,
        zipfile.ZIP_DEFLATED: member.compress_size * DEFLATED + SLACK,
    }.get(member.compress_type, member.file_size)
    if member.file_size > most:
        raise ValueError(
            f"{member.filename!r}: {member.compress_size} bytes cannot expand to the "
            f"{member.file_size:,} that the archive declares"
        )
    with archive.open(member) as file:
        # Whatever is raised, the message must name the array.
        try:
            return _load(file, member.file_size)
        except Exception as reason:
            raise ValueError(f"{member.filename!r}: {_first_line(reason)}") from reason


def _load(file: Any, size: int) -> NDArray:
    """Read an array from a file with ``size`` bytes."""
    version = npy.read_magic(file)
    if version not in HEADERS:
        raise ValueError(f"format version {version} is not supported")
    shape, _, dtype = HEADERS[version](file)
    if dtype.hasobject:
        raise ValueError("it contains Python objects, which are never loaded")
    promised, held = prod(shape) * dtype.itemsize, max(size - file.tell(), 0)
    if min(shape, default=0) < 0 or promised > held:
        raise ValueError(
            f"its header declares shape {shape} of {dtype}, which takes {promised:,} bytes, but "
            f"only {held:,} follow"
        )
    check_limit("array", promised, "the array")
    file.seek(0)
    return npy.read_array(file, allow_pickle=False)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300] or type(error).__name__
