"""Reading tensors by name from files of PyTorch and of safetensors, without executing anything."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from perceivers.checkpoints.loading import read_tensors
from perceivers.checkpoints.pickled import check_dense, read_pickled
from perceivers.checkpoints.torch_archive import Inert, StoredTensor, TorchArchive, is_archive
from perceivers.checkpoints.weight_sets import (
    Candidate,
    Entries,
    choose_weights,
    find_sets,
    strip_wrappers,
)
from perceivers.errors import CheckpointError

PICKLED = {".pth", ".pt", ".bin", ".ckpt"}
TENSOR_FILES = {*PICKLED, ".safetensors"}
# Under which training scripts keep the weights, beside optimizers and counters.
WRAPPERS = ("model_state", "state_dict", "model", "model_state_dict")


def is_tensor_file(path: Path) -> bool:
    """Return whether a file's name says that it holds tensors; ``x.pth.tar`` does, too."""
    suffixes = path.suffixes
    return path.suffix in TENSOR_FILES or (suffixes[-1:] == [".tar"] and suffixes[-2] in PICKLED)


def read_tensor_file(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a ``.pth``, ``.pt``, ``.bin``, ``.ckpt`` or ``.safetensors`` file.

    Of a training script's file they are those under the first of ``WRAPPERS``, or at the top.

    Raises:
        CheckpointError: The file is missing, damaged, or holds no tensors by name.
    """
    if path.suffix == ".safetensors":
        return strip_wrappers(read_tensors(path))[0]
    if not is_archive(path):
        return strip_wrappers(_read_old(path))[0]
    with TorchArchive(path) as archive:
        sets = find_sets(archive.content)
        name = next((name for name in (*WRAPPERS, "") if name in sets), None)
        if name is None:
            raise _without_tensors(path, archive.content, sets)
        return _load(archive, strip_wrappers(sets[name])[0])


def read_known_weights(
    path: Path, wanted: str | None, tells: Callable[[Mapping[str, Any]], bool]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the weights of a model, wherever a file keeps them, and what was left out.

    Args:
        path: A file as for ``read_tensor_file``.
        wanted: ``raw``, ``ema`` or the name of a set; None takes the raw one.
        tells: Whether names of tensors are known. Where none are, all tensors are returned.

    Raises:
        CheckpointError: The file is missing, damaged, holds no tensors by name, or several models.
        ConfigError: It holds no such set.
    """
    if path.suffix == ".safetensors" or not is_archive(path):
        tensors = read_tensors(path) if path.suffix == ".safetensors" else _read_old(path)
        chosen = choose_weights({"": tensors}, wanted, tells, str(path))
        return (dict(chosen.entries), chosen.notes) if chosen else (tensors, ())
    with TorchArchive(path) as archive:
        sets = find_sets(archive.content)
        chosen = choose_weights(sets, wanted, tells, str(path))
        if chosen is not None:
            notes = (*chosen.notes, *_describe_rest(archive.content, chosen))
            return _load(archive, chosen.entries), notes
        if not sets:
            raise _without_tensors(path, archive.content, sets)
        largest = max(sets.values(), key=len)
        return _load(archive, largest), ()


def read_folder_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a folder as Hugging Face lays it out; safetensors are preferred.

    Raises:
        CheckpointError: There is no file of weights, or it is damaged.
    """
    return read_tensor_file(find_folder_file(folder))


def find_folder_file(folder: Path) -> Path:
    """Return the file of weights of such a folder.

    Raises:
        CheckpointError: There is none.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(
        f"{folder} holds neither model.safetensors nor pytorch_model.bin; download one of them"
    )


def _load(archive: TorchArchive, entries: Entries) -> dict[str, Tensor]:
    tensors = {k: v for k, v in entries.items() if isinstance(v, StoredTensor)}
    return {name: archive.load(tensor) for name, tensor in tensors.items()}


def _describe_rest(content: Any, chosen: Candidate) -> list[str]:
    """Say what else a training script's file holds."""
    if not isinstance(content, Mapping) or not chosen.name:
        return []
    others = [str(k) for k in content if str(k) != chosen.name.partition(".")[0]]
    if not others or any(isinstance(value, StoredTensor) for value in content.values()):
        return []
    return [f"the weights are those under {chosen.name!r}; not used: {', '.join(others[:8])}"]


def _without_tensors(path: Path, content: Any, sets: Mapping[str, Entries]) -> CheckpointError:
    """Say what a file holds instead of tensors by name."""
    if isinstance(content, Inert):
        held = f"a {type(content).origin}"
    elif isinstance(content, Mapping):
        listed = ", ".join(map(str, list(sets or content)[:8])) or "nothing"
        held = f"a dict of {listed}"
    else:
        held = f"a {type(content).__name__}"
    return CheckpointError(
        f"{path} holds {held}, not tensors by name; save the weights with "
        f"torch.save(model.state_dict(), PATH)"
    )


def _read_old(path: Path) -> dict[str, Tensor]:
    """Read a file of before PyTorch 1.6 as weights only: nothing that it names is called."""
    try:
        found = read_pickled(path)
    except CheckpointError as error:
        raise CheckpointError(
            f"{path} is not a complete file of weights, or one of before PyTorch 1.6 that holds "
            f"more than tensors; copy it again from its source, or save it again there with "
            f"torch.save(model.state_dict(), PATH) ({error})"
        ) from error
    for name in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = dict(found[name])
    tensors = isinstance(found, Mapping) and {
        name: value for name, value in found.items() if isinstance(value, Tensor)
    }
    if not tensors:
        raise _without_tensors(path, found, {})
    check_dense(str(path), tensors)
    return tensors
