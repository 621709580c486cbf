"""Reading of parts of remote files by HTTP range requests.

Connections are kept open and belong to one process: a forked or spawned worker opens its own.
Temporary failures are retried; a permanent one stops the run with a ``RemoteError``, because
continuing with other samples would make it a different run.
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
from perceivers.reading import LIMITS, check_limit, get_limit

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

SCHEMES = ("http://", "https://")
CONNECT_SECONDS, READ_SECONDS = 10.0, 60.0
# With this backoff, pauses are 0, 1, 2, 4, 8, 16 and 32 s: about a minute in total.
RETRIES, BACKOFF_SECONDS = 7, 0.5
TEMPORARY = (408, 425, 429, 500, 502, 503, 504)
# S3 returns 403 instead of 404 to clients that may not list the bucket.
ABSENT = (403, 404, 410)
CONNECTIONS = 16
# Bytes read from a connection at once, and the minimum per second.
BLOCK, SLOWEST = 1 << 16, 256
SMALLEST_BLOCK, LARGEST_BLOCK = 1 << 16, 1 << 22


@dataclass(frozen=True)
class RemoteFile:
    """A file on a server, in the version of the first request.

    Args:
        url: Its address.
        size: Size in bytes.
        tag: The server's identifier of this version (ETag, or the time of the last change); empty
            if it sends none.
    """

    url: str
    size: int
    tag: str = ""

    def __str__(self) -> str:
        return self.url


def is_remote(address: str) -> bool:
    """Tell whether an address is on a server."""
    return address.startswith(SCHEMES)


def open_remote(url: str) -> RemoteFile:
    """Request the size and version of a file on a server.

    Raises:
        RemoteError: The file does not exist or may not be read, or the server does not support
            ranges.
    """
    # Not HEAD, which addresses signed for reading do not allow.
    response = _request(url, {"Range": "bytes=0-0"})
    if response.status == 206:
        response.drain_conn()
        response.release_conn()
    else:
        # The body may be the whole file.
        response.close()
    match = re.fullmatch(r"bytes \d+-\d+/(\d+)", response.headers.get("Content-Range", ""))
    if response.status != 206 or match is None:
        raise RemoteError(
            f"{url}: the server answers a range request with status {response.status} and "
            f"Content-Range {response.headers.get('Content-Range')!r}; samples are read by their "
            f"offsets, so use a server with range requests (such as object storage), or copy the "
            f"file"
        )
    size = read_int(match[1], f"{url}: the size that the server states", error=RemoteError)
    return RemoteFile(url, size, _tag(response.headers))


def read_remote(file: RemoteFile, offset: int, size: int, path: str) -> bytes:
    """Return some bytes of a file on a server.

    Args:
        file: From ``open_remote``, perhaps in another process.
        offset: Position of the first byte.
        size: Number of bytes.
        path: Name of these bytes, for messages.

    Raises:
        RemoteError: The server does not respond, or the file has changed.
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
            f"{file.size}; its index refers to positions beyond the end: write it again"
        )
    raise RemoteError(
        f"{path}: the file has changed on the server since it was opened (status "
        f"{answer.status}, {total[:40] or 'unknown'} bytes, version {_tag(answer.headers)!r}; it "
        f"had {file.size} bytes, version {file.tag!r}); start again, with a new run"
    )


def fetch_remote(url: str) -> bytes | None:
    """Return a whole small file from a server; None if it does not exist.

    Raises:
        RemoteError: The server does not respond, or returns an error.
    """
    answer = _ask(url, {}, get_limit("answer"), whole_is=200, missing=True)
    if answer.status in ABSENT:
        return None
    if answer.status != 200:
        raise RemoteError(f"{url}: the server answers {answer.status}; check the address")
    return answer.data


class RangeReader(io.RawIOBase):
    """A seekable file on a server, read in blocks that grow while reading is sequential.

    Args:
        file: The file.
    """

    def __init__(self, file: RemoteFile) -> None:
        super().__init__()
        self._file = file
        self._place = 0
        self._first, self._block = 0, b""
        self._length = SMALLEST_BLOCK

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position of the next read."""
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position without reading."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._file.size}[whence]
        self._place = base + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Read what fits and is available after at most one request."""
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
        # Double the block while reading is nearly sequential; start small again after a jump.
        end = self._first + len(self._block)
        near = self._block and end <= self._place < end + self._length
        self._length = min(2 * self._length, LARGEST_BLOCK) if near else SMALLEST_BLOCK
        size = min(self._length, self._file.size - self._place)
        self._block = read_remote(self._file, self._place, size, self._file.url)
        self._first = self._place


class _Answer(NamedTuple):
    """Status, headers and, for the expected status, body of a response."""

    status: int
    headers: Mapping[str, str]
    data: bytes


def _ask(
    url: str, headers: dict[str, str], most: int, *, whole_is: int, missing: bool = False
) -> _Answer:
    """Send a GET request; with status ``whole_is``, read the body, of at most ``most`` bytes."""
    from urllib3.exceptions import HTTPError

    reason: Exception | None = None
    for attempt in range(RETRIES + 1):
        # A response that broke off is requested again, with the same pauses as for connections.
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
            # A response that was read to its end leaves a reusable connection; any other is closed.
            response.close()
    raise RemoteError(
        f"{url}: the response broke off {RETRIES + 1} times ({reason}); check the connection, then "
        f"resume"
    ) from reason


def _read_answer(response: "BaseHTTPResponse", url: str, most: int) -> bytes:
    """Read a body whose length may be unstated, wrong, or unlimited."""
    coding = response.headers.get("Content-Encoding", "identity")
    if coding.lower() != "identity":
        raise RemoteError(
            f"{url}: the server compresses its responses ({coding[:40]}) although asked not to; "
            f"switch that off for these files"
        )
    # A server that sends what was requested states that length, or sends chunks.
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
    """Send a GET request, with retries after temporary errors; the body is not read."""
    from urllib3.exceptions import HTTPError

    try:
        # Ask for the stored bytes: a compressed response would have other offsets.
        response = _connect(os.getpid(), url).request(
            "GET", url, headers={"Accept-Encoding": "identity", **headers}, preload_content=False
        )
    except HTTPError as error:
        raise RemoteError(
            f"{url}: the server cannot be reached after {RETRIES} retries ({error}); check "
            f"the address and the connection, then resume"
        ) from error
    status = response.status
    if status >= 400 and status != 416 and not (missing and status in ABSENT):
        reason = {
            401: "it requires authentication: use a signed address",
            403: "it may not be read: check the rights, or use a signed address",
            404: "the file does not exist: check the address and its range",
        }.get(status, "try again later" if status in TEMPORARY else "check the address")
        raise RemoteError(f"{url}: the server answers {status} {response.reason or ''}; {reason}")
    return response


def _connect(process: int, url: str) -> "PoolManager":
    """Return this process's connections to a server, through the proxy of the environment."""
    parts = urlsplit(url)
    proxies = {} if proxy_bypass(parts.hostname or "") else getproxies()
    return _pool(process, proxies.get(parts.scheme, ""))


@lru_cache(maxsize=4)
def _pool(process: int, proxy: str) -> "PoolManager":
    """Cache connections by process, because forked workers must not share them."""
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
    return headers.get("ETag") or headers.get("Last-Modified") or ""
