"""One process per run folder, and a folder that goes away is never made a second time."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from tests.training.conftest import Settings

from perceivers import files
from perceivers.cli.main import main
from perceivers.errors import FolderLostError, RunError
from perceivers.files import append_line, make_folder, write_atomic
from perceivers.training import run_lock
from perceivers.training.events import Event, JsonlWriter, Stepped
from perceivers.training.loop import Interrupted, Trainer
from perceivers.training.run_folder import RunFolder
from perceivers.training.run_lock import LOCK, OWNER, Owner, RunLock, process_start, read_owner
from perceivers.training.state import load_state
from perceivers.workflows.training import resume, train

HOLD = """
import sys, time, torch
from pathlib import Path
from perceivers.training.run_lock import RunLock
with RunLock(Path(sys.argv[1])):
    {children}
    print("held", flush=True)
    time.sleep(300)
"""
# A worker of a loader: forked, and busy when its parent is killed.
FORK = (
    "import os; child = os.fork()\n    if not child: time.sleep(300)\n    print(child, flush=True)"
)


@pytest.fixture(autouse=True)
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perceivers.workflows.run.write_run_report", lambda folder: folder.report)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def hold(folder: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Let another process hold the folder; returns when it does."""
    started = []

    def start(children: str = "pass") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD.format(children=children), str(folder)],
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(process: subprocess.Popen[str], word: str) -> list[str]:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.strip())
        if line.strip() == word:
            return lines
    raise AssertionError(lines)


def owner(folder: Path, **changes: Any) -> Owner:
    """Write who holds a folder, as if another process had."""
    mine = Owner(
        host=socket.gethostname(),
        pid=os.getpid(),
        started=process_start(os.getpid()),
        since="2026-01-01 00:00:00",
        token="other",
        path=str(folder),
        inode=1,
    )
    found = replace(mine, **changes)
    (folder / OWNER).write_text(json.dumps(asdict(found)))
    return found


def test_a_lock_leaves_nothing_behind_and_can_be_taken_again(folder: Path) -> None:
    for _ in range(2):
        with RunLock(folder):
            assert {path.name for path in folder.iterdir()} == {LOCK, OWNER}
        assert not list(folder.iterdir())
    assert not files.HELD


def test_two_in_one_process_are_refused(folder: Path) -> None:
    with RunLock(folder), pytest.raises(RunError, match=rf"process {os.getpid()} on"):
        RunLock(folder).__enter__()


@pytest.mark.slow
def test_another_process_is_named_and_its_death_frees_the_folder(folder: Path, hold: Any) -> None:
    process = hold()
    wait_for(process, "held")
    words = rf"run is in use by process {process.pid} on .* since \d{{4}}-.*kill {process.pid}"
    with pytest.raises(RunError, match=words):
        RunLock(folder).__enter__()
    process.kill()
    process.wait()
    with RunLock(folder):
        pass


@pytest.mark.slow
def test_forked_workers_do_not_keep_the_lock_of_a_killed_process(folder: Path, hold: Any) -> None:
    process = hold(FORK)
    child = int(wait_for(process, "held")[0])
    process.kill()
    process.wait()
    try:
        os.kill(child, 0)  # it lives on
        began = time.monotonic()
        with RunLock(folder):
            assert time.monotonic() - began < 5
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize(
    "changes",
    [
        {"pid": 2**22 + 1},  # no process has this number
        {"started": "another boot/1"},  # the number was given again
        {"path": "/elsewhere", "inode": 2},  # a copy of a folder that is in use
    ],
)
def test_owners_of_this_host_that_are_gone_do_not_count(
    folder: Path, changes: dict[str, Any]
) -> None:
    owner(folder, **changes)
    with RunLock(folder):
        pass


def test_an_owner_that_lives_counts_even_where_its_lock_was_removed(folder: Path) -> None:
    parent = os.getppid()
    owner(folder, pid=parent, started=process_start(parent))
    with pytest.raises(RunError, match=f"is in use by process {parent}"):
        RunLock(folder).__enter__()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 3}', "\ud800", "x" * 10_000])
def test_a_damaged_owner_file_holds_nobody(folder: Path, text: str) -> None:
    (folder / OWNER).write_bytes(text.encode("utf-8", "surrogatepass"))
    assert read_owner(folder) is None
    with RunLock(folder):
        pass


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "BEAT", 0.1)
    monkeypatch.setattr(run_lock, "PATIENCE", 0.5)


@pytest.mark.slow
@pytest.mark.usefixtures("fast")
def test_a_process_of_another_host_counts_while_it_gives_signs_of_life(folder: Path) -> None:
    notes: list[str] = []
    owner(folder, host="elsewhere")
    with RunLock(folder, notes.append):
        pass
    assert "waiting up to 0.5 seconds" in notes[0]
    assert "on elsewhere" in notes[1]
    assert "takes over" in notes[1]

    owner(folder, host="elsewhere")
    alive = subprocess.Popen(["sh", "-c", f"while sleep 0.1; do touch {folder / OWNER}; done"])
    try:
        with pytest.raises(RunError, match=r"is in use by process .* on elsewhere"):
            RunLock(folder).__enter__()
    finally:
        alive.kill()
        alive.wait()


def test_an_owner_elsewhere_that_is_long_gone_is_not_waited_for(folder: Path) -> None:
    owner(folder, host="elsewhere")
    os.utime(folder / OWNER, (1e9, 1e9))
    began = time.monotonic()
    with RunLock(folder):
        assert time.monotonic() - began < 5


@pytest.mark.usefixtures("fast")
def test_without_locks_of_the_system_the_owner_file_decides(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: Any, **__: Any) -> bool:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(run_lock, "lock_descriptor", unsupported)
    with RunLock(folder), pytest.raises(RunError, match="is in use by process"):
        RunLock(folder).__enter__()
    with RunLock(folder):
        pass


@pytest.mark.usefixtures("fast")
def test_a_holder_keeps_giving_signs_of_life(folder: Path) -> None:
    with RunLock(folder):
        first = (folder / OWNER).stat().st_mtime_ns
        deadline = time.monotonic() + 10
        while (folder / OWNER).stat().st_mtime_ns == first:
            assert time.monotonic() < deadline
            time.sleep(0.02)


# -- a folder that goes away -------------------------------------------------------------------


def move(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def replace_by_another(folder: Path) -> None:
    move(folder)
    folder.mkdir()


def take_over(folder: Path) -> None:
    owner(folder, pid=77)


LOSSES = {
    "moved": (move, r"was moved to .*elsewhere while a process was training in it"),
    "removed": (shutil.rmtree, "was moved or removed while a process was training in it"),
    "replaced": (replace_by_another, "was moved to .*elsewhere"),
    "taken over": (take_over, "was taken over by process 77"),
}


@pytest.mark.parametrize("way", LOSSES)
def test_nothing_is_written_into_a_folder_that_is_lost(folder: Path, way: str) -> None:
    lose, words = LOSSES[way]
    with RunLock(folder):
        write_atomic(folder / "a" / "b" / "c.txt", "kept")
        append_line(folder / "lines", "kept")
        lose(folder)
        before = sorted(folder.parent.rglob("*"))
        for write in (
            lambda: write_atomic(folder / "a" / "b" / "c.txt", "new"),
            lambda: write_atomic(folder / "new.txt", "new"),
            lambda: append_line(folder / "lines", "new"),
            lambda: make_folder(folder / "x" / "y"),
        ):
            with pytest.raises(FolderLostError, match=words):
                write()
        assert sorted(folder.parent.rglob("*")) == before


def test_a_lock_file_or_an_owner_file_alone_may_be_lost(folder: Path) -> None:
    for name in (LOCK, OWNER):
        with RunLock(folder):
            (folder / name).unlink()
            write_atomic(folder / "x", "kept")


def test_a_folder_that_nobody_holds_is_made_as_before(tmp_path: Path) -> None:
    assert write_atomic(tmp_path / "a" / "b.txt", "x").read_text() == "x"
    append_line(tmp_path / "a" / "b.txt", "y")
    assert (tmp_path / "a" / "b.txt").read_text() == "xy\n"


def at_step(step: int, monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    original = Trainer._step

    def spy(self: Trainer, batch: Any) -> None:
        original(self, batch)
        if self.progress.step == step:
            act()

    monkeypatch.setattr(Trainer, "_step", spy)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["moved", "removed", "replaced"])
def test_a_run_whose_folder_is_lost_saves_its_state_beside(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    run, (lose, words) = tmp_path / "run", LOSSES[way]
    with monkeypatch.context() as patch:
        at_step(5, patch, lambda: lose(run))
        with pytest.raises(RunError, match=rf"{words}.*after 6 steps.*perceivers resume") as caught:
            train(**settings(quiet=True, log_every=1, eval_every=2))
    (rescued,) = tmp_path.glob("run.rescued-*")
    assert str(rescued) in str(caught.value)
    assert not (run / "config.yaml").exists()
    assert load_state(rescued / "checkpoints" / "last.pt")[0].step == 6
    steps = [
        json.loads(line)["step"] for line in (rescued / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [1, 2, 2, 3, 4, 4, 5, 6]
    assert RunFolder(rescued).read_config()[1].out == str(rescued)
    assert resume(rescued, quiet=True).folder.best_model.is_dir()
    assert load_state(rescued / "checkpoints" / "last.pt")[0].step == 8
    if way == "moved":
        assert resume(tmp_path / "elsewhere", quiet=True).path == tmp_path / "elsewhere"
        assert load_state(tmp_path / "elsewhere" / "checkpoints" / "last.pt")[0].step == 8


@pytest.mark.slow
def test_a_run_that_is_lost_before_its_end_is_not_made_again_by_the_command_line(
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    at_step(7, monkeypatch, lambda: shutil.rmtree(run))
    values = settings(log_every=100, eval_every=100, checkpoint_every=100)
    status = main(["train", *(f"--{name}={value}" for name, value in values.items())])
    assert status == 2
    assert not run.exists()
    assert "was moved or removed" in capsys.readouterr().err


# -- runs at the same time ---------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["resume", "train", "overwrite"])
def test_a_run_that_is_training_is_left_alone(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    run, messages = tmp_path / "run", []
    kept: list[set[str]] = []

    def begin() -> None:
        if verb == "resume":
            resume(run, quiet=True)
        else:
            train(**settings(quiet=True, overwrite=verb == "overwrite"))

    def disturb() -> None:
        with pytest.raises(RunError, match=r"run is in use by process .*; two processes") as caught:
            begin()
        messages.append(str(caught.value))
        kept.append({path.name for path in run.iterdir()})

    with monkeypatch.context() as patch:
        at_step(5, patch, disturb)
        train(**settings(quiet=True))
    assert len(messages) == 1
    assert {"config.yaml", "checkpoints", "last", "model"} <= kept[0]
    assert load_state(run / "checkpoints" / "last.pt")[0].step == 8
    names = {path.name for path in run.iterdir()}
    assert not names & {LOCK, OWNER}


def test_a_refused_start_leaves_a_folder_of_others_as_it_was(
    settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(RunError, match=r"already holds|not a run folder"):
            train(**settings(quiet=True, overwrite=overwrite))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_a_run_may_start_where_a_killed_one_left_only_its_lock(
    settings: Settings, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    owner(run, pid=2**22 + 1)
    (run / LOCK).touch()
    train(**settings(quiet=True, limit=1))


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "perceivers", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_real_processes_kill_resume_twice_and_overwrite(settings: Settings, tmp_path: Path) -> None:
    run = tmp_path / "run"
    values = settings(steps=100_000, checkpoint_every=20, eval_every=100_000, workers=1)
    command = ["train", *(f"--{n}={v}" for n, v in values.items()), "--quiet"]
    state = run / "checkpoints" / "last.pt"
    first = start(*command)
    until(lambda: state.is_file(), first)
    first.kill()  # its worker lives on for some seconds
    first.communicate()
    second = start("resume", str(run), "--quiet")
    until(lambda: (owner := read_owner(run)) is not None and owner.pid == second.pid, second)
    others = [start("resume", str(run), "--quiet"), start(*command, "--overwrite")]
    for other in others:
        _, err = other.communicate(timeout=300)
        assert other.returncode == 2, err
        assert f"is in use by process {second.pid} on" in err
        assert "Traceback" not in err
    assert second.poll() is None
    shutil.move(run, tmp_path / "moved")
    _, err = second.communicate(timeout=300)
    assert second.returncode == 2, err
    assert f"was moved to {tmp_path / 'moved'}" in err
    assert not run.exists()
    (rescued,) = tmp_path.glob("run.rescued-*")
    assert load_state(rescued / "checkpoints" / "last.pt")[0].step > 20


def test_records_are_kept_in_memory_as_on_disk(tmp_path: Path) -> None:
    from perceivers.training.events import Rescued, Started

    writer = JsonlWriter(tmp_path / "metrics.jsonl")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 9}\n')
    step: Event = Stepped(2, 4, 0.5, {}, 0.1, 10.0, 1.0)
    writer(Started(step=1, total=4))
    writer(step)
    before = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "new").mkdir()
    writer(Rescued(tmp_path / "new"))
    assert (tmp_path / "new" / "metrics.jsonl").read_text() == before
    writer(step)
    assert (tmp_path / "metrics.jsonl").read_text() == before
    assert len((tmp_path / "new" / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow
def test_an_interrupted_run_releases_its_folder(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        at_step(3, patch, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            train(**settings(quiet=True))
    assert not (tmp_path / "run" / LOCK).exists()
    resume(tmp_path / "run", quiet=True)
