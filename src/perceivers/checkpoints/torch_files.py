"""Reading tensors by name from files of PyTorch and of safetensors, without executing anything."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perceivers.checkpoints.loading import read_tensors
from perceivers.errors import CheckpointError

PICKLED = {".pth", ".pt", ".bin"}
TENSOR_FILES = {*PICKLED, ".safetensors"}
# Under which training scripts keep the weights, beside optimizers and counters.
WRAPPERS = ("model_state", "state_dict", "model")


def read_tensor_file(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a ``.pth``, ``.pt``, ``.bin`` or ``.safetensors`` file by name.

    Raises:
        CheckpointError: The file is missing, damaged, or holds anything but tensors by name.
    """
    return read_tensors(path) if path.suffix == ".safetensors" else read_pickled_tensors(path)


def read_pickled_tensors(path: Path) -> dict[str, Tensor]:
    """Read a file of ``torch.save`` as weights only: nothing that it names is called.

    Raises:
        CheckpointError: The file is missing, damaged, or holds anything but tensors by name.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{path} is not a complete file of weights ({reason}); copy it again from its source"
        ) from error
    found = _unwrap(found)
    if not isinstance(found, dict) or not all(isinstance(x, Tensor) for x in found.values()):
        raise CheckpointError(f"{path} holds a {type(found).__name__}, not tensors by name")
    return found


def _unwrap(found: Any) -> Any:
    """Return what is under the first of the known names, or everything."""
    if isinstance(found, Mapping):
        for name in WRAPPERS:
            if isinstance(found.get(name), Mapping):
                return dict(found[name])
    return found


def read_folder_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a folder as Hugging Face lays it out; safetensors are preferred.

    Raises:
        CheckpointError: There is no file of weights, or it is damaged.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return read_tensor_file(folder / name)
    raise CheckpointError(
        f"{folder} holds neither model.safetensors nor pytorch_model.bin; download one of them"
    )
