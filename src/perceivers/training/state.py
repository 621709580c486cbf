"""Training state on disk: written whole or not at all, read without executing anything."""

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from perceivers.errors import CheckpointError
from perceivers.files import write_atomic


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
    """Write progress and state dicts atomically."""
    buffer = io.BytesIO()
    torch.save({"progress": vars(progress), **tensors}, buffer)
    write_atomic(path, buffer.getvalue())


def load_state(path: Path) -> tuple[Progress, dict[str, Any]]:
    """Read what ``save_state`` wrote.

    Raises:
        CheckpointError: Missing, truncated, or holding more than tensors and numbers.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path} does not exist: the run stopped before its first checkpoint; start it again "
            f"with --overwrite"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        progress = Progress(**state.pop("progress"))
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError, OSError) as error:
        # torch explains at length how to switch the check off, which is the wrong advice here.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path} is not a complete training checkpoint (nothing in it was executed): {reason}"
        ) from error
    return progress, state
