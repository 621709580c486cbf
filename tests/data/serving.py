"""A server of files for tests: with or without ranges, and one that fails now and then."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Server(ThreadingHTTPServer):
    """Files of a folder.

    Args:
        folder: What is served.
        ranges: Answer range requests with ranges.
        fail_every: Fail every so manieth request; 0 never does.
        failure: A status to fail with; ``cut`` ends in the middle of the answer.
    """

    daemon_threads = True

    def __init__(
        self, folder: Path, *, ranges: bool = True, fail_every: int = 0, failure: Any = 503
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.ranges = folder, ranges
        self.fail_every, self.failure = fail_every, failure
        self.requests: list[str] = []
        self.connections: set[Any] = set()
        self.failures = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet per answer
    server: Any

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            server.requests.append(self.path)
            server.connections.add(self.client_address)
            fails = server.fail_every and len(server.requests) % server.fail_every == 0
            server.failures += bool(fails)
        if fails and server.failure != "cut":
            self._answer(server.failure, b"busy")
            return
        path = server.folder / self.path.partition("?")[0].lstrip("/")
        if not path.is_file():
            self._answer(404, b"none")
            return
        data = path.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        headers = {"ETag": f'"{path.stat().st_mtime_ns}"'}
        if not wanted or not server.ranges:
            self._answer(200, data, headers)
            return
        first, last = int(wanted[1]), min(int(wanted[2]), len(data) - 1)
        if first >= len(data):
            self._answer(416, b"", {"Content-Range": f"bytes */{len(data)}", **headers})
            return
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self._answer(206, data[first : last + 1], headers, cut=bool(fails))

    def _answer(
        self, status: int, data: bytes, headers: dict[str, str] | None = None, *, cut: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection = cut


@contextmanager
def serve(folder: Path, **settings: Any) -> Iterator[Server]:
    """Serve a folder from a thread."""
    server = Server(folder, **settings)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
