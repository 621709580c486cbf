"""Ctrl-C and SIGTERM: the first asks the loop to stop, the second ends at once."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):  # noqa: N818 - not an error: the state is saved
    """Ctrl-C or SIGTERM: the run stopped after saving its state."""


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
        """Let the first Ctrl-C or SIGTERM finish the step and save; the second ends at once."""

        def remember(number: int, frame: FrameType | None) -> None:
            if self.is_made:
                raise KeyboardInterrupt
            self.is_made = True
            self.on_first()

        before = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                before[number] = signal.signal(number, remember)
            except ValueError:  # not the main thread: the caller owns signals
                break
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
