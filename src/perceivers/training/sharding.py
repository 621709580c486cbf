"""Sharded tensors (FSDP): local part, whole tensor, and training state in parts."""

import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from perceivers.errors import CheckpointError, ConfigError, plain_reason
from perceivers.models.hiera.encoder import HieraBlock
from perceivers.nn.blocks import PerceiverBlock, SelfAttentionLayer
from perceivers.reading import check_file
from perceivers.tasks import Task

# Modules whose parameters are gathered, used and freed together. All their parameters are used in
# ``forward`` only; those of adapters, positions and decoders are also used from outside, so they
# belong to the unit of the whole task.
UNITS = (PerceiverBlock, SelfAttentionLayer, HieraBlock)


def shard_task(task: Task, mesh: DeviceMesh) -> Task:
    """Shard the parameters of every block, and those outside of blocks, over the processes."""
    # All processes must shard the same values, whatever each of them has initialised.
    for tensor in [*task.parameters(), *task.buffers()]:
        torch.distributed.broadcast(tensor.detach(), src=0)
    for module in reversed(list(task.modules())):
        if isinstance(module, UNITS):
            fully_shard(module, mesh=mesh)
    fully_shard(task, mesh=mesh)
    # Evaluation calls ``evaluate``, which uses the model or parts of it, not ``forward``.
    register_fsdp_forward_method(task, "evaluate")
    return task


def free_gathered(task: nn.Module) -> None:
    """Free the parameters gathered by an evaluation, since the sharded ones may change next."""
    if isinstance(task, FSDPModule):
        task.reshard()


def own_part(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gather_whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor; all processes must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Shard a tensor like another one of the same shape, without communication."""
    if isinstance(tensor, DTensor) or not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    tensor = tensor.to(like.device)
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


# -- Training state in parts: each process writes its own; any number of processes can read them -
#
# The files are safetensors, so that reading them executes no code.

try:
    from torch.distributed.checkpoint.hf_storage import (
        HuggingFaceStorageReader,
        HuggingFaceStorageWriter,
    )
except ImportError:  # an older torch
    HuggingFaceStorageReader = HuggingFaceStorageWriter = None


def check_parts_known() -> None:
    """Check before training that this version of torch can write state in parts.

    Raises:
        ConfigError: It cannot.
    """
    if HuggingFaceStorageWriter is None:
        raise ConfigError(
            f"strategy fsdp needs torch 2.9 or later, which writes safetensors in parts; found "
            f"{torch.__version__}; upgrade it, or use --strategy ddp"
        )


def begin_parts(
    folder: Path, tensors: Mapping[str, Tensor], group: ProcessGroup | None
) -> "Future[Any]":
    """Copy this process's part of tensors and start writing it; all processes must call this.

    Args:
        folder: Folder to write to.
        tensors: Tensors by name.
        group: Group of all processes, not used for anything else while parts are written.

    Returns:
        Future for ``finish_parts``; the copies are complete.
    """
    assert HuggingFaceStorageWriter is not None
    state: dict[str, Any] = {
        # Replicated tensors, such as step counters, are written by one process only.
        name: tensor if _is_split(tensor) else gather_whole(tensor)
        for name, tensor in tensors.items()
    }
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    writing = async_save(state, storage_writer=writer, process_group=group)
    assert isinstance(writing, Future)  # the copy is done
    return writing


def finish_parts(writing: "Future[Any]") -> None:
    """Wait until all processes have written their parts.

    Raises:
        OSError: A process could not write.
    """
    try:
        writing.result()
    except CheckpointException as error:
        for failure, _ in error.failures.values():
            if isinstance(failure, OSError):
                raise failure from error
        raise


def _is_split(tensor: Tensor) -> bool:
    placements = getattr(tensor, "placements", ())
    return any(placement.is_shard() for placement in placements)


def read_parts(
    folder: Path, shapes: Mapping[str, Sequence[int]], likes: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Read tensors, each sharded like its counterpart in ``likes``, without communication.

    Args:
        folder: Folder written by ``begin_parts``.
        shapes: Shapes of the whole tensors by name.
        likes: Tensor that each is to be loaded into, by name; tensors that are missing here or have
            another shape are read whole.

    Raises:
        CheckpointError: A file is missing or damaged.
    """
    assert HuggingFaceStorageReader is not None
    reader = HuggingFaceStorageReader(str(folder))
    try:
        for part in sorted(folder.glob("*.safetensors")):
            # torch's reader trusts offsets and sizes in a header; safetensors checks them.
            check_file(part, error=CheckpointError)
            with safe_open(part, framework="pt"):
                pass
        entries = reader.read_metadata().state_dict_metadata
        lost = sorted(
            name
            for name, shape in shapes.items()
            if name not in entries or not _is_whole(entries[name], shape)
        )
        if lost:
            raise CheckpointError(
                f"{folder} is not a complete training checkpoint: {len(lost)} of {len(shapes)} "
                f"tensors are missing or too short, such as {lost[0]}"
            )
        state: dict[str, Any] = {
            name: _room_for(tuple(shape), _kind(entries[name]), likes.get(name))
            for name, shape in shapes.items()
        }
        with warnings.catch_warnings():
            # A single process may read what several have written.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(state, storage_reader=reader, no_dist=True)
    except CheckpointError:
        raise
    except Exception as error:
        # torch's reader parses headers by hand: KeyError, TypeError, MemoryError, struct.error ...
        raise CheckpointError(
            f"{folder} is not a complete training checkpoint: {plain_reason(error)}"
        ) from error
    return state


def _is_whole(entry: Any, shape: Sequence[int]) -> bool:
    """Return whether a tensor has the expected shape and no part of it is missing.

    The last part alone gives the shape; without the others, elements would stay undefined.
    """
    held = sum(prod(chunk.sizes) for chunk in entry.chunks)
    return list(entry.size) == list(shape) and held >= prod(shape)


def _room_for(shape: tuple[int, ...], kind: torch.dtype, like: Tensor | None) -> Tensor:
    if like is not None and tuple(like.shape) == shape:
        return torch.empty_like(like, dtype=kind, requires_grad=False)
    return torch.empty(shape, dtype=kind)


def _kind(entry: Any) -> torch.dtype:
    return entry.properties.dtype
