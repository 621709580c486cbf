"""Compilation of a model's repeated parts with ``torch.compile``.

Parts are compiled one by one and in place, so that keys of the state dict do not change and layers
of the same shape share a graph. Each model family declares its parts (``repeated``).
"""

import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from perceivers.errors import ConfigError
from perceivers.models.base import Model

# Maximum number of graphs per model; torch runs the rest uncompiled. Its default limit of 8 is per
# function, and here all parts count together, because they share the same call method.
MOST_GRAPHS = 128


B = TypeVar("B", bound=Sized)


class Uncompiled:
    """Does nothing, with the same methods as ``CompiledParts``, for a model without compilation."""

    @contextmanager
    def batch(self, size: int) -> Iterator[None]:
        """Context manager around the forward and backward pass of a batch of ``size`` samples."""
        yield

    def batches(self, batches: Iterable[B]) -> Iterator[B]:
        """Yield batches, each inside ``batch``."""
        for batch in batches:
            with self.batch(len(batch)):
                yield batch

    def news(self) -> str:
        """Return a message on compilations since the last call; empty if there were none."""
        return ""

    def summary(self) -> str:
        """Return a message on compilation in a pass over the data; empty without compilation."""
        return ""


class CompiledParts(Uncompiled):
    """Compiles the repeated parts of a model for batches of the given sizes.

    A batch of another size (the last one of a split, or one with unreadable samples) runs
    uncompiled, because compiling for a single batch takes longer than it saves. Graphs have static
    shapes. Therefore the code that runs depends only on the shapes of a batch and not on earlier
    batches: a resumed run uses the same code as an uninterrupted one.

    Compiled code fuses operations and samples random numbers (dropout, stochastic depth) in another
    order. It reproduces itself bit for bit, but not the uncompiled model: predictions agree up to
    rounding, and dropout drops other values.

    Args:
        model: Any model; modified in place, with unchanged state-dict keys.
        sizes: Batch sizes to compile for.
    """

    def __init__(self, model: Model, sizes: Iterable[int]) -> None:
        self.sizes = frozenset(sizes)
        parts = model.compiled_parts()
        self.num_parts = len(parts)
        self.num_graphs = 0
        self.num_odd = 0
        self.seconds = 0.0
        self._started = self._told = 0.0
        for part in parts:
            part.compile(dynamic=False)

    @contextmanager
    def batch(self, size: int) -> Iterator[None]:
        """Context manager around the forward and backward pass of a batch of ``size`` samples."""
        if size in self.sizes:
            with self._counting():
                yield
            return
        self.num_odd += 1
        with torch.compiler.set_stance("force_eager"):
            yield

    @property
    def is_exhausted(self) -> bool:
        """Whether more graphs were needed than torch may compile."""
        return self.num_graphs > MOST_GRAPHS

    def news(self) -> str:
        """Return a message on compilations since the last call; empty if there were none."""
        seconds, self._told = self.seconds - self._told, self.seconds
        if not seconds:
            return ""
        text = f"compiling {self.num_parts} parts of the model took {seconds:.0f} s"
        if self.is_exhausted:
            text += (
                f"; inputs have more than {MOST_GRAPHS} combinations of shapes, and the remaining "
                f"ones run uncompiled"
            )
        return text

    def summary(self) -> str:
        """Return a message on compilation in a pass over the data."""
        sizes = " or ".join(map(str, sorted(self.sizes)))
        if not self.num_graphs:
            return (
                f"compile: no batch had {sizes} samples, so nothing was compiled; use a smaller "
                f"batch size, or leave compile out"
            )
        odd = f"; batches of other sizes than {sizes}, which ran uncompiled: {self.num_odd}"
        return self.news() + (odd if self.num_odd else "")

    @contextmanager
    def _counting(self) -> Iterator[None]:
        """Count graphs and measure compilation time inside the block."""
        from torch._dynamo import config
        from torch._dynamo.callback import callback_handler

        callback_handler.register_start_callback(self._start)
        callback_handler.register_end_callback(self._end)
        try:
            with config.patch(
                recompile_limit=max(config.recompile_limit, MOST_GRAPHS),
                accumulated_recompile_limit=max(config.accumulated_recompile_limit, MOST_GRAPHS),
            ):
                yield
        finally:
            callback_handler.remove_start_callback(self._start)
            callback_handler.remove_end_callback(self._end)

    def _start(self, *arguments: Any) -> None:
        # Backward passes are compiled at their first use; their forward graph was counted already.
        backward = [a for a in arguments if a.callback_trigger.name == "LAZY_BACKWARD"]
        self.num_graphs += not backward
        self._started = time.perf_counter()

    def _end(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self._started


def compile_parts(model: Any, sizes: Iterable[int], *, on: bool) -> Uncompiled:
    """Compile the repeated parts of a model for batches of the given sizes if ``on``."""
    return CompiledParts(model, sizes) if on else Uncompiled()


def check_compiler(device: str) -> None:
    """Compile a small function, to check that ``torch.compile`` works on a device.

    Args:
        device: ``cpu``, ``cuda`` or ``mps``.

    Raises:
        ConfigError: Compilation does not work; the message says what is missing.
    """
    if device == "mps":
        raise ConfigError(
            "compile=True works on cpu and cuda, not on device mps; leave compile out"
        )
    default = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    compiler = os.environ.get("CXX") or default
    # Checked first: torch may take the probe from its cache, and then fail only during the run.
    if shutil.which(compiler) is None:
        raise ConfigError(
            f"compile=True needs the C++ compiler {compiler!r}, which is not on the PATH; install "
            f"it, name another one in the environment variable CXX, or leave compile out"
        )
    try:
        torch.compile(_probe, dynamic=False)(torch.ones(8, device=device))
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"compile=True does not work here on device {device}: {type(error).__name__}: {reason}."
            f" It needs a working C++ compiler ({compiler}) and the header files of Python, and on "
            f"cuda triton; install them, or leave compile out"
        ) from error


def _probe(x: Tensor) -> Tensor:
    return x.exp() + 1
