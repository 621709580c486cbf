"""Training state on disk: written completely or not at all, read without executing anything."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isfinite
from pathlib import Path
from typing import IO, Any

import torch

from perceivers.checkpoints.torch_archive import read_pickled
from perceivers.errors import CheckpointError
from perceivers.files import write_atomic

MOST_STEPS = 2**53


@dataclass
class Progress:
    """Where a run stands; plain numbers only."""

    step: int = 0
    best: float | None = None
    best_step: int = 0
    evaluations_since_best: int = 0
    samples_read: int = 0
    samples_bad: int = 0
    seconds: float = 0.0


def save_state(path: Path, progress: Progress, tensors: dict[str, Any]) -> None:
    """Write progress and state dicts atomically.

    Raises:
        OSError: The file could not be written.
    """

    def write(file: IO[bytes]) -> None:
        sink = _Sink(file)
        torch.save({"progress": vars(progress), **tensors}, sink)  # pyright: ignore[reportArgumentType]
        if sink.error is not None:
            raise sink.error

    write_atomic(path, write)


class _Sink:
    """Where torch.save writes: an error of the disk inside it would come out as another one.

    Straight into the file, as a copy of the whole state in memory would take as long as writing.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write, or remember why that failed."""
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """Leave that to whoever opened the file."""


def load_state(path: Path) -> tuple[Progress, dict[str, Any]]:
    """Read what ``save_state`` wrote; only the progress has been checked then.

    Raises:
        CheckpointError: Missing, truncated, or holding more than tensors and numbers.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path} does not exist: the run stopped before its first checkpoint; start it again "
            f"with --overwrite"
        )
    try:
        state = read_pickled(path, intact=True)
        if not isinstance(state, dict) or "progress" not in state:
            raise CheckpointError(f"{path}: expected entries by name with 'progress' among them")
        progress = read_progress(state.pop("progress"))
    except CheckpointError as error:
        raise CheckpointError(f"{path} is not a complete training checkpoint: {error}") from error
    return progress, state


def read_progress(found: Any) -> Progress:
    """Check where a run stands before anybody counts on it.

    Raises:
        CheckpointError: A field is missing, unknown, of another type or out of range.
    """
    if not isinstance(found, Mapping):
        raise CheckpointError(f"progress is {describe(found)}, expected numbers by name")
    known = [field.name for field in fields(Progress)]
    check_names("progress", found, known)
    for name in known:
        value = found[name]
        if name == "best":
            # A metric may be anything, even NaN where it is not defined.
            right = value is None or isinstance(value, int | float)
            wanted = "a number or None"
        elif name == "seconds":
            right = isinstance(value, int | float) and isfinite(value) and value >= 0
            wanted = "a finite number of at least 0"
        else:
            right = isinstance(value, int) and 0 <= value <= MOST_STEPS
            wanted = "a whole number of at least 0"
        if isinstance(value, bool) or not right:
            raise CheckpointError(f"progress.{name} is {describe(value)}, expected {wanted}")
    progress = Progress(**found)
    for name, most in (("best_step", "step"), ("evaluations_since_best", "step")):
        value, limit = getattr(progress, name), getattr(progress, most)
        if value > limit:
            raise CheckpointError(f"progress.{name} is {value}, expected at most {most}={limit}")
    if progress.samples_bad > progress.samples_read:
        raise CheckpointError(
            f"progress.samples_bad is {progress.samples_bad}, expected at most "
            f"samples_read={progress.samples_read}"
        )
    return progress


def check_names(what: str, found: Mapping[Any, Any], wanted: Any, optional: Any = ()) -> None:
    """Compare the names of entries.

    Raises:
        CheckpointError: Says which are missing and which unexpected.
    """
    missing = sorted(name for name in wanted if name not in found)
    known = {*wanted, *optional}
    odd = [name for name in found if not isinstance(name, str) or name not in known]
    problems = [
        f"{kind}: {', '.join(shown)}{f' and {len(names) - 8} more' if len(names) > 8 else ''}"
        for kind, names in (("missing", missing), ("unexpected", odd))
        if (shown := [describe(name) for name in names[:8]])
    ]
    if problems:
        raise CheckpointError(f"{what} has other entries than expected ({'; '.join(problems)})")


def describe(value: Any) -> str:
    """Return what a foreign value is, in few words and whatever it holds."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of {value.dtype} and shape {tuple(value.shape)}"
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, str):
        return ascii(value if len(value) <= 80 else f"{value[:80]}...")
    # Not its repr: a list that holds itself many times over would fill the memory.
    size = f" of {len(value)}" if isinstance(value, list | tuple | dict) else ""
    return f"a {type(value).__name__}{size}"
