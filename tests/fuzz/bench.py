"""What a fuzz case is: one generated input, and what must come of it.

A *kind* is a function that writes a random input of one sort into a folder, gives it to the
product, and asserts the outcome that its docstring states. Kinds say what must happen, never only
what must not: a refusal names the file and the rule, a sound input is read with the right values.
"""

import contextlib
import io
import re
import resource
import signal
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import perceivers as pv
from perceivers.cli.main import main

SECONDS = 60
BYTES = 4 << 30
# Neither torch's advice to switch its check off nor a library's colours belong in a message.
UNWANTED = re.compile(r"Traceback|weights_only|\x1b|[\x00-\x08\x0b-\x1f\x7f]")

KINDS: dict[str, Callable[["Bench"], None]] = {}


def kind(function: Callable[["Bench"], None]) -> Callable[["Bench"], None]:
    """Register a kind under its function's name."""
    assert function.__doc__, f"{function.__name__} must state its outcome"
    assert function.__name__ not in KINDS
    KINDS[function.__name__] = function
    return function


@dataclass(frozen=True)
class Outcome:
    """What one command answered."""

    code: int
    out: str
    err: str


class Bench:
    """A folder, a random generator, and the product.

    Args:
        folder: Empty; inputs are written here.
        rng: Source of everything that is random.
        runs: Small trained runs, which may be read and copied, not changed.
    """

    def __init__(self, folder: Path, rng: np.random.Generator, runs: Path) -> None:
        self.folder = folder
        self.rng = rng
        self.runs = runs

    # -- random choices ------------------------------------------------------------------------

    def pick(self, *choices: Any) -> Any:
        """Return one of the choices, of any type."""
        return choices[int(self.rng.integers(len(choices)))]

    def whole(self, low: int, high: int) -> int:
        """Return a whole number from ``low`` to below ``high``."""
        return int(self.rng.integers(low, high))

    def noise(self, count: int) -> bytes:
        """Return random bytes."""
        return self.rng.integers(0, 256, count, dtype=np.uint8).tobytes()

    def cut(self, data: bytes, least: float = 0.1, most: float = 0.7) -> bytes:
        """Return a beginning of the data, of between two fractions of its length."""
        return data[: max(int(len(data) * self.rng.uniform(least, most)), 1)]

    # -- the product ---------------------------------------------------------------------------

    def call(self, *arguments: Any) -> Outcome:
        """Run one command; a traceback or a foreign library's advice fails the case."""
        argv = [str(argument) for argument in arguments]
        out, err = io.StringIO(), io.StringIO()
        before, sys.argv = sys.argv, ["perceivers", *argv]
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main(argv)
        finally:
            sys.argv = before
        outcome = Outcome(code, out.getvalue(), err.getvalue())
        assert not (found := UNWANTED.search(outcome.out + outcome.err)), (found, outcome)
        return outcome

    def refuse(self, *arguments: Any, says: tuple[str, ...] = ()) -> str:
        """Run one command that must end with status 2 and one message that matches ``says``."""
        outcome = self.call(*arguments)
        assert outcome.code == 2, (arguments, outcome)
        assert len(re.findall(r"^perceivers: ", outcome.err, re.M)) == 1, outcome
        for pattern in says:
            assert re.search(pattern, outcome.err), (pattern, outcome.err)
        return outcome.err

    def find_broken(self, address: Path | str, name: str, count: int = 1) -> str:
        """Run ``data check``; it must name one broken file, and count no other."""
        outcome = self.call("data", "check", address)
        broken = re.findall(r"^broken: (.*)$", outcome.out, re.M)
        assert len(broken) == count, outcome
        assert all(name in line for line in broken), outcome
        assert outcome.code == 0, outcome
        return broken[0]

    def read(self, address: Path | str, split: str = "train", index: int = 0, **how: Any) -> Any:
        """Return the arrays of one sample, as a model would be given them."""
        return pv.open_data(str(address)).read(split, index, **how)


def generator(name: str, seed: int, number: int) -> np.random.Generator:
    """Return the generator of one case; the same for the same three."""
    return np.random.default_rng((seed, number, zlib.crc32(name.encode())))


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Fail what takes longer than a minute, or asks for more than four gigabytes."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"a case took more than {SECONDS} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES, limits[1]))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)
