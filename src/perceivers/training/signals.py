"""Ctrl-C, SIGTERM, a closed terminal: the first asks the loop to stop, a second ends at once."""

import os
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

# Not on every system.
HANGUP = getattr(signal, "SIGHUP", None)


class Interrupted(Exception):  # noqa: N818 - not an error: the state is saved
    """Ctrl-C, SIGTERM or SIGHUP: the run stopped after saving its state."""


class StopRequest:
    """Remembers that somebody asked this process to stop.

    Args:
        on_first: Called at the first signal.
    """

    def __init__(self, on_first: Callable[[], None]) -> None:
        self.on_first = on_first
        self.is_made = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Let the first signal finish the step and save; a second Ctrl-C or SIGTERM ends at once.

        A terminal that closes may send SIGHUP several times, so no number of them ends at once.
        """
        owner = os.getpid()

        def remember(number: int, frame: FrameType | None) -> None:
            if os.getpid() != owner:
                return  # a worker that reads data: its parent stops it
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
                continue  # started with nohup: it is to go on
            try:
                before[number] = signal.signal(number, remember)
            except ValueError:  # not the main thread: the caller owns signals
                break
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def leave_terminal() -> None:
    """Send what is still to be said nowhere, as a closed terminal answers with an error.

    Files and pipes stay: their readers are still there.
    """
    for stream in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(stream).st_mode):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream)
                os.close(nowhere)
