"""Parity bundles: a configuration, Haiku parameters, inputs and outputs of the official code.

A bundle is an ``.npz`` file without pickles. Its ``config_json`` names the released class, its
constructor arguments and the inputs of every data set; required entries are never guessed.
"""

import io
import json
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceivers.errors import CheckpointError, suggest
from perceivers.files import write_atomic
from perceivers.foreign import parse_json
from perceivers.models.registry import FAMILIES
from perceivers.reading import load_npz, read_file

# -- Reading pickles of Haiku parameters without executing code ----------------------------------
#
# A pickle names functions to call. This reader accepts a few that build arrays and dictionaries,
# and rejects every other name before anything is called.


def _array_from_jax(build: Any, args: tuple[Any, ...], state: Any, _aval: Any = None) -> Any:
    # A JAX array pickles the NumPy array inside it. ``build`` is safe to call: it was looked up in
    # ALLOWED as well.
    array = build(*args)
    array.__setstate__(state)
    return array


def _encode(text: str, encoding: str) -> bytes:
    # Pickles of protocol 2 and older store bytes as latin-1 text.
    if encoding != "latin1":
        raise CheckpointError(f"the pickle encodes bytes as {encoding!r}; only latin1 is accepted")
    return text.encode("latin1")


def _reconstruct(kind: type, shape: tuple[int, ...], code: bytes) -> NDArray[Any]:
    """Return an uninitialised array, which the pickled state then fills."""
    if kind is not np.ndarray:
        raise CheckpointError(
            f"the pickle asks for an array of type {kind}; only ndarray is accepted"
        )
    return np.ndarray.__new__(np.ndarray, shape, code.decode("ascii"))


def _from_buffer(
    data: bytes | bytearray, dtype: Any, shape: Any, order: Any, axes: Any = None
) -> NDArray[Any]:
    """Rebuild an array from a protocol 5 pickle; ``axes`` overrides the memory order."""
    array = np.frombuffer(data, dtype)
    if axes is not None:
        return array.reshape(shape).transpose(axes)
    return array.reshape(shape, order=order)


def _scalar(dtype: Any, data: bytes) -> NDArray[Any]:
    """Rebuild a scalar, such as the step counter of a batch norm, as a 0-d array."""
    if not isinstance(dtype, np.dtype) or dtype.hasobject or not isinstance(data, bytes):
        raise CheckpointError(
            f"the pickle asks for a scalar of type {dtype}; only numbers are accepted"
        )
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
                f"the pickle asks for {module}.{name}, which no parameter file needs; nothing was "
                f"executed. Only arrays and dictionaries are read"
            )
        return ALLOWED[module, name]


def read_parameter_pickle(path: Path) -> dict[str, NDArray[Any]]:
    """Read a pickle of Haiku parameters as ``{"module/path:name": array}``.

    Parameters and state of a ``{"params": ..., "state": ...}`` file are merged into one
    dictionary; their names do not clash.

    Raises:
        CheckpointError: The file is truncated, asks for anything but arrays and dictionaries, or
            is not a mapping of module -> name -> array.
    """
    data = read_file(path, error=CheckpointError)
    try:
        tree = _Reader(io.BytesIO(data)).load()
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    # A damaged or forged pickle raises any of a dozen exception classes; the message must name
    # the file in every case.
    except Exception as error:
        raise CheckpointError(f"{path} is not a readable pickle: {error}") from error
    if not isinstance(tree, Mapping) or not tree:
        raise CheckpointError(f"{path} holds a {type(tree).__name__}, not module -> name -> array")
    if set(tree) == {"params", "state"} and isinstance(tree["state"], Mapping):
        state = _flatten(tree["state"], path, kinds="fiu") if tree["state"] else {}
        return {**_flatten(tree["params"], path, kinds="f"), **state}
    return _flatten(tree, path, kinds="f")


def _flatten(tree: Any, path: Path, *, kinds: str) -> dict[str, NDArray[Any]]:
    """Join module and parameter names; ``kinds`` lists the accepted ``dtype.kind`` letters."""
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


def read_bundle(path: Path) -> Bundle:
    """Read and check a bundle of the HiP release.

    Raises:
        CheckpointError: The file is not a bundle, a field is missing, or an array does not match
            its declared shape.
    """
    return check_bundle(read_archive(path), str(path))


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
