"""Parts of files on a server, read by HTTP range requests.

Connections are kept open and belong to one process: a forked or spawned worker opens its own. What
fails for a moment is tried again; what keeps failing stops the run with a ``RemoteError``, because
going on with other samples would make it a different run.
"""

import io
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from perceivers.errors import RemoteError
from perceivers.foreign import read_int
from perceivers.limits import LIMITS, check_limit, get_limit

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

SCHEMES = ("http://", "https://")
CONNECT_SECONDS, READ_SECONDS = 10.0, 60.0
# With the factor below, pauses are 0, 1, 2, 4, 8, 16 and 32 s: about a minute of silence.
RETRIES, BACKOFF_SECONDS = 7, 0.5
TEMPORARY = (408, 425, 429, 500, 502, 503, 504)
# S3 says 403 instead of 404 to who may not list the bucket.
ABSENT = (403, 404, 410)
CONNECTIONS = 16
# Bytes that are taken from a connection at once, and per second at least.
BLOCK, SLOWEST = 1 << 16, 256
SMALLEST_BLOCK, LARGEST_BLOCK = 1 << 16, 1 << 22


@dataclass(frozen=True)
class RemoteFile:
    """A file on a server, as it was when it was first asked for.

    Args:
        url: Its address.
        size: Bytes.
        tag: What the server calls this version of it (ETag, or the time of the last change); empty
            if it does not say.
    """

    url: str
    size: int
    tag: str = ""

    def __str__(self) -> str:
        """Name the file in messages."""
        return self.url


def is_remote(address: str) -> bool:
    """Whether an address is on a server."""
    return address.startswith(SCHEMES)


def open_remote(url: str) -> RemoteFile:
    """Ask a server how large a file is, and which version.

    Raises:
        RemoteError: There is no such file, it may not be read, or the server has no ranges.
    """
    # Not HEAD, which addresses that are signed for reading do not allow.
    response = _request(url, {"Range": "bytes=0-0"})
    if response.status == 206:
        response.drain_conn()
        response.release_conn()
    else:
        # The rest may be the whole file.
        response.close()
    match = re.fullmatch(r"bytes \d+-\d+/(\d+)", response.headers.get("Content-Range", ""))
    if response.status != 206 or match is None:
        raise RemoteError(
            f"{url}: the server answers a range request with status {response.status} and "
            f"Content-Range {response.headers.get('Content-Range')!r}; samples are read by their "
            f"offsets, so use a server with range requests (as object storage has), or copy the "
            f"file"
        )
    size = read_int(match[1], f"{url}: the size that the server states", error=RemoteError)
    return RemoteFile(url, size, _tag(response.headers))


def read_remote(file: RemoteFile, offset: int, size: int, path: str) -> bytes:
    """Return bytes of a file on a server.

    Args:
        file: What ``open_remote`` returned, perhaps in another process.
        offset: Where they begin.
        size: How many.
        path: What they are, for messages.

    Raises:
        RemoteError: The server does not answer, or the file is no longer the same.
    """
    if size == 0:
        return b""
    check_limit("answer", size, path, error=RemoteError)
    asked = {"Range": f"bytes={offset}-{offset + size - 1}"}
    answer = _ask(file.url, asked, size, whole_is=206)
    total = answer.headers.get("Content-Range", "").rpartition("/")[2]
    if answer.status == 206 and total == str(file.size) and _tag(answer.headers) == file.tag:
        if len(answer.data) == size:
            return answer.data
        raise RemoteError(
            f"{path}: the server sent {len(answer.data)} of {size} bytes from {offset} on of "
            f"{file.size}; its index names places that the file does not have: write it again"
        )
    raise RemoteError(
        f"{path}: the file has changed on the server since it was opened (status "
        f"{answer.status}, {total[:40] or 'unknown'} bytes, version {_tag(answer.headers)!r}; it "
        f"had {file.size} bytes, version {file.tag!r}); start again, with a new run"
    )


def fetch_remote(url: str) -> bytes | None:
    """Return a whole small file on a server; None if there is none.

    Raises:
        RemoteError: The server does not answer, or with an error.
    """
    answer = _ask(url, {}, get_limit("answer"), whole_is=200, missing=True)
    if answer.status in ABSENT:
        return None
    if answer.status != 200:
        raise RemoteError(f"{url}: the server answers {answer.status}; check the address")
    return answer.data


class RangeReader(io.RawIOBase):
    """A seekable file on a server, read in blocks that grow while they follow each other.

    Args:
        file: What to read.
    """

    def __init__(self, file: RemoteFile) -> None:
        super().__init__()
        self._file = file
        self._place = 0
        self._first, self._block = 0, b""
        self._length = SMALLEST_BLOCK

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Return the place from which is read next."""
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place; nothing is read."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._file.size}[whence]
        self._place = base + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Read as much as fits and is at hand, after at most one request."""
        view = memoryview(buffer)
        if self._place >= self._file.size or not len(view):
            return 0
        if not self._first <= self._place < self._first + len(self._block):
            self._load()
        start = self._place - self._first
        part = self._block[start : start + len(view)]
        view[: len(part)] = part
        self._place += len(part)
        return len(part)

    def _load(self) -> None:
        """Request the block at the present place."""
        end = self._first + len(self._block)
        near = self._block and end <= self._place < end + self._length
        self._length = min(2 * self._length, LARGEST_BLOCK) if near else SMALLEST_BLOCK
        size = min(self._length, self._file.size - self._place)
        self._block = read_remote(self._file, self._place, size, self._file.url)
        self._first = self._place


class _Answer(NamedTuple):
    """What a server said, and sent where it did what it was asked."""

    status: int
    headers: Mapping[str, str]
    data: bytes


def _ask(
    url: str, headers: dict[str, str], most: int, *, whole_is: int, missing: bool = False
) -> _Answer:
    """Send a GET request, and read the answer of status ``whole_is`` up to ``most`` bytes."""
    from urllib3.exceptions import HTTPError

    reason: Exception | None = None
    for attempt in range(RETRIES + 1):
        # An answer that broke off is asked for again, after the pauses of connections.
        time.sleep(BACKOFF_SECONDS * 2**attempt if attempt > 1 else 0.0)
        response = _request(url, headers, missing=missing)
        if response.status != whole_is:
            response.close()
            return _Answer(response.status, response.headers, b"")
        try:
            return _Answer(whole_is, response.headers, _read_answer(response, url, most))
        except HTTPError as error:
            reason = error
        finally:
            # One that was read to its end is used again; any other is of no use.
            response.close()
    raise RemoteError(
        f"{url}: the answer broke off {RETRIES + 1} times ({reason}); check the connection, then "
        f"resume"
    ) from reason


def _read_answer(response: "BaseHTTPResponse", url: str, most: int) -> bytes:
    """Read an answer that may state no length, or a false one, or never end."""
    coding = response.headers.get("Content-Encoding", "identity")
    if coding.lower() != "identity":
        raise RemoteError(
            f"{url}: the server compresses its answers ({coding[:40]}), though it is asked not to; "
            f"switch that off for these files"
        )
    # One that sends what was asked for states so many bytes, or sends them in chunks.
    stated = response.headers.get("Content-Length")
    if stated is not None:
        what = f"{url}: the length that the server states"
        read_int(stated, what, low=0, high=most, error=RemoteError)
    parts: list[bytes] = []
    size, start = 0, time.monotonic()
    while part := response.read1(BLOCK, decode_content=False):
        parts.append(part)
        size += len(part)
        if size > most:
            raise RemoteError(
                f"{url}: the server sends more than the {most:,} bytes that are read; check the "
                f"address, or set {LIMITS['answer'].variable} where a file is that large"
            )
        seconds = time.monotonic() - start
        if seconds > READ_SECONDS and size < seconds * SLOWEST:
            raise RemoteError(
                f"{url}: the server sent {size} bytes in {seconds:.0f} s; try again later, or copy "
                f"the data"
            )
    return b"".join(parts)


def _request(url: str, headers: dict[str, str], *, missing: bool = False) -> "BaseHTTPResponse":
    """Send a GET request, again and again while errors may pass; the body is not read."""
    from urllib3.exceptions import HTTPError

    try:
        # Bytes as they are stored: a compressed answer would have other offsets.
        response = _connect(os.getpid(), url).request(
            "GET", url, headers={"Accept-Encoding": "identity", **headers}, preload_content=False
        )
    except HTTPError as error:
        raise RemoteError(
            f"{url}: the server cannot be reached, after {RETRIES} more attempts ({error}); check "
            f"the address and the connection, then resume"
        ) from error
    status = response.status
    if status >= 400 and status != 416 and not (missing and status in ABSENT):
        reason = {
            401: "it must know who asks: use a signed address",
            403: "it may not be read: check the rights, or use a signed address",
            404: "there is no such file: check the address and its range",
        }.get(status, "try again later" if status in TEMPORARY else "check the address")
        raise RemoteError(f"{url}: the server answers {status} {response.reason or ''}; {reason}")
    return response


def _connect(process: int, url: str) -> "PoolManager":
    """Return this process's connections to a server, through the system's proxy if it has one."""
    parts = urlsplit(url)
    proxies = {} if proxy_bypass(parts.hostname or "") else getproxies()
    return _pool(process, proxies.get(parts.scheme, ""))


@lru_cache(maxsize=4)
def _pool(process: int, proxy: str) -> "PoolManager":
    """Return connections that belong to one process."""
    try:
        import urllib3
    except ModuleNotFoundError as error:
        raise RemoteError(
            "data on a server need the package 'urllib3'; install it with: pip install "
            '"perceivers[remote]"'
        ) from error
    settings: dict[str, Any] = {
        "maxsize": CONNECTIONS,
        "timeout": urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
        "retries": urllib3.Retry(
            RETRIES,
            backoff_factor=BACKOFF_SECONDS,
            backoff_jitter=BACKOFF_SECONDS,
            status_forcelist=TEMPORARY,
            raise_on_status=False,
        ),
    }
    return urllib3.ProxyManager(proxy, **settings) if proxy else urllib3.PoolManager(**settings)


def _tag(headers: Mapping[str, str]) -> str:
    """Return what the server calls this version of a file."""
    return headers.get("ETag") or headers.get("Last-Modified") or ""
