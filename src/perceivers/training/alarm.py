"""Shut down all processes of a run when one of them fails, and print that process's message once.

A process that raises posts its message in the rendezvous key-value store, which every process polls
twice a second. The main process prints it and exits; the others exit silently. So no process waits
in a collective operation for one that is gone, whatever the launcher and the backend. A process
that dies without a message (killed, out of memory) is noticed by the one that started it, or by the
broken connection.
"""

import json
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NoReturn

import torch.distributed as dist
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from perceivers.errors import FolderLostError, UserError, is_users
from perceivers.training.launching import PARENT
from perceivers.training.watchdog import Interrupted

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
