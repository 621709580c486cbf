"""Arrays in ``.npy`` and ``.npz`` files, whose headers are checked before anything is allocated.

A header of 128 bytes can promise terabytes, and numpy makes room for what it promises.
"""

import io
import os
import zipfile
from math import prod
from typing import Any

from numpy.lib import format as npy
from numpy.typing import NDArray

from perceivers.errors import DataError, UserError
from perceivers.limits import check_limit
from perceivers.reading import open_file

HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
# Deflate makes at most 1,032 bytes out of one.
DEFLATED, SLACK = 1032, 1024


def load_npy(path: str | os.PathLike[str], *, error: type[UserError] = DataError) -> NDArray:
    """Return the array of an ``.npy`` file; nothing pickled is loaded.

    Raises:
        UserError: The file cannot be read, is no array of plain values, or does not hold what its
            header promises; of the type that is given.
    """
    with open_file(path, error=error) as file:
        return _load_only(file, os.fstat(file.fileno()).st_size, os.fspath(path), error)


def parse_npy(data: bytes, where: str, *, error: type[UserError] = DataError) -> NDArray:
    """Return the array that the bytes of an ``.npy`` file hold.

    Raises:
        UserError: As ``load_npy``.
    """
    return _load_only(io.BytesIO(data), len(data), where, error)


def load_npz(
    path: str | os.PathLike[str], *, error: type[UserError] = DataError
) -> dict[str, NDArray]:
    """Return the arrays of an ``.npz`` file by name; nothing pickled is loaded.

    Raises:
        UserError: As ``load_npy``, of any array.
    """
    where = os.fspath(path)
    with open_file(path, error=error) as file:
        # zipfile raises whatever it trips over (BadZipFile, NotImplementedError, RuntimeError,
        # zlib.error, struct.error, KeyError, ...).
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
                f"{where}: no .npz file of plain arrays ({_first_line(reason)}); write it with "
                f"numpy.savez"
            ) from reason


def _load_only(file: Any, size: int, where: str, error: type[UserError]) -> NDArray:
    """Read the array that a file consists of."""
    # numpy raises whatever its header's literals trip over.
    try:
        return _load(file, size)
    except Exception as reason:
        raise error(
            f"{where}: no .npy file of a plain array ({_first_line(reason)}); write it with "
            f"numpy.save"
        ) from reason


def _load_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray:
    """Read one array of an archive."""
    most = {
        zipfile.ZIP_STORED: member.compress_size,
        zipfile.ZIP_DEFLATED: member.compress_size * DEFLATED + SLACK,
    }.get(member.compress_type, member.file_size)
    if member.file_size > most:
        raise ValueError(
            f"{member.filename!r}: {member.compress_size} bytes cannot become the "
            f"{member.file_size:,} that are promised"
        )
    with archive.open(member) as file:
        # Whatever it raises, which array it was belongs to the message.
        try:
            return _load(file, member.file_size)
        except Exception as reason:
            raise ValueError(f"{member.filename!r}: {_first_line(reason)}") from reason


def _load(file: Any, size: int) -> NDArray:
    """Read an array from a file of the given size in bytes."""
    version = npy.read_magic(file)
    if version not in HEADERS:
        raise ValueError(f"version {version} of the format is for columns with names")
    shape, _, dtype = HEADERS[version](file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never loaded")
    promised, held = prod(shape) * dtype.itemsize, max(size - file.tell(), 0)
    if min(shape, default=0) < 0 or promised > held:
        raise ValueError(
            f"its header promises shape {shape} of {dtype}, which takes {promised:,} bytes; "
            f"{held:,} follow"
        )
    check_limit("array", promised, "the array")
    file.seek(0)
    return npy.read_array(file, allow_pickle=False)


def _first_line(error: Exception) -> str:
    """Say in one line what a parser tripped over."""
    return str(error).partition("\n")[0][:300] or type(error).__name__
