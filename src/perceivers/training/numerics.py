"""Record of numerical choices that a run's settings leave open, so that it resumes bit for bit.

``precision: auto`` and the library for matrix products are chosen by measurement when a run starts
and stored in ``numerics.json`` in its folder.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import get_args

from perceivers.errors import CheckpointError
from perceivers.files import read_json_file, write_json
from perceivers.nn.chunking import use_chunks
from perceivers.nn.linear import VARIABLE, Library, choose_library, onednn_works, use_linear
from perceivers.training.run_folder import RunFolder
from perceivers.training.runtime import Resolved


@dataclass(frozen=True)
class Numerics:
    """Numerical choices of a run.

    Attributes:
        device: Device type that they were made for.
        precision: Precision of steps and evaluations.
        linear: Library for float32 matrix products on CPUs.
        chunks: Whether long inputs in many groups are computed a few groups at a time.
    """

    device: str
    precision: Resolved
    linear: Library
    chunks: bool = True

    @contextmanager
    def used(self) -> Iterator[None]:
        """Apply ``linear`` and ``chunks`` inside the block; ``Runtime`` applies the precision."""
        with use_linear(self.linear), use_chunks(on=self.chunks):
            yield


def write_numerics(folder: RunFolder, numerics: Numerics) -> None:
    """Store the choices in the run folder."""
    write_json(folder.numerics, asdict(numerics))


def recall_numerics(
    folder: RunFolder, device: str, precision: Resolved
) -> tuple[Numerics, list[str]]:
    """Return the choices for a resumed run, and notes on what differs from before.

    Args:
        folder: Run folder.
        device: Device type on which the run resumes.
        precision: Precision that its settings give there without a measurement.

    Raises:
        CheckpointError: The record is damaged.
        ConfigError: ``PERCEIVERS_LINEAR`` has an invalid value.
    """
    if not folder.numerics.exists():
        note = (
            "this run was started by a version without oneDNN matrix products and without chunking "
            "of long inputs; it resumes with torch's own products and without chunks"
        )
        return Numerics(device, precision, "torch", chunks=False), [note]
    kept = _read(folder)
    notes = []
    if kept.device == device:
        precision = kept.precision
    elif kept.precision != precision:
        notes.append(
            f"this run computed in {kept.precision} on {kept.device} and resumes in {precision} on "
            f"{device}; its metrics may differ slightly from now on"
        )
    linear = kept.linear
    # The environment variable overrides the recorded choice.
    if os.environ.get(VARIABLE, "").strip() in get_args(Library):
        linear = choose_library()
    elif linear == "onednn" and not onednn_works():
        linear = "torch"
    if linear != kept.linear:
        notes.append(
            f"this run used {kept.linear} for matrix products and resumes with {linear}; its "
            f"metrics may differ in the last digits from now on"
        )
    return Numerics(device, precision, linear, kept.chunks), notes


def _read(folder: RunFolder) -> Numerics:
    found = read_json_file(folder.numerics)
    rules = {"precision": get_args(Resolved), "linear": get_args(Library), "chunks": (True, False)}
    for name, known in rules.items():
        value = found.get(name)
        # Compare types too, since ``1 in (True, False)`` holds.
        if value not in known or type(value) is not type(known[0]):
            raise CheckpointError(
                f"{folder.numerics} is damaged: {name} is {value!r}, expected "
                f"{' or '.join(map(str, known))}; restore it, or delete it to resume in float32 "
                f"with torch's own products"
            )
    return Numerics(str(found.get("device")), found["precision"], found["linear"], found["chunks"])
