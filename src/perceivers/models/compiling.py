"""Compilation of a model's repeated parts with ``torch.compile``.

Parts are compiled one by one and in place, so that the keys of a state dict stay and layers of one
shape share a graph. Which parts there are is the families' own business (``repeated``).
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

# Graphs of one model beyond which torch compiles no more and runs the rest uncompiled. Its own
# limit of 8 is for one function; here all parts count together, as they share torch's call method.
MOST_GRAPHS = 128


B = TypeVar("B", bound=Sized)


class Uncompiled:
    """A model that is not compiled; it has the methods of ``CompiledParts``."""

    @contextmanager
    def batch(self, size: int) -> Iterator[None]:
        """Run the model on a batch of ``size`` samples inside the block, forward and backward."""
        yield

    def batches(self, batches: Iterable[B]) -> Iterator[B]:
        """Yield batches, each inside ``batch``."""
        for batch in batches:
            with self.batch(len(batch)):
                yield batch

    def news(self) -> str:
        """Return a sentence on what was compiled since the last call; empty where nothing was."""
        return ""

    def summary(self) -> str:
        """Return a sentence on a whole pass over data; empty where nothing was to be compiled."""
        return ""


class CompiledParts(Uncompiled):
    """The parts of a model that repeat, compiled for batches of the given sizes.

    A batch of another size (the last one of a split, one with unreadable samples) runs uncompiled:
    it would be compiled for itself alone, which takes longer than it gives. Shapes are fixed in a
    graph. So what computes a batch depends on its shapes alone, and not on the batches before it:
    a run that is resumed uses the same code as one that was not interrupted.

    Compiled code fuses operations, and draws its random numbers (dropout, stochastic depth) in
    another order. It reproduces itself bit for bit, but not the uncompiled model: predictions agree
    within rounding, and training with dropout drops other values.

    Args:
        model: Any model; changed in place. Its state dict keeps its keys.
        sizes: Samples of the batches that are compiled.
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
        """Run the model on a batch of ``size`` samples inside the block, forward and backward."""
        if size in self.sizes:
            with self._counting():
                yield
            return
        self.num_odd += 1
        with torch.compiler.set_stance("force_eager"):
            yield

    @property
    def is_exhausted(self) -> bool:
        """Whether there were more graphs than torch compiles."""
        return self.num_graphs > MOST_GRAPHS

    def news(self) -> str:
        """Return a sentence on what was compiled since the last call; empty where nothing was."""
        seconds, self._told = self.seconds - self._told, self.seconds
        if not seconds:
            return ""
        text = f"compiling {self.num_parts} parts of the model took {seconds:.0f} s"
        if self.is_exhausted:
            text += (
                f"; inputs have more than {MOST_GRAPHS} combinations of shapes, and what is left "
                f"runs uncompiled"
            )
        return text

    def summary(self) -> str:
        """Return a sentence on a whole pass over data; empty where nothing was to be compiled."""
        sizes = " or ".join(map(str, sorted(self.sizes)))
        if not self.num_graphs:
            return (
                f"compile: no batch held {sizes} samples, so nothing was compiled; use a smaller "
                f"batch size, or leave it out for so few samples"
            )
        odd = f"; batches of other sizes than {sizes}, which ran uncompiled: {self.num_odd}"
        return self.news() + (odd if self.num_odd else "")

    @contextmanager
    def _counting(self) -> Iterator[None]:
        """Count what is compiled inside the block, and how long it takes."""
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
        # Backward passes are compiled when they are first needed, and belong to a counted graph.
        backward = [a for a in arguments if a.callback_trigger.name == "LAZY_BACKWARD"]
        self.num_graphs += not backward
        self._started = time.perf_counter()

    def _end(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self._started


def compile_parts(model: Any, sizes: Iterable[int], *, on: bool) -> Uncompiled:
    """Compile the repeated parts of a model for batches of the given sizes, if ``on``."""
    return CompiledParts(model, sizes) if on else Uncompiled()


def check_compiler(device: str) -> None:
    """Compile something small, to learn whether anything can be compiled.

    Args:
        device: ``cpu``, ``cuda`` or ``mps``.

    Raises:
        ConfigError: No; says what is missing.
    """
    if device == "mps":
        raise ConfigError(
            "compile=True works on cpu and cuda, not on device mps; leave compile out"
        )
    default = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    compiler = os.environ.get("CXX") or default
    # Looked for first: torch finds earlier results in its cache, and misses it only in the run.
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
