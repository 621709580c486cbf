"""Random access to the members of local and remote tars, and their index files.

A tar is indexed once. For a local tar this reads the headers; for a remote one it takes a request
per member, or per block of small ones, so the index is stored: next to the tar as
``x.tar.index.json`` (see ``write_shard_index``), or else in the user's cache for this address
and version of the file. An index also contains label files, which are needed before training.
"""

import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

from perceivers.data.http_ranges import (
    RangeReader,
    RemoteFile,
    fetch_remote,
    is_remote,
    open_remote,
    read_remote,
)
from perceivers.errors import DataError, UserError
from perceivers.files import write_atomic
from perceivers.foreign import parse_json, read_int
from perceivers.reading import check_limit, open_file, read_file

INDEX_SUFFIX = ".index.json"
INDEX_FORMAT = "perceivers tar index 1"
# Members whose contents are stored in an index, and their maximum size in bytes.
HELD_ENDINGS = (".cls", ".json")
HELD_BYTES = 1 << 16
# Maximum size in bytes of a member's long name and attributes.
HEADER_BYTES = 1 << 24
# Large enough for the headers of most videos.
MEMBER_BUFFER = 1 << 16
# Tars indexed in parallel; servers have a high latency but serve many requests at once.
INDEXING_THREADS = 16

Shard = str | RemoteFile


class Member(NamedTuple):
    """One file inside a tar.

    Args:
        name: Path in the tar.
        offset: Offset of its first byte in the tar.
        size: Size in bytes.
        text: Contents, if stored in an index.
    """

    name: str
    offset: int
    size: int
    text: str | None = None


def open_shards(addresses: Sequence[str]) -> list[tuple[Shard, list[Member]]]:
    """Index tars.

    Args:
        addresses: Paths or URLs (``http://``, ``https://``).

    Returns:
        For each tar, the shard for ``read_member`` and the members in order.

    Raises:
        DataError: A local tar is missing, damaged or compressed, or a remote one is damaged.
        RemoteError: A server does not respond, does not have the file, or does not support range
            requests.
    """
    if not any(is_remote(address) for address in addresses):
        return [(address, _open_local(address)) for address in addresses]
    with ThreadPoolExecutor(INDEXING_THREADS) as pool:
        return list(pool.map(_open_shard, addresses))


def read_member(shard: Shard, offset: int, size: int, path: str) -> bytes:
    """Read bytes of a tar; safe in forked workers.

    Args:
        shard: A shard from ``open_shards``.
        offset: Offset of the first byte.
        size: Number of bytes.
        path: Path of the member, for messages.

    Raises:
        DataError: A local file cannot be read, or is too short.
        RemoteError: A server does not respond, or the file on it has changed.
    """
    if isinstance(shard, RemoteFile):
        return read_remote(shard, offset, size, path)
    with open_file(shard) as file:
        # A damaged header may state a size beyond the end of the file or beyond memory.
        held = os.fstat(file.fileno()).st_size - offset
        if size > held:
            raise DataError(
                f"{path}: the tar ends after {max(held, 0)} of the member's {size} bytes"
            )
        check_limit("file", size, path)
        try:
            # pread does not move the file position, which forked workers would share.
            data = os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(data) != size:
        raise DataError(f"{path}: the tar ends after {len(data)} of the member's {size} bytes")
    return data


def open_member(shard: Shard, offset: int, size: int, path: str) -> io.BufferedReader:
    """Open a member of a tar as a file that loads only the parts that are read.

    Args:
        shard: A shard from ``open_shards``.
        offset: Offset of the first byte.
        size: Number of bytes.
        path: Path of the member, for messages.
    """
    return io.BufferedReader(_MemberReader(shard, offset, size, path), MEMBER_BUFFER)


class _MemberReader(io.RawIOBase):
    """Seekable raw stream over a member of a tar."""

    def __init__(self, shard: Shard, offset: int, size: int, path: str) -> None:
        self._where = (shard, offset, size, path)
        self._place = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the current position."""
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Change the current position."""
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._where[2]}[whence]
        self._place = max(0, begin + offset)
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Read up to ``len(buffer)`` bytes.

        Raises:
            DataError: The tar cannot be read.
        """
        shard, offset, size, path = self._where
        length = max(0, min(len(buffer), size - self._place))
        if length:
            buffer[:length] = read_member(shard, offset + self._place, length, path)
        self._place += length
        return length


def write_shard_index(tar: Path) -> Path:
    """Write ``x.tar.index.json`` next to a local ``x.tar``, to be uploaded with it.

    A remote tar then opens with two requests, whatever its size, and a local one without reading
    its headers.

    Args:
        tar: An uncompressed tar.

    Returns:
        The path of the index.

    Raises:
        DataError: The tar is missing, damaged or compressed.
    """
    members = _scan_local(str(tar), hold=True)
    path = tar.with_name(tar.name + INDEX_SUFFIX)
    return write_atomic(path, _encode_index(members, tar.stat().st_size, ""))


def fetch_beside(shard: str, name: str) -> Path:
    """Download a small file from the folder of a remote tar.

    Args:
        shard: Address of the tar.
        name: Name of the file, such as ``classes.txt``.

    Returns:
        The local folder; it does not contain the file if the server does not have it.

    Raises:
        RemoteError: The server does not respond.
    """
    beside, mark, query = shard.partition("?")
    data = fetch_remote(f"{beside.rpartition('/')[0]}/{name}{mark}{query}")
    folder = _cache_folder() / _digest(shard)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).unlink(missing_ok=True)
    except OSError:
        folder = Path(tempfile.mkdtemp())
    if data is not None:
        write_atomic(folder / name, data)
    return folder


def _open_shard(address: str) -> tuple[Shard, list[Member]]:
    """Index one tar, from a matching index file if there is one."""
    if not is_remote(address):
        return address, _open_local(address)
    file = open_remote(address)
    cached = _cache_folder() / f"{_digest(address)}.json"
    members = _decode_index(_read_cached(cached), file.size, tag=file.tag)
    if members is not None:
        return file, members
    beside, mark, query = address.partition("?")
    members = _decode_index(fetch_remote(f"{beside}{INDEX_SUFFIX}{mark}{query}"), file.size, tag="")
    if members is None:
        members = _scan(io.BufferedReader(RangeReader(file)), address, hold=True)
    # Without a cache, for example in a read-only home folder, the next run only starts more slowly.
    with suppress(OSError):
        write_atomic(cached, _encode_index(members, file.size, file.tag))
    return file, members


def _open_local(path: str) -> list[Member]:
    """Index a local tar, from its index file unless the tar is newer."""
    tar, index = Path(path), Path(path + INDEX_SUFFIX)
    try:
        found, made = tar.stat(), index.stat()
    except OSError:
        return _scan_local(path)
    members = None
    if made.st_mtime_ns >= found.st_mtime_ns:
        members = _decode_index(_read_cached(index), found.st_size, tag="")
    return _scan_local(path) if members is None else members


def _scan_local(path: str, *, hold: bool = False) -> list[Member]:
    with open_file(path) as file:
        try:
            return _scan(file, path, hold=hold)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _scan(file: Any, path: str, *, hold: bool) -> list[Member]:
    """Read the headers of a tar, and the contents of label files if ``hold``."""
    members: list[Member] = []
    place = -1
    # On damaged tars, tarfile raises many exception types (ValueError, IndexError, OverflowError,
    # RecursionError, ...), and loops forever on a negative size.
    try:
        # "r:" rejects compressed tars, which do not allow access by offset.
        with tarfile.open(fileobj=cast("Any", _Headers(file)), mode="r:") as tar:
            kept: Any = vars(tar)["members"]
            for info in tar:
                if info.size < 0 or info.offset_data <= place:
                    raise ValueError(f"the size of {info.name[:60]!r} is negative")
                place = info.offset_data
                if info.isfile():
                    text = _read_label(file, info) if hold else None
                    members.append(Member(info.name, info.offset_data, info.size, text))
                # Otherwise tarfile would keep every header in memory, 1 KB each.
                kept.clear()
    except (OSError, UserError):
        raise
    except Exception as error:
        raise DataError(
            f"{path}: not a complete uncompressed tar ({error}); decompress a compressed tar, or "
            f"copy a truncated one again"
        ) from error
    return members


class _Headers:
    """File wrapper for tarfile that limits the size of a single read."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """Read ``size`` bytes.

        Raises:
            ValueError: ``size`` is larger than any valid header.
        """
        if not 0 <= size <= HEADER_BYTES:
            raise ValueError(f"a header states {size} bytes of names")
        return self._file.read(size)


def _read_label(file: Any, info: tarfile.TarInfo) -> str | None:
    """Return the contents of a member if it is a label file with UTF-8 text."""
    if not info.name.lower().endswith(HELD_ENDINGS) or info.size > HELD_BYTES:
        return None
    file.seek(info.offset_data)
    try:
        return file.read(info.size).decode()
    except UnicodeDecodeError:
        # Rejected later, when the label is read and the message can name the file.
        return None


def _encode_index(members: Sequence[Member], size: int, tag: str) -> str:
    """Return an index as JSON, one member per line."""
    head = json.dumps({"format": INDEX_FORMAT, "size": size, "tag": tag})[:-1]
    rows = (json.dumps(m if m.text is not None else m[:3]) for m in members)
    return f'{head}, "members": [\n' + ",\n".join(rows) + "\n]}\n"


def _decode_index(data: bytes | None, size: int, tag: str) -> list[Member] | None:
    """Return the members; None if the data are not an index, or of another version of the tar."""
    try:
        # Names in tars need not be UTF-8.
        index = parse_json(data or b"null", "the index", halves=True)
        if not isinstance(index, dict) or index.get("format") != INDEX_FORMAT:
            return None
        if (index["size"], index["tag"]) != (size, tag):
            return None
        return [_decode_member(row) for row in index["members"]]
    except (ValueError, KeyError, TypeError, IndexError):
        return None


def _decode_member(row: Any) -> Member:
    """Return one member, after checking types and signs."""
    offset, size = (read_int(number, "an index", low=0) for number in row[1:3])
    text = row[3] if len(row) > 3 else None
    if not isinstance(row[0], str) or not isinstance(text, str | None):
        raise TypeError(f"a member is {row!r}")
    return Member(row[0], offset, size, text)


def _read_cached(path: Path) -> bytes | None:
    try:
        return read_file(path)
    except DataError:
        return None


def _digest(address: str) -> str:
    """Return a file name for an address in the cache."""
    return hashlib.sha256(address.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "perceivers" / "shards"
