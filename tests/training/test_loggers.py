"""Loggers hold what metrics.jsonl holds, once per step, and reach for no network."""

import json
import os
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.training.conftest import Settings

from perceivers.errors import ConfigError, UserError
from perceivers.training import loggers
from perceivers.training.config import PretrainConfig, build_config
from perceivers.training.events import Evaluated, Event, Finished, JsonlWriter, Started, Stepped
from perceivers.training.loggers import Forwarder, Sink, check_loggers, make_loggers

pytestmark = [
    # Deprecations inside the loggers' own packages are theirs to mend.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
Points = dict[tuple[int, str], float]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let no socket reach another machine, and keep what the loggers write in one place."""
    original = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        assert self.family == socket.AF_UNIX or address[0] in {"127.0.0.1", "::1"}, address
        original(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    for name in ("WANDB_MODE", "WANDB_PROJECT", "TRACKIO_PROJECT", "TRACKIO_SPACE_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))


def recorded(folder: Path) -> Points:
    """What metrics.jsonl holds."""
    found: Points = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        step, split = record.pop("step"), record.pop("split")
        for name, value in record.items():
            assert (step, f"{split}/{name}") not in found
            found[step, f"{split}/{name}"] = value
    return found


def replay(folder: Path, names: list[str], events: list[Event]) -> list[str]:
    """Tell the listeners of a run about events; return their notes."""
    folder.mkdir(exist_ok=True)
    notes: list[str] = []
    config = {"steps": 8, "optimizer": {"lr": 1e-3}}
    listeners = [JsonlWriter(folder / "metrics.jsonl")]
    listeners += make_loggers(names, folder, config, notes.append)
    for event in events:
        for listener in listeners:
            listener(event)
    return notes


def stepped(step: int, loss: float) -> Stepped:
    return Stepped(step, 8, loss, {"image": loss / 2, "audio": loss / 4}, 1e-3, 100.0, step / 2)


def killed_and_resumed() -> list[list[Event]]:
    """A run that was killed at step 6, beyond its checkpoint of step 4, and then resumed."""
    first: list[Event] = [Started(0, 8), stepped(2, 1.0), stepped(4, 0.75)]
    first += [Evaluated(4, {"loss": 0.9}, is_best=True), stepped(6, 0.7)]
    second: list[Event] = [Started(4, 8), stepped(6, 0.625), stepped(8, 0.5)]
    second += [Evaluated(8, {"loss": 0.6}, is_best=True), Finished(8, "all steps done")]
    return [first, second]


# -- reading back ------------------------------------------------------------------------------


def read_tensorboard(folder: Path) -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    found: Points = {}
    for name in events.Tags()["tensors"]:
        if name.startswith("settings"):
            continue
        for event in events.Tensors(name):
            assert (event.step, name) not in found, "a step twice"
            found[event.step, name] = float(event.tensor_proto.float_val[0])
    return found


def read_trackio(home: Path, run: Path) -> Points:
    found: Points = {}
    with sqlite3.connect(home / "perceivers.db") as base:
        rows = base.execute("select step, metrics, run_name from metrics").fetchall()
    for step, metrics, name in rows:
        if name == str(run):
            for key, value in json.loads(metrics).items():
                assert (step, key) not in found, "a step twice"
                found[step, key] = value
    return found


def log_records(data: bytes) -> Iterator[bytes]:
    """Records of a .wandb file: LevelDB's log, in blocks of 32 KiB, after 7 bytes of its own."""
    place, record = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in {1, 4}:  # whole, or the last part
            yield record
            record = b""


def read_wandb(folder: Path) -> Points:
    # Its stub lacks what its module generates.
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

    files = list((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 1
    found: Points = {}
    for data in log_records(files[0].read_bytes()):
        record = Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") != "history":
            continue
        items: Mapping[str, Any] = {
            item.key or ".".join(item.nested_key): json.loads(item.value_json)
            for item in record.history.item
        }
        for key, value in items.items():
            if not key.startswith("_"):
                assert (items["_step"], key) not in found, "a step twice"
                found[items["_step"], key] = value
    return found


# -- the tests ---------------------------------------------------------------------------------


def test_tensorboard_holds_every_figure_once_after_a_kill(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for events in killed_and_resumed():
        assert replay(folder, ["tensorboard"], events) == []
    expected = recorded(folder)
    assert expected[6, "train/loss"] == 0.625
    assert read_tensorboard(folder) == pytest.approx(expected)


@pytest.mark.slow
def test_trackio_holds_every_figure_once_after_a_kill(tmp_path: Path) -> None:
    # trackio settles on its home when it is imported, so each test needs its own process.
    run_apart("trackio", tmp_path)
    found = read_trackio(tmp_path / "trackio", tmp_path / "run")
    assert found == pytest.approx(recorded(tmp_path / "run"))
    assert len(found) == 30


@pytest.mark.slow
def test_wandb_holds_every_figure_once_offline_after_a_kill(tmp_path: Path) -> None:
    run_apart("wandb", tmp_path)
    found = read_wandb(tmp_path / "run")
    assert found == pytest.approx(recorded(tmp_path / "run"))
    assert len(found) == 30


APART = """
import os
import signal
import sys
from pathlib import Path
from tests.training.test_loggers import killed_and_resumed, replay

def forbid(event, details):
    if event == "socket.connect" and not isinstance(details[1], str):
        raise AssertionError(f"a connection to {details[1]}")

sys.addaudithook(forbid)
phase = int(sys.argv[3])
assert replay(Path(sys.argv[2]) / "run", [sys.argv[1]], killed_and_resumed()[phase]) == []
if phase == 0:
    os.kill(os.getpid(), signal.SIGKILL)
"""


def run_apart(name: str, folder: Path) -> None:
    """Replay a run that is really killed, and then resumed, without the network."""
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    for phase, status in enumerate((-signal.SIGKILL, 0)):
        done = subprocess.run(
            [sys.executable, "-c", APART, name, str(folder), str(phase)],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == status, done.stderr
        assert done.stdout == ""  # a command's output is for its results


def test_a_real_run_reaches_its_logger(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from perceivers.workflows import run as run_module
    from perceivers.workflows.training import pretrain

    monkeypatch.setattr(run_module, "write_run_report", lambda folder: folder.report)
    run = pretrain(**settings(loggers=["tensorboard"], quiet=True))
    expected = recorded(run.path)
    assert {name for _, name in expected} >= {"train/loss", "train/lr", "val/loss"}
    assert read_tensorboard(run.path) == pytest.approx(expected, rel=1e-6)


def test_unknown_and_repeated_loggers_are_named(settings: Settings) -> None:
    with pytest.raises(ConfigError, match=r"names 'tensorbord'; did you mean 'tensorboard'\?"):
        build_config(PretrainConfig, settings(loggers=["tensorbord"]))
    with pytest.raises(ConfigError, match="names 'wandb' twice"):
        check_loggers(["wandb", "trackio", "wandb"])


def test_a_missing_package_is_named_before_anything_is_written(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perceivers.workflows.training import pretrain

    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "perceivers\[trackio\]"'):
        pretrain(**settings(loggers=["trackio"], quiet=True))
    assert not (tmp_path / "run").exists()


class Broken(Sink):
    """A sink whose server went away."""

    def open(self) -> None:
        """Count calls."""
        self.calls = 0

    def write(self, step: int, figures: Mapping[str, float], moment: float) -> None:
        """Fail."""
        self.calls += 1
        raise ConnectionError("gone")

    def close(self) -> None:
        """Not called after a failure."""
        raise AssertionError("closed after it failed")


def test_a_logger_that_fails_is_noted_once_and_left_alone(tmp_path: Path) -> None:
    notes: list[str] = []
    sink = Broken(tmp_path, {})
    forward = Forwarder("broken", sink, tmp_path / "metrics.jsonl", notes.append)
    for event in killed_and_resumed()[1]:
        forward(event)
    assert sink.calls == 1
    assert len(notes) == 1
    assert "the logger broken failed and is no longer used (ConnectionError: gone)" in notes[0]


@pytest.fixture(autouse=True)
def _leave_no_writer() -> Iterator[None]:
    """TensorBoard's writers end with the test."""
    yield
    import gc

    gc.collect()
