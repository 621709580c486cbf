"""Parity bundles: a configuration, Haiku parameters, inputs and outputs of the official code.

A bundle is an ``.npz`` without pickles. Its ``config_json`` names the released class, its
constructor arguments and the inputs of every data set; nothing that it must state is guessed.
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceivers.array_files import load_npz
from perceivers.errors import CheckpointError, suggest
from perceivers.foreign import parse_json
from perceivers.reading import read_file

# -- Reading Haiku parameter pickles without executing anything found in them --------------------
#
# A pickle names functions to call. This reader knows a handful that build arrays and
# dictionaries, and refuses every other name before anything is called.


def _array_from_jax(build: Any, args: tuple[Any, ...], state: Any, _aval: Any = None) -> Any:
    """Rebuild the NumPy array inside a pickled JAX array; ``build`` was itself looked up below."""
    array = build(*args)
    array.__setstate__(state)
    return array


def _encode(text: str, encoding: str) -> bytes:
    """Bytes inside old pickles are stored as latin-1 text."""
    if encoding != "latin1":
        raise CheckpointError(f"the pickle encodes bytes as {encoding!r}; only latin1 is accepted")
    return text.encode("latin1")


def _reconstruct(kind: type, shape: tuple[int, ...], code: bytes) -> NDArray[Any]:
    """Make the empty array that the pickle's state then fills."""
    if kind is not np.ndarray:
        raise CheckpointError(
            f"the pickle asks for an array of type {kind}; only ndarray is accepted"
        )
    return np.ndarray.__new__(np.ndarray, shape, code.decode("ascii"))


def _from_buffer(
    data: bytes | bytearray, dtype: Any, shape: Any, order: Any, axes: Any = None
) -> NDArray[Any]:
    """Rebuild an array of a protocol 5 pickle, whose memory order is C, F or that of ``axes``."""
    array = np.frombuffer(data, dtype)
    if axes is not None:
        return array.reshape(shape).transpose(axes)
    return array.reshape(shape, order=order)


def _scalar(dtype: Any, data: bytes) -> NDArray[Any]:
    """Rebuild a single number, such as the step counter of a batch norm, as an array."""
    if not isinstance(dtype, np.dtype) or dtype.hasobject or not isinstance(data, bytes):
        raise CheckpointError(f"the pickle asks for a single {dtype}; only numbers are accepted")
    return np.frombuffer(data, dtype, count=1).reshape(())


ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
    ("jax._src.array", "_reconstruct_array"): _array_from_jax,
    ("haiku._src.data_structures", "FlatMapping"): dict,
    ("haiku._src.data_structures", "FlatMap"): dict,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise CheckpointError(
                f"the pickle asks for {module}.{name}, which a parameter file has no use for; "
                f"nothing was executed. Only arrays and dictionaries are read"
            )
        return ALLOWED[module, name]


def read_parameter_pickle(path: Path) -> dict[str, NDArray[Any]]:
    """Return the parameters as ``{"module/path:name": array}``.

    A file of ``{"params": ..., "state": ...}`` gives both in one dictionary; their names differ.

    Raises:
        CheckpointError: The file names anything but arrays and dictionaries, is truncated, or is
            not a mapping of module -> name -> array.
    """
    data = read_file(path, error=CheckpointError)
    try:
        tree = _Reader(io.BytesIO(data)).load()
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    # Whatever a damaged or forged pickle trips over (a dozen classes) must name the file.
    except Exception as error:
        raise CheckpointError(f"{path} is not a readable pickle: {error}") from error
    if not isinstance(tree, Mapping) or not tree:
        raise CheckpointError(f"{path} holds a {type(tree).__name__}, not module -> name -> array")
    if set(tree) == {"params", "state"} and isinstance(tree["state"], Mapping):
        state = _flatten(tree["state"], path, kinds="fiu") if tree["state"] else {}
        return {**_flatten(tree["params"], path, kinds="f"), **state}
    return _flatten(tree, path, kinds="f")


def _flatten(tree: Any, path: Path, *, kinds: str) -> dict[str, NDArray[Any]]:
    """Join modules and names; ``kinds`` of numbers are NumPy's letters."""
    if not isinstance(tree, Mapping):
        raise CheckpointError(f"{path} holds a {type(tree).__name__}, not module -> name -> array")
    arrays: dict[str, NDArray[Any]] = {}
    for module, entries in tree.items():
        if not isinstance(module, str) or not isinstance(entries, Mapping):
            raise CheckpointError(
                f"{path}: entry {module!r} is not a module's dictionary of arrays"
            )
        for name, array in entries.items():
            if not isinstance(array, np.ndarray) or array.dtype.kind not in kinds:
                raise CheckpointError(f"{path}: {module}:{name} is not an array of floats")
            arrays[f"{module}:{name}"] = array
    return arrays


# -- Parity bundles ------------------------------------------------------------------------------

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
