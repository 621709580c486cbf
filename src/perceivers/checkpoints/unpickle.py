"""Reading Haiku parameter pickles without executing anything found in them.

A pickle names functions to call. This reader knows a handful that build arrays and dictionaries,
and refuses every other name before anything is called.
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceivers.errors import CheckpointError
from perceivers.reading import read_file


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
