"""Saving beside the steps: the state is copied while the loop waits, and a thread writes the copy.

What is written, and in which order, is said in ``checkpoints.py``.
"""

import threading
from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class HostCopies:
    """Copies of tensors in main memory; each copy takes the place of the one before.

    Fresh memory costs several times as much as copying, so it is kept from one save to the next.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}
        self._copied: torch.cuda.Event | None = None

    @torch.no_grad()
    def take(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return copies by name; those on a GPU may be read after ``wait``."""
        before, self._kept, self._copied = self._kept, {}, None
        for name, tensor in tensors.items():
            on_gpu = tensor.device.type == "cuda"
            copy = before.get(name)
            if copy is None or not _fits(copy, tensor):
                copy = torch.empty_like(tensor, device="cpu", pin_memory=on_gpu)
            # The next step is queued behind the copy, and changes nothing before it is done.
            self._kept[name] = copy.copy_(tensor, non_blocking=on_gpu)
            if on_gpu and self._copied is None:
                self._copied = torch.cuda.Event()
        if self._copied is not None:
            self._copied.record()
        return dict(self._kept)

    def wait(self) -> None:
        """Wait for the device to finish the copies."""
        if self._copied is not None:
            self._copied.synchronize()


def _fits(copy: Tensor, tensor: Tensor) -> bool:
    return copy.shape == tensor.shape and copy.dtype == tensor.dtype


class Writer:
    """Does one piece of work at a time in a thread.

    A process that ends does not wait for it, so ``finish`` comes first wherever that matters.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin; ``finish`` must have been called since the last time."""
        assert self._thread is None, "the work before this has not been waited for"

        def run() -> None:
            try:
                work()
            except BaseException as error:
                self._failure = error

        self._thread = threading.Thread(target=run, name="saving", daemon=True)
        self._thread.start()

    def finish(self) -> BaseException | None:
        """Wait until the work is done; return the error that ended it, once."""
        if self._thread is not None:
            self._thread.join()  # may raise KeyboardInterrupt; then the work goes on
            self._thread = None
        failure, self._failure = self._failure, None
        return failure
