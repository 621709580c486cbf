"""Reading pickles without executing code: ``torch.save`` files and Haiku parameters.

A pickle names classes and functions. Those that rebuild tensors, arrays and dictionaries are
replaced by safe equivalents. In a ``torch.save`` file, every other name becomes an inert class, so
that settings of a training script (``argparse.Namespace``) do not prevent reading the weights; a
file of Haiku parameters with another name is rejected.
"""

import io
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perceivers.errors import CheckpointError, plain_reason
from perceivers.reading import open_file, read_file
from perceivers.text_names import is_writable, show_name

# -- ``torch.save`` files ------------------------------------------------------------------------

STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
STORAGE_MODULES = {"torch", "torch.cuda", "torch.storage"}
# An inert stand-in would make these harmless, too, but no file of weights needs them: whoever wrote
# such a file meant to execute code, so we reject it.
HOSTILE = re.compile(
    r"(os|nt|posix|sys|io|_io|subprocess|shutil|socket|pty|runpy|importlib|ctypes|webbrowser)(\..*)?"
)
HOSTILE_BUILTINS = {"eval", "exec", "compile", "execfile", "__import__", "open", "input"}
BUILTINS = {"builtins", "__builtin__"}


class Inert:
    """Stand-in for an object whose class is never imported; stores its state and does nothing.

    Attributes:
        origin: Full name of the class.
        state: State that the pickle would have set.
        entries: Items that the pickle would have set, if it was a dictionary.
    """

    origin: ClassVar[str] = ""

    state: Any
    entries: dict[Any, Any]

    # In __new__, because pickles may create objects without calling __init__.
    def __new__(cls, *_args: Any, **_keywords: Any) -> "Inert":
        """Create a stand-in, ignoring all arguments."""
        made = super().__new__(cls)
        made.state, made.entries = {}, {}
        return made

    def __init__(self, *_args: Any, **_keywords: Any) -> None:
        """Accept and ignore any arguments."""

    def __call__(self, *_args: Any, **_keywords: Any) -> "Inert":
        """Return another stand-in, as the result of a call that is not made."""
        return Inert()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value

    def append(self, value: Any) -> None:
        """Ignore an item of a list."""

    def extend(self, values: Any) -> None:
        """Ignore the items of a list."""

    def add(self, value: Any) -> None:
        """Ignore an item of a set."""


class Stored(NamedTuple):
    """A storage: the key of its record in the archive, and the type of its values."""

    key: str
    dtype: torch.dtype


class StoredTensor(NamedTuple):
    """A tensor whose values have not been loaded yet: a view of a storage."""

    stored: Stored
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Function:
    """Safe replacement of a named function; a pickle cannot change its attributes."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        object.__setattr__(self, "_call", call)

    def __call__(self, *args: Any) -> Any:
        return object.__getattribute__(self, "_call")(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it sets attributes of a function")

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError("it sets attributes of a function")


class _StorageType(NamedTuple):
    """Stands for a storage class, of which only the type of its values matters."""

    dtype: torch.dtype


def _rebuild_tensor(stored: Any, offset: Any, shape: Any, stride: Any, *_rest: Any) -> StoredTensor:
    numbers = (offset, *shape, *stride)
    if not isinstance(stored, Stored) or not all(type(n) is int and n >= 0 for n in numbers):
        raise pickle.UnpicklingError("a tensor's shape, stride or offset is not a natural number")
    return StoredTensor(stored, offset, tuple(shape), tuple(stride))


def _rebuild_tensor_v3(
    stored: Any, offset: Any, shape: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> StoredTensor:
    if not isinstance(stored, Stored) or not isinstance(dtype, torch.dtype):
        raise pickle.UnpicklingError("a tensor has an unknown type")
    return _rebuild_tensor(Stored(stored.key, dtype), offset, shape, stride)


def _rebuild_subclass(function: Any, _kind: Any, args: Any, _state: Any) -> Any:
    return function(*args) if isinstance(function, _Function) else Inert()


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in {"latin1", "latin-1"}:
        raise pickle.UnpicklingError("bytes are encoded in an unknown way")
    return text.encode("latin1")


KNOWN: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): _Function(lambda *_: OrderedDict()),
    ("_codecs", "encode"): _Function(_encode),
    ("torch", "Size"): _Function(tuple),
    ("torch._utils", "_rebuild_tensor"): _Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): _Function(_rebuild_tensor_v3),
    ("torch._utils", "_rebuild_parameter"): _Function(lambda data, *_: data),
    ("torch._utils", "_rebuild_parameter_with_state"): _Function(lambda data, *_: data),
    ("torch._tensor", "_rebuild_from_type_v2"): _Function(_rebuild_subclass),
    **{(module, "set"): set for module in BUILTINS},
}


# The unpickler in pure Python: the C one allocates as much memory as a forged memo index asks for.
class _Reader(pickle._Unpickler):
    """Looks up ``KNOWN`` and tensor types; every other name becomes a stand-in."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.stand_ins: dict[str, type[Inert]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in KNOWN:
            return KNOWN[module, name]
        if module in STORAGE_MODULES and name in STORAGES:
            return _StorageType(STORAGES[name])
        if module == "torch" and isinstance(found := vars(torch).get(name), torch.dtype):
            return found
        full = f"{module}.{name}"
        if HOSTILE.fullmatch(module) or (module in BUILTINS and name in HOSTILE_BUILTINS):
            raise CheckpointError(
                f"asks to call {full[:80]}, which no file of weights needs; nothing was executed. "
                f"Get the file from a source that you trust"
            )
        if full not in self.stand_ins:
            self.stand_ins[full] = type("Inert", (Inert,), {"origin": full})
        return self.stand_ins[full]

    def persistent_load(self, pid: Any) -> Stored:
        if isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage":
            _, kind, key, *_ = pid
            if isinstance(kind, _StorageType) and isinstance(key, str):
                return Stored(key, kind.dtype)
        raise pickle.UnpicklingError("values are stored in an unknown way")


class TorchArchive:
    """Context manager that opens a ``torch.save`` archive and loads tensors on demand.

    Args:
        path: The file.

    Attributes:
        content: The saved object; tensors are ``StoredTensor``, unknown objects ``Inert``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._values: dict[Stored, Tensor] = {}

    def __enter__(self) -> "TorchArchive":
        """Read the saved object without loading any tensor.

        Raises:
            CheckpointError: The file is damaged or TorchScript, or names a function that could
                execute code.
        """
        # A damaged or forged file makes zipfile and pickle raise any of a dozen exception classes;
        # the message must name the file in every case.
        try:
            self._zip = zipfile.ZipFile(self.path)
            self._root = self._find_root()
            self.content = _Reader(io.BytesIO(self._read("data.pkl"))).load()
        except CheckpointError as error:
            raise CheckpointError(f"{self.path} {error}") from error
        except Exception as error:
            raise self._damaged(error) from error
        return self

    def __exit__(self, *_error: object) -> None:
        self._zip.close()

    def load(self, tensor: StoredTensor) -> Tensor:
        """Load one tensor; tensors with the same storage share memory.

        Raises:
            CheckpointError: Its storage is missing, damaged or too small.
        """
        stored = tensor.stored
        try:
            if stored not in self._values:
                values = bytearray(self._read(f"data/{stored.key}"))
                self._values[stored] = (
                    torch.frombuffer(values, dtype=stored.dtype)
                    if values
                    else torch.empty(0, dtype=stored.dtype)
                )
            values = self._values[stored]
            if prod(tensor.shape) > len(values):
                raise ValueError(f"a tensor of shape {tensor.shape} has {len(values)} values")
            return values.as_strided(tensor.shape, tensor.stride, tensor.offset)
        # As above; torch raises further exception classes.
        except Exception as error:
            raise self._damaged(error) from error

    def _find_root(self) -> str:
        """Return the path prefix of the records in the archive."""
        names = self._zip.namelist()
        roots = [n.removesuffix("data.pkl") for n in names if n.rpartition("/")[2] == "data.pkl"]
        if len(roots) != 1:
            raise ValueError("it is a zip archive, but was not written by torch.save")
        if f"{roots[0]}constants.pkl" in names:
            raise CheckpointError(
                "is a TorchScript program, which contains code and is not run; save the weights "
                "with torch.save(model.state_dict(), PATH)"
            )
        order = f"{roots[0]}byteorder"
        if order in names and self._zip.read(order) != b"little":
            raise CheckpointError(
                "was written in big-endian byte order; write it on a little-endian machine"
            )
        return roots[0]

    def _read(self, name: str) -> bytes:
        # A compressed record could expand to far more memory than the file's size.
        entry = self._zip.getinfo(f"{self._root}{name}")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed, which torch.save never does")
        return self._zip.read(entry)

    def _damaged(self, error: Exception) -> CheckpointError:
        reason = (str(error) or type(error).__name__).partition("\n")[0][:200]
        return CheckpointError(
            f"{self.path} is not a complete file of weights ({reason}); copy it again from its "
            f"source"
        )


def is_archive(path: Path) -> bool:
    """Return whether a file is a zip archive, as ``torch.save`` writes since PyTorch 1.6.

    Raises:
        CheckpointError: The file cannot be read.
    """
    with open_file(path, error=CheckpointError) as file:
        return file.read(4) == b"PK\3\4"


# -- Safe calls of ``torch.load``: no code is executed, and damaged files cannot crash it --------

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"  # files written before PyTorch 1.6


def read_pickled(path: Path, *, intact: bool = False) -> Any:
    """Read tensors and plain values from a ``torch.save`` file.

    Args:
        path: The file.
        intact: Accept the zip format only and verify all checksums. Files by other programs may
            lack checksums.

    Raises:
        CheckpointError: The file is missing, damaged, or contains anything but tensors and plain
            values.
    """
    if not is_writable(str(path)):
        raise CheckpointError(
            f"{show_name(str(path))} has a name that is not UTF-8, which torch cannot open; rename "
            f"the folder or the file"
        )
    with open_file(path, error=CheckpointError) as file:
        head = file.read(len(_ZIP))
    try:
        is_zip = head == _ZIP
        if not is_zip and (intact or not head.startswith(_PICKLE)):
            raise CheckpointError("it does not start like a file by torch.save")
        if is_zip:
            _check_archive(path, intact)
        # Without mmap, torch reads past the end of a storage that is truncated in the file.
        room = _Room(path.stat().st_size, copy=is_zip)
        return torch.load(path, map_location=room, weights_only=True, mmap=is_zip)
    except Exception as error:
        # On invalid bytes, torch's unpickler raises whatever its operations raise: IndexError,
        # AttributeError, struct.error, MemoryError, RecursionError and others.
        raise CheckpointError(
            f"{path} is damaged or was not written by torch.save (nothing in it was executed): "
            f"{plain_reason(error)}"
        ) from error


class _Room:
    """A ``map_location`` that puts every storage into its own memory, limited to the file's size.

    The memory belongs to NumPy, so torch cannot enlarge it. Otherwise, torch would silently enlarge
    a storage that is too small for the shape of its tensor.

    Args:
        size: Size of the file in bytes.
        copy: Copy the values now, because storages are views of a memory-mapped file that may be
            overwritten while they are in use; else torch fills the memory later.
    """

    def __init__(self, size: int, *, copy: bool) -> None:
        self.left = size
        self.copy = copy

    def __call__(self, storage: Any, location: str) -> Any:
        self.left -= storage.nbytes()
        if self.left < 0:
            raise CheckpointError("it declares more values than it holds")
        own = torch.from_numpy(np.empty(storage.nbytes(), np.uint8)).untyped_storage()
        return own.copy_(storage) if self.copy else own


def _check_archive(path: Path, intact: bool) -> None:
    # Compressed entries cannot be memory-mapped.
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(
                    f"its entry {entry.filename!r} is compressed, which torch.save never does"
                )
        wrong = archive.testzip() if intact else None
    if wrong is not None:
        raise CheckpointError(f"the checksum of its entry {wrong!r} is wrong")


def check_dense(source: str, tensors: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> None:
    """Check that values are ordinary dense tensors on the CPU whose storages fit their shapes.

    Args:
        source: File name for error messages.
        tensors: Tensors by name.

    Raises:
        CheckpointError: A value is not such a tensor (the first one is named).
    """
    for name, tensor in tensors.items() if isinstance(tensors, Mapping) else tensors:
        problem = _dense_problem(tensor)
        if problem:
            raise CheckpointError(f"{source}: {name!r} {problem}")


def _dense_problem(tensor: Any) -> str:
    if type(tensor) not in {Tensor, torch.nn.Parameter}:
        return f"is a {type(tensor).__name__}, not a tensor"
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return f"is {tensor.layout} on {tensor.device}, not an ordinary tensor"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"declares the shape {tuple(tensor.shape)}, but the file holds fewer values"
    return ""


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


def _encode_bytes(text: str, encoding: str) -> bytes:
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
    ("_codecs", "encode"): _encode_bytes,
    ("collections", "OrderedDict"): OrderedDict,
    ("jax._src.array", "_reconstruct_array"): _array_from_jax,
    ("haiku._src.data_structures", "FlatMapping"): dict,
    ("haiku._src.data_structures", "FlatMap"): dict,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _ParameterReader(pickle.Unpickler):
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
        tree = _ParameterReader(io.BytesIO(data)).load()
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    # A damaged or forged pickle raises any of a dozen exception classes; the message must name
    # the file in every case.
    except Exception as error:
        raise CheckpointError(f"{path} is not a readable pickle: {error}") from error
    if not isinstance(tree, Mapping) or not tree:
        raise CheckpointError(f"{path} holds a {type(tree).__name__}, not module -> name -> array")
    if set(tree) == {"params", "state"} and isinstance(tree["state"], Mapping):
        state = _flatten_tree(tree["state"], path, kinds="fiu") if tree["state"] else {}
        return {**_flatten_tree(tree["params"], path, kinds="f"), **state}
    return _flatten_tree(tree, path, kinds="f")


def _flatten_tree(tree: Any, path: Path, *, kinds: str) -> dict[str, NDArray[Any]]:
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
