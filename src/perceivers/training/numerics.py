"""How a run computes where its settings leave that open: kept, so that it resumes to the same bits.

``precision: auto`` and the library of matrix products are chosen by measurement when a run starts.
``numerics.json`` in its folder says what was chosen.
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
    """What was chosen.

    Attributes:
        device: Type of the devices that it was chosen for.
        precision: Of the steps and evaluations.
        linear: Library of float32 matrix products on CPUs.
        chunks: Whether long reads of many groups are computed a few groups at a time.
    """

    device: str
    precision: Resolved
    linear: Library
    chunks: bool = True

    @contextmanager
    def used(self) -> Iterator[None]:
        """Compute like this inside the block; the precision is the runtime's."""
        with use_linear(self.linear), use_chunks(on=self.chunks):
            yield


def write_numerics(folder: RunFolder, numerics: Numerics) -> None:
    """Keep a choice in the run's folder."""
    write_json(folder.numerics, asdict(numerics))


def recall_numerics(
    folder: RunFolder, device: str, precision: Resolved
) -> tuple[Numerics, list[str]]:
    """Return how a run goes on, and what is to be said of it.

    Args:
        folder: Of the run.
        device: Type of the devices that it goes on with.
        precision: What its settings mean there without a measurement.

    Raises:
        CheckpointError: The record is damaged.
        ConfigError: ``PERCEIVERS_LINEAR`` is no choice.
    """
    if not folder.numerics.exists():
        note = (
            "this run began before matrix products could be computed by oneDNN and long inputs in "
            "chunks, and goes on with torch's own products and without chunks"
        )
        return Numerics(device, precision, "torch", chunks=False), [note]
    kept = _read(folder)
    notes = []
    if kept.device == device:
        precision = kept.precision
    elif kept.precision != precision:
        notes.append(
            f"this run computed in {kept.precision} on {kept.device}, and goes on in {precision} "
            f"on {device}; its figures may differ slightly from here on"
        )
    linear = kept.linear
    if os.environ.get(VARIABLE, "").strip() in get_args(Library):
        linear = choose_library()
    elif linear == "onednn" and not onednn_works():
        linear = "torch"
    if linear != kept.linear:
        notes.append(
            f"this run multiplied matrices by {kept.linear}, and goes on with {linear}; its "
            f"figures may differ in the last digits from here on"
        )
    return Numerics(device, precision, linear, kept.chunks), notes


def _read(folder: RunFolder) -> Numerics:
    found = read_json_file(folder.numerics)
    rules = {"precision": get_args(Resolved), "linear": get_args(Library), "chunks": (True, False)}
    for name, known in rules.items():
        value = found.get(name)
        if value not in known or type(value) is not type(known[0]):
            raise CheckpointError(
                f"{folder.numerics} is damaged: {name} is {value!r}, expected "
                f"{' or '.join(map(str, known))}; restore it, or delete it to go on in float32 "
                f"with torch's own products"
            )
    return Numerics(str(found.get("device")), found["precision"], found["linear"], found["chunks"])
