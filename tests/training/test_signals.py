"""Requests to stop: which count, how often, and a terminal that is closed."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from perceivers.training import watchdog as signals
from perceivers.training.state import load_state
from perceivers.training.watchdog import StopRequest

HANGUP = signal.SIGHUP


@pytest.fixture(autouse=True)
def _keep_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(signals, "leave_terminal", lambda: None)
    before = signal.signal(HANGUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    yield
    signal.signal(HANGUP, before)


def send(*numbers: int) -> tuple[StopRequest, list[str]]:
    said: list[str] = []
    request = StopRequest(lambda: said.append("stopping"))
    with request.listening():
        for number in numbers:
            os.kill(os.getpid(), number)
    return request, said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, HANGUP])
def test_the_first_signal_asks_and_says_so_once(number: int) -> None:
    before = signal.getsignal(number)
    request, said = send(number)
    assert request.is_made
    assert said == ["stopping"]
    assert signal.getsignal(number) is before
    assert not send()[0].is_made


def test_a_closing_terminal_may_hang_up_more_than_once() -> None:
    assert send(HANGUP, HANGUP, HANGUP)[1] == ["stopping"]
    assert send(signal.SIGTERM, HANGUP)[1] == ["stopping"]
    for second in (signal.SIGINT, signal.SIGTERM):
        with pytest.raises(KeyboardInterrupt):
            send(HANGUP, second)


def test_a_terminal_that_cannot_be_written_to_does_not_lose_the_request() -> None:
    def fail() -> None:
        raise OSError(5, "Input/output error")

    request = StopRequest(fail)
    with request.listening():
        os.kill(os.getpid(), HANGUP)
    assert request.is_made


def test_nohup_is_respected() -> None:
    before = signal.signal(HANGUP, signal.SIG_IGN)
    try:
        request, _ = send(HANGUP)
    finally:
        signal.signal(HANGUP, before)
    assert not request.is_made


def test_a_worker_leaves_the_signal_to_its_parent() -> None:
    said: list[int] = []
    request = StopRequest(lambda: said.append(1))
    with request.listening():
        child = os.fork()
        if not child:
            os.kill(os.getpid(), HANGUP)
            os._exit(int(request.is_made))
        assert os.waitpid(child, 0)[1] == 0
    assert not request.is_made


@pytest.mark.slow
def test_a_run_whose_terminal_is_closed_saves_its_state(tmp_path: Path) -> None:
    """With workers, in a session of its own, as a terminal's window has."""
    run = tmp_path / "run"
    line = f"train --model hip_nano --data digits --out {run} --steps 100000 --batch_size 8"
    line += " --device cpu --workers 2 --eval_every 100000 --checkpoint_every 100000"
    terminal, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "perceivers", *line.split(), "--log_every", "1"],
        stdin=side,
        stdout=side,
        stderr=side,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    os.close(side)
    metrics = run / "metrics.jsonl"
    try:
        os.set_blocking(terminal, False)
        deadline = time.monotonic() + 200
        while not (metrics.is_file() and metrics.stat().st_size > 500):
            assert process.poll() is None
            assert time.monotonic() < deadline
            try:
                os.read(terminal, 65536)
            except BlockingIOError:
                time.sleep(0.1)
        os.close(terminal)
        assert process.wait(timeout=120) == 130
    finally:
        process.kill()
    assert load_state(run / "checkpoints" / "last.pt")[0].step > 0
