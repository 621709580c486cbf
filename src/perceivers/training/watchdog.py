"""Stop all processes of a run: on signals, when no batch arrives, or when one of them fails."""

import ctypes
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from types import FrameType
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from perceivers.errors import DataError, FolderLostError, UserError, is_users
from perceivers.training.launching import PARENT

# -- Ctrl-C, SIGTERM, a closed terminal: the first asks the loop to stop, a second ends at once --

# Not available on every system.
HANGUP = getattr(signal, "SIGHUP", None)


class Interrupted(Exception):  # noqa: N818 - not an error: the state is saved
    """Ctrl-C, SIGTERM or SIGHUP: the run stopped after saving its state."""


class StopRequest:
    """Records that the user has asked this process to stop.

    Args:
        on_first: Called on the first signal.
    """

    def __init__(self, on_first: Callable[[], None]) -> None:
        self.on_first = on_first
        self.is_made = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals: the first sets ``is_made``; a second Ctrl-C or SIGTERM ends at once.

        Repeated SIGHUPs never end at once, because a closing terminal may send several.

        Raises:
            KeyboardInterrupt: On a second Ctrl-C or SIGTERM.
        """
        owner = os.getpid()

        def remember(number: int, frame: FrameType | None) -> None:
            if os.getpid() != owner:
                return  # a forked data worker, which its parent stops
            if self.is_made and number != HANGUP:
                raise KeyboardInterrupt
            first, self.is_made = not self.is_made, True
            if number != HANGUP:
                self.on_first()
                return
            with suppress(OSError):  # the terminal may be gone already
                if first:
                    self.on_first()
            leave_terminal()

        before = {}
        for number in (signal.SIGINT, signal.SIGTERM, HANGUP):
            if number is None:
                continue
            if number == HANGUP and signal.getsignal(number) is signal.SIG_IGN:
                continue  # started with nohup: keep running
            try:
                before[number] = signal.signal(number, remember)
            except ValueError:  # not the main thread, where Python allows no handlers
                break
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def leave_terminal() -> None:
    """Discard further output to a closed terminal, where writing would fail.

    Files and pipes are kept, as their readers still exist.
    """
    for stream in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(stream).st_mode):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream)
                os.close(nowhere)


# ------------------------------------------------------------------------------------------------
# Watchdog of a data loader: stops a run whose loader hangs, and reports when it is slow.
#
# A loader that hangs (a dead network mount, a reader that never returns) would block a machine for
# days silently. A thread measures how long the main thread has been waiting for a batch; past the
# limit it records the stack and interrupts that thread. A process that hangs outside Python cannot
# be interrupted; it is ended, and its last complete checkpoint is kept.

T = TypeVar("T")

SLOW_SHARE = 0.2
SLOW_BATCHES = 50
# Seconds that an interrupted thread may take to return before its process is ended.
GRACE_SECONDS = 30.0
USER_MISTAKE = 2
_FRAMES_SHOWN = 6
_LONGEST_TICK = 1.0
_INTERRUPT = getattr(signal, "SIGALRM", None)


class LoaderStalledError(DataError):
    """No batch came within the time limit; the state of the run is that after its last step."""


class _Interruption(BaseException):
    """Raised where the program hangs; a BaseException, so that no reader's handler catches it."""


def watch(
    batches: Iterable[T],
    seconds: float,
    *,
    step: int = 0,
    workers: int = 0,
    note: Callable[[str], None] | None = None,
    on_stall: Callable[[], None] | None = None,
    on_wait: Callable[[float], None] | None = None,
) -> Iterator[T]:
    """Yield the batches of a loader; stop if none comes in time, and note once if they are slow.

    Args:
        batches: A loader; the time between two requests counts as computing time.
        seconds: Maximum wait for one batch in seconds; 0 waits forever.
        step: Step of the first batch, for the message.
        workers: Number of worker processes, for the message.
        note: Called at most once, with a message, if more than the fraction ``SLOW_SHARE`` of the
            time over ``SLOW_BATCHES`` batches was spent waiting for data.
        on_stall: Called before the error is raised, to save the state.
        on_wait: Called for every batch with the seconds spent waiting for it.

    Raises:
        LoaderStalledError: No batch came within ``seconds``; the message says where it hung.
    """
    pace = _Pace(workers=workers, note=note)
    guard = _Guard(seconds)
    source = iter(batches)
    try:
        while True:
            pace.ask()
            try:
                with guard.limit():
                    batch = next(source)
            except StopIteration:
                return
            except _Interruption as error:
                if on_stall is not None:
                    on_stall()
                raise LoaderStalledError(_message(seconds, step, workers, guard.place)) from error
            waited = pace.receive()
            if on_wait is not None:
                on_wait(waited)
            yield batch
            step += 1
    finally:
        guard.close()


def _message(seconds: float, step: int, workers: int, place: str) -> str:
    how = f"{workers} workers" if workers else "no workers (workers=0)"
    return (
        f"the loader gave no batch for {seconds:g} seconds (loader_timeout) at step {step}, with "
        f"{how}. Look for a slow or lost disk or network mount, a file that never ends, or a "
        f"worker out of memory; try another number of workers, copy the data to a local disk, or "
        f"raise loader_timeout (0 waits forever). The run can be resumed. It hung in:\n{place}"
    )


# -- interrupting --------------------------------------------------------------------------------


class _Guard:
    """A thread that interrupts another one that waits too long; 0 seconds starts no thread."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.place = ""
        self._waiter = 0
        self._signals = False
        self._waiting = False
        self._wait = 0  # counts waits, as one may end and the next begin within a tick
        self._closed = threading.Event()
        # Held while a wait is interrupted or marked as over, so that only one of the two happens.
        self._lock = threading.Lock()
        if seconds:
            threading.Thread(target=self._run, daemon=True, name="watchdog").start()

    @contextmanager
    def limit(self) -> Iterator[None]:
        """Interrupt the calling thread if it stays in this block for too long."""
        if not self.seconds:
            yield
            return
        before = self._begin()
        try:
            yield
        finally:
            try:  # an interruption may still arrive here
                with self._lock:
                    self._waiting = False
            finally:
                if self._signals and _INTERRUPT is not None:
                    signal.signal(_INTERRUPT, before)

    def close(self) -> None:
        """End the thread."""
        self._closed.set()

    def _begin(self) -> Any:
        """Record the waiting thread; return the signal handler to restore afterwards."""
        main = threading.current_thread() is threading.main_thread()
        self._signals = main and _INTERRUPT is not None
        before = None
        if self._signals and _INTERRUPT is not None:
            before = signal.signal(_INTERRUPT, _interrupt)
        with self._lock:
            self._waiter, self._waiting = threading.get_ident(), True
            self._wait += 1
        return before

    def _run(self) -> None:
        # Counts ticks instead of clock time: a process paused for an hour (Ctrl-Z) loses one tick.
        tick = min(_LONGEST_TICK, self.seconds / 4)
        seen, waited = 0, 0.0
        while not self._closed.wait(tick):
            if not self._waiting or seen != self._wait:
                seen, waited = self._wait, 0.0
                continue
            waited += tick
            if waited >= self.seconds and self._interrupt_waiter(seen):
                self._end_unless_back(seen, tick)

    def _interrupt_waiter(self, wait: int) -> bool:
        """Record the stack of the thread and interrupt it; return whether it was still waiting."""
        with self._lock:
            if not self._waiting or wait != self._wait:
                return False
            self.place = _where(self._waiter)
            if self._signals and _INTERRUPT is not None:
                # To this very thread, so that its blocking system call returns.
                signal.pthread_kill(self._waiter, _INTERRUPT)
            else:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(self._waiter), ctypes.py_object(_Interruption)
                )
        return True

    def _end_unless_back(self, wait: int, tick: float) -> None:
        """End the process if the thread does not return after its interruption."""
        waited = 0.0
        while self._waiting and wait == self._wait:
            if self._closed.wait(tick):
                return
            waited += tick
            if waited < GRACE_SECONDS:
                continue
            sys.stderr.write(
                f"perceivers: the loader gave no batch for {self.seconds:g} seconds "
                f"(loader_timeout) and could not be interrupted within {GRACE_SECONDS:g} more; "
                f"ending the process. The last complete checkpoint is kept. It hung in:\n"
                f"{self.place}\n"
            )
            sys.stderr.flush()
            os._exit(USER_MISTAKE)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise _Interruption


def _where(thread: int) -> str:
    """Return the innermost calls of a thread, one per line."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "  (unknown)"
    calls = traceback.extract_stack(frame)[-_FRAMES_SHOWN:]
    return "\n".join(f"  {call.filename}:{call.lineno} in {call.name}" for call in calls)


# -- pace ----------------------------------------------------------------------------------------


@dataclass
class _Pace:
    """Measures the time spent waiting for data and computing, until a note has been given."""

    workers: int
    note: Callable[[str], None] | None
    waited: float = 0.0
    worked: float = 0.0
    batches: int = -1  # the first batch starts the workers, and does not count
    asked: float = 0.0
    received: float = 0.0
    marks: list[tuple[Any, Any]] = field(default_factory=list)

    def ask(self) -> None:
        """Record that the previous step is over and the next batch has been requested."""
        self.asked = time.perf_counter()
        if self.note is None:
            return
        if self.batches >= 0:
            self.worked += self.asked - self.received
        if torch.cuda.is_initialized():
            self.marks.append((_mark(), None))

    def receive(self) -> float:
        """Record that a batch has arrived; return the seconds since it was requested."""
        self.received = time.perf_counter()
        seconds = self.received - self.asked
        if self.note is None:
            return seconds
        self.batches += 1
        if self.marks:
            self.marks[-1] = (self.marks[-1][0], _mark())
        if not self.batches:
            self.marks.clear()
            return seconds
        self.waited += seconds
        if self.batches == SLOW_BATCHES:
            self._judge()
        return seconds

    def _judge(self) -> None:
        """Give a note if the window was slow; start a new window."""
        whole = self.waited + self.worked
        waited = self._idle() if self.marks else self.waited
        if self.note is not None and waited > SLOW_SHARE * whole:
            more = f"more workers (now {self.workers})" if self.workers else "workers (now 0)"
            self.note(
                f"the model waited for data {100 * waited / whole:.0f} % of the time over the last "
                f"{self.batches} steps; try {more}, smaller files or a faster disk"
            )
            self.note = None
        self.waited = self.worked = 0.0
        self.batches = 0
        self.marks.clear()

    def _idle(self) -> float:
        """Return the seconds a CUDA device was idle: it computes on while the host waits."""
        self.marks[-1][1].synchronize()
        return sum(start.elapsed_time(end) for start, end in self.marks if end is not None) / 1e3


def _mark() -> Any:
    """Record a CUDA event, reached when the work queued so far is done."""
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


# -- Shut down all processes of a run when one of them fails -------------------------------------
#
# A process that raises posts its message in the rendezvous key-value store, which every process
# polls twice a second. The main process prints it, once, and exits; the others exit silently. So no
# process waits in a collective operation for one that is gone, whatever the launcher and the
# backend. A process that dies without a message (killed, out of memory) is noticed by the one that
# started it, or by the broken connection.


# Seconds between two polls of the store.
INTERVAL = 0.5
# Seconds that a process waits for another one to report why a connection broke.
PATIENCE = 4.0
USER_MISTAKE, FAILED, INTERRUPTED = 2, 1, 130
FAILURE, TOLD = "perceivers/failure", "perceivers/told"
# Words in errors that are a consequence of another process's exit.
BROKEN = ("gloo", "nccl", "connection", "timed out", "socket", "store")


class Alarm:
    """Watches the processes of a run and ends all of them when one fails.

    Until ``connect`` is called, only the processes that this one has started are watched.

    Args:
        world_size: Number of processes.
        children: Processes that this one has started: all but the first of its node.
    """

    def __init__(self, world_size: int, children: Sequence[subprocess.Popen[bytes]] = ()) -> None:
        self.rank = 0
        self.world_size = world_size
        self.children = list(children)
        self.parent = int(os.environ.get(PARENT, "0"))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._failure, self._told = f"{FAILURE}/{attempt}", f"{TOLD}/{attempt}"
        self._store: TCPStore | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="alarm", daemon=True)
        self._thread.start()

    def connect(self, rank: int) -> None:
        """Watch all processes; call this after the process group has been set up."""
        self.rank = rank
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # A separate connection: the process group's own may be blocked in a wait.
        self._store = TCPStore(
            address, port, is_master=False, timeout=timedelta(seconds=30), wait_for_workers=False
        )

    def stop(self) -> None:
        """Stop watching; call this when all processes have finished their work."""
        self._over.set()
        self._thread.join()
        self._store = None

    # -- a process that raises ---------------------------------------------------------------

    def sound(self, error: BaseException) -> None:
        """Report an error to all processes; return only if the caller should raise it.

        The main process raises its own errors; all other processes exit here.
        """
        if isinstance(error, (Interrupted, KeyboardInterrupt)):
            if self.rank == 0:
                self._speak_first()
                return
            self._wait_until_told()
            self._leave(INTERRUPTED)
        # All processes have agreed on this error, so only the main process reports it.
        if isinstance(error, FolderLostError) and error.agreed and self.rank:
            self._wait_until_told()
            self._leave(USER_MISTAKE)
        if is_lost_connection(error):
            # Leave time for the cause to be posted; the watching thread then ends this process.
            time.sleep(PATIENCE)
        if self._claim(error):
            if self.rank == 0:
                self._speak_first()
                self._kill_children()
                return
            self._wait_until_told()
            mendable = isinstance(error, UserError) or (
                isinstance(error, OSError) and is_users(error)
            )
            self._leave(USER_MISTAKE if mendable else FAILED)
        # Another process failed first: the watching thread handles its message and exits.
        time.sleep(3 * PATIENCE)
        self._leave(FAILED)

    def _speak_first(self) -> None:
        """Stop watching on the main process, whose caller reports the error."""
        self._over.set()
        if self._store is not None:
            self._store.set(self._told, "yes")

    def _claim(self, error: BaseException) -> bool:
        """Post a message unless one exists; return whether this process is the first to fail."""
        if isinstance(error, UserError | OSError):
            text = str(error)
        else:
            text = "".join(traceback.format_exception(error)).strip()
        message = json.dumps({"rank": self.rank, "text": text})
        if self._store is None:
            return True
        try:
            found = self._store.compare_set(self._failure, "", message)
        except (dist.DistError, RuntimeError):
            return self.rank == 0  # the store lived in the main process, which is gone
        return json.loads(found)["rank"] == self.rank

    def _wait_until_told(self) -> None:
        """Let the main process print its message before a launcher notices that this one exited."""
        deadline = time.monotonic() + 3 * PATIENCE
        while time.monotonic() < deadline:
            try:
                if self._store is None or self._store.check([self._told]):
                    return
            except (dist.DistError, RuntimeError):
                return
            time.sleep(INTERVAL / 5)

    # -- the watch ---------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._over.wait(INTERVAL):
            if self.parent and os.getppid() != self.parent:
                self._main_is_gone()  # its store is gone too, so polling would only fail
                return
            try:
                failure = self._read_failure() or self._find_dead()
            except (dist.DistError, RuntimeError):
                self._main_is_gone()
                return
            if failure is not None and failure["rank"] != self.rank:
                self._end(failure)

    def _read_failure(self) -> dict[str, Any] | None:
        if self._store is None or not self._store.check([self._failure]):
            return None
        return json.loads(self._store.get(self._failure))

    def _find_dead(self) -> dict[str, Any] | None:
        """Return the failure of a child that exited too early, after posting it to the store."""
        for local_rank, child in enumerate(self.children, start=1):
            status = child.poll()
            if status in {None, 0, INTERRUPTED} or self._over.is_set():
                continue
            assert status is not None
            why = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
            hint = " (killed, perhaps out of memory)" if status == -9 else ""
            found = {"rank": self.rank + local_rank, "text": f"it {why}{hint}"}
            if self._store is None:
                return found
            return json.loads(self._store.compare_set(self._failure, "", json.dumps(found)))
        return None

    def _end(self, failure: dict[str, Any]) -> NoReturn:
        """Exit because another process failed; the main process prints why."""
        if self.rank:
            self._wait_until_told()
            self._leave(FAILED)
        show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
        sys.stderr.write(
            f"{show_cursor}perceivers: process {failure['rank']} of {self.world_size} failed: "
            f"{failure['text']}\n"
        )
        sys.stderr.flush()
        if self._store is not None:
            self._store.set(self._told, "yes")
        time.sleep(INTERVAL)  # children that wait for ``_told`` exit by themselves
        self._kill_children()
        self._leave(USER_MISTAKE)

    def _main_is_gone(self) -> None:
        """Exit without the main process, which held the store and would have printed the error."""
        if self._over.wait(2 * INTERVAL):
            return
        if self.rank == 1:
            sys.stderr.write(
                f"perceivers: process 0 of {self.world_size} ended without a message; all others "
                f"end too\n"
            )
        self._leave(FAILED)

    def _kill_children(self) -> None:
        for child in self.children:
            if child.poll() is None:
                child.kill()
                child.wait()

    def _leave(self, status: int) -> NoReturn:
        """Exit at once: a clean shutdown would wait for processes that are gone."""
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def is_lost_connection(error: BaseException) -> bool:
    """Return whether an error is a consequence of another process's exit."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in BROKEN)
