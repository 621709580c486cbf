"""Parity bundles: a configuration, Haiku parameters, inputs and outputs of the official code.

A bundle is an ``.npz`` without pickles. Its ``config_json`` names the released class, its
constructor arguments and the inputs of every data set; nothing that it must state is guessed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceivers.array_files import load_npz
from perceivers.errors import CheckpointError, suggest
from perceivers.foreign import parse_json

Inputs = tuple[tuple[str, tuple[int, int, int]], ...]

# Relative; a bundle states its largest output in a few digits.
STATED_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Archive:
    """The arrays of an ``.npz`` by what they are; ``config`` says of which model.

    Attributes:
        config: The parsed ``config_json``.
        params: Haiku parameters, ``module/path:name``.
        state: Haiku state, named alike (the averages of batch norms).
        inputs: Name to array.
        outputs: Name to array.
    """

    config: Mapping[str, Any]
    params: Mapping[str, NDArray[Any]]
    state: Mapping[str, NDArray[Any]]
    inputs: Mapping[str, NDArray[Any]]
    outputs: Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Bundle:
    """A read bundle of the HiP release.

    Attributes:
        model: The released class.
        kwargs: Its constructor arguments.
        datasets: Data set name and, in the order of the call, its modalities with ``[B, N, C]``.
        absmax: Largest absolute output; tolerances are relative to it.
        params: Haiku parameters, ``module/path:name``.
        inputs: ``dataset/modality`` to array.
        outputs: ``dataset/kind/modality`` to array.
    """

    model: str
    kwargs: Mapping[str, Any]
    datasets: tuple[tuple[str, Inputs], ...]
    absmax: float
    params: Mapping[str, NDArray[Any]]
    inputs: Mapping[str, NDArray[Any]]
    outputs: Mapping[str, NDArray[Any]]


def require(config: Mapping[str, Any], key: str, source: str) -> Any:
    """Return ``config[key]``.

    Raises:
        CheckpointError: The key is missing; it is never guessed.
    """
    if key not in config:
        raise CheckpointError(
            f"{source} lacks {key!r}, which is not guessed; it has {sorted(config)}"
            + suggest(key, config)
        )
    return config[key]


def parse_datasets(config: Mapping[str, Any], source: str) -> tuple[tuple[str, Inputs], ...]:
    """Read the ``datasets`` entry: data sets in order, each with its modalities in order."""
    try:
        return tuple(
            (str(name), tuple((str(m), (int(s[0]), int(s[1]), int(s[2]))) for m, s in modalities))
            for name, modalities in require(config, "datasets", source)
        )
    except (TypeError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"{source}: datasets must be [[name, [[modality, [B, N, C]], ...]], ...]: {error}"
        ) from error


def read_json(text: str, source: str) -> dict[str, Any]:
    """Parse a configuration.

    Raises:
        CheckpointError: It is not a JSON object.
    """
    config = parse_json(text, source, error=CheckpointError)
    if not isinstance(config, dict):
        raise CheckpointError(f"{source} is not a JSON object")
    return config


def read_archive(path: Path) -> Archive:
    """Read the arrays of a bundle, of whatever release.

    Raises:
        CheckpointError: Not an ``.npz`` without pickles, or without a configuration.
    """
    arrays = load_npz(path, error=CheckpointError)
    config = read_json(str(require(arrays, "config_json", str(path))), f"{path}: config_json")
    parts: dict[str, dict[str, NDArray[Any]]] = {
        "param": {},
        "state": {},
        "input": {},
        "output": {},
    }
    for key, array in arrays.items():
        part, _, name = key.partition("/")
        if part in parts:
            parts[part][name] = array
    return Archive(config, parts["param"], parts["state"], parts["input"], parts["output"])


def check_comparable(archive: Archive, source: str) -> None:
    """Refuse a bundle whose outputs are not those of evaluation.

    Raises:
        CheckpointError: There are no outputs, or they were made in training mode.
    """
    if not archive.outputs:
        raise CheckpointError(f"{source} holds no output/... to compare with")
    if require(archive.config, "is_training", f"{source}: config_json"):
        raise CheckpointError(
            f"{source} was made in training mode; only evaluation can be compared"
        )


def largest_output(archive: Archive, source: str) -> float:
    """Return the largest absolute output as the bundle states it; tolerances are relative to it.

    Raises:
        CheckpointError: The outputs are smaller than stated, which would allow any difference.
    """
    stated = require(archive.config, "output_absmax", f"{source}: config_json")
    largest = max((float(np.abs(x).max()) for x in archive.outputs.values() if x.size), default=0.0)
    if isinstance(stated, bool) or not isinstance(stated, int | float):
        raise CheckpointError(f"{source}: output_absmax is {stated!r}, not a number")
    if not 0.0 <= stated <= largest * (1.0 + STATED_TOLERANCE):
        raise CheckpointError(
            f"{source} states output_absmax {stated:g}, but its largest output is {largest:g}; "
            f"write the bundle again"
        )
    return float(stated)


def read_bundle(path: Path) -> Bundle:
    """Read and check a bundle of the HiP release.

    Raises:
        CheckpointError: Not a bundle, a field is missing, or an array does not match its
            declaration.
    """
    return check_bundle(read_archive(path), str(path))


def check_bundle(archive: Archive, source: str) -> Bundle:
    """Check an archive against its own declaration.

    Raises:
        CheckpointError: A field is missing, or an array does not match its declaration.
    """
    config = archive.config
    datasets = parse_datasets(config, f"{source}: config_json")
    for dataset, modalities in datasets:
        for modality, shape in modalities:
            array = require(archive.inputs, f"{dataset}/{modality}", f"{source}: inputs")
            if array.shape != shape:
                raise CheckpointError(
                    f"{source}: input {dataset}/{modality} has shape {array.shape}, declared "
                    f"{shape}"
                )
    check_comparable(archive, source)
    absmax = largest_output(archive, source)
    return Bundle(
        model=str(require(config, "model", f"{source}: config_json")),
        kwargs=require(config, "kwargs", f"{source}: config_json"),
        datasets=datasets,
        absmax=absmax,
        params=archive.params,
        inputs=archive.inputs,
        outputs=archive.outputs,
    )
