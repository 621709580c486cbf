"""Reading ``.npy`` and ``.npz`` files, whose headers are checked before memory is allocated.

A header of 128 bytes can declare terabytes, and NumPy would allocate them.
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
