"""The only place that calls ``torch.load``: nothing is executed, and no file can crash it."""

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perceivers.errors import CheckpointError, plain_reason
from perceivers.reading import open_file
from perceivers.text_names import is_writable, show_name

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"  # files of torch before 1.6


def read_pickled(path: Path, *, intact: bool = False) -> Any:
    """Read a file of ``torch.save`` as tensors and plain values.

    Args:
        path: The file.
        intact: Only the current format, and every checksum must be right. Files of other programs
            may have none.

    Raises:
        CheckpointError: The file is missing, damaged, or asks for anything but tensors and plain
            values.
    """
    if not is_writable(str(path)):
        raise CheckpointError(
            f"{show_name(str(path))} has a name that is no UTF-8, which torch cannot open; rename "
            f"the folder or the file"
        )
    with open_file(path, error=CheckpointError) as file:
        head = file.read(len(_ZIP))
    try:
        is_zip = head == _ZIP
        if not is_zip and (intact or not head.startswith(_PICKLE)):
            raise CheckpointError("it does not begin as torch.save writes files")
        if is_zip:
            _check_archive(path, intact)
        # Without the map, torch would read a storage beyond what the file holds of it.
        room = _Room(path.stat().st_size, copy=is_zip)
        return torch.load(path, map_location=room, weights_only=True, mmap=is_zip)
    except Exception as error:
        # Torch's unpickler raises whatever its operations raise on bytes that make no sense:
        # IndexError, AttributeError, struct.error, MemoryError, RecursionError ...
        raise CheckpointError(
            f"{path} is damaged or was not written by torch.save (nothing in it was executed): "
            f"{plain_reason(error)}"
        ) from error


class _Room:
    """Places storages in memory of their own, all together no more than the file holds.

    That memory is NumPy's, which torch cannot enlarge: it would, without a word, for a tensor whose
    shape is larger than its storage.

    Args:
        size: Of the file in bytes.
        copy: Storages are views of the file, which may be written again while they are in use;
            else they are filled later.
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
    """Refuse entries that cannot be mapped as they are stored, and wrong checksums."""
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
    """Refuse tensors that are not what they declare: sparse, without data, or larger than it.

    Args:
        source: Names the file in the message.
        tensors: By name.

    Raises:
        CheckpointError: Names the first such tensor.
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
