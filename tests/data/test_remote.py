"""Tars on a server: the batches of local ones, whatever the server does for a moment."""

import json
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data.serving import Server, serve

from perceivers.data import AugmentConfig, open_data
from perceivers.data import http_ranges as http
from perceivers.data.http_ranges import RangeReader, RemoteFile, open_remote, read_remote
from perceivers.data.loaders import make_train_loader
from perceivers.data.remote import open_shards, read_member, write_shard_index
from perceivers.errors import DataError, RemoteError
from perceivers.types import Image

WriteTar = Callable[[Path, Mapping[str, bytes]], Path]
Encode = Callable[..., bytes]
SPECS = {"image": Image(8, 8, 3)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep indexes in a folder of the test's own, and do not wait between attempts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(http, "BACKOFF_SECONDS", 0.0)
    http._pool.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def shards(tmp_path: Path, write_tar: WriteTar, encode: Encode) -> Path:
    """Write two tars of five labelled pictures each."""
    for shard in range(2):
        members: dict[str, bytes] = {}
        for i in range(5 * shard, 5 * shard + 5):
            members[f"s{i}.png"] = encode(i)
            members[f"s{i}.cls"] = str(i % 2).encode()
        write_tar(tmp_path / "served" / f"x-{shard}.tar", members)
    return tmp_path / "served"


def read_batches(address: str, start: int = 0, steps: int = 4, **settings: Any) -> list[Any]:
    """Return inputs, labels and indices of some steps."""
    source = open_data(address, val_share=0.2).splits["train"]
    loader = make_train_loader(
        source,
        SPECS,
        batch_size=2,
        seed=3,
        augment=AugmentConfig(flip=True),
        start_step=start,
        num_steps=steps,
        **settings,
    )
    return [(b.inputs["image"], b.labels, b.index, b.bad) for b in loader]


def same(left: list[Any], right: list[Any]) -> bool:
    """Whether batches are equal."""
    return len(left) == len(right) and all(
        torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and a[2:] == b[2:]
        for a, b in (
            ((*x[:2], x[2].tolist(), x[3]), (*y[:2], y[2].tolist(), y[3]))
            for x, y in zip(left, right, strict=True)
        )
    )


def test_batches_are_those_of_local_tars_and_resume_at_any_step(shards: Path) -> None:
    (shards / "classes.txt").write_text("ant\nbee\n")
    local = read_batches(f"{shards}/x-{{0..1}}.tar")
    with serve(shards) as server:
        address = f"{server.url}/x-{{0..1}}.tar"
        assert same(read_batches(address), local)
        assert open_data(address).classes == ("ant", "bee")
        for start in (1, 3):
            assert same(read_batches(address, start), local[start:])
        assert not same(read_batches(address, 1), local[:3])
        assert open_data(address).splits["train"].names[0].startswith("x-0.tar/s")


def test_ranks_and_workers_divide_the_samples_without_overlap_or_loss(shards: Path) -> None:
    with serve(shards) as server:
        address = f"{server.url}/x-{{0..1}}.tar"
        alone = read_batches(address, steps=4)  # 8 training samples: an epoch of one process
        parts = [
            read_batches(address, steps=2, rank=rank, world_size=2, workers=2) for rank in range(2)
        ]
    read = [index for part in parts for batch in part for index in batch[2].tolist()]
    assert sorted(read) == list(range(8))
    assert sorted(index for batch in alone for index in batch[2].tolist()) == list(range(8))
    assert same([parts[0][0], parts[1][0], parts[0][1], parts[1][1]], alone)


@pytest.mark.parametrize("failure", [503, 429, "cut"])
def test_a_server_that_fails_every_third_request_is_survived(shards: Path, failure: Any) -> None:
    local = read_batches(f"{shards}/x-{{0..1}}.tar")
    with serve(shards, fail_every=3, failure=failure) as server:
        found = read_batches(f"{server.url}/x-{{0..1}}.tar")
        assert server.failures >= 4
    assert same(found, local)


def test_a_server_that_always_fails_stops_the_run(shards: Path) -> None:
    with serve(shards) as server:
        source = open_data(f"{server.url}/x-0.tar").splits["train"]
        server.fail_every = 1
        before = len(server.requests)
        with pytest.raises(RemoteError, match=r"the server answers 503 .*; try again later"):
            source.read(0)
        assert len(server.requests) - before == http.RETRIES + 1
        loader = make_train_loader(
            source,
            SPECS,
            batch_size=2,
            seed=0,
            augment=AugmentConfig(),
            start_step=0,
            num_steps=1,
        )
        # Other samples would make it another run.
        with pytest.raises(RemoteError):
            next(iter(loader))
    http._pool.cache_clear()
    with pytest.raises(RemoteError, match="cannot be reached after 7 retries"):
        source.read(0)


def test_a_server_without_ranges_is_refused(shards: Path) -> None:
    with serve(shards, ranges=False) as server:
        message = r"x-0\.tar: the server answers a range request with status 200 .* use a server"
        with pytest.raises(RemoteError, match=message):
            open_data(f"{server.url}/x-0.tar")


def test_a_missing_file_and_a_wrong_ending_are_refused(shards: Path) -> None:
    with serve(shards) as server:
        with pytest.raises(RemoteError, match=r"x-2\.tar: the server answers 404 .*its range"):
            open_data(f"{server.url}/x-{{0..2}}.tar")
        with pytest.raises(DataError, match=r"only tars are read from servers"):
            open_data(f"{server.url}/x.npz")


def test_a_file_that_changes_is_noticed(shards: Path, write_tar: WriteTar, encode: Encode) -> None:
    with serve(shards) as server:
        source = open_data(f"{server.url}/x-0.tar").splits["train"]
        source.read(0)
        write_tar(shards / "x-0.tar", {f"a{i}.png": encode(9 + i) for i in range(3)})
        with pytest.raises(RemoteError, match=r"has changed on the server .* it had \d+ bytes"):
            source.read(0)
        again = open_data(f"{server.url}/x-0.tar")
        assert sum(len(split) for split in again.splits.values()) == 3


def test_an_index_is_kept_and_used(shards: Path, own_cache: Path) -> None:
    with serve(shards) as server:
        address = f"{server.url}/x-0.tar"
        first = open_shards([address])
        assert len(list(own_cache.rglob("*.json"))) == 1
        before = len(server.requests)
        assert open_shards([address]) == first
        assert len(server.requests) - before == 1  # is it still the same file?
        next(iter(own_cache.rglob("*.json"))).write_text("damaged")
        assert open_shards([address]) == first
    with serve(shards) as server:
        write_shard_index(shards / "x-0.tar")
        found = open_shards([f"{server.url}/x-0.tar"])
        assert found[0][1] == first[0][1]
        assert server.requests == ["/x-0.tar", "/x-0.tar.index.json"]


def test_an_index_names_places_and_holds_labels(shards: Path) -> None:
    path = write_shard_index(shards / "x-0.tar")
    assert path.name == "x-0.tar.index.json"
    index = json.loads(path.read_text())
    assert index["size"] == (shards / "x-0.tar").stat().st_size
    name, offset, size, text = index["members"][1]
    assert (name, size, text) == ("s0.cls", 1, "0")
    assert read_member(str(shards / "x-0.tar"), offset, size, "a") == b"0"
    assert len(index["members"][0]) == 3
    # One of another version of the tar is not used.
    path.write_text(path.read_text().replace(f'"size": {index["size"]}', '"size": 1'))
    with serve(shards) as server:
        members = open_shards([f"{server.url}/x-0.tar"])[0][1]
        assert len(server.requests) > 2
    assert [member.name for member in members] == [m[0] for m in index["members"]]


def test_an_index_beside_a_local_tar_is_used_while_it_is_newer(shards: Path) -> None:
    tar = shards / "x-0.tar"
    scanned = open_shards([str(tar)])[0][1]
    index = write_shard_index(tar)
    found = open_shards([str(tar)])[0][1]
    assert [member[:3] for member in found] == [member[:3] for member in scanned]
    assert [member.text for member in found[:2]] == [None, "0"]
    assert scanned[1].text is None
    stamp = tar.stat().st_mtime_ns
    os.utime(index, ns=(stamp - 1, stamp - 1))
    assert open_shards([str(tar)])[0][1] == scanned


def test_a_damaged_tar_on_a_server_is_refused(shards: Path) -> None:
    data = (shards / "x-0.tar").read_bytes()
    (shards / "x-0.tar").write_bytes(data[:700])
    with (
        serve(shards) as server,
        pytest.raises(DataError, match=r"x-0\.tar: not a complete uncompressed tar"),
    ):
        open_data(f"{server.url}/x-0.tar")


def test_connections_are_reused_and_sources_are_pickled(shards: Path) -> None:
    with serve(shards) as server:
        source: Any = open_data(f"{server.url}/x-0.tar").splits["train"]
        copy = pickle.loads(pickle.dumps(source))
        server.connections.clear()
        for index in range(len(copy)):
            assert copy.encoded(index) == source.encoded(index)
        assert len(server.connections) <= 1


def test_blocks_grow_while_they_follow_each_other(tmp_path: Path) -> None:
    data = bytes(range(256)) * 4096  # 1 MiB
    (tmp_path / "a.bin").write_bytes(data)
    with serve(tmp_path) as server:
        file = open_remote(f"{server.url}/a.bin")
        assert file == RemoteFile(f"{server.url}/a.bin", len(data), file.tag)
        reader = RangeReader(file)
        found = b"".join(iter(lambda: reader.read(50_000), b""))
        assert found == data
        assert len(server.requests) - 1 == 5  # 64, 128, 256 and 512 KiB, and the rest
        reader.seek(-3, 2)
        assert (reader.read(9), reader.tell()) == (data[-3:], len(data))
        assert read_remote(file, 5, 0, "a") == b""
        with pytest.raises(RemoteError, match=r"a: the server sent 3 of 9 bytes from 1048573 on"):
            read_remote(file, len(data) - 3, 9, "a")


def test_the_address_of_a_server_may_be_signed(shards: Path) -> None:
    with serve(shards) as server:
        dataset = open_data(f"{server.url}/x-0.tar?signature=a/b")
        assert dataset.splits["train"].names[0].startswith("x-0.tar/")
        assert "/x-0.tar.index.json?signature=a/b" in server.requests


def test_a_server_of_tests_answers_in_parts(tmp_path: Path) -> None:
    """The server of these tests is no friendlier than real ones."""
    (tmp_path / "a").write_bytes(b"abc")
    with serve(tmp_path, ranges=False) as server:
        assert isinstance(server, Server)
        with pytest.raises(RemoteError):
            open_remote(f"{server.url}/a")


class _Liar(BaseHTTPRequestHandler):
    """Answers of one kind: without end, slow, compressed, or of a false length."""

    protocol_version = "HTTP/1.1"
    kind = ""

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        ranged = "Range" in self.headers
        self.send_response(206 if ranged else 200)
        if ranged:
            total = {"digits": "9" * 5000, "huge": str(10**15)}.get(self.kind, "1000")
            self.send_header("Content-Range", f"bytes 0-0/{total}")
        if self.kind == "compressed":
            self.send_header("Content-Encoding", "gzip")
        if self.kind in {"long", "minus", "words"}:
            length = {"long": str(10**15), "minus": "-1", "words": "many"}[self.kind]
            self.send_header("Content-Length", length)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        with suppress(OSError):
            for _ in range(2000):
                self.wfile.write(bytes(1 if self.kind == "slow" else 1 << 16))
                time.sleep(0.01 if self.kind == "slow" else 0.0)


@pytest.fixture
def liar() -> Iterator[Callable[[str], str]]:
    """Start a server that lies in one way, and return its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Liar)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def start(kind: str) -> str:
        _Liar.kind = kind
        return f"http://127.0.0.1:{server.server_address[1]}/x.tar"

    yield start
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("endless", "sends more than the 1,000,000 bytes that are read"),
        ("slow", r"the server sent \d+ bytes in \d+ s"),
        ("compressed", r"compresses its responses \(gzip\)"),
        ("long", r"the length that the server states is .*from 0 to 1000000"),
        ("words", r"the length that the server states is 'many'"),
    ],
)
def test_an_answer_that_lies_or_never_ends_is_refused(
    kind: str, reason: str, liar: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERCEIVERS_MAX_ANSWER_BYTES", "1000000")
    monkeypatch.setattr(http, "READ_SECONDS", 0.2)
    monkeypatch.setattr(http, "SLOWEST", 1 << 20)
    with pytest.raises(RemoteError, match=reason):
        http.fetch_remote(liar(kind))


def test_a_range_that_never_ends_is_read_up_to_what_was_asked_for(
    liar: Callable[[str], str],
) -> None:
    with pytest.raises(RemoteError, match="sends more than the 10 bytes"):
        read_remote(RemoteFile(liar("endless"), 1000), 0, 10, "x")


def test_a_size_that_is_no_number_is_refused(liar: Callable[[str], str]) -> None:
    with pytest.raises(RemoteError, match="the size that the server states is '999"):
        open_remote(liar("digits"))


def test_a_range_beyond_the_limit_is_not_asked_for(liar: Callable[[str], str]) -> None:
    file = open_remote(liar("huge"))
    assert file.size == 10**15
    with pytest.raises(RemoteError, match="PERCEIVERS_MAX_ANSWER_BYTES"):
        read_remote(file, 0, 10**15, "x")
