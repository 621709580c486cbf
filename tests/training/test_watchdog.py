"""The watchdog: ends a run whose loader hangs, with the place, and says once when it is slow."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.training.conftest import Settings

from perceivers.data import loaders
from perceivers.errors import DataError
from perceivers.training import watchdog
from perceivers.training.state import load_state
from perceivers.training.watchdog import LoaderStalledError, watch
from perceivers.training.window import Window
from perceivers.workflows import run as run_module
from perceivers.workflows.training import pretrain, resume


def hang_after(count: int) -> Iterator[int]:
    yield from range(count)
    wait_for_a_lost_disk()


def wait_for_a_lost_disk() -> None:
    try:
        time.sleep(30)
    except Exception:  # as a careless reader would
        raise AssertionError("the interruption was swallowed") from None


def test_batches_pass_unchanged_and_the_handler_is_given_back() -> None:
    before = signal.getsignal(signal.SIGALRM)
    assert list(watch(range(5), 10.0)) == [0, 1, 2, 3, 4]
    assert list(watch([], 10.0)) == []
    assert signal.getsignal(signal.SIGALRM) is before


def test_a_loader_that_hangs_is_interrupted_and_named() -> None:
    before = signal.getsignal(signal.SIGALRM)
    batches = watch(hang_after(2), 0.2, step=40)
    assert [next(batches), next(batches)] == [0, 1]
    began = time.monotonic()
    with pytest.raises(LoaderStalledError) as caught:
        next(batches)
    assert time.monotonic() - began < 5
    message = str(caught.value)
    assert "no batch for 0.2 seconds (loader_timeout) at step 42, with no workers" in message
    assert "in wait_for_a_lost_disk" in message
    assert "local disk" in message
    assert isinstance(caught.value, DataError)
    assert signal.getsignal(signal.SIGALRM) is before


@pytest.mark.slow
def test_a_loader_that_is_merely_slow_is_left_alone() -> None:
    def slow() -> Iterator[int]:
        for index in range(3):
            time.sleep(0.25)
            yield index

    assert list(watch(slow(), 0.7)) == [0, 1, 2]  # longer in all, but never for one batch


def test_zero_waits_for_ever_without_a_thread() -> None:
    before = set(threading.enumerate())

    def count_threads() -> Iterator[int]:
        new = set(threading.enumerate()) - before
        yield sum(thread.name == "watchdog" for thread in new)

    assert list(watch(count_threads(), 0.0)) == [0]
    assert list(watch(count_threads(), 10.0)) == [1]


@pytest.mark.slow
def test_time_in_the_step_does_not_count() -> None:
    for _ in watch(range(2), 0.3):
        time.sleep(0.45)


def test_outside_the_main_thread_the_wait_ends_too() -> None:
    found: list[BaseException] = []

    def spin() -> Iterator[int]:
        while True:
            time.sleep(0.01)
        yield 0

    def work() -> None:
        try:
            list(watch(spin(), 0.1))
        except LoaderStalledError as error:
            found.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()
    assert "in spin" in str(found[0])


STUCK = """
import ctypes, signal
from perceivers.training import watchdog

class Deaf:
    def __iter__(self):
        return self

    def __next__(self):
        return ctypes.CDLL(None).poll(None, 0, 60_000)

watchdog.GRACE_SECONDS = 0.3
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
list(watchdog.watch(Deaf(), 0.3))
"""


@pytest.mark.slow
def test_a_process_that_cannot_be_interrupted_is_ended_with_its_message() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STUCK],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 2
    assert "could not be interrupted within 0.3 more; ending the process" in done.stderr
    assert "in __next__" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("wait", "work", "told"), [(3e-3, 3e-3, True), (0.0, 2e-3, False)])
def test_a_loader_slower_than_the_step_is_said_once(wait: float, work: float, told: bool) -> None:
    notes: list[str] = []

    def batches() -> Iterator[int]:
        for index in range(3 * watchdog.SLOW_BATCHES):
            time.sleep(wait)
            yield index

    for _ in watch(batches(), 0.0, workers=2, note=notes.append):
        time.sleep(work)
    assert len(notes) == told
    if told:
        assert "waited for data" in notes[0]
        assert "more workers (now 2)" in notes[0]


def test_the_first_batch_may_take_its_time() -> None:
    notes: list[str] = []

    def batches() -> Iterator[int]:
        time.sleep(0.3)  # workers start
        yield from range(watchdog.SLOW_BATCHES + 1)

    for _ in watch(batches(), 0.0, note=notes.append):
        time.sleep(1e-3)
    assert not notes


def test_records_hold_the_part_of_the_time_that_steps_waited_for_data(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "write_run_report", lambda folder: folder.report)
    original = loaders._TrainStream.__getitems__

    def read(self: Any, positions: list[int]) -> Any:
        time.sleep(0.1)
        return original(self, positions)

    monkeypatch.setattr(loaders._TrainStream, "__getitems__", read)
    run = pretrain(**settings(steps=4, eval_every=4, log_every=2, quiet=True))
    lines = [json.loads(line) for line in run.folder.metrics.read_text().splitlines()]
    first, second = (line for line in lines if line["split"] == "train")
    assert 0 < first["data_wait"] < 1
    # Between the two records there are steps and waits, and nothing else.
    steps = second["seconds"] - first["seconds"]
    assert 0.2 / (0.2 + 4 * steps) < second["data_wait"] < 1


def test_waiting_is_measured_over_the_time_since_the_last_record() -> None:
    window = Window(began=time.perf_counter() - 4.0)
    assert window.data_wait == 0
    window.waited += 1.0
    assert window.data_wait == pytest.approx(0.25, rel=0.01)


@pytest.mark.slow
def test_a_run_whose_loader_hangs_is_saved_and_resumes_exactly(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "write_run_report", lambda folder: folder.report)
    whole = pretrain(**settings(out=str(tmp_path / "whole"), quiet=True))
    original = loaders._TrainStream.__getitems__

    def hang(self: Any, positions: list[int]) -> Any:
        if positions[0] == 5 * 8:  # the first sample of step 5
            wait_for_a_lost_disk()
        return original(self, positions)

    with monkeypatch.context() as patch:
        patch.setattr(loaders._TrainStream, "__getitems__", hang)
        with pytest.raises(LoaderStalledError, match=r"at step 5, (.|\n)*in wait_for_a_lost_disk"):
            pretrain(**settings(loader_timeout=1.0, quiet=True))
    run = tmp_path / "run"
    assert load_state(run / "checkpoints" / "last.pt")[0].step == 5
    resume(run, quiet=True)
    first, second = (load_file(path / "last" / "model.safetensors") for path in (whole.path, run))
    assert all(torch.equal(first[name], second[name]) for name in first)
