"""Parity with other code: comparing outputs, and bundles that store those of the official code.

A bundle is an ``.npz`` file without pickles, with Haiku parameters, inputs and outputs. Its
``config_json`` names the released class, its constructor arguments and the inputs of every data
set; required entries are never guessed.
"""

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from perceivers.errors import CheckpointError, suggest
from perceivers.files import write_atomic
from perceivers.foreign import parse_json
from perceivers.models.registry import FAMILIES
from perceivers.reading import load_npz
from perceivers.types import ModalitySpec

# -- Comparing outputs ---------------------------------------------------------------------------

RELATIVE_TOLERANCE = 1e-5
Precision = Literal["float64", "float32"]
# Tolerances against another library's live outputs: in float64 relative to the largest output or
# to 1, whichever is larger; in float32 relative to the largest output, because rounding errors grow
# with depth.
TOLERANCES = {"float64": 1e-9, "float32": 1e-4}


@dataclass(frozen=True)
class Difference:
    """Largest absolute difference of one output, and the tolerance.

    Attributes:
        output: Name of the output.
        largest: Largest absolute difference.
        allowed: Absolute tolerance.
        is_empty: Whether the output has no values in either model, so that nothing was compared.
    """

    output: str
    largest: float
    allowed: float
    is_empty: bool = False

    @property
    def is_within(self) -> bool:
        """Whether the output agrees; False for empty outputs and for NaN or infinite values."""
        return not self.is_empty and isfinite(self.allowed) and self.largest <= self.allowed


def compare_output(key: str, ours: Tensor, theirs: np.ndarray, allowed: float) -> Difference:
    """Compare one output with a reference array.

    Args:
        key: Name of the output.
        ours: Output of our model.
        theirs: The reference.
        allowed: Absolute tolerance.

    Raises:
        CheckpointError: The shapes differ, or there are no values to compare.
    """
    if tuple(ours.shape) != theirs.shape:
        raise CheckpointError(
            f"output {key} has shape {tuple(ours.shape)}, the reference has {theirs.shape}"
        )
    if theirs.size == 0:
        raise CheckpointError(
            f"output {key} is empty (shape {theirs.shape}), so nothing can be compared; use inputs "
            f"for which it has values"
        )
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, which never agrees
        gap = np.abs(ours.double().numpy() - theirs.astype(np.float64))
    return Difference(output=key, largest=float(gap.max()), allowed=allowed)


def compare_live(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], dtype: Precision
) -> list[Difference]:
    """Compare every output with that of another library for the same inputs.

    Raises:
        CheckpointError: The outputs differ in names or shapes, or there are no values to compare.
    """
    if not theirs:
        raise CheckpointError("the reference model has no outputs, so nothing can be compared")
    if ours.keys() != theirs.keys():
        raise CheckpointError(
            f"the model has the outputs {sorted(ours)}, the reference model {sorted(theirs)}; they "
            f"must be the same"
        )
    differences = []
    for name, stored in theirs.items():
        largest = float(stored.abs().max()) if stored.numel() else 0.0
        scale = max(1.0, largest) if dtype == "float64" else largest
        allowed = TOLERANCES[dtype] * scale
        differences.append(compare_output(name, ours[name], stored.numpy(), allowed))
    return differences


@contextmanager
def in_precision(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Cast a model to ``dtype`` within a ``with`` block.

    Casting to a wider type and back is exact; casting to a narrower type loses precision.
    """
    before = next(model.parameters()).dtype
    try:
        model.to(dtype)
        yield
    finally:
        model.to(before)


def normalise(x: Tensor, spec: ModalitySpec) -> Tensor:
    """Normalise by the mean and deviation of an input, without our adapters.

    So an error in the adapters cannot cancel out in a comparison.

    Args:
        x: Raw values with channels on axis 1.
        spec: The input.
    """
    shape = (1, -1, *[1] * (x.ndim - 2))
    # Round the statistics to float32, as our adapters do.
    given = (spec.mean or (0.0,), spec.std or (1.0,))
    mean, std = (torch.tensor(values).to(x.dtype).reshape(shape) for values in given)
    return (x - mean) / std


# -- Parity bundles ------------------------------------------------------------------------------

Inputs = tuple[tuple[str, tuple[int, int, int]], ...]

# Written by this library: the file contains our complete configuration.
OWN_KIND = "perceivers export"

# Relative: a bundle stores its largest output rounded to a few digits.
STATED_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Archive:
    """The contents of a parity bundle, not yet checked against its configuration.

    Attributes:
        config: The parsed ``config_json``.
        params: Haiku parameters by ``module/path:name``.
        state: Haiku state by ``module/path:name`` (running averages of batch norms).
        inputs: Arrays by name.
        outputs: Arrays by name.
    """

    config: Mapping[str, Any]
    params: Mapping[str, NDArray[Any]]
    state: Mapping[str, NDArray[Any]]
    inputs: Mapping[str, NDArray[Any]]
    outputs: Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Bundle:
    """A checked bundle of the HiP release.

    Attributes:
        model: Name of the released class.
        kwargs: Its constructor arguments.
        datasets: Data set names, each with its modalities in call order and their shapes
            ``[B, N, C]``.
        absmax: Largest absolute output; tolerances are relative to it.
        params: Haiku parameters by ``module/path:name``.
        inputs: Arrays by ``dataset/modality``.
        outputs: Arrays by ``dataset/kind/modality``.
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
        CheckpointError: The key is missing.
    """
    if key not in config:
        raise CheckpointError(
            f"{source} lacks {key!r}, which is required; it has {sorted(config)}"
            + suggest(key, config)
        )
    return config[key]


def parse_datasets(config: Mapping[str, Any], source: str) -> tuple[tuple[str, Inputs], ...]:
    """Parse the ``datasets`` entry, keeping the order of data sets and of their modalities."""
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
    """Parse a JSON configuration.

    Raises:
        CheckpointError: The text is not a JSON object.
    """
    config = parse_json(text, source, error=CheckpointError)
    if not isinstance(config, dict):
        raise CheckpointError(f"{source} is not a JSON object")
    return config


def read_archive(path: Path) -> Archive:
    """Read the arrays of a bundle of any release.

    Raises:
        CheckpointError: The file is not an ``.npz``, contains pickles, or lacks ``config_json``.
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


def write_parameters(model: Any, arrays: Mapping[str, NDArray[Any]], path: Path) -> None:
    """Write Haiku parameters and state as an ``.npz`` file without pickles.

    Keys are ``param/MODULE:NAME`` and ``state/MODULE:NAME``, as in a parity bundle. ``config_json``
    contains our configuration, so that ``convert`` can read the file again.

    Args:
        model: The model that the parameters are those of.
        arrays: Arrays by ``module/path:name``.
        path: The file.
    """
    stated = {
        "kind": OWN_KIND,
        "family": model.family,
        "config": model.config.to_json(),
        "is_training": False,
    }
    named = {f"{'state' if '_ema:' in name else 'param'}/{name}": x for name, x in arrays.items()}
    file = io.BytesIO()
    np.savez(file, config_json=np.array(json.dumps(stated)), **named)  # pyright: ignore[reportArgumentType]
    write_atomic(path, file.getvalue())


def own_config(stated: Mapping[str, Any], source: str) -> Any:
    """Return the configuration in a file that ``write_parameters`` wrote.

    Raises:
        CheckpointError: The model family is unknown, or the configuration is missing.
    """
    family = FAMILIES.get(str(require(stated, "family", source)))
    if family is None:
        raise CheckpointError(f"{source}: family {stated['family']!r} is unknown")
    return family.config.from_json(dict(require(stated, "config", source)))


def check_comparable(archive: Archive, source: str) -> None:
    """Check that a bundle has outputs and that they were computed in evaluation mode.

    Raises:
        CheckpointError: There are no outputs, or they were computed in training mode.
    """
    if not archive.outputs:
        raise CheckpointError(f"{source} holds no output/... to compare with")
    if require(archive.config, "is_training", f"{source}: config_json"):
        raise CheckpointError(
            f"{source} was made in training mode; only evaluation outputs can be compared"
        )


def largest_output(archive: Archive, source: str) -> float:
    """Return the largest absolute output as declared by the bundle; tolerances are relative to it.

    Raises:
        CheckpointError: The declared value is larger than every output, so that the tolerance
            would be too wide.
    """
    stated = require(archive.config, "output_absmax", f"{source}: config_json")
    largest = max((float(np.abs(x).max()) for x in archive.outputs.values() if x.size), default=0.0)
    if isinstance(stated, bool) or not isinstance(stated, int | float):
        raise CheckpointError(f"{source}: output_absmax is {stated!r}, not a number")
    if not 0.0 <= stated <= largest * (1.0 + STATED_TOLERANCE):
        raise CheckpointError(
            f"{source} declares output_absmax {stated:g}, but its largest output is {largest:g}; "
            f"write the bundle again"
        )
    return float(stated)


def check_bundle(archive: Archive, source: str) -> Bundle:
    """Check an archive of the HiP release against its own configuration.

    Raises:
        CheckpointError: A field is missing, or an array does not match its declared shape.
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
