"""Where the members of tars lie, on this machine or on a server, and the files that say so.

A tar is indexed once. Locally that reads its headers; on a server it takes a request per member, or
per block of small ones, so the index is kept: beside the tar as ``x.tar.index.json``, which
``write_shard_index`` writes, or else in the user's cache, for this address and version of the file.
An index also holds the contents of labels, which are needed before training starts.
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
from perceivers.limits import check_limit
from perceivers.reading import open_file, read_file

INDEX_SUFFIX = ".index.json"
INDEX_FORMAT = "perceivers tar index 1"
# Members whose contents an index holds, up to so many bytes.
HELD_ENDINGS = (".cls", ".json")
HELD_BYTES = 1 << 16
# What a long name and its attributes take at most.
HEADER_BYTES = 1 << 24
# Headers of most videos fit.
MEMBER_BUFFER = 1 << 16
# Tars that are indexed at the same time; servers answer slowly, but many at once.
INDEXING_THREADS = 16

Shard = str | RemoteFile


class Member(NamedTuple):
    """One file inside a tar.

    Args:
        name: Its path there.
        offset: Where its bytes begin in the tar.
        size: How many there are.
        text: Its contents, if an index holds them.
    """

    name: str
    offset: int
    size: int
    text: str | None = None


def open_shards(addresses: Sequence[str]) -> list[tuple[Shard, list[Member]]]:
    """Index some tars.

    Args:
        addresses: Paths, or addresses on servers (``http://``, ``https://``).

    Returns:
        What ``read_member`` reads from, and the members in their order, by tar.

    Raises:
        DataError: A local tar is missing, damaged or compressed, or one on a server is damaged.
        RemoteError: A server does not answer, has no such file, or has no range requests.
    """
    if not any(is_remote(address) for address in addresses):
        return [(address, _open_local(address)) for address in addresses]
    with ThreadPoolExecutor(INDEXING_THREADS) as pool:
        return list(pool.map(_open_shard, addresses))


def read_member(shard: Shard, offset: int, size: int, path: str) -> bytes:
    """Return some bytes of a tar, safely in forked workers.

    Args:
        shard: As from ``open_shards``.
        offset: Where the bytes begin.
        size: How many there are.
        path: What they are, for messages.

    Raises:
        DataError: A local file cannot be read, or ends before.
        RemoteError: A server does not answer, or the file on it has changed.
    """
    if isinstance(shard, RemoteFile):
        return read_remote(shard, offset, size, path)
    with open_file(shard) as file:
        # A header may promise more than there is, or than memory holds.
        held = os.fstat(file.fileno()).st_size - offset
        if size > held:
            raise DataError(
                f"{path}: the tar ends after {max(held, 0)} of the member's {size} bytes"
            )
        check_limit("file", size, path)
        try:
            # Without moving a position that forked workers would share.
            data = os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(data) != size:
        raise DataError(f"{path}: the tar ends after {len(data)} of the member's {size} bytes")
    return data


def open_member(shard: Shard, offset: int, size: int, path: str) -> io.BufferedReader:
    """Return a member of a tar as a file, of which only the parts that are read are loaded.

    Args:
        shard: As from ``open_shards``.
        offset: Where the bytes begin.
        size: How many there are.
        path: What they are, for messages.
    """
    return io.BufferedReader(_MemberReader(shard, offset, size, path), MEMBER_BUFFER)


class _MemberReader(io.RawIOBase):
    """A member of a tar, to be read and sought in."""

    def __init__(self, shard: Shard, offset: int, size: int, path: str) -> None:
        self._where = (shard, offset, size, path)
        self._place = 0

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def seekable(self) -> bool:
        """Tell that it can be sought in."""
        return True

    def tell(self) -> int:
        """Return the place."""
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a place."""
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._where[2]}[whence]
        self._place = max(0, begin + offset)
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Read as much as there is room for.

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
    """Write ``x.tar.index.json`` beside a local ``x.tar``, to be uploaded with it.

    Opening tars on a server then takes two requests each, whatever they hold, and local ones are
    opened without reading their headers.

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
    """Copy a small file that lies beside a tar on a server.

    Args:
        shard: Address of the tar.
        name: Name of the file, such as ``classes.txt``.

    Returns:
        The folder that the file was copied to; without it where the server has none.

    Raises:
        RemoteError: The server does not answer.
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
    """Index one tar, from an index that fits it if there is one."""
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
    # Without a cache, as in a home that cannot be written, the next run merely starts later.
    with suppress(OSError):
        write_atomic(cached, _encode_index(members, file.size, file.tag))
    return file, members


def _open_local(path: str) -> list[Member]:
    """Index a local tar, from an index beside it that is no older than it."""
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
    """Read the headers of a local tar."""
    with open_file(path) as file:
        try:
            return _scan(file, path, hold=hold)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _scan(file: Any, path: str, *, hold: bool) -> list[Member]:
    """Read the headers of a tar, and the contents of labels if they are to be held."""
    members: list[Member] = []
    place = -1
    # tarfile raises what its conversions trip over (ValueError, IndexError, OverflowError,
    # RecursionError, ...), and goes in circles where a size is negative.
    try:
        # "r:" refuses compressed tars, in which no offset can be read directly.
        with tarfile.open(fileobj=cast("Any", _Headers(file)), mode="r:") as tar:
            kept: Any = vars(tar)["members"]
            for info in tar:
                if info.size < 0 or info.offset_data <= place:
                    raise ValueError(f"the size of {info.name[:60]!r} is negative")
                place = info.offset_data
                if info.isfile():
                    text = _read_label(file, info) if hold else None
                    members.append(Member(info.name, info.offset_data, info.size, text))
                # It would keep every header, at 1 KB each.
                kept.clear()
    except (OSError, UserError):
        raise
    except Exception as error:
        raise DataError(
            f"{path}: no complete uncompressed tar ({error}); unpack a compressed one, and copy a "
            f"cut one again"
        ) from error
    return members


class _Headers:
    """A tar of which headers are read, and never more at once than a header may have."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """Read so many bytes."""
        if not 0 <= size <= HEADER_BYTES:
            raise ValueError(f"a header promises {size} bytes of names")
        return self._file.read(size)


def _read_label(file: Any, info: tarfile.TarInfo) -> str | None:
    """Return the contents of a member if it is a label, and text."""
    if not info.name.lower().endswith(HELD_ENDINGS) or info.size > HELD_BYTES:
        return None
    file.seek(info.offset_data)
    try:
        return file.read(info.size).decode()
    except UnicodeDecodeError:
        # It is refused where it is asked for, by its name.
        return None


def _encode_index(members: Sequence[Member], size: int, tag: str) -> str:
    """Return an index as JSON, a member per line."""
    head = json.dumps({"format": INDEX_FORMAT, "size": size, "tag": tag})[:-1]
    rows = (json.dumps(m if m.text is not None else m[:3]) for m in members)
    return f'{head}, "members": [\n' + ",\n".join(rows) + "\n]}\n"


def _decode_index(data: bytes | None, size: int, tag: str) -> list[Member] | None:
    """Return the members; None if it is no index, or one of another version of the tar."""
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
    """Return one member, as far as its types and signs tell."""
    offset, size = (read_int(number, "an index", low=0) for number in row[1:3])
    text = row[3] if len(row) > 3 else None
    if not isinstance(row[0], str) or not isinstance(text, str | None):
        raise TypeError(f"a member is {row!r}")
    return Member(row[0], offset, size, text)


def _read_cached(path: Path) -> bytes | None:
    """Return the contents of a file of the cache, if there is one."""
    try:
        return read_file(path)
    except DataError:
        return None


def _digest(address: str) -> str:
    """Return a name for what is kept of an address."""
    return hashlib.sha256(address.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _cache_folder() -> Path:
    """Return where indexes are kept."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "perceivers" / "shards"
